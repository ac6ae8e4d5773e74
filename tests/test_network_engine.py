"""Laws of the event engine, topologies, symmetric runs, the command and its bad input."""

from __future__ import annotations

import csv
import json
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_network import of_row, run

from rapid_dse.common import compiled, long_work
from rapid_dse.interconnect import event_runs
from rapid_dse.interconnect.engine import RunResult, run_graph
from rapid_dse.interconnect.system import SystemSettings
from rapid_dse.interconnect.tables import CollectiveCase
from rapid_dse.interconnect.topology import Dimension, Topology
from rapid_dse.network import main
from rapid_dse.trace.graph import COLLECTIVES, Graph, GraphBuilder
from rapid_dse.trace.graph_file import graph_to_json, parse_graph

DATA = Path(__file__).parent / "data" / "astrasim"
GB_NS = (1 << 30) / 1e9


def ring_settings(algorithm: str = "ring", **changes: Any) -> SystemSettings:
    return SystemSettings(algorithms=dict.fromkeys(COLLECTIVES, (algorithm,)), **changes)


def same(a: RunResult, b: RunResult) -> bool:
    arrays = ("start_ns", "end_ns", "finish_ns")
    return (
        all(np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays)
        and np.array_equal(a.links.bytes, b.links.bytes)
        and np.array_equal(a.links.busy_ns, b.links.busy_ns)
        and (a.hops, a.delays) == (b.hops, b.delays)
    )


def layers(ranks: int, tp: int, count: int) -> Graph:
    """Compute, then an all-reduce in groups of neighbours, some times; then one over the ranks of equal place."""
    groups = {1 + g: list(range(g * tp, g * tp + tp)) for g in range(ranks // tp)}
    groups |= {1000 + p: list(range(p, ranks, tp)) for p in range(tp)}
    graph = GraphBuilder(ranks, groups)
    for rank in range(ranks):
        for layer in range(count):
            before = [2 * layer - 1] if layer else []
            graph.compute(rank, 2 * layer, 5000, before)
            graph.collective(rank, 2 * layer + 1, "ALL_REDUCE", 1 << 20, 1 + rank // tp, [2 * layer])
        graph.collective(rank, 2 * count, "ALL_REDUCE", 4 << 20, 1000 + rank % tp, [2 * count - 1])
    return graph.build()


@pytest.mark.parametrize("chunks", [1, 3, 4])
@pytest.mark.parametrize("algorithm", ["ring", "direct", "halvingDoubling"])
def test_symmetric_graph_is_identical_with_the_full_run(algorithm: str, chunks: int) -> None:
    graph, topology = layers(32, 8, 3), Topology.of(["Switch"], [32], [50], [500])
    system = ring_settings(algorithm, splits=chunks, active_chunks=chunks)
    folded = run_graph(graph, topology, system, "congestion_aware")
    full = run_graph(graph, topology, system, "congestion_aware", symmetry=False)
    assert not full.folded
    assert same(folded, full)
    assert folded.folded or algorithm != "ring"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_symmetric_collectives_are_identical_with_the_full_run(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(["Ring", "Switch", "FullyConnected"]), min_size=1, max_size=2))
    topology = Topology.of(
        kinds,
        [data.draw(st.integers(3, 6)) for _ in kinds],
        [data.draw(st.sampled_from([10.0, 50.0])) for _ in kinds],
        [data.draw(st.sampled_from([0.0, 10.0, 500.5])) for _ in kinds],
    )
    system = ring_settings(
        data.draw(st.sampled_from(["ring", "direct", "direct2"])),
        splits=data.draw(st.integers(1, 4)),
        active_chunks=data.draw(st.integers(1, 4)),
        queues_per_dim=data.draw(st.sampled_from([1, 2])),
        endpoint_delay=data.draw(st.sampled_from([1, 10])),
    )
    size = data.draw(st.integers(1, 1 << 20)) + 8
    network = data.draw(st.sampled_from(["congestion_aware", "congestion_unaware"]))
    kind = data.draw(st.sampled_from(COLLECTIVES))
    case = CollectiveCase("congestion_aware", topology, system, kind, size)
    graph = case.graph()
    assert same(run_graph(graph, topology, system, network), run_graph(graph, topology, system, network, symmetry=False))


def test_asymmetric_ranks_are_not_folded() -> None:
    graph = layers(16, 8, 1)
    slower = graph.duration_ns.copy()
    slower[0] += 1
    topology = Topology.of(["Switch"], [16], [50], [500])
    assert run_graph(graph, topology, ring_settings(), "congestion_aware").folded
    assert not run_graph(replace(graph, duration_ns=slower), topology, ring_settings(), "congestion_aware").folded


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 9), st.integers(1, 1 << 24), st.sampled_from(["congestion_aware", "fair"]))
def test_ring_all_reduce_moves_each_byte_once_over_each_link(n: int, size: int, network: str) -> None:
    topology = Topology.of(["Ring"], [n], [50], [500])
    graph = CollectiveCase("congestion_aware", topology, ring_settings(), "ALL_REDUCE", size).graph()
    result = run_graph(graph, topology, ring_settings(), network)
    message = max(size, n) // n
    ahead = (result.links.target - result.links.source) % n == 1
    assert set(result.links.bytes[ahead].tolist()) == {2 * (n - 1) * message}
    assert not result.links.bytes[~ahead].any()
    assert result.makespan_ns >= 2 * (n - 1) * message / (50 * GB_NS)


@settings(max_examples=40, deadline=None)
@given(st.integers(1000, 1 << 24), st.integers(2, 7))
def test_incast_shares_the_last_link(size: int, senders: int) -> None:
    builder = GraphBuilder(8)
    for rank in range(8):
        builder.compute(rank, 0, 1)
    for rank in range(1, senders + 1):
        builder.send(rank, 1, 0, size, rank)
        builder.receive(0, rank, rank, size, rank)
    result = run_graph(builder.build(), Topology.of(["Switch"], [8], [50], [500]), ring_settings(), "fair")
    assert result.makespan_ns == pytest.approx(senders * size / (50 * GB_NS) + 1000, abs=2)


def send_one(topology: Topology, src: int, dst: int, size: int = 1 << 20, network: str = "congestion_aware") -> RunResult:
    builder = GraphBuilder(topology.ranks)
    for rank in range(topology.ranks):
        builder.compute(rank, 0, 1)
    builder.send(src, 1, dst, size, 7)
    builder.receive(dst, 1, src, size, 7)
    return run_graph(builder.build(), topology, ring_settings(), network)


@pytest.mark.parametrize(
    ("topology", "pair", "hops"),
    [
        (Topology.torus([4, 4], 50, 500), (0, 15), 2),
        (Topology.mesh([4, 4], 50, 500), (0, 15), 6),
        (Topology.of(["Ring"], [8], [50], [500]), (1, 6), 3),
        (Topology.of(["FullyConnected", "Switch"], [4, 4], [50, 50], [500, 500]), (0, 5), 3),
        (Topology((Dimension(kind="FatTree", size=16, bandwidth=50, latency=500, leaf=4),)), (0, 3), 2),
        (Topology((Dimension(kind="FatTree", size=16, bandwidth=50, latency=500, leaf=4),)), (0, 15), 4),
    ],
)
def test_hops_of_topologies(topology: Topology, pair: tuple[int, int], hops: int) -> None:
    result = send_one(topology, *pair)
    assert np.count_nonzero(result.links.bytes) == hops == result.hops
    serial = int(500 + (1 << 20) / (50 * GB_NS))
    assert result.makespan_ns == hops * serial


def test_oversubscription_narrows_the_fat_tree() -> None:
    def time(ratio: float) -> int:
        dim = Dimension(kind="FatTree", size=16, bandwidth=50, latency=500, leaf=8, oversubscription=ratio)
        builder = GraphBuilder(16)
        for rank in range(8):
            builder.send(rank, 0, rank + 8, 64 << 20, rank)
            builder.receive(rank + 8, 0, rank, 64 << 20, rank)
        return run_graph(builder.build(), Topology((dim,)), ring_settings(), "fair").makespan_ns

    assert time(4.0) == pytest.approx(4 * time(1.0), rel=0.01)


def test_fat_tree_in_a_graph_file(tmp_path: Path) -> None:
    path, out = tmp_path / "graph.json", tmp_path / "out.json"
    graph = base_graph()
    graph["network"] |= {"topology": ["FatTree"], "leaf": [2], "oversubscription": [2]}
    graph["ranks"]["0"].append({"id": 2, "type": "send", "src": 0, "dst": 3, "size": 1 << 20, "tag": 0, "deps": []})
    graph["ranks"]["3"].append({"id": 2, "type": "recv", "src": 0, "dst": 3, "size": 1 << 20, "tag": 0, "deps": []})
    path.write_text(json.dumps(graph))
    assert main(["graph", str(path), "--out", str(out), "--links"]) == 0
    report = json.loads(out.read_text())
    hop = (1 << 20) / (50 * GB_NS)
    assert report["node_times_ns"]["3"]["2"] == [0, 4 * int(500 + hop)]
    assert sum(link["bytes"] for link in report["links"]) == 4 << 20


def test_failed_link_is_gone_round_and_named_where_it_cannot() -> None:
    torus = replace(Topology.torus([4, 4], 50, 500), faulty_links=((0, 1, 0.0),))
    result = send_one(torus, 0, 1)
    used = result.links.bytes > 0
    assert set(zip(result.links.source[used], result.links.target[used], strict=True)) == {(0, 4), (4, 5), (5, 1)}
    tree = Topology((Dimension(kind="FatTree", size=8, bandwidth=50, latency=500, leaf=4),), ((8, 10, 0.0),))
    assert send_one(tree, 0, 4).hops == 4
    cut = replace(tree, faulty_links=((0, 8, 0.0),))
    with pytest.raises(ValueError, match="no way is left from rank 0 to rank 1"):
        send_one(cut, 0, 1)


def test_ideal_links_take_the_given_times() -> None:
    graph = GraphBuilder(4, {1: [0, 1], 2: [2, 3]})
    for rank in range(4):
        graph.compute(rank, 0, 100 * (rank + 1))
        graph.collective(rank, 1, "ALL_REDUCE", 8, 1 + rank // 2, [0])
    built = graph.build()
    durations = np.where(built.kind == 1, 70, built.duration_ns)
    topology = Topology.of(["Switch"], [4], [50], [500])
    result = run_graph(replace(built, duration_ns=durations), topology, ring_settings(), "ideal")
    assert result.finish_ns.tolist() == [270, 270, 470, 470]


def test_second_stream_lets_two_collectives_overlap() -> None:
    def time(stream: int) -> int:
        graph = GraphBuilder(4)
        for rank in range(4):
            graph.collective(rank, 0, "ALL_GATHER", 1 << 20)
            graph.collective(rank, 1, "ALL_GATHER", 1 << 20)
            graph.move_last(stream)
        system = ring_settings(active_chunks=2)
        topology = Topology.of(["Switch"], [4], [50], [50_000])
        return run_graph(graph.build(), topology, system, "congestion_unaware").makespan_ns

    assert time(1) < 0.6 * time(0)


def test_json_round_trip() -> None:
    data = json.loads((DATA / "graphs" / "g05_gpipe_fwdbwd_switch4.json").read_text())
    file = parse_graph(data)
    again = parse_graph(graph_to_json(file.graph, file.network, file.system)).graph
    for name in ("rank", "id", "kind", "deps_ptr", "deps", "duration_ns", "size", "peer", "tag"):
        np.testing.assert_array_equal(getattr(again, name), getattr(file.graph, name))


def base_graph() -> dict[str, Any]:
    return {
        "network": {"topology": ["Switch"], "npus_count": [4], "bandwidth_GBps": [50.0], "latency_ns": [500.0]},
        "system": {},
        "comm_groups": {"1": [0, 1]},
        "ranks": {
            str(r): [
                {"id": 0, "type": "comp", "dur_us": 1, "deps": []},
                {"id": 1, "type": "comp", "dur_us": 1, "deps": [0]},
            ]
            for r in range(4)
        },
    }


def coll(size: int = 1024, **more: Any) -> dict[str, Any]:
    return {"id": 5, "type": "coll", "coll": "ALL_REDUCE", "size": size, "deps": [], **more}


BAD_GRAPHS: list[tuple[str, Any, str]] = [
    ("unknown rank", lambda g: g["comm_groups"].update({"2": [0, 9]}), "group 2 has rank 9: there are ranks 0 to 3"),
    ("cycle", lambda g: g["ranks"]["2"][0].update(deps=[1]), "of rank 2 waits for itself"),
    ("negative size", lambda g: g["ranks"]["0"].append(coll(-4)), "size is -4 bytes"),
    ("empty message", lambda g: g["ranks"]["0"].append(coll(0)), "size is 0 bytes"),
    ("bandwidth", lambda g: g["network"].update(bandwidth_GBps=[0.0]), "bandwidth is 0.0 GB/s"),
    ("no link", lambda g: g["network"].update(faulty_links=[[0, 1, 0.5]]), "0-1 is no link"),
    ("ring of 2", lambda g: g["network"].update(topology=["Ring", "Ring"], npus_count=[2, 2], bandwidth_GBps=[1, 1],
                                                latency_ns=[1, 1]), "a Ring of 2"),
    ("unknown dep", lambda g: g["ranks"]["0"][0].update(deps=[77]), "waits for node 77"),
    ("group of one", lambda g: (g["comm_groups"].update({"3": [0]}), g["ranks"]["0"].append(coll(pg="3"))),
     "group of 1"),
    ("not its group", lambda g: g["ranks"]["2"].append(coll(pg="1")), "rank 2 is not in its group 1"),
    ("unknown group", lambda g: g["ranks"]["2"].append(coll(pg="8")), "there is no group 8"),
    ("unknown collective", lambda g: g["ranks"]["2"].append(coll(coll="BROADCAST")), "'BROADCAST' is none of"),
    ("no nodes", lambda g: g["ranks"].pop("3"), "rank 3 has no node"),
    ("no list of nodes", lambda g: g["ranks"].update({"3": {"id": 0}}), "rank 3 must be a list of nodes"),
    ("no list of deps", lambda g: g["ranks"]["2"][0].update(deps=None), "deps is None, it must be a list of ids"),
    ("endless time", lambda g: g["ranks"]["2"][0].update(dur_us=float("inf")), "dur_us is inf"),
    ("too large", lambda g: g["ranks"]["0"].append(coll(1 << 70)), "at most 2^53"),
    ("too many splits", lambda g: (g["ranks"]["0"].append(coll(1 << 40)), g["system"].update(
        {"preferred-dataset-splits": 1 << 40})), "not enough memory"),
    ("no link's devices", lambda g: g["network"].update(faulty_links=[[0, float("inf"), 0.5]]), "must be whole numbers"),
    ("no number", lambda g: g["system"].update({"local-mem-bw": None}), "local-mem-bw is None, it must be a number"),
    ("algorithm", lambda g: g["system"].update({"all-reduce-implementation": ["magic"]}), "'magic' is none of"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "spoil", "message"), BAD_GRAPHS, ids=[b[0] for b in BAD_GRAPHS])
def test_bad_graph_is_one_clear_line(name: str, spoil: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = base_graph()
    spoil(graph)
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(graph))
    assert main(["graph", str(path), "--out", str(tmp_path / "out.json")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


GOOD_ROW = next(csv.DictReader((DATA / "collectives.csv").open())) | {"faulty_links": "[]"}
BAD_ROWS = [
    ({"npus": "6", "algorithm": "halvingDoubling"}, "halvingDoubling over 6 ranks"),
    ({"backend": "aware"}, "a Ring of 2"),
    ({"size_bytes": "-1"}, "size_bytes is -1"),
    ({"bandwidth_GBps": "0"}, "bandwidth is 0.0"),
    ({"topology": "Star"}, "'Star' is none of"),
    ({"collective": "ALL_TO_ALL", "algorithm": "halvingDoubling"}, "there is none"),
    ({"algorithm": "halvingDoubling", "size_bytes": "1"}, "messages come down to 0 bytes"),
    ({"npus": "8.5"}, "npus is '8.5', it must be a whole number"),
    ({"size_bytes": "inf"}, "size_bytes is 'inf'"),
    ({"faulty_links": "5"}, "faulty_links is 5"),
    ({"chunks": "two"}, "chunks is 'two'"),
    ({"local_mem_bw": "1e-320"}, "take longer than 2^53 ns"),
    ({"bandwidth_GBps": "1e-300"}, "bandwidth is 1e-300 GB/s on the slowest link, on which a message of 32768 bytes"),
    ({"latency_ns": "1e18"}, "latency is 1e+18 ns"),
    ({"npus": "128", "endpoint_delay": str(1 << 53)}, "longer than 2^60 ns"),  # 255 endpoint delays
]


@pytest.mark.parametrize(("changes", "message"), BAD_ROWS, ids=[b[1] for b in BAD_ROWS])
def test_bad_row_is_named_and_the_others_are_timed(
    changes: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "table.csv", tmp_path / "out.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(GOOD_ROW))
        writer.writeheader()
        writer.writerows([GOOD_ROW, GOOD_ROW | changes])
    assert main(["collectives", str(path), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "row 2" in line
    assert message in line
    with out.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["predicted_ns"] for row in found] == ["2310", ""]
    assert [row["status"] for row in found] == ["ok", "invalid"]
    assert message in found[1]["reason"]


# Trees end at different times on different ranks. So in the second dimension, where one chunk runs at a time, some ranks have the first
# chunk come back before the second one goes out and others after it, and each waits for the other: so say ASTRA-sim's rules, and so
# does the slow model of them.
DEADLOCKED = {
    "backend": "aware", "topology": "RingxSwitchxSwitch", "npus": "4x2x2", "bandwidth_GBps": "50x50x50", "latency_ns": "500x500x500",
    "algorithm": "halvingDoublingxdoubleBinaryTreexdoubleBinaryTree", "size_bytes": "4096", "chunks": "3",
}  # fmt: skip


def test_a_row_that_deadlocks_has_no_time_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {end for nodes in run(of_row(GOOD_ROW | DEADLOCKED), True).values() for _, end in nodes.values()} == {None}
    path, out = tmp_path / "table.csv", tmp_path / "out.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*GOOD_ROW, "status"])
        writer.writeheader()
        writer.writerows([GOOD_ROW | DEADLOCKED, GOOD_ROW | {"status": "mine"}])
    assert main(["collectives", str(path), "--out", str(out)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "row 1: the collective deadlocks: rank 0 and 15 more wait for ever" in line
    with out.open(newline="") as file:
        dead, timed = csv.DictReader(file)
    assert (dead["predicted_ns"], dead["status"], dead["reason"][:24]) == ("", "deadlock", "the collective deadlocks")
    assert (timed["predicted_ns"], timed["status"], timed["reason"], timed["input.status"]) == ("2310", "ok", "", "mine")


def test_deadlock_is_told_by_exit_code_message_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = next((DATA / "graphs").glob("*DEADLOCK*"))
    out = tmp_path / "out.json"
    assert main(["graph", str(path), "--out", str(out)]) == 1
    assert "rank 0: node 2; rank 1: node 2" in capsys.readouterr().err
    report = json.loads(out.read_text())
    assert report["waiting"] == {str(r): [2] for r in range(8)}
    assert report["makespan_ns"] is None


def test_links_are_in_the_file(tmp_path: Path) -> None:
    path, out = DATA / "graphs" / "g09_incast_switch8.json", tmp_path / "out.json"
    assert main(["graph", str(path), "--out", str(out), "--links"]) == 0
    links = {(row["from"], row["to"]): row for row in json.loads(out.read_text())["links"]}
    assert len(links) == 16
    assert links[8, 0]["bytes"] == 7 * (4 << 20)
    assert links[8, 0]["busy_ns"] == 7 * int((4 << 20) / (50 * GB_NS))


@pytest.mark.parametrize("options", [["--network", "congestion_unaware"], ["--engine", "astrasim"]])
def test_links_that_nothing_tells_of_are_an_error(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = DATA / "graphs" / "g09_incast_switch8.json"
    assert main(["graph", str(path), "--out", str(tmp_path / "out.json"), "--links", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--links: neither ASTRA-sim nor" in line


def test_help_and_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main(["graph", str(tmp_path / "none.json"), "--out", str(tmp_path / "o")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_who_comes_while_another_compiles_waits_and_then_loads(tmp_path: Path) -> None:
    note, seen = tmp_path / "cache" / "loop.compiled", list[str]()

    def second() -> None:
        with compiled._alone(note, "new"):
            seen.append(note.read_text())

    thread = threading.Thread(target=second)
    with compiled._alone(note, "new"):
        thread.start()
        thread.join(0.1)
        assert not seen
    thread.join(10)
    assert seen == ["new"]
    with pytest.raises(OSError, match="disk"), compiled._alone(note, "newer"):
        raise OSError("disk")
    assert note.read_text() == "new", "what failed is compiled again"


def test_a_long_run_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The counts are of nodes that have ended; a run in pieces gives what a run in one piece gives."""
    graph, topology = layers(8, 4, 3), Topology.of(["Switch", "Switch"], [4, 2], [50, 50], [500, 500])

    def simulated() -> RunResult:
        return run_graph(graph, topology, ring_settings(), "congestion_aware", symmetry=False)

    whole = simulated()
    monkeypatch.setattr(long_work, "EVERY", 0.0)
    monkeypatch.setattr(event_runs, "EVENTS_AT_ONCE", 2)
    with long_work.listening():
        pieces = simulated()
    assert same(pieces, whole)
    said = capsys.readouterr().err.splitlines()
    counts = [int(re.match(r"event engine.*: (\d+) of (\d+) operations", line)[1]) for line in said]  # type: ignore[index]
    assert len(counts) > 2
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] <= len(graph)
    simulated()
    assert not capsys.readouterr().err, "nobody listens"
