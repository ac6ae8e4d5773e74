"""Tables in text that are never cut: a line a row where the terminal is wide enough, else figures on one line and names below them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rapid_dse.sweep import figures
from rapid_dse.sweep.console import UNLIMITED

if TYPE_CHECKING:
    from rich.console import Console

_GAP = "  "
_LEAST = 4  # columns that stay on a row's line however narrow the terminal: its number, and three figures
_TIED = "\0"  # a blank at which no line ends


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        title: its head.
        cells: a text a row.
        figure: whether it holds figures, which stand below one another on the right; names stand on the left.
        key: whether the title says what a name's cell is: where it has no column of its own it stands before it, with an equals sign.
    """

    title: str
    cells: Sequence[str]
    figure: bool = True
    key: bool = False

    @property
    def width(self) -> int:
        """Characters of the widest cell or of the title."""
        return max(len(text) for text in (self.title, *self.cells))

    def padded(self, text: str) -> str:
        """A cell, or the title, as wide as the column."""
        return text.rjust(self.width) if self.figure else text.ljust(self.width)


def lines(columns: Sequence[Column], width: int) -> list[str]:
    """The table's lines, the head first; the first column numbers or names the rows.

    Where all columns do not fit into ``width``, each row's figures are a line behind its number or name, and its other names, as key=value,
    one or several below it; with them the last of the figures where these alone are too wide.
    """
    if _wide(columns) <= width:
        return _joined(columns)
    figures = [column for column in columns if column.figure or column is columns[0]]
    names = [column for column in columns[1:] if not column.figure]
    below: list[Column] = []
    while _wide(figures) > width and len(figures) > _LEAST:
        below.insert(0, replace(figures.pop(), key=True))
    names += below
    head, *rows = _joined(figures)
    indent = " " * ((columns[0].width if columns[0].figure else 0) + len(_GAP))
    listed = [head]
    for row, line in enumerate(rows):
        listed.append(line)
        listed += _below(names, row, indent, max(width, 30))
    return listed


def _wide(columns: Sequence[Column]) -> int:
    """Characters of a line of these columns."""
    return sum(column.width for column in columns) + len(_GAP) * (len(columns) - 1)


def _below(names: Sequence[Column], row: int, indent: str, width: int) -> list[str]:
    """A row's names below its figures: on one line where they fit, else those that have a key, then the others on a line of their own."""
    keyed = _GAP.join(f"{name.title}={name.cells[row]}".replace(" ", _TIED) for name in names if name.key and name.cells[row])
    plain = _GAP.join(name.cells[row] for name in names if not name.key)
    whole = _GAP.join(part for part in (keyed, plain) if part)
    parts = [whole] if len(indent) + len(whole) <= width else [keyed, plain]
    wrapped = (textwrap.wrap(part, width - len(indent), break_long_words=False, break_on_hyphens=False) for part in parts)
    return [indent + line.replace(_TIED, " ") for lines in wrapped for line in lines]


def _joined(columns: Sequence[Column]) -> list[str]:
    head = _GAP.join(column.padded(column.title) for column in columns)
    rows = (_GAP.join(map(Column.padded, columns, cells)) for cells in zip(*(column.cells for column in columns), strict=True))
    return [line.rstrip() for line in (head, *rows)]


def show(console: Console, columns: Sequence[Column]) -> None:
    """Prints a table."""
    head, *rows = lines(columns, console.width)
    console.print(head, style="bold", highlight=False, markup=False, soft_wrap=True)
    for row in rows:
        console.print(row, highlight=False, markup=False, soft_wrap=True)


def say(console: Console, text: str, indent: int = 0) -> None:
    """Prints a sentence, broken where the terminal ends; further lines start with ``indent`` blanks."""
    width, under = console.width, " " * indent
    wrapped = textwrap.wrap(text, width, subsequent_indent=under, break_long_words=False, break_on_hyphens=False)
    for line in wrapped if len(text) > width else [text]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def short_titles(keys: Sequence[str]) -> list[str]:
    """The last part of each dotted key, more parts where two keys end alike."""
    titles = []
    for key in keys:
        parts = key.split(".")
        count = next(n for n in range(1, len(parts) + 1) if _alone(".".join(parts[-n:]), key, keys) or n == len(parts))
        titles.append(".".join(parts[-count:]))
    return titles


def _alone(title: str, key: str, keys: Sequence[str]) -> bool:
    return not title[0].isdigit() and not any(other != key and f".{other}".endswith(f".{title}") for other in keys)


def sum_lines(title: str, name: str, total: float, terms: Sequence[tuple[str, float]]) -> list[str]:
    """Lines of a sum: the terms above 0 with their shares of the total."""
    kept = [(term, value) for term, value in terms if value > 0]
    columns = [
        Column(title, [term for term, _ in kept], figure=False),
        Column(figures.result(name, total), [figures.result(name, value) for _, value in kept]),
        Column("", [figures.percent(value / total) for _, value in kept]),
    ]
    return lines(columns, UNLIMITED)
