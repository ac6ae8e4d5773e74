"""Command line of the network engine: parse, call, print."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rapid_dse.command import guarded


def say(line: str) -> None:
    """Tell the user something beside the results."""
    print(line, file=sys.stderr)


def run(arguments: Sequence[str]) -> int:
    """Run the command; 0 done, 1 the graph deadlocks, 2 a row cannot run. Raises ValueError where the input is wrong."""
    from rapid_dse.network import command  # what takes long to load is loaded where Ctrl-C is one line

    options = command.build_parser().parse_args(arguments)
    if options.command == "collectives":
        return command.run_collectives(options.table, options.out, say)
    command.check_links_are_told(options.links, options.engine, options.network)
    engine: command.Engine = command.builtin_engine
    if options.engine == "astrasim":
        from rapid_dse.simulate.astrasim import engine_for

        engine = engine_for(options.binary)
    return command.run_graph_file(options.file, options.network, options.out, options.links, engine, say)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 2 and one line where the input is wrong."""
    return guarded(run, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
