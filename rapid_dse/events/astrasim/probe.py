"""What a binary of ASTRA-sim is, asked of it: small collectives whose times are known, before its answers are believed.

The known times were recorded of ASTRA-sim. That of the switch can be worked out: messages of m = 65,536 / 4 bytes take
m / 53.687 = 305.2 ns on a link of 50 GB/s (2^30), and C = 2 · floor(500 + 305.2) = 1,610 ns over two links where congestion is
seen, floor(2 · 500 + 305.2) = 1,305 where it is not. A ring all-reduce of 4 ranks is 7 · 10 + 6 C + 3 · 30 ns: 9,820 and 7,990.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from rapid_dse.events.astrasim.process import simulate
from rapid_dse.interconnect.system import SystemSettings
from rapid_dse.interconnect.tables import CollectiveCase
from rapid_dse.interconnect.topology import Topology
from rapid_dse.trace.graph import COLLECTIVES

BUILTIN = "use backend.engine=builtin (--engine builtin), which takes them"


@dataclass(frozen=True, slots=True)
class Question:
    """A collective of all ranks, and its times, ns."""

    topology: Topology
    collective: str
    algorithm: str
    size: int
    """Bytes."""
    healthy_ns: int
    faulty_ns: int = 0
    """With the topology's faulty links."""


SWITCH = Topology.of(["Switch"], [4], [50], [500])
AWARE = Question(SWITCH, "ALL_REDUCE", "ring", 65536, healthy_ns=9820)
UNAWARE = replace(AWARE, healthy_ns=7990)
DERATED = Question(Topology.of(["Ring"], [8], [50], [500], [[0, 1, 0.5]]), "ALL_REDUCE", "ring", 16 << 20, 581528, 1094270)
PLANE = Topology.of(["FullyConnected", "Ring"], [4, 4], [50, 25], [500, 500], [[0, 1, 0.0]])
FAILED = Question(PLANE, "ALL_TO_ALL", "direct", 16 << 20, 548415, 1017665)


@dataclass(frozen=True, slots=True)
class Binary:
    """A program that is said to be ASTRA-sim, and how long it may run."""

    path: Path
    timeout_s: float

    @property
    def content(self) -> str:
        """Checksum of the program."""
        stat = self.path.stat()
        return _content(self.path, stat.st_mtime_ns, stat.st_size)

    def check(self, network: str, dimensions: int, factors: Collection[float]) -> None:
        """Ask the binary what a run needs on ``network`` with so many dimensions and faulty links of these ``factors``.

        Each question is asked once a process and content.

        Raises:
            ValueError: it simulates the other network or none, has no several dimensions, or ignores faulty links.
        """
        self._check_model(network)
        if network == "congestion_aware" and dimensions > 1:
            self._check_dimensions(dimensions)
        if factors:
            self._check_faults(DERATED)
        if 0 in factors:
            self._check_faults(FAILED)

    def _ask(self, question: Question, faulty: bool) -> int:
        return _answer(self, self.content, question, faulty)

    def _check_model(self, network: str) -> None:
        times = self._ask(AWARE, False)
        models = {AWARE.healthy_ns: "congestion_aware", UNAWARE.healthy_ns: "congestion_unaware"}
        if models.get(times) == network:
            return
        asked = f"a ring all-reduce of {AWARE.size:,} bytes over a switch of 4 takes {times:,} ns on it"
        if times in models:
            raise ValueError(f"network is {network}, ASTRA-sim's binary {self.path} is the {models[times]} one: {asked}")
        known = " or ".join(f"{ns:,} ({name})" for ns, name in models.items())
        raise ValueError(f"{self.path} is no binary of ASTRA-sim that is known: {asked}, it must be {known}")

    def _check_dimensions(self, count: int) -> None:
        needs = f"a network of {count} dimensions: ASTRA-sim's binary {self.path}"
        instead = "upstream's congestion-aware network has one; use congestion_unaware, one dimension, or the built-in engine"
        try:
            times = self._ask(FAILED, False)
        except ValueError as error:
            raise ValueError(f"{needs} does not run one of two ({instead}); {error}") from None
        if times != FAILED.healthy_ns:
            raise ValueError(f"{needs} takes {times:,} ns for what takes {FAILED.healthy_ns:,} in two ({instead})")

    def _check_faults(self, question: Question) -> None:
        kind = "failed" if question is FAILED else "derated"
        times = [self._ask(question, faulty) for faulty in (False, True)]
        if times == [question.healthy_ns, question.faulty_ns]:
            return
        ignored = "ignores them, as upstream's does" if times[0] == times[1] else "takes them otherwise"
        raise ValueError(
            f"faulty_links: ASTRA-sim's binary {self.path} {ignored}: on a small network it took {times[0]:,} ns healthy and "
            f"{times[1]:,} with a {kind} link, it must be {question.healthy_ns:,} and {question.faulty_ns:,}; {BUILTIN}"
        )


@cache
def _content(path: Path, changed_ns: int, size: int) -> str:
    """Checksum of a file, taken anew when its time or size are others."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def _answer(binary: Binary, content: str, question: Question, faulty: bool) -> int:
    """How long the binary of that content takes for a question, ns; ValueError as ``simulate``."""
    topology = question.topology if faulty else replace(question.topology, faulty_links=())
    system = SystemSettings(algorithms=dict.fromkeys(COLLECTIVES, (question.algorithm,)))
    graph = CollectiveCase("congestion_aware", topology, system, question.collective, question.size).graph()
    result = simulate(binary.path, binary.timeout_s, graph, topology, system)
    if result.deadlocked:
        raise ValueError(f"ASTRA-sim's binary {binary.path} does not end {question.collective} of {question.size} bytes over all ranks")
    return result.makespan_ns
