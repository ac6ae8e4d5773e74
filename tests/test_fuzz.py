"""Some of the inputs that ``make fuzz`` tries: wrong in every way, each refused in one line or priced to finite figures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import fuzz

INPUTS, PARTS = 5_000, 2


@pytest.mark.parametrize("part", range(PARTS))
def test_inputs_made_by_chance_end_well(part: int) -> None:
    found = fuzz.tried(range(part, INPUTS, PARTS), seed=0)
    assert found.count.total() > 0.95 * INPUTS / PARTS
    assert len(found.count) >= 10, "every kind"
    assert not found.wrong, found.wrong[:5]
    assert found.slowest < fuzz.SECONDS
    assert all(count < found.count[kind] for kind, count in found.refused.items() if kind != "trials"), "some of each kind are sound"
