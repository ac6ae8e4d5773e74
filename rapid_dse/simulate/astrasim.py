"""ASTRA-sim itself in the place of the event engine: writes its inputs, runs the user's binary, reads its output."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rapid_dse.network.engine import LinkUse, RunResult, check_topology
from rapid_dse.network.plans import PlanTables
from rapid_dse.network.system import SystemSettings
from rapid_dse.network.topology import Topology
from rapid_dse.trace.chakra import write_traces
from rapid_dse.trace.graph import COLLECTIVE, COLLECTIVES, RECEIVE, WORLD, Graph, Ints
from rapid_dse.trace.graph_file import GraphFile

BINARY_VARIABLE = "ASTRA_SIM_BIN"
HOW_TO_GET = f"build ASTRA-sim's analytical backend and name its binary in backend.astrasim.binary or {BINARY_VARIABLE}"
FINISHED = re.compile(r"sys\[(\d+)\] finished, (\d+) cycles")
STEP = re.compile(r"(issue|callback),\s*sys->id=(\d+),\s*tick=(\d+),\s*node->id=(\d+)")
UNRELEASED = "unreleased nodes"
TAIL_LINES = 8


@dataclass(frozen=True, slots=True)
class AstraSim:
    """A binary of ASTRA-sim and how long it may run."""

    binary: Path
    timeout_s: float = 600.0

    @staticmethod
    def find(binary: Path | None = None, timeout_s: float = 600.0) -> AstraSim:
        """Take the binary that is named, else the environment's; raises ValueError when there is none that runs."""
        name = binary or os.environ.get(BINARY_VARIABLE)
        if not name:
            raise ValueError(f"no ASTRA-sim binary is named: {HOW_TO_GET}")
        path = Path(name)
        if not path.is_file() or not os.access(path, os.X_OK):
            raise ValueError(f"ASTRA-sim's binary {path} is no file that can be run: {HOW_TO_GET}")
        return AstraSim(path.resolve(), timeout_s)

    @property
    def network(self) -> str | None:
        """The network that the binary simulates, by its name as upstream builds it; None where that says nothing."""
        name = self.binary.name.lower()
        return next((mode for mode in ("congestion_unaware", "congestion_aware") if mode in name), None)

    @property
    def version(self) -> str:
        """Name the binary by its content."""
        stat = self.binary.stat()
        return f"astrasim {_content(self.binary, stat.st_mtime_ns, stat.st_size)}"

    def run(self, graph: Graph, topology: Topology, system: SystemSettings, network: str) -> RunResult:
        """Run a graph in a folder of its own.

        A graph that deadlocks is a result, as on the built-in engine. Raises ValueError for what ASTRA-sim would hang
        on or abort at, and for a binary that fails, does not end in time or whose output is cut off, with the last
        lines of its log.
        """
        check_for_astrasim(graph, topology, system, network)
        built_for = self.network
        if built_for not in (None, network):
            raise ValueError(f"network is {network}, ASTRA-sim's binary {self.binary} is the {built_for} one")
        with tempfile.TemporaryDirectory(prefix="astrasim-") as name:
            folder = Path(name)
            command = [str(self.binary), *write_inputs(folder, graph, topology, system)]
            code, stdout, stderr = self._execute(command, folder)
            log = folder / "log" / "log.log"
            steps = log.read_text(errors="replace") if log.exists() else ""
        return read_output(graph, code, stdout, stderr, steps)

    def _execute(self, command: list[str], folder: Path) -> tuple[int, str, str]:
        """Exit code, stdout and stderr; whatever the binary started ends with it when its time is up."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
        try:
            process = subprocess.Popen(command, cwd=folder, start_new_session=True, **pipes)  # type: ignore[call-overload]
        except OSError as error:
            raise ValueError(f"ASTRA-sim's binary {self.binary} does not run: {error.strerror}") from None
        try:
            stdout, stderr = process.communicate(timeout=self.timeout_s)
        except subprocess.TimeoutExpired:
            _kill(process)
            stdout, stderr = process.communicate()
            raise ValueError(f"ASTRA-sim did not end within {self.timeout_s:g} s{_tail(stdout)}") from None
        except BaseException:
            _kill(process)
            raise
        return process.returncode, stdout, stderr


@cache
def _content(path: Path, changed_ns: int, size: int) -> str:
    """Checksum of a file, taken anew when its time or size are others."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def engine_for(binary: Path | None) -> Callable[[GraphFile, str], RunResult]:
    """Give the engine of the network command that runs a graph file on ASTRA-sim."""
    simulator = AstraSim.find(binary)

    def engine(file: GraphFile, network: str) -> RunResult:
        topology = Topology.from_json(file.network)
        return simulator.run(file.graph, topology, SystemSettings.from_json(file.system), network)

    return engine


def check_groups(system: SystemSettings, collectives: Collection[str]) -> None:
    """Raise ValueError where groups run one of the ``collectives`` as ASTRA-sim has it for the world alone."""
    for name in collectives:
        if name in system.group_algorithms:
            raise ValueError(
                f"backend.engine=astrasim: in a network of several dimensions groups run {name.lower().replace('_', '-')} "
                f"{system.group_algorithms[name]} here and as rings there; allowed with it: backend.engine=builtin"
            )


def check_for_astrasim(graph: Graph, topology: Topology, system: SystemSettings, network: str) -> None:
    """Raise ValueError for what ASTRA-sim cannot do, would hang on, or would abort at."""
    if network not in ("congestion_aware", "congestion_unaware"):
        raise ValueError(f"network is {network!r}: ASTRA-sim runs congestion_aware or congestion_unaware")
    check_topology(topology, network)
    graph.check()
    check_groups(system, [COLLECTIVES[kind] for kind in np.unique(graph.collective[graph.kind == COLLECTIVE])])
    for dimension in topology.dimensions:
        if dimension.kind not in ("Ring", "FullyConnected", "Switch"):
            raise ValueError(f"topology {dimension.kind}: ASTRA-sim has Ring, FullyConnected and Switch")
    if (graph.stream != 0).any():
        raise ValueError("stream: ASTRA-sim runs one communication stream a rank")
    where = np.flatnonzero(graph.kind == COLLECTIVE)
    tables = PlanTables(system, [d.size for d in topology.dimensions])
    sizes = np.diff(graph.groups.ptr)
    shapes = {(int(graph.collective[i]), int(graph.size[i]), int(graph.group[i])) for i in where}
    for kind, size, group in sorted(shapes):
        members = graph.ranks if group == WORLD else int(sizes[group])
        tables.add(kind, size, None if members == graph.ranks else members)
    free = where[np.diff(graph.deps_ptr)[where] == 0]
    if system.endpoint_delay == 0 and len(free):
        raise ValueError(f"endpoint-delay is 0 and {graph.node_name(int(free[0]))} is a collective at the start: it aborts")
    _check_world_counts(graph)


def _check_world_counts(graph: Graph) -> None:
    where = graph.kind == COLLECTIVE
    world = where & (graph.group == WORLD)
    if not world.any():
        return
    counts = np.bincount(graph.rank[where & ~world], minlength=graph.ranks)
    if counts.min() != counts.max():
        raise ValueError(
            f"rank {int(counts.argmin())} runs {counts.min()} collectives on groups and rank {int(counts.argmax())} "
            f"runs {counts.max()}: world collectives without a pg then deadlock; give the world a group id of its own"
        )


def write_inputs(folder: Path, graph: Graph, topology: Topology, system: SystemSettings) -> list[str]:
    """Write all input files into a folder; returns the command's options."""
    write_traces(graph, folder / "trace")
    (folder / "log").mkdir()
    groups = {str(g): graph.groups.members(at).tolist() for at, g in enumerate(graph.groups.ids.tolist())}
    network: dict[str, list[Any]] = {
        "topology": [d.kind for d in topology.dimensions],
        "npus_count": [d.size for d in topology.dimensions],
        "bandwidth": [d.bandwidth for d in topology.dimensions],
        "latency": [d.latency for d in topology.dimensions],
    }
    if topology.faulty_links:
        network["faulty_links"] = [list(fault) for fault in topology.faulty_links]
    # YAML takes JSON's lists as they are
    (folder / "network.yml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in network.items()))
    dims = len(topology.dimensions)
    settings = system.to_json()
    for key, value in settings.items():
        if key.endswith("-implementation"):
            settings[key] = value * dims if len(value) == 1 else value
    (folder / "system.json").write_text(json.dumps(settings))
    (folder / "memory.json").write_text(json.dumps({"memory-type": "NO_MEMORY_EXPANSION"}))
    options = {
        "workload-configuration": "trace",
        "system-configuration": "system.json",
        "network-configuration": "network.yml",
        "remote-memory-configuration": "memory.json",
        "logging-folder": "log",
    }
    if groups:
        (folder / "comm_group.json").write_text(json.dumps(groups))
        options["comm-group-configuration"] = "comm_group.json"
    return [f"--{key}={folder / value}" for key, value in options.items()]


def read_output(graph: Graph, code: int, stdout: str, stderr: str, steps: str) -> RunResult:
    """Read a run's output: ``steps`` is the log of nodes.

    Success is a finished line of every rank, whatever the exit code (the destructors may abort); a deadlock exits 0
    and names unreleased nodes, or only receives wait. Raises ValueError for anything else.
    """
    finish = np.full(graph.ranks, -1, np.int64)
    for rank, cycles in FINISHED.findall(stdout):
        if int(rank) < graph.ranks:
            finish[int(rank)] = int(cycles)
    start, end = _node_times(graph, steps)
    missing, waiting = np.flatnonzero(finish < 0), np.flatnonzero((start >= 0) & (end < 0))
    if len(missing):
        told = any(UNRELEASED in text for text in (stdout, stderr, steps))
        # receives hold no resource: where nothing else waits, ASTRA-sim ends without a word
        silent = (graph.kind[waiting] == RECEIVE).all() and np.isin(missing, graph.rank[waiting]).all()
        if code != 0 or not (told or silent):
            raise ValueError(
                f"ASTRA-sim ended with exit code {code} and no finished line of rank {missing[0]}{_tail(stdout + chr(10) + stderr)}"
            )
    elif (end < 0).any():
        i = int(np.flatnonzero(end < 0)[0])
        raise ValueError(f"ASTRA-sim's log is cut off: it has no end of {graph.node_name(i)}{_tail(steps)}")
    empty = np.zeros(0, np.int64)
    return RunResult(
        makespan_ns=int(finish.max()),
        start_ns=start,
        end_ns=end,
        finish_ns=finish,
        links=LinkUse(empty.astype(np.int32), empty.astype(np.int32), empty, empty),
        waiting=waiting,
        hops=0,
        delays=0,
    )


def _node_times(graph: Graph, steps: str) -> tuple[Ints, Ints]:
    start, end = np.full(len(graph), -1, np.int64), np.full(len(graph), -1, np.int64)
    place = {pair: i for i, pair in enumerate(zip(graph.rank.tolist(), graph.id.tolist(), strict=True))}
    for kind, rank, tick, node in STEP.findall(steps):
        i = place.get((int(rank), int(node)))
        if i is None:
            raise ValueError(f"ASTRA-sim's log names node {node} of rank {rank}, which the graph does not have")
        (start if kind == "issue" else end)[i] = int(tick)
    return start, end


def _tail(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()][-TAIL_LINES:]
    return "; it printed nothing" if not lines else "; its last lines: " + " | ".join(lines)
