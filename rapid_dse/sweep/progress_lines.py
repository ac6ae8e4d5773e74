"""Progress where output goes elsewhere than to a terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class ProgressLines:
    """Progress for a log: a line every ``every`` seconds, with the time that is left at the rate so far."""

    total: int
    err: Console
    every: float = 5.0
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)

    def advance(self, rows: int) -> None:
        """So many more are done."""
        self.done += rows
        now = time.monotonic()
        if now - self.said >= self.every and 0 < self.done < self.total:
            self.said = now
            seconds_left = (self.total - self.done) * (now - self.began) / self.done
            line = f"{self.done:,} of {self.total:,} trials priced ({self.done / self.total:.0%}), about {seconds_left:,.0f} s left"
            self.err.print(line, highlight=False, markup=False, soft_wrap=True)
