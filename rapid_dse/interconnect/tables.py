"""Tables of single collectives, in the columns of ASTRA-sim's recorded runs, timed on the event engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rapid_dse.interconnect.engine import Network, RunResult, run_graph
from rapid_dse.interconnect.system import SystemSettings, check_algorithm
from rapid_dse.interconnect.topology import Topology
from rapid_dse.trace.graph import COLLECTIVE, COLLECTIVES, LARGEST, NO_GROUPS, WORLD, Graph

BACKENDS: dict[str, Network] = {"aware": "congestion_aware", "unaware": "congestion_unaware", "fair": "fair"}
COLUMNS = [
    "backend",
    "topology",
    "npus",
    "bandwidth_GBps",
    "latency_ns",
    "collective",
    "algorithm",
    "size_bytes",
    "chunks",
    "active_chunks",
    "endpoint_delay",
    "local_mem_bw",
    "scheduling_policy",
    "collective_optimization",
    "queues_per_dim",
]


@dataclass(frozen=True, slots=True)
class CollectiveCase:
    """One row: a collective over the whole of a network."""

    network: Network
    topology: Topology
    system: SystemSettings
    collective: str
    size: int

    @staticmethod
    def from_row(row: Mapping[str, str]) -> CollectiveCase:
        """Read a row; raises ValueError with the column, its value and what is allowed."""
        missing = [name for name in COLUMNS if name not in row]
        if missing:
            raise ValueError(f"the table has no column {missing[0]!r}")
        if row["backend"] not in BACKENDS:
            raise ValueError(f"backend is {row['backend']!r}, it must be one of {', '.join(BACKENDS)}")
        if row["collective"] not in COLLECTIVES:
            raise ValueError(f"collective is {row['collective']!r}, it must be one of {', '.join(COLLECTIVES)}")
        size = _integer(row, "size_bytes")
        if size <= 0:
            raise ValueError(f"size_bytes is {size}, it must be > 0")
        return CollectiveCase(BACKENDS[row["backend"]], _topology(row), _system(row), row["collective"], size)

    def graph(self) -> Graph:
        """Give the graph: that collective alone, once on every rank."""
        n = self.topology.ranks
        zeros = np.zeros(n, np.int64)
        return Graph(
            ranks=n,
            rank=np.arange(n),
            id=zeros,
            kind=np.full(n, COLLECTIVE, np.int8),
            deps_ptr=np.zeros(n + 1, np.int64),
            deps=zeros[:0],
            duration_ns=zeros,
            size=np.full(n, self.size),
            collective=np.full(n, COLLECTIVES.index(self.collective), np.int8),
            group=np.full(n, WORLD),
            peer=zeros,
            tag=zeros,
            stream=zeros.astype(np.int8),
            groups=NO_GROUPS,
            name=f"{self.collective}_{self.size}",
        )

    def run(self) -> RunResult:
        """Time it; raises ValueError for what cannot run."""
        return run_graph(self.graph(), self.topology, self.system, self.network)


def _number(row: Mapping[str, str], column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{column} is {row[column]!r}, it must be numbers with x between them") from None


def _whole(row: Mapping[str, str], column: str, text: str) -> int:
    value = _number(row, column, text)
    if not value.is_integer() or abs(value) > LARGEST:
        raise ValueError(f"{column} is {row[column]!r}, it must be a whole number and at most 2^53")
    return int(value)


def _integer(row: Mapping[str, str], column: str) -> int:
    return _whole(row, column, row[column])


def _topology(row: Mapping[str, str]) -> Topology:
    sizes = [_whole(row, "npus", text) for text in row["npus"].split("x")]
    bandwidths, latencies = ([_number(row, c, t) for t in row[c].split("x")] for c in ("bandwidth_GBps", "latency_ns"))
    try:
        faults: Any = json.loads(row.get("faulty_links") or "[]")
    except json.JSONDecodeError:
        raise ValueError(f"faulty_links is {row['faulty_links']!r}, it must be [[device, device, factor], …]") from None
    return Topology.of(row["topology"].split("x"), sizes, bandwidths, latencies, faults)


def _system(row: Mapping[str, str]) -> SystemSettings:
    algorithms = tuple(row["algorithm"].split("x"))
    for name in algorithms:
        check_algorithm("algorithm", name)
    return SystemSettings(
        algorithms=dict.fromkeys(COLLECTIVES, algorithms),
        splits=_integer(row, "chunks"),
        active_chunks=_integer(row, "active_chunks"),
        queues_per_dim=_integer(row, "queues_per_dim"),
        endpoint_delay=_integer(row, "endpoint_delay"),
        local_mem_bw=_number(row, "local_mem_bw", row["local_mem_bw"]),
        scheduling_policy=row["scheduling_policy"],
        collective_optimization=row["collective_optimization"],
    )
