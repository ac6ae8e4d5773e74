"""Where a command prints: a terminal, a file, or a pipe whose reader may have seen enough."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

UNLIMITED = 10**6  # characters of a line: how wide a file or a pipe is


def console(stderr: bool = False, **options: Any) -> Console:
    """A console; where no terminal and no COLUMNS say how wide it is, as wide as is needed, so that a pipe's table has a line a row.

    A pipe that nobody reads raises ``BrokenPipeError``, which ends the command quietly.

    Args:
        options: of rich's console.
    """
    from rich.console import Console

    class Piped(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich itself would end the process with 1

    stream = sys.stderr if stderr else sys.stdout
    columns = os.environ.get("COLUMNS", "")
    given = int(columns) if columns.isdigit() and columns.isascii() else 0  # 0 says nothing, as in other programs
    if given or not stream.isatty():
        return Piped(file=stream, width=given or UNLIMITED, **options)
    width = None if not columns else shutil.get_terminal_size().columns or None
    return Piped(file=stream, width=width, **options)
