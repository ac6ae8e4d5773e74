"""ASTRA-sim itself in the place of the event engine: writes its inputs, runs the user's binary, reads its output."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rapid_dse.events.astrasim.limits import check_for_astrasim, check_network
from rapid_dse.events.astrasim.probe import Binary
from rapid_dse.events.astrasim.process import simulate
from rapid_dse.interconnect.engine import RunResult
from rapid_dse.interconnect.system import SystemSettings
from rapid_dse.interconnect.topology import Topology
from rapid_dse.trace.graph import Graph
from rapid_dse.trace.graph_file import GraphFile

BINARY_VARIABLE = "ASTRA_SIM_BIN"
HOW_TO_GET = f"build ASTRA-sim's analytical backend and name its binary in backend.astrasim.binary or {BINARY_VARIABLE}"


@dataclass(frozen=True, slots=True)
class AstraSimEngine:
    """A binary of ASTRA-sim and how long it may run."""

    binary: Path
    timeout_s: float = 600.0

    @staticmethod
    def find(binary: Path | None = None, timeout_s: float = 600.0) -> AstraSimEngine:
        """Take the binary that is named, else the environment's; raises ValueError when there is none that runs."""
        name = binary or os.environ.get(BINARY_VARIABLE)
        if not name:
            raise ValueError(f"no ASTRA-sim binary is named: {HOW_TO_GET}")
        path = Path(name)
        if not path.is_file() or not os.access(path, os.X_OK):
            raise ValueError(f"ASTRA-sim's binary {path} is no file that can be run: {HOW_TO_GET}")
        return AstraSimEngine(path.resolve(), timeout_s)

    @property
    def network(self) -> str | None:
        """The network that the binary simulates, by its name as upstream builds it; None where that says nothing."""
        name = self.binary.name.lower()
        return next((mode for mode in ("congestion_unaware", "congestion_aware") if mode in name), None)

    @property
    def version(self) -> str:
        """Name the binary and what writes its inputs and reads its output, each by its content."""
        return f"astrasim {self._asked.content} {_adapter():08x}"

    @property
    def _asked(self) -> Binary:
        return Binary(self.binary, self.timeout_s)

    def check(self, topology: Topology, network: str, faulty_links: Sequence[tuple[int, int, float]] = ()) -> None:
        """Make sure that the binary simulates a network, by small runs whose times are known.

        Args:
            topology: the network, or a part of it.
            network: congestion_aware or congestion_unaware.
            faulty_links: of the whole network, where ``topology`` is a part.

        Raises:
            ValueError: ASTRA-sim has no such network, or this binary has not.
        """
        check_network(topology, network)
        if self.network not in (None, network):
            raise ValueError(f"network is {network}, ASTRA-sim's binary {self.binary} is the {self.network} one")
        factors = {factor for _, _, factor in (*topology.faulty_links, *faulty_links)}
        self._asked.check(network, len(topology.dimensions), factors)

    def run(self, graph: Graph, topology: Topology, system: SystemSettings, network: str) -> RunResult:
        """Run a graph.

        A graph that deadlocks is a result, as on the built-in engine.

        Raises:
            ValueError: what ASTRA-sim would hang on or abort at; a binary that has not this network, fails, does not end in time or
                whose output does not hold together, with the last lines of its log.
        """
        check_for_astrasim(graph, topology, system, network)
        self.check(topology, network)
        return simulate(self.binary, self.timeout_s, graph, topology, system)


@cache
def _adapter() -> int:
    """Checksum of the sources that a result follows from beside the binary: what they got wrong must not outlive them in a cache."""
    here = Path(__file__)
    sources = [*sorted(here.parent.glob("*.py")), here.parent.parent.parent / "trace" / "chakra.py"]
    return zlib.crc32(b"".join(path.read_bytes() for path in sources))


def engine_for(binary: Path | None) -> Callable[[GraphFile, str], RunResult]:
    """Give the engine of the network command that runs a graph file on ASTRA-sim."""
    simulator = AstraSimEngine.find(binary)

    def engine(file: GraphFile, network: str) -> RunResult:
        topology = Topology.from_json(file.network)
        return simulator.run(file.graph, topology, SystemSettings.from_json(file.system), network)

    return engine
