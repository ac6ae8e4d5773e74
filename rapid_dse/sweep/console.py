"""Where a command prints: a terminal, a file, or a pipe whose reader may have seen enough."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console

UNLIMITED = 10**6  # characters of a line: how wide a file or a pipe is
_COLOURED = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")  # variables by which rich takes a file or a pipe for a terminal


def console(stderr: bool = False, **options: Any) -> Console:
    """A console; where no terminal and no COLUMNS say how wide it is, as wide as is needed, so that a pipe's table has a line a row.

    A pipe that nobody reads raises ``BrokenPipeError``, which ends the command quietly.

    Args:
        options: of rich's console.
    """
    stream = sys.stderr if stderr else sys.stdout
    columns = os.environ.get("COLUMNS", "")
    given = int(columns) if columns.isdigit() and columns.isascii() else 0  # 0 says nothing, as in other programs
    if given or not stream.isatty():
        plain = not given and not any(name in os.environ for name in _COLOURED)
        return cast("Console", _Plain(stream)) if plain else _piped(stream, given or UNLIMITED, options)
    return _piped(stream, None if not columns else shutil.get_terminal_size().columns or None, options)


def _piped(stream: TextIO, width: int | None, options: dict[str, Any]) -> Console:
    from rich.console import Console

    class Piped(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich itself would end the process with 1

    return Piped(file=stream, width=width, **options)


@dataclass(frozen=True)
class _Plain:
    """What of rich's console is used where lines have neither styles nor an end: most of them are written without importing it."""

    file: TextIO
    width: int = UNLIMITED
    is_terminal: bool = False

    def print(self, *texts: str, markup: bool = True, **options: Any) -> None:
        """Writes a line; one with markup, or with what is no printable character, as rich has it."""
        line = " ".join(texts)
        if (markup and "[" in line) or not line.replace("\n", "").isprintable():
            _piped(self.file, self.width, {"emoji": False}).print(line, markup=markup, **options)
            return
        self.file.write(f"{line}\n")
        self.file.flush()
