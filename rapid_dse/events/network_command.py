"""The command ``python -m rapid_dse.network``: what it does, without its printing."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rapid_dse.common.bounded_files import require_file
from rapid_dse.config.table_file import check_names
from rapid_dse.interconnect.engine import RunResult, run_graph
from rapid_dse.interconnect.system import SystemSettings
from rapid_dse.interconnect.tables import CollectiveCase
from rapid_dse.interconnect.topology import Topology
from rapid_dse.trace.graph import Graph
from rapid_dse.trace.graph_file import GraphFile, read_graph_file

Say = Callable[[str], None]
Engine = Callable[[GraphFile, str], RunResult]

OK, DEADLOCK, BAD_INPUT = range(3)
SHOWN = 20
PREDICTED, OUTCOME = ("predicted_ns",), ("status", "reason")  # what ``collectives`` adds to a table


def run_collectives(table: Path, out: Path, say: Say) -> int:
    """Time each row of a table.

    A row that cannot run, or deadlocks, is named; its ``predicted_ns`` is empty, its ``status`` says which and ``reason`` why, and the
    exit code is 2, or 1 where rows deadlock and nothing else is wrong.
    """
    require_file(table)
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            check_names(list(reader.fieldnames or []), table)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table}: {error}") from None
    if not rows:
        raise ValueError(f"{table} has no rows")
    columns = [f"input.{c}" if c in OUTCOME else c for c in rows[0] if c is not None and c not in PREDICTED]
    codes = set()
    for number, row in enumerate(rows, 1):
        code, times = _time_collective(row)
        if times["reason"]:
            say(f"{table}, row {number}: {times['reason']}")
        codes.add(code)
        kept = {f"input.{c}" if c in OUTCOME else c: value for c, value in row.items()}
        row.clear()
        row.update(kept | times)
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *PREDICTED, *OUTCOME], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return max(codes)


def _time_collective(row: dict[str, str]) -> tuple[int, dict[str, str]]:
    """A row's exit code, and its columns ``PREDICTED`` and ``OUTCOME``."""
    try:
        if None in row.values() or None in row:
            raise ValueError("it has not as many cells as the header has columns")
        result = CollectiveCase.from_row(row).run()
    except (ValueError, MemoryError) as error:
        return BAD_INPUT, {"predicted_ns": "", "status": "invalid", "reason": str(error)}
    if result.deadlocked:
        waiting = f"rank {result.waiting[0]} and {len(result.waiting) - 1} more wait for ever" if len(result.waiting) else "no rank starts"
        return DEADLOCK, {"predicted_ns": "", "status": "deadlock", "reason": f"the collective deadlocks: {waiting}"}
    return OK, {"predicted_ns": str(result.makespan_ns), "status": "ok", "reason": ""}


def check_links_are_told(links: bool, engine: str, network: str) -> None:
    """Raise ValueError where links are asked for and there is nothing to tell of them."""
    if links and (engine == "astrasim" or network == "congestion_unaware"):
        raise ValueError(
            "--links: neither ASTRA-sim nor the congestion_unaware network tells what links carried; "
            "use --engine builtin with --network congestion_aware or fair"
        )


def builtin_engine(file: GraphFile, network: str) -> RunResult:
    """Run a graph file on the built-in engine."""
    topology = Topology.from_json(file.network)
    return run_graph(file.graph, topology, SystemSettings.from_json(file.system), network)


def run_graph_file(path: Path, network: str, out: Path, links: bool, engine: Engine, say: Say) -> int:
    """Run a graph file and write its times; 1 and the waiting nodes when it deadlocks."""
    file = read_graph_file(path)
    result = engine(file, network)
    report = result_to_json(file.graph, result, links)
    out.write_text(json.dumps(report))
    if not result.deadlocked:
        return OK
    waiting: dict[str, list[int]] = report["waiting"]
    listed = "; ".join(f"rank {r}: node {', '.join(map(str, ids))}" for r, ids in list(waiting.items())[:SHOWN])
    more = f" and {len(waiting) - SHOWN} more ranks" if len(waiting) > SHOWN else ""
    say(f"deadlock: these nodes wait for ever: {listed}{more}")
    return DEADLOCK


def result_to_json(graph: Graph, result: RunResult, links: bool) -> dict[str, Any]:
    """Give a result in the form of the output file; times that never came are null."""

    def time(ns: int) -> int | None:
        return ns if ns >= 0 else None

    nodes: dict[str, dict[str, list[int | None]]] = {str(r): {} for r in range(graph.ranks)}
    rows = zip(graph.rank.tolist(), graph.id.tolist(), result.start_ns.tolist(), result.end_ns.tolist(), strict=True)
    for rank, node, start, end in rows:
        nodes[str(rank)][str(node)] = [time(start), time(end)]
    dead = result.deadlocked
    report: dict[str, Any] = {
        "makespan_ns": None if dead else result.makespan_ns,
        "finish_ns": {} if dead else {str(r): ns for r, ns in enumerate(result.finish_ns.tolist())},
        "node_times_ns": nodes,
    }
    if dead:
        waiting: dict[str, list[int]] = {}
        for i in result.waiting.tolist():
            waiting.setdefault(str(graph.rank[i]), []).append(int(graph.id[i]))
        report["waiting"] = waiting
    if links and result.links is not None:
        use = result.links
        columns = (use.source.tolist(), use.target.tolist(), use.bytes.tolist(), use.busy_ns.tolist())
        names = ("from", "to", "bytes", "busy_ns")
        report["links"] = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return report
