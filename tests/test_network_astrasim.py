"""What the adapter makes of ASTRA-sim's output, what it refuses to run, Chakra files, the real program where there is one."""

from __future__ import annotations

import contextlib
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapid_dse.events import network_command
from rapid_dse.events.astrasim.adapter import HOW_TO_GET, AstraSimEngine, engine_for
from rapid_dse.events.astrasim.files import read_output, write_inputs
from rapid_dse.events.astrasim.limits import check_for_astrasim
from rapid_dse.interconnect.engine import RunResult
from rapid_dse.interconnect.system import SystemSettings
from rapid_dse.interconnect.topology import Topology
from rapid_dse.network import main
from rapid_dse.trace.chakra import LONGEST_NS, TAGS, load_schema, read_traces, told_apart, trace_path, write_traces
from rapid_dse.trace.graph import Graph, GraphBuilder
from rapid_dse.trace.graph_file import GraphFile, parse_graph

GRAPHS = sorted((Path(__file__).parent / "data" / "astrasim" / "graphs").glob("*.json"))
PIPELINE = next(path for path in GRAPHS if path.stem == "g04_gpipe_fwd_ring4")
DEADLOCK = next(path for path in GRAPHS if "DEADLOCK" in path.stem)


def load(path: Path) -> tuple[GraphFile, dict[str, Any]]:
    data = json.loads(path.read_text())
    return parse_graph(data), data


def recorded(data: dict[str, Any], mode: str = "aware") -> tuple[list[str], list[str]]:
    """The finished lines and the log's lines that ASTRA-sim wrote of a run."""
    results = data["results"][mode]
    lines = [f"sys[{r}] finished, {t} cycles, exposed communication 0 cycles." for r, t in results["finish_ns"].items()]
    steps = [
        f"[workload] [debug] {kind},sys->id={rank}, tick={time}, node->id={node}, x"
        for rank, nodes in results["node_times_ns"].items()
        for node, times in nodes.items()
        for kind, time in zip(("issue", "callback"), times, strict=True)
        if time is not None
    ]
    return lines, steps


def read(graph: Graph, lines: list[str], steps: list[str], code: int = 0) -> RunResult:
    return read_output(graph, code, "\n".join(lines), "", iter(steps))


@pytest.mark.parametrize("mode", ["aware", "unaware"])
@pytest.mark.parametrize("path", GRAPHS, ids=lambda p: p.stem)
def test_recorded_output_gives_the_recorded_times(path: Path, mode: str) -> None:
    file, data = load(path)
    result = read(file.graph, *recorded(data, mode))
    report = network_command.result_to_json(file.graph, result, links=False)
    for key in ("node_times_ns", "finish_ns", "makespan_ns"):
        assert report[key] == data["results"][mode][key]
    assert result.deadlocked is not data["results"][mode]["ok"]
    if result.deadlocked:
        assert {file.graph.node_name(i) for i in result.waiting} == {f"node 2 of rank {r}" for r in range(8)}


def test_a_run_that_dies_in_its_destructors_is_a_success_by_its_log() -> None:
    file, data = load(PIPELINE)
    lines, steps = recorded(data)
    assert read(file.graph, lines, steps, code=-6).makespan_ns == 2570250
    assert read(file.graph, lines[:1], [*steps, *lines], code=-6).makespan_ns == 2570250


def spoiled(lines: list[str], steps: list[str], what: str) -> tuple[list[str], list[str]]:
    last = max(i for i, step in enumerate(steps) if "callback,sys->id=3," in step)
    if what == "no line":
        return lines[:-1], steps
    if what == "no end":
        return lines, steps[:last] + steps[last + 1 :]
    if what == "half a line":
        return lines, [*steps[:-1], steps[-1][:-3]]
    if what == "another finish":
        return [line.replace("finished, 2570250", "finished, 2570251") for line in lines], steps
    if what == "two finishes":
        return [*lines, lines[-1].replace("finished, ", "finished, 1")], steps
    if what == "two ends":
        return lines, [*steps, steps[last].replace("tick=", "tick=1")]
    if what == "no start":
        return lines, [step for step in steps if "issue,sys->id=3," not in step]
    assert what == "another node"
    return lines, [*steps, steps[last].replace("node->id=", "node->id=77")]


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        ("no line", 0, "exit code 0 and no finished line of rank 3; its last lines: .*finished"),
        ("no line", 3, "exit code 3 and no finished line of rank 3"),
        ("no end", 0, "log is cut off: it has no end of node"),
        ("half a line", 0, "log is cut off: it has no end of node"),
        ("another finish", 0, "contradicts itself: rank . finished at 2570251 ns, its last node ended at 2570250 ns"),
        ("two finishes", 0, "another time of one than before"),
        ("two ends", 0, "log has two times"),
        ("no start", 0, "but not start before"),
        ("another node", 0, "which the graph does not have"),
    ],
)
def test_output_that_does_not_hold_together_is_an_error(what: str, code: int, message: str) -> None:
    file, data = load(PIPELINE)
    with pytest.raises(ValueError, match=message):
        read(file.graph, *spoiled(*recorded(data), what), code)


def test_receives_that_wait_for_ever_are_a_deadlock_only_where_the_program_ended_well() -> None:
    _, data = load(PIPELINE)
    data["ranks"]["3"].append({"id": 99, "type": "recv", "src": 0, "dst": 3, "size": 8, "tag": 5, "deps": []})
    data["results"]["aware"]["node_times_ns"]["3"]["99"] = [0, None]
    del data["results"]["aware"]["finish_ns"]["3"]
    file = parse_graph(data)
    result = read(file.graph, *recorded(data))
    assert [file.graph.node_name(i) for i in result.waiting] == ["node 99 of rank 3"]
    np.testing.assert_array_equal(result.waiting, network_command.builtin_engine(file, "congestion_aware").waiting)
    with pytest.raises(ValueError, match="exit code 1 and no finished line of rank 3"):
        read(file.graph, *recorded(data), code=1)


def test_missing_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("ASTRA_SIM_BIN", raising=False)
    arguments = ["graph", str(PIPELINE), "--engine", "astrasim", "--out", str(tmp_path / "out.json")]
    assert main(arguments) == 2
    assert "no ASTRA-sim binary is named" in capsys.readouterr().err
    assert main([*arguments, "--binary", str(tmp_path / "none")]) == 2
    assert "is no file that can be run" in capsys.readouterr().err


@pytest.mark.parametrize("path", [p for p in GRAPHS if "DEADLOCK" not in p.stem], ids=lambda p: p.stem)
def test_real_program_agrees_node_by_node(path: Path) -> None:
    if not os.environ.get("ASTRA_SIM_BIN"):
        pytest.skip(f"ASTRA_SIM_BIN names no binary: {HOW_TO_GET}")
    file, _ = load(path)
    network = AstraSimEngine.find().network or "congestion_aware"
    real, own = engine_for(None)(file, network), network_command.builtin_engine(file, network)
    np.testing.assert_array_equal(real.start_ns, own.start_ns)
    np.testing.assert_array_equal(real.end_ns, own.end_ns)


def test_checks_before_a_run() -> None:
    file, _ = load(PIPELINE)
    topology, system = Topology.from_json(file.network), SystemSettings.from_json(file.system)
    collective, _ = load(next(p for p in GRAPHS if p.stem.startswith("g06_a2a_direct")))
    ring = Topology.from_json(collective.network)
    settings = SystemSettings.from_json({**collective.system, "endpoint-delay": 0})
    derated, failed = (replace(topology, faulty_links=((0, 1, factor),)) for factor in (0.5, 0.0))
    world = load(DEADLOCK)[0]
    refused: list[tuple[Graph, Topology, SystemSettings, str, str]] = [
        (file.graph, topology, system, "fair", "ASTRA-sim runs congestion_aware or"),
        (collective.graph, ring, settings, "congestion_aware", "endpoint-delay is 0 and node"),
        (collective.graph, Topology.mesh([8], 50, 500), system, "congestion_aware", "Line: ASTRA-sim has Ring"),
        (file.graph, derated, system, "congestion_unaware", "faulty_links: .* does not see them"),
        (file.graph, failed, system, "congestion_aware", "factor 0 in a network of one dimension"),
        (file.graph, ring, system, "congestion_aware", "the graph has 4 ranks, npus_count makes 8"),
        (world.graph, Topology.from_json(world.network), system, "congestion_aware", "give the world a group id of its own"),
    ]
    for *given_run, message in refused:
        with pytest.raises(ValueError, match=message):
            check_for_astrasim(*given_run)  # type: ignore[arg-type]


def mixed(order: str, size: int = 1 << 20) -> Graph:
    """Ranks 0 and 1 run collectives on a group of theirs (g), all run them on the world (w)."""
    graph = GraphBuilder(4, {1: [0, 1]})
    for rank in range(4):
        for number, who in enumerate(order):
            before = [number - 1] if number else []
            if who == "w":
                graph.collective(rank, number, "ALL_REDUCE", size, None, before)
            elif rank < 2:
                graph.collective(rank, number, "ALL_REDUCE", size, 1, before)
            else:
                graph.compute(rank, number, 1, before)
    return graph.build()


@pytest.mark.parametrize(("order", "deadlocks"), [("gw", True), ("wg", False), ("wgw", True), ("ww", False)])
def test_collectives_of_the_world_are_refused_just_where_they_deadlock(order: str, deadlocks: bool) -> None:
    graph, topology, system = mixed(order), Topology.of(["Switch"], [4], [50], [500]), SystemSettings()
    file = GraphFile(graph, {"topology": ["Switch"], "npus_count": [4], "bandwidth": [50], "latency": [500]}, {})
    assert network_command.builtin_engine(file, "congestion_aware").deadlocked is deadlocks
    with pytest.raises(ValueError, match="of its own") if deadlocks else contextlib.nullcontext():
        check_for_astrasim(graph, topology, system, "congestion_aware")


def test_files_hold_what_the_program_reads(tmp_path: Path) -> None:
    groups = {1: [0, 1], 2: [3], 3: [2, 3]}  # no collective runs on 2, and a group of one hangs the program
    graph = GraphBuilder(4, groups)
    for rank in range(4):
        graph.collective(rank, 0, "ALL_REDUCE", 1 << 20, 1 if rank < 2 else 3)
    topology = Topology.of(["Ring"], [4], [50], [500])
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one = write_inputs(tmp_path / "a", graph.build(), topology, SystemSettings())
    assert json.loads((tmp_path / "a" / "comm_group.json").read_text()) == {"1": [0, 1], "3": [2, 3]}
    assert not any("num-queues" in option for option in one)
    several = write_inputs(tmp_path / "b", graph.build(), topology, SystemSettings(queues_per_dim=4))
    assert several[-1] == "--num-queues-per-dim=4"


# 15, 30, 60 … are those whose 1000 operations a ns come out 1 ns short; the others are the bounds of what is kept.
DURATIONS = [1, 2, 15, 30, 60, 63, 245, 65_000, 1_000_000_007, LONGEST_NS - 1]


def computing(durations: list[int]) -> Graph:
    graph = GraphBuilder(2)
    for rank in range(2):
        for number, nanoseconds in enumerate(durations):
            graph.compute(rank, number, nanoseconds, [number - 1] if number else [])
    return graph.build()


def test_the_program_computes_for_each_durations_ns(tmp_path: Path) -> None:
    """By the program's rule: floor(num_ops / 1e12 · 1e9) ns in doubles."""
    schema = load_schema()
    many = [*DURATIONS, *range(3, 2000), *(37**k for k in range(2, 9))]
    write_traces(computing(many), tmp_path / "trace")
    content, found = trace_path(tmp_path / "trace", 1).read_bytes(), []
    at = content[0] + 1
    while at < len(content):
        node = schema.Node.FromString(content[at + 1 : at + 1 + content[at]])
        found += [math.floor(attr.int64_val / 1e12 * 1e9) for attr in node.attr if attr.name == "num_ops"]
        at += 1 + content[at]
    assert found == many


@pytest.mark.parametrize("duration", [0, LONGEST_NS])
def test_a_duration_that_the_program_does_not_keep_is_refused(duration: int, tmp_path: Path) -> None:
    graph = computing([5])
    spoiled_graph = replace(graph, duration_ns=np.array([5, duration]))
    with pytest.raises(ValueError, match=rf"node 0 of rank 1 computes for {duration} ns: .* allowed: 1 … 2\^50 - 1"):
        write_traces(spoiled_graph, tmp_path / "trace")


def test_tags_stay_apart_modulo_what_the_program_takes_them() -> None:
    graph = GraphBuilder(2)
    tags = [7, TAGS + 7, 3 * TAGS + 7, 1 << 40, -5, 0]
    for number, tag in enumerate(tags):
        graph.send(0, number, 1, 64, tag)
        graph.receive(1, number, 0, 64, tag)
    built = graph.build()
    found = told_apart(built)
    assert found.min() >= 0
    assert found.max() < TAGS
    assert len(set(found[:6].tolist())) == 6
    assert (found[:6] == found[6:]).all()
    assert told_apart(replace(built, tag=built.tag % TAGS)).tolist() == (built.tag % TAGS).tolist()


def same(a: Graph, b: Graph) -> bool:
    names = ("rank", "id", "kind", "deps_ptr", "deps", "duration_ns", "size", "collective", "group", "peer", "tag")
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names)


@pytest.mark.parametrize("path", GRAPHS, ids=lambda p: p.stem)
def test_chakra_round_trip(path: Path, tmp_path: Path) -> None:
    graph = load(path)[0].graph
    write_traces(graph, tmp_path / "trace")
    groups = {int(g): graph.groups.members(i).tolist() for i, g in enumerate(graph.groups.ids)}
    assert same(read_traces(tmp_path / "trace", graph.ranks, groups), graph)


def test_cut_off_trace(tmp_path: Path) -> None:
    graph = load(PIPELINE)[0].graph
    write_traces(graph, tmp_path / "trace")
    path = trace_path(tmp_path / "trace", 1)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"trace\.1\.et is cut off"):
        read_traces(tmp_path / "trace", graph.ranks)


@given(st.data())
def test_damaged_trace_is_an_error_or_another_graph(data: st.DataObject) -> None:
    graph = load(DEADLOCK)[0].graph
    with TemporaryDirectory() as folder:
        write_traces(graph, Path(folder) / "trace")
        path = trace_path(Path(folder) / "trace", 0)
        content = bytearray(path.read_bytes())
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
            content[place] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))])
        with contextlib.suppress(ValueError):
            read_traces(Path(folder) / "trace", graph.ranks, {1: [0, 1, 2, 3]}).check()
