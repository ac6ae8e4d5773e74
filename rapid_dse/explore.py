"""``python -m rapid_dse.explore RESULTS``: a local page over all studies of a folder."""

from __future__ import annotations

import argparse
import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from rapid_dse.command import Parser, guarded

EPILOG = """\
Prints an address with a token of this start, which opens the page in a browser on this machine; nobody else is answered. Studies can be
filtered, compared, explained and exported, and a trial be priced. With --allow-runs sweeps can be launched, whose rows go to RESULTS.
Ctrl-C ends the page, and sweeps that it launched.
"""
HOST = "127.0.0.1"


def main() -> int:
    """Entry point; the exit code."""
    return guarded(run, sys.argv[1:])


def run(arguments: Sequence[str]) -> int:
    """Serves the page until it is interrupted.

    Raises:
        ValueError: where the folder, the port or what the page is made with is none.
    """
    options = _options(arguments)
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ModuleNotFoundError as error:
        raise ValueError(f"explore needs {error.name}: pip install 'rapid-dse[explore]'") from None
    from rapid_dse.explorer.launched_sweeps import Launches
    from rapid_dse.explorer.page_guard import Access
    from rapid_dse.explorer.study_shelf import Shelf
    from rapid_dse.explorer.web_app import application

    with _socket(options.port) as listening:
        access = Access(listening.getsockname()[1])
        launches = Launches(options.results, options.allow_runs)
        config = uvicorn.Config(application(Shelf(options.results), launches, access), log_level="error", access_log=False, lifespan="off",
                                server_header=False, proxy_headers=False, timeout_graceful_shutdown=1)  # fmt: skip
        _say(access.address, options)
        try:
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            launches.end_all()
    return 0


def _say(address: str, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps({"address": address, "results": str(options.results), "allow_runs": options.allow_runs}), flush=True)
        return
    runs = "sweeps can be launched" if options.allow_runs else "for reading; --allow-runs lets it launch sweeps"
    print(f"{options.results}: {address}\n{runs}; Ctrl-C ends it", flush=True)


def _socket(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()  # who takes the address as soon as it is printed waits until the page answers
    except OSError as error:
        listener.close()
        raise ValueError(f"--port={port}: {error.strerror}; allowed: a free port, or 0 for any") from None
    return listener


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m rapid_dse.explore", description=__doc__, epilog=EPILOG)
    parser.add_argument("results", type=Path, metavar="RESULTS", help="the folder of studies, as results")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--allow-runs", action="store_true", help="let the page launch sweeps; without it the page is for reading")
    parser.takes_json()
    options = parser.parse_args(arguments)
    if not 0 <= options.port <= 65535:
        raise ValueError(f"--port={options.port}: allowed: 0 to 65535")
    if options.results.is_file() or not (options.results.is_dir() or options.allow_runs):
        raise ValueError(f"{options.results}: no such folder; allowed: a folder of studies, as a sweep writes (results)")
    return options


if __name__ == "__main__":
    sys.exit(main())
