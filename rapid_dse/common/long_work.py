"""How far something that takes long has come: told to whoever listens, by logging at level INFO."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_LOG = logging.getLogger(__name__)
EVERY = 5.0  # seconds from one line to the next


@dataclass
class LongWork:
    """A piece of work of ``total`` parts: a line every few seconds, with the time that is left at the rate so far."""

    what: str
    parts: str
    total: int
    began: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    def wait(self) -> None:
        """Tells that something runs of which nothing but the time is known: parts are seconds."""
        _LOG.info("%s has run for %.0f s of the %s %s", self.what, self.seconds, f"{self.total:,}", self.parts)

    def come(self, count: Callable[[], int]) -> None:
        """Tells how far it is where that is due; ``count`` says how many parts are done, and is asked then alone."""
        now = time.monotonic()
        if now - self.said < EVERY or not told():
            return
        self.said, done = now, int(count())
        time_left = f", about {(self.total - done) * (now - self.began) / done:,.0f} s left" if done else ""
        share = f"{done:,} of {self.total:,} {self.parts} ({done / max(self.total, 1):.0%})"
        _LOG.info("%s: %s after %.0f s%s", self.what, share, now - self.began, time_left)


def told() -> bool:
    """Whether anybody listens."""
    return _LOG.isEnabledFor(logging.INFO)


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Standard error as it is when a line comes: a bar on a terminal puts itself below what others write."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> object:
        return sys.stderr


@contextmanager
def listening() -> Iterator[None]:
    """Within, lines go to standard error."""
    handler, level = _Handler(), _LOG.level
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        _LOG.removeHandler(handler)
        _LOG.setLevel(level)
