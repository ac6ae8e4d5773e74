"""Numbers of a configuration that measured runs may fit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FreeParameter:
    """A number that ``calibrate`` may fit.

    ``typical`` and ``spread`` are what it is over frameworks and how far one may lie from that, both in ``unit``: where a table of
    runs says nothing of it, it stays there. ``upper`` bounds the search.
    """

    name: str
    typical: float
    spread: float
    upper: float
    unit: str
    reason: str
