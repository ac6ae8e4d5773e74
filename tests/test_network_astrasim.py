"""The ASTRA-sim adapter on recorded output, the real program where there is one, Chakra files, the cache."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapid_dse.network import command
from rapid_dse.network.__main__ import main
from rapid_dse.network.engine import RunResult
from rapid_dse.network.system import SystemSettings
from rapid_dse.network.topology import Topology
from rapid_dse.simulate.astra_cache import MODE_VARIABLE, AstraCache, cache_mode, run_key
from rapid_dse.simulate.astrasim import HOW_TO_GET, AstraSim, check_for_astrasim, engine_for
from rapid_dse.trace.chakra import read_traces, trace_path, write_traces
from rapid_dse.trace.graph import Graph
from rapid_dse.trace.graph_file import GraphFile, parse_graph

GRAPHS = sorted((Path(__file__).parent / "data" / "astrasim" / "graphs").glob("*.json"))
PIPELINE = next(path for path in GRAPHS if path.stem == "g04_gpipe_fwd_ring4")
DEADLOCK = next(path for path in GRAPHS if "DEADLOCK" in path.stem)


def load(path: Path) -> tuple[GraphFile, dict[str, Any]]:
    data = json.loads(path.read_text())
    return parse_graph(data), data


def fake(folder: Path, path: Path, finished: bool = True, log: bool = True, ending: str = "") -> Path:
    """A program that prints what ASTRA-sim printed, checks that its inputs are there, and ends as told."""
    _, data = load(path)
    recorded = data["results"]["aware"]
    lines = [f"sys[{r}] finished, {t} cycles, exposed communication 0 cycles." for r, t in recorded["finish_ns"].items()]
    steps = []
    for rank, nodes in recorded["node_times_ns"].items():
        for node, (start, end) in nodes.items():
            steps.append(f"[workload] [debug] issue,sys->id={rank}, tick={start}, node->id={node}, x")
            if end is not None:
                steps.append(f"[workload] [debug] callback,sys->id={rank}, tick={end}, node->id={node}, x")
    if not finished:
        lines = lines[:-1]
    script = f"""#!{sys.executable}
import json, os, sys, time
options = dict(a[2:].split("=", 1) for a in sys.argv[1:])
for key in ("system", "remote-memory"):
    json.load(open(options[key + "-configuration"]))
assert "topology: " in open(options["network-configuration"]).read()
assert os.path.getsize(options["workload-configuration"] + ".0.et") > 0
if {log!r}:
    open(os.path.join(options["logging-folder"], "log.log"), "w").write({chr(10).join(steps)!r})
print({chr(10).join(lines)!r})
sys.stdout.flush()
{ending}
"""
    program = folder / "astra"
    program.write_text(script)
    program.chmod(0o755)
    return program


def run_with(program: Path, path: Path, timeout_s: float = 60.0) -> RunResult:
    file, _ = load(path)
    topology, system = Topology.from_json(file.network), SystemSettings.from_json(file.system)
    return AstraSim.find(program, timeout_s).run(file.graph, topology, system, "congestion_aware")


def test_success_gives_the_recorded_times(tmp_path: Path) -> None:
    file, _ = load(PIPELINE)
    result = run_with(fake(tmp_path, PIPELINE), PIPELINE)
    own = command.builtin_engine(file, "congestion_aware")
    np.testing.assert_array_equal(result.start_ns, own.start_ns)
    np.testing.assert_array_equal(result.end_ns, own.end_ns)
    np.testing.assert_array_equal(result.finish_ns, own.finish_ns)


def test_crash_after_all_lines_is_a_success(tmp_path: Path) -> None:
    assert run_with(fake(tmp_path, PIPELINE, ending="os.abort()"), PIPELINE).makespan_ns == 2570250


def test_deadlock_with_exit_code_0(tmp_path: Path) -> None:
    file, _ = load(DEADLOCK)
    ending = "sys.stderr.write('[critical] !!!Hardware Resource sys.id=6 has unreleased nodes!!!')"
    program = fake(tmp_path, DEADLOCK, ending=ending)
    with pytest.raises(ValueError, match="give the world a group id"):
        run_with(program, DEADLOCK)
    graph = replace(file.graph, group=np.where(file.graph.group < 0, -1, file.graph.group))
    from rapid_dse.simulate.astrasim import read_output

    _, data = load(DEADLOCK)
    times = data["results"]["aware"]["node_times_ns"]
    steps = "\n".join(
        f"{kind},sys->id={r}, tick={t}, node->id={n}, x"
        for r, nodes in times.items()
        for n, pair in nodes.items()
        for kind, t in zip(("issue", "callback"), pair, strict=True)
        if t is not None
    )
    result = read_output(graph, 0, "", "sys.id=6 has unreleased nodes", steps)
    assert result.deadlocked
    assert {graph.node_name(i) for i in result.waiting} == {f"node 2 of rank {r}" for r in range(8)}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"finished": False}, "no finished line of rank 3; its last lines: .*finished"),
        ({"finished": False, "ending": "sys.exit(3)"}, "exit code 3 and no finished line of rank 3"),
        ({"log": False}, "log is cut off: it has no end of node"),
    ],
)
def test_truncated_output_is_an_error(tmp_path: Path, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_with(fake(tmp_path, PIPELINE, **kwargs), PIPELINE)


def test_time_out_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did not end within 1 s; its last lines"):
        run_with(fake(tmp_path, PIPELINE, ending="time.sleep(30)"), PIPELINE, timeout_s=1.0)


def test_what_the_binary_started_ends_with_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    wrapper = tmp_path / "wrapper.sh"
    wrapper.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {pid}\nwait\n")
    wrapper.chmod(0o755)
    with pytest.raises(ValueError, match="did not end within 1 s; it printed nothing"):
        run_with(wrapper, PIPELINE, timeout_s=1.0)
    state = Path("/proc") / pid.read_text().strip() / "stat"
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_receives_that_wait_for_ever_are_a_deadlock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, data = load(PIPELINE)
    data["ranks"]["3"].append({"id": 99, "type": "recv", "src": 0, "dst": 3, "size": 8, "tag": 5, "deps": []})
    for mode in ("aware", "unaware"):
        data["results"][mode]["node_times_ns"]["3"]["99"] = [0, None]
        del data["results"][mode]["finish_ns"]["3"]
    path, out = tmp_path / "graph.json", tmp_path / "out.json"
    path.write_text(json.dumps(data))
    for engine in (["--engine", "astrasim", "--binary", str(fake(tmp_path, path))], ["--engine", "builtin"]):
        assert main(["graph", str(path), *engine, "--out", str(out)]) == 1
        assert "rank 3: node 99" in capsys.readouterr().err
        assert json.loads(out.read_text())["waiting"] == {"3": [99]}


def test_missing_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("ASTRA_SIM_BIN", raising=False)
    arguments = ["graph", str(PIPELINE), "--engine", "astrasim", "--out", str(tmp_path / "out.json")]
    assert main(arguments) == 2
    assert "no ASTRA-sim binary is named" in capsys.readouterr().err
    assert main([*arguments, "--binary", str(tmp_path / "none")]) == 2
    assert "is no file that can be run" in capsys.readouterr().err


def test_command_runs_the_binary(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    program = fake(tmp_path, PIPELINE)
    assert main(["graph", str(PIPELINE), "--engine", "astrasim", "--binary", str(program), "--out", str(out)]) == 0
    _, data = load(PIPELINE)
    assert json.loads(out.read_text())["node_times_ns"] == data["results"]["aware"]["node_times_ns"]


@pytest.mark.parametrize("path", [p for p in GRAPHS if "DEADLOCK" not in p.stem], ids=lambda p: p.stem)
def test_real_program_agrees_node_by_node(path: Path) -> None:
    if not os.environ.get("ASTRA_SIM_BIN"):
        pytest.skip(f"ASTRA_SIM_BIN names no binary: {HOW_TO_GET}")
    file, _ = load(path)
    network = AstraSim.find().network or "congestion_aware"
    real, own = engine_for(None)(file, network), command.builtin_engine(file, network)
    np.testing.assert_array_equal(real.start_ns, own.start_ns)
    np.testing.assert_array_equal(real.end_ns, own.end_ns)


def test_binary_of_the_other_network_is_an_error(tmp_path: Path) -> None:
    program = fake(tmp_path, PIPELINE).rename(tmp_path / "AstraSim_Analytical_Congestion_Unaware")
    with pytest.raises(ValueError, match=r"network is congestion_aware, .* is the congestion_unaware one"):
        run_with(program, PIPELINE)


def test_checks_before_a_run() -> None:
    file, _ = load(PIPELINE)
    topology, system = Topology.from_json(file.network), SystemSettings.from_json(file.system)
    with pytest.raises(ValueError, match="ASTRA-sim runs congestion_aware or"):
        check_for_astrasim(file.graph, topology, system, "fair")
    collective, _ = load(next(p for p in GRAPHS if p.stem.startswith("g06_a2a_direct")))
    ring = Topology.from_json(collective.network)
    settings = SystemSettings.from_json({**collective.system, "endpoint-delay": 0})
    with pytest.raises(ValueError, match="endpoint-delay is 0 and node"):
        check_for_astrasim(collective.graph, ring, settings, "congestion_aware")
    with pytest.raises(ValueError, match="Line: ASTRA-sim has Ring"):
        check_for_astrasim(collective.graph, Topology.mesh([8], 50, 500), system, "congestion_aware")


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


def keyed() -> tuple[str, RunResult]:
    file, _ = load(PIPELINE)
    topology, system = Topology.from_json(file.network), SystemSettings.from_json(file.system)
    return run_key(file.graph, topology, system, "fair", "builtin 1"), command.builtin_engine(file, "congestion_aware")


def test_cache_hit_and_modes(tmp_path: Path) -> None:
    key, result = keyed()
    assert AstraCache(tmp_path, "CACHE_READONLY").run(key, lambda: result) is result
    assert not list(tmp_path.iterdir())
    cache = AstraCache(tmp_path)
    assert cache.run(key, lambda: result) is result

    def never() -> RunResult:
        raise AssertionError("a hit must not simulate")

    hit = AstraCache(tmp_path, "CACHE_READONLY").run(key, never)
    np.testing.assert_array_equal(hit.end_ns, result.end_ns)
    np.testing.assert_array_equal(hit.links.bytes, result.links.bytes)
    assert hit.makespan_ns == result.makespan_ns
    assert AstraCache(tmp_path, "NO_CACHE").get(key) is None


def test_key_follows_content() -> None:
    file, _ = load(PIPELINE)
    topology, system = Topology.from_json(file.network), SystemSettings.from_json(file.system)
    base = run_key(file.graph, topology, system, "fair", "a")
    longer = replace(file.graph, duration_ns=file.graph.duration_ns + 1)
    keys = {
        base,
        run_key(longer, topology, system, "fair", "a"),
        run_key(file.graph, topology, system, "ideal", "a"),
        run_key(file.graph, topology, system, "fair", "b"),
        run_key(file.graph, topology, replace(system, splits=2), "fair", "a"),
        run_key(file.graph, Topology.torus([4], 51, 500), system, "fair", "a"),
    }
    assert len(keys) == 6
    assert run_key(load(PIPELINE)[0].graph, topology, system, "fair", "a") == base


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d[:-5],
        lambda d: d[:-5] + b"xxxxx",
        lambda d: d.replace(b'"makespan_ns": 2', b'"makespan_ns": 3'),
        lambda d: b"",
        lambda d: b"{}\n",
    ],
)
def test_damaged_entry_is_a_reported_miss(tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    key, result = keyed()
    cache = AstraCache(tmp_path)
    cache.put(key, result)
    path = tmp_path / f"{key}.run"
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get(key) is None
    assert "is damaged and not used" in caplog.text
    assert cache.run(key, lambda: result) is result
    assert cache.get(key) is not None


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    key, result = keyed()
    AstraCache(tmp_path).put(key, result)
    size = (tmp_path / f"{key}.run").stat().st_size
    cache = AstraCache(tmp_path, limit_bytes=2 * size)
    for i, name in enumerate(("b", "c")):
        os.utime(tmp_path / f"{key}.run", ns=(10, 10)) if name == "b" else cache.get(key)
        cache.put(name, result)
        if name == "b":
            os.utime(tmp_path / "b.run", ns=(20 + i, 20 + i))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"{key}.run", "c.run"])


def use_cache(task: tuple[Path, int]) -> int:
    """Put and read entries of its own and of all processes; returns how many reads were hits."""
    folder, number = task
    _, result = keyed()
    cache, hits = AstraCache(folder, limit_bytes=40_000), 0
    for i in range(60):
        for name in (f"own{number}_{i}", f"all{i % 5}"):
            cache.put(name, replace(result, makespan_ns=1000 + i % 5))
            found = cache.get(f"all{i % 5}")
            if found is not None:
                assert found.makespan_ns == 1000 + i % 5
                hits += 1
    return hits


def test_many_processes_share_a_folder(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert min(pool.map(use_cache, [(tmp_path, number) for number in range(4)])) > 0
    AstraCache(tmp_path, limit_bytes=40_000).put("last", keyed()[1])
    files = list(tmp_path.iterdir())
    assert sum(path.stat().st_size for path in files) <= 40_000
    assert {path.suffix for path in files} == {".run"}


def test_folder_that_takes_no_entry_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    key, result = keyed()
    assert AstraCache(tmp_path / "file" / "cache").run(key, lambda: result) is result
    assert "takes no entry" in caplog.text


def test_abandoned_entries_are_swept_away(tmp_path: Path) -> None:
    for name, age in (("old.tmp", 7200), ("new.tmp", 10)):
        (tmp_path / name).write_bytes(b"part of an entry")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    AstraCache(tmp_path).put("a", keyed()[1])
    assert {path.name for path in tmp_path.iterdir()} == {"a.run", "new.tmp"}


def test_mode_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MODE_VARIABLE, raising=False)
    assert cache_mode() == "CACHE_READWRITE"
    monkeypatch.setenv(MODE_VARIABLE, "CACHE_SOMETIMES")
    with pytest.raises(ValueError, match="CACHE_SOMETIMES"):
        cache_mode()
