"""Command line of the network engine: parse, call, print."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rapid_dse.command import Parser, guarded


def say(line: str) -> None:
    """Tell the user something beside the results."""
    print(line, file=sys.stderr)


def build_parser() -> Parser:
    """Describe the command line."""
    from rapid_dse.interconnect.engine import NETWORKS

    parser = Parser(prog="python -m rapid_dse.network", description="Times collectives and multi-rank graphs on the event engine.")
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("collectives", help="time a table of single collectives")
    table.add_argument("table", type=Path, help="CSV with ASTRA-sim's columns (backend, topology, npus, …)")
    table.add_argument("--out", type=Path, required=True, help="CSV to write: the same columns, predicted_ns, status and reason")
    graph = commands.add_parser("graph", help="run a multi-rank graph")
    graph.add_argument("file", type=Path, help="JSON: network, system, comm_groups, ranks")
    graph.add_argument("--network", choices=[n for n in NETWORKS if n != "ideal"], default="congestion_aware")
    graph.add_argument("--out", type=Path, required=True, help="JSON to write: makespan, finish times, node times")
    graph.add_argument("--engine", choices=["builtin", "astrasim"], default="builtin")
    graph.add_argument("--binary", type=Path, help="ASTRA-sim's binary (default: the variable ASTRA_SIM_BIN)")
    graph.add_argument("--links", action="store_true", help="add bytes and busy time of each link")
    for command in (table, graph):
        command.add_argument("--json", action="store_true", help="print one JSON value (docs/json.md) when done")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Run the command; 0 done, 1 the graph deadlocks, 2 a row cannot run. Raises ValueError where the input is wrong."""
    from rapid_dse.events import network_command  # what takes long to load is loaded where Ctrl-C is one line

    options = build_parser().parse_args(arguments)
    if options.command == "collectives":
        return _told(options, network_command.run_collectives(options.table, options.out, say))
    network_command.check_links_are_told(options.links, options.engine, options.network)
    engine: network_command.Engine = network_command.builtin_engine
    if options.engine == "astrasim":
        from rapid_dse.events.astrasim.adapter import engine_for

        engine = engine_for(options.binary)
    return _told(options, network_command.run_graph_file(options.file, options.network, options.out, options.links, engine, say))


def _told(options: argparse.Namespace, code: int) -> int:
    """The exit code; where it is asked for, what was written is printed as JSON."""
    if options.json:
        print(json.dumps({"command": options.command, "out": str(options.out), "exit_code": code}))
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 2 and one line where the input is wrong."""
    return guarded(run, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
