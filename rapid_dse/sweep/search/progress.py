"""Progress of a study: trials done, the best so far, time left, rejections by reason, failures as they happen."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rapid_dse.sweep import show
from rapid_dse.sweep.search.aims import Aims
from rapid_dse.sweep.search.answers import Row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar


@dataclass
class Progress:
    """A bar on a terminal; elsewhere a line every ``every`` seconds."""

    total: int
    aims: Aims
    err: Console
    every: float = 5.0
    done: int = 0
    new: int = 0
    best: Row | None = None
    reasons: Counter[str] = field(default_factory=Counter)
    _began: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)
    _pending: int = 0
    _bar: Bar | None = None

    def answered(self) -> None:
        """One more trial of the batch has its row."""
        self._pending += 1
        self._say()

    def read_again(self) -> None:
        """The study is read from its start, as where another process has added to it: what was told before is told again."""
        self.done, self.best = 0, None
        self.reasons.clear()

    def told(self, row: Row, feasible: bool, new: bool) -> None:
        """A trial is in the study."""
        self.done, self.new, self._pending = self.done + 1, self.new + new, max(0, self._pending - new)
        if row.get("reason"):
            self.reasons[row["reason"]] += 1
        if new and row["status"] == "error":
            self.notice(f"trial failed: {row['reason']} ({show.layout_text(row)})")
        if feasible and (self.best is None or self.aims.losses(row)[0] < self.aims.losses(self.best)[0]):
            self.best = row
        self._say()

    def notice(self, line: str) -> None:
        """A line on standard error, above the bar."""
        self.err.print(line, highlight=False, markup=False, soft_wrap=True)

    def text(self) -> str:
        """Best so far and rejections."""
        parts = []
        if self.best is not None:
            objective = self.aims.objectives[0]
            parts.append(f"best {objective.name} {_number(self.best[objective.name])}")
        parts += [f"{count:,} rejected: {reason}" for reason, count in self.reasons.most_common(2)]
        return ", ".join(parts)

    def _say(self) -> None:
        done = min(self.total, self.done + self._pending)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, text=self.text())
        elif time.monotonic() - self._said >= self.every:
            self._said = time.monotonic()
            new = self.new + self._pending
            seconds_left = (self.total - done) * (self._said - self._began) / new if new else None
            time_left = f" ({done / self.total:.0%}), about {seconds_left:,.0f} s left" if seconds_left is not None else ""
            self.notice(f"{done:,} of {self.total:,} trials{time_left}; {self.text()}")

    @contextmanager
    def on_screen(self) -> Iterator[Progress]:
        """With the bar, where there is a terminal."""
        if not self.err.is_terminal:
            yield self
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("searching"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[text]}"))
        with Progress(*columns, console=self.err, transient=True) as bar:
            bar.add_task("searching", total=self.total, text="")
            self._bar = bar
            yield self
        self._bar = None


def _number(value: Any) -> str:
    return f"{value:,.5g}"
