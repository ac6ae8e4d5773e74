"""ASTRA-sim's files: the inputs of a run, and what the program prints and logs of it."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rapid_dse.interconnect.engine import LinkUse, RunResult
from rapid_dse.interconnect.system import SystemSettings
from rapid_dse.interconnect.topology import Topology
from rapid_dse.trace.chakra import write_traces
from rapid_dse.trace.graph import COLLECTIVE, WORLD, Graph, Ints

LOG = Path("log") / "workload.log"
"""The synchronous log, in a run's folder. The program's own log.log is written behind its back, so that lines are lost where the
program dies in its destructors, and goes over to further files at 10 MiB."""
FINISHED = re.compile(r"sys\[(\d+)\] finished, (\d+) cycles")
STEP = re.compile(r"(issue|callback),\s*sys->id=(\d+),\s*tick=(\d+),\s*node->id=(\d+),")
TAIL_LINES = 8


def write_inputs(folder: Path, graph: Graph, topology: Topology, system: SystemSettings) -> list[str]:
    """Write all input files into a folder; returns the command's options.

    Raises:
        ValueError: as ``write_traces``.
    """
    folder = folder.absolute()
    write_traces(graph, folder / "trace")
    (folder / LOG).parent.mkdir()
    (folder / "network.yml").write_text(_network(topology))
    (folder / "system.json").write_text(json.dumps(_system(system, len(topology.dimensions))))
    (folder / "memory.json").write_text(json.dumps({"memory-type": "NO_MEMORY_EXPANSION"}))
    (folder / "logging.toml").write_text(_logging(folder / LOG))
    options = {
        "workload-configuration": folder / "trace",
        "system-configuration": folder / "system.json",
        "network-configuration": folder / "network.yml",
        "remote-memory-configuration": folder / "memory.json",
        "logging-configuration": folder / "logging.toml",
        "logging-folder": (folder / LOG).parent,
    }
    used = np.unique(graph.group[(graph.kind == COLLECTIVE) & (graph.group != WORLD)]).tolist()
    if used:
        groups = {str(graph.groups.ids[g]): graph.groups.members(g).tolist() for g in used}
        (folder / "comm_group.json").write_text(json.dumps(groups))
        options["comm-group-configuration"] = folder / "comm_group.json"
    command = [f"--{key}={value}" for key, value in options.items()]
    if system.queues_per_dim > 1:  # the program does not read the system file's entry
        command.append(f"--num-queues-per-dim={system.queues_per_dim}")
    return command


def _network(topology: Topology) -> str:
    network: dict[str, list[Any]] = {
        "topology": [d.kind for d in topology.dimensions],
        "npus_count": [d.size for d in topology.dimensions],
        "bandwidth": [d.bandwidth for d in topology.dimensions],
        "latency": [d.latency for d in topology.dimensions],
    }
    if topology.faulty_links:
        network["faulty_links"] = [list(fault) for fault in topology.faulty_links]
    # YAML takes JSON's lists as they are
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in network.items())


def _system(system: SystemSettings, dims: int) -> dict[str, Any]:
    settings = system.to_json()
    for key, value in settings.items():
        if key.endswith("-implementation"):
            settings[key] = value * dims if len(value) == 1 else value
    return settings


def _logging(path: Path) -> str:
    """The settings of spdlog that have the lines of nodes written into one file as they come."""
    name = json.dumps(str(path), ensure_ascii=False)  # a string of JSON is one of TOML
    return (
        f'[[sink]]\nname = "nodes"\ntype = "basic_file_sink_mt"\nfilename = {name}\n\n'
        '[[logger]]\nname = "workload"\nsinks = ["nodes"]\nlevel = "debug"\nflush_level = "debug"\n'
    )


def read_output(graph: Graph, code: int, stdout: str, stderr: str, steps: Iterable[str]) -> RunResult:
    """Read a run's output: ``steps`` are the lines of the synchronous log.

    Success is a finished line of every rank, on stdout or in the log, whatever the exit code: the program may die in its
    destructors, and lose what it had yet to print. A deadlock exits 0 and leaves each rank that is not finished waiting in a node.

    Raises:
        ValueError: the program failed, its log is cut off, or what it says contradicts itself.
    """
    finish = np.full(graph.ranks, -1, np.int64)
    _read_finished(stdout.splitlines(), finish)
    start, end, last_lines = _read_steps(graph, steps, finish)
    missing, waiting = np.flatnonzero(finish < 0), np.flatnonzero((start >= 0) & (end < 0))
    if len(missing) and (code != 0 or not np.isin(missing, graph.rank[waiting]).all()):
        raise ValueError(f"ASTRA-sim ended with exit code {code} and no finished line of rank {missing[0]}{tail(stdout, stderr)}")
    lost = np.flatnonzero((end < 0) & (finish[graph.rank] >= 0))
    if len(lost):
        raise ValueError(f"ASTRA-sim's log is cut off: it has no end of {graph.node_name(int(lost[0]))}{tail(*last_lines)}")
    _check_times(graph, start, end, finish)
    empty = np.zeros(0, np.int64)
    return RunResult(
        makespan_ns=int(end.max()),
        start_ns=start,
        end_ns=end,
        finish_ns=finish,
        links=LinkUse(empty.astype(np.int32), empty.astype(np.int32), empty, empty),
        waiting=waiting,
        hops=0,
        delays=0,
    )


def _read_finished(lines: Iterable[str], finish: Ints) -> None:
    """Put the times at which ranks finished into ``finish``, int64[ranks]."""
    for line in lines:
        for rank, cycles in FINISHED.findall(line):
            if int(rank) >= len(finish) or finish[int(rank)] not in (-1, int(cycles)):
                raise ValueError(f"ASTRA-sim tells of a rank that is not there, or another time of one than before: {line.strip()}")
            finish[int(rank)] = int(cycles)


def _read_steps(graph: Graph, steps: Iterable[str], finish: Ints) -> tuple[Ints, Ints, list[str]]:
    """Starts and ends of nodes, int64[nodes] each, -1 where the log has none, and its last lines; fills ``finish`` in."""
    start, end = np.full(len(graph), -1, np.int64), np.full(len(graph), -1, np.int64)
    last: deque[str] = deque(maxlen=TAIL_LINES)
    place = {pair: i for i, pair in enumerate(zip(graph.rank.tolist(), graph.id.tolist(), strict=True))}
    for line in steps:
        last.append(line)
        step = STEP.search(line)
        if step is None:
            _read_finished([line], finish)
            continue
        kind, rank, tick, node = step.groups()
        i = place.get((int(rank), int(node)))
        if i is None:
            raise ValueError(f"ASTRA-sim's log names node {node} of rank {rank}, which the graph does not have")
        times = start if kind == "issue" else end
        if times[i] not in (-1, int(tick)):
            raise ValueError(f"ASTRA-sim's log has two times, {times[i]} and {tick} ns, of one {kind} of {graph.node_name(i)}")
        times[i] = int(tick)
    return start, end, list(last)


def _check_times(graph: Graph, start: Ints, end: Ints, finish: Ints) -> None:
    """Raise ValueError where a node ends before it starts, or a rank is finished at another time than its last node."""
    wrong = np.flatnonzero((end >= 0) & ((start < 0) | (end < start)))
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(f"ASTRA-sim's log has {graph.node_name(i)} end at {end[i]} ns, but not start before")
    last = np.full(graph.ranks, -1, np.int64)
    np.maximum.at(last, graph.rank, end)
    contradicted = np.flatnonzero((finish >= 0) & (finish != last))
    if len(contradicted):
        rank = int(contradicted[0])
        raise ValueError(
            f"ASTRA-sim contradicts itself: rank {rank} finished at {finish[rank]} ns, its last node ended at {last[rank]} ns by its log"
        )


def tail(*texts: str) -> str:
    """The last lines of what a program printed, for a message."""
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()][-TAIL_LINES:]
    return "; it printed nothing" if not lines else "; its last lines: " + " | ".join(lines)
