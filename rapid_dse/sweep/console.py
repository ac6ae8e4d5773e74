"""Where a command prints: a terminal, a file, or a pipe whose reader may have seen enough."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def console(stderr: bool = False, **options: Any) -> Console:
    """A console; wide where no terminal says how wide it is, so that a table in a file or a pipe is not folded.

    A pipe that nobody reads raises ``BrokenPipeError``, which ends the command quietly.

    Args:
        options: of rich's console.
    """
    from rich.console import Console

    class Piped(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich itself would end the process with 1

    stream = sys.stderr if stderr else sys.stdout
    return Piped(file=stream, width=None if stream.isatty() else 200, **options)
