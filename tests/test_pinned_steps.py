"""Step times, memory and energy of 20,000 layouts of every kind are those of the last commit that meant to change a formula."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import pin_steps

BACKENDS = sorted({pin_steps.backend_of(entry) for entry in pin_steps.entries()})


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_figure_changed(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a formula was meant to change: ``python benchmarks/pin_steps.py --write``, in the same commit."""
    monkeypatch.setenv(pin_steps.MODE_VARIABLE, "NO_CACHE")
    expected, compared, layouts_seen = pin_steps.stored(), 0, 0
    for name, scenario, layouts in pin_steps.pinned(backend):
        assert scenario.backend.name == backend
        for row, values in pin_steps.lines(scenario, pin_steps.price(scenario, layouts)).items():
            difference = pin_steps.differences(values, expected[name, row])
            worst = int(difference.argmax())
            assert difference[worst] <= pin_steps.CLOSE, f"scenario {name} row {row}: {pin_steps.COLUMNS[worst]}"
            compared += 1
        layouts_seen += len(layouts)
    assert compared >= (400 if backend == "analytical" else pin_steps.EVENT_ROWS)
    assert layouts_seen >= (pin_steps.ROWS if backend == "analytical" else pin_steps.EVENT_ROWS)
