"""The fair model of the links against TCP flows in ns-3 (benchmarks/ns3_fair.py), within 5 %."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rapid_dse.interconnect.engine import run_graph
from rapid_dse.interconnect.system import SystemSettings
from rapid_dse.interconnect.tables import CollectiveCase
from rapid_dse.interconnect.topology import Dimension, Topology
from rapid_dse.trace.graph import COLLECTIVES, Graph, GraphBuilder

NS3 = json.loads((Path(__file__).parent / "data" / "ns3" / "fair.json").read_text())


def network(case: dict[str, Any]) -> Topology:
    """The links as their payload sees them: what frames carry beside it is not the model's."""
    bandwidth = NS3["gbps"] * 1e9 / 8 / (1 << 30) * NS3["payload_share"]
    latency = NS3["delay_us"] * 1000
    hosts = case["hosts"]
    if case["switches"] == 1:
        return Topology.of(["Switch"], [hosts], [bandwidth], [latency])
    leaf = hosts // 2
    tree = Dimension(kind="FatTree", size=hosts, bandwidth=bandwidth, latency=latency, leaf=leaf, oversubscription=float(leaf))
    return Topology((tree,))


def flows(case: dict[str, Any]) -> Graph:
    builder = GraphBuilder(case["hosts"])
    for rank in range(case["hosts"]):
        builder.compute(rank, 0, 1)
    for i, (src, dst) in enumerate(case["flows"], 1):
        builder.send(src, i, dst, case["message"], i)
        builder.receive(dst, i + 1000, src, case["message"], i)
    return builder.build()


def makespan(case: dict[str, Any]) -> int:
    topology, hosts = network(case), case["hosts"]
    kinds = {"ring_all_reduce": ("ALL_REDUCE", "ring"), "all_to_all": ("ALL_TO_ALL", "direct")}
    for name, (kind, algorithm) in kinds.items():
        if case["name"].startswith(name):
            system = SystemSettings(algorithms=dict.fromkeys(COLLECTIVES, (algorithm,)), local_mem_bw=1e6)
            return CollectiveCase("fair", topology, system, kind, case["message"] * hosts).run().makespan_ns
    return run_graph(flows(case), topology, SystemSettings(), "fair").makespan_ns


def test_all_cases_are_there() -> None:
    names = {"ring_all_reduce", "all_to_all", "incast", "two_groups"}
    names |= {f"{name}_16" for name in names}
    sizes = {case["message"] for case in NS3["cases"]}
    assert min(sizes) >= 16_000_000
    assert len(sizes) > 1
    assert {(case["name"], case["message"]) for case in NS3["cases"]} == {(name, size) for name in names for size in sizes}


@pytest.mark.parametrize("case", NS3["cases"], ids=lambda case: f"{case['name']}-{case['message'] >> 20}MiB")
def test_agrees_with_ns3(case: dict[str, Any]) -> None:
    assert makespan(case) == pytest.approx(case["time_ns"], rel=0.05)
