"""The search for what breaks the laws of serving (``benchmarks/serving_laws.py``), on servers that break one by a known share."""

from __future__ import annotations

import shlex
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from serving_laws import LAWS, NAMES, TOKEN, Violation, largest_fall, lines, searched

from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel.engines import Engines
from rapid_dse.simulate.inference.pricing import price
from rapid_dse.sweep.overrides import read
from rapid_dse.sweep.space import plan

TRIALS = 2
COLUMNS = ("requests_per_s", TOKEN, "ttft_s", "request_latency_s")
MANY = {"more running": "concurrency", "more arriving": "request_rate", "more at once": "num_prompts"}
LONG = {"generated": ("decode_len", 64), "prompt": ("prompt_len", 256)}


class Server:
    """Serves every load alike, one a second, and has a place for all; but a fifth less of one column where a law forbids it.

    Attributes:
        law: what it breaks; none: nothing.
        column: of the results.
        scenarios: priced since the last case; of the law of faster machines each case has two.
    """

    def __init__(self, law: str = "", column: str = "") -> None:
        self.law, self.column, self.scenarios = law, column, 0

    def __call__(self, of: Scenario, engines: Engines) -> Any:
        self.scenarios += 1
        columns = {name: np.ones(len(engines)) for name in COLUMNS} | {"running_requests": np.full(len(engines), np.inf)}
        if self.column:
            columns[self.column] = columns[self.column] * self._factor(of, engines)
        return SimpleNamespace(**columns)

    def _factor(self, of: Scenario, engines: Engines) -> Any:
        if self.law in MANY:
            return np.where(getattr(engines, MANY[self.law]) >= 50, 0.8, 1.0)
        if self.law in LONG:
            key, long = LONG[self.law]
            return 0.8 if getattr(of.workload, key) >= long else 1.0
        faster = self.scenarios % 2 == 0
        return (0.8 if self.column == "requests_per_s" else 1.25) if faster else 1.0


def found_by_column(number: int, server: Any, trials: int = TRIALS) -> dict[str, list[Violation]]:
    """The violations of a law, all classes together."""
    found = defaultdict(list)
    for law_class, violations in searched(LAWS[number], 1, trials, server).items():
        found[law_class.column] += violations
    return found


@pytest.mark.parametrize(("number", "law"), list(enumerate(LAWS)), ids=NAMES)
def test_a_violation_is_found_with_its_size_and_a_sweep_that_shows_it(number: int, law: Any) -> None:
    assert all(each.size == 0.0 for violations in found_by_column(number, Server()).values() for each in violations)
    for column in law.columns:
        found = found_by_column(number, Server(law.name, column))
        assert {name for name, violations in found.items() if max(each.size for each in violations) > 0.0} == {column}
        worst = max(found[column], key=lambda each: each.size)
        assert worst.size == pytest.approx(0.2)
        rows = [(portion.scenario, portion.layouts) for portion in plan(read(shlex.split(worst.words)[1:])).portions]
        server = Server(law.name, column)
        shown = np.concatenate([getattr(server(*row), column) for row in rows])
        assert shown.tolist() == pytest.approx(worst.values)


@pytest.mark.parametrize("name", ["more_running", "machine"])
def test_the_sweep_of_a_case_gives_the_figures_of_the_search(name: str) -> None:
    """Priced as the command does it: all that a case sets is in its words. The same seed finds the same."""
    law = LAWS[NAMES.index(name)]
    found = searched(law, 1, 1)
    assert list(lines(found, 0.0)) == list(lines(searched(law, 1, 1), 0.0))
    for law_class, (violation, *_) in found.items():
        portions = plan(read(shlex.split(violation.words)[1:])).portions
        shown = np.concatenate([getattr(price(portion.scenario, portion.layouts), law_class.column) for portion in portions])
        assert shown[[0, -1]].tolist() == pytest.approx(violation.values, rel=1e-6)


def test_a_fall_is_that_below_all_that_stands_before() -> None:
    values = np.array([1.0, 4.0, 3.5, np.nan, 3.0, 9.0, 1.0])
    counted = np.array([True] * 6 + [False])
    assert largest_fall(values, counted) == (0.25, 1, 4)
    assert largest_fall(values[:2], counted[:2])[0] == 0.0
