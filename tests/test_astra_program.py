"""The adapter and a program that behaves as ASTRA-sim does (astra_stand_in.py): its logs, options, limits, and how it ends."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from astra_stand_in import install
from program import environment, start
from test_network_astrasim import DURATIONS, PIPELINE, computing, load

from rapid_dse.command import guarded
from rapid_dse.common import long_work
from rapid_dse.events.astrasim import process as astra_process
from rapid_dse.events.astrasim.adapter import AstraSimEngine
from rapid_dse.interconnect.engine import RunResult
from rapid_dse.interconnect.system import SystemSettings
from rapid_dse.interconnect.tables import CollectiveCase
from rapid_dse.interconnect.topology import Topology
from rapid_dse.trace.graph import Graph, GraphBuilder

pytest.importorskip("chakra")
DATA = Path(__file__).parent / "data" / "astrasim"
AWARE = "congestion_aware"


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Upstream's congestion-aware program, which dies in its destructors with lines unwritten, and whose logs are small."""
    return install(tmp_path_factory.mktemp("upstream"), dies=True, log_bytes=2000)


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fork that honours faulty links and runs several dimensions, under a name that says nothing."""
    return install(tmp_path_factory.mktemp("fork"), name="astra", fork=True)


def on(program: Path, graph: Graph, topology: Topology, system: SystemSettings | None = None, network: str = AWARE) -> RunResult:
    return AstraSimEngine.find(program, 60).run(graph, topology, system or SystemSettings(), network)


def pipeline(program: Path, network: str = AWARE, timeout_s: float = 60.0) -> RunResult:
    file, _ = load(PIPELINE)
    topology, system = Topology.from_json(file.network), SystemSettings.from_json(file.system)
    return AstraSimEngine.find(program, timeout_s).run(file.graph, topology, system, network)


def calls(program: Path) -> list[str]:
    return (program.parent / "calls").read_text().splitlines()


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_no_line_is_lost_and_no_log_goes_over_to_another_file(upstream: Path) -> None:
    file, data = load(PIPELINE)
    result = pipeline(upstream)
    want = data["results"]["aware"]
    assert result.finish_ns.tolist() == [want["finish_ns"][str(rank)] for rank in range(4)]
    times = zip(file.graph.rank.tolist(), file.graph.id.tolist(), result.start_ns.tolist(), result.end_ns.tolist(), strict=True)
    assert all(want["node_times_ns"][str(rank)][str(node)] == [begin, end] for rank, node, begin, end in times)


def test_compute_nodes_take_their_ns(upstream: Path) -> None:
    result = on(upstream, computing(DURATIONS), Topology.of(["Switch"], [2], [50], [500]))
    assert (result.end_ns - result.start_ns).tolist() == 2 * DURATIONS


def test_messages_whose_tags_are_alike_to_the_program_stay_apart(upstream: Path) -> None:
    """Two messages of tags 7 and 500,000,007: who waits for the second must not get the first, 1 ms earlier."""
    graph = GraphBuilder(2)
    graph.send(0, 0, 1, 4096, 7)
    graph.compute(0, 1, 1_000_000, [0])
    graph.send(0, 2, 1, 4096, 500_000_007, [1])
    graph.receive(1, 0, 0, 4096, 500_000_007)
    graph.receive(1, 1, 0, 4096, 7)
    hop = int(500 + 4096 / (50 * 1.073741824))
    result = on(upstream, graph.build(), Topology.of(["FullyConnected"], [2], [50], [500]))
    assert result.end_ns.tolist() == [hop, hop + 1_000_000, 2 * hop + 1_000_000, 2 * hop + 1_000_000, hop]


def test_queues_of_a_dimension_are_passed_on(tmp_path: Path) -> None:
    """An all-reduce in 8 chunks, 4 at a time: with 4 queues it uses half of them, and takes twice as long as with one."""
    found = [r for r in rows("collectives.csv") if (r["backend"], r["npus"], r["queues_per_dim"]) == ("unaware", "8", "4")]
    row = next(row for row in found if (row["collective"], row["chunks"], row["active_chunks"]) == ("ALL_REDUCE", "8", "4"))
    case, program = CollectiveCase.from_row(row), install(tmp_path, "congestion_unaware")
    result = on(program, case.graph(), case.topology, case.system, "congestion_unaware")
    assert (result.makespan_ns, result.finish_ns.min()) == (float(row["cycles_ns"]), float(row["cycles_min_rank"]))
    assert "--num-queues-per-dim=4" in calls(program)[-1]


def faulty(npus: str, text: str) -> tuple[CollectiveCase, dict[str, str]]:
    row = next(r for r in rows("faulty_links.csv") if (r["npus"], r["faulty_links"], r["chunks"]) == (npus, text, "1"))
    return CollectiveCase.from_row(row), row


@pytest.mark.parametrize(("npus", "links"), [("8", "[[0, 1, 0.25]]"), ("4x4", "[[0, 4, 0.5]]"), ("4x4", "[[0, 4, 0.0]]")])
def test_a_fork_that_was_seen_to_honour_faulty_links_is_given_them(npus: str, links: str, fork: Path) -> None:
    case, row = faulty(npus, links)
    result = on(fork, case.graph(), case.topology, case.system)
    assert (result.makespan_ns, result.finish_ns.min()) == (float(row["cycles_ns"]), float(row["cycles_min_rank"]))


def test_a_program_is_asked_once(fork: Path) -> None:
    case, _ = faulty("8", "[[0, 1, 0.5]]")
    on(fork, case.graph(), case.topology, case.system)
    before = len(calls(fork))
    on(fork, case.graph(), case.topology, case.system)
    assert len(calls(fork)) == before + 1


def test_faulty_links_are_never_given_to_a_program_that_ignores_them(upstream: Path) -> None:
    case, _ = faulty("8", "[[0, 1, 0.25]]")
    graph = GraphBuilder(8)
    for rank in range(8):
        graph.compute(rank, 0, 5)
        graph.compute(rank, 1, 5)
    with pytest.raises(ValueError, match=r"ignores them, as upstream's does: .* 581,528 ns healthy and 581,528 with .*engine=builtin"):
        on(upstream, graph.build(), case.topology)
    assert not any("8 ranks, 16 nodes" in call for call in calls(upstream))


def test_one_dimension_is_checked_before_the_run(upstream: Path) -> None:
    topology = Topology.of(["FullyConnected", "Switch"], [2, 4], [50, 25], [500, 500])
    graph = CollectiveCase("congestion_aware", topology, SystemSettings(), "ALL_GATHER", 4096).graph()
    with pytest.raises(ValueError, match=r"a network of 2 dimensions: .*upstream's congestion-aware network has one.* only one dimension"):
        on(upstream, graph, topology)
    assert "16 ranks, 16 nodes" in calls(upstream)[-1]  # what was asked, not what was to run


def test_a_program_of_the_other_network_is_known_by_its_answer(tmp_path: Path) -> None:
    program = install(tmp_path, "congestion_unaware", name="astra")
    with pytest.raises(ValueError, match=r"network is congestion_aware, .* is the congestion_unaware one: .* takes 7,990 ns on it"):
        pipeline(program)
    assert len(calls(program)) == 1
    assert pipeline(program, "congestion_unaware").makespan_ns > 0
    named = program.rename(tmp_path / "AstraSim_Analytical_Congestion_Aware")
    with pytest.raises(ValueError, match="is the congestion_aware one"):
        pipeline(named, "congestion_unaware")


@pytest.mark.parametrize(
    ("spoils", "spares", "message"),
    [
        ("finishes late", 1, "contradicts itself"),
        ("finishes late", 0, "contradicts itself"),
        ("loses a rank", 1, "exit code 3 and no finished line of rank 3"),
        ("has no log", 1, "log is cut off: it has no end of node"),
        ("cuts its log", 1, "log is cut off: it has no end of node"),
    ],
)
def test_a_program_that_goes_wrong_is_an_error(spoils: str, spares: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(install(tmp_path, spoils=spoils, spares=spares))


def test_a_program_that_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="exit code 0 and no finished line of rank 0; it printed nothing"):
        pipeline(Path("/bin/true"))


@pytest.fixture
def sleeper(tmp_path: Path) -> tuple[Path, Path]:
    """A program that starts another one and waits for it; and the file that names that one's process."""
    pid, program = tmp_path / "pid", tmp_path / "astra"
    program.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {pid}.part\nmv {pid}.part {pid}\nwait\n")
    program.chmod(0o755)
    return program, pid


def ended(pid: Path) -> bool:
    """Whether the process that a file names ends within 5 s."""
    state = Path("/proc") / pid.read_text().strip() / "stat"
    for _ in range(100):
        if not state.exists() or state.read_text().split()[2] == "Z":
            return True
        time.sleep(0.05)
    return False


def until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_the_binary_started_ends_when_its_time_is_up(sleeper: tuple[Path, Path]) -> None:
    program, pid = sleeper
    with pytest.raises(ValueError, match=r"did not end within 0\.5 s; it printed nothing"):
        pipeline(program, timeout_s=0.5)
    assert ended(pid)


def test_a_binary_that_runs_long_is_told_of(
    sleeper: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(astra_process, "EVERY", 0.1)
    with long_work.listening(), pytest.raises(ValueError, match=r"did not end within 0\.5 s"):
        pipeline(sleeper[0], timeout_s=0.5)
    said = capsys.readouterr().err.splitlines()
    assert 2 <= len(said) <= 4
    assert "(backend.astrasim.timeout=0.5)" in said[0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_binary_too(number: int, code: int, sleeper: tuple[Path, Path], tmp_path: Path) -> None:
    program, pid = sleeper
    (tmp_path / "temporary").mkdir()
    command = ["graph", str(PIPELINE), "--engine", "astrasim", "--binary", str(program), "--out", "out.json"]
    process = start(tmp_path, *command, module="rapid_dse.network", env=environment() | {"TMPDIR": str(tmp_path / "temporary")})
    until(pid.exists)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert len(err.strip().splitlines()) == 1
    assert ended(pid)
    assert list((tmp_path / "temporary").iterdir()) == []


WORKER = """
import sys
from pathlib import Path
from rapid_dse.interconnect.system import SystemSettings
from rapid_dse.interconnect.topology import Topology
from rapid_dse.events.astrasim.process import simulate
from rapid_dse.trace.graph import GraphBuilder
graph = GraphBuilder(1)
graph.compute(0, 0, 5)
simulate(Path(sys.argv[1]), 60, graph.build(), Topology.of(["Switch"], [1], [50], [500]), SystemSettings())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_is_killed_takes_its_binary_along(number: int, tmp_path: Path) -> None:
    """Without the command around it. What SIGKILL leaves is the temporary folder and what the binary itself has started."""
    program, pid = tmp_path / "astra", tmp_path / "pid"
    program.write_text(f"#!/bin/sh\necho $$ > {pid}.part\nmv {pid}.part {pid}\nexec sleep 60\n")
    program.chmod(0o755)
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(program)], env=environment() | {"TMPDIR": str(tmp_path)})
    until(pid.exists)
    process.send_signal(number)
    assert process.wait(timeout=60) == -number
    assert ended(pid)
    assert (number == signal.SIGKILL) is bool(list(tmp_path.glob("astrasim-*")))


def test_a_command_undoes_what_is_under_way_when_it_is_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    undone = []

    def command(_: Any) -> int:
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # a second one does not break in
            undone.append(True)
        return 0

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
    try:
        assert guarded(command, []) == 129
    finally:
        signal.signal(signal.SIGHUP, before)
    assert undone == [True]
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
