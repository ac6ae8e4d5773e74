"""Command line of the network engine: parse, call, print."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rapid_dse.network import command


def say(line: str) -> None:
    """Tell the user something beside the results."""
    print(line, file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 1 the graph deadlocks, 2 the input is wrong."""
    options = command.build_parser().parse_args(arguments)
    try:
        if options.command == "collectives":
            return command.run_collectives(options.table, options.out, say)
        engine: command.Engine = command.builtin_engine
        if options.engine == "astrasim":
            from rapid_dse.simulate.astrasim import engine_for

            engine = engine_for(options.binary)
        return command.run_graph_file(options.file, options.network, options.out, options.links, engine, say)
    except (ValueError, OSError) as error:
        say(f"error: {error}")
        return command.BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
