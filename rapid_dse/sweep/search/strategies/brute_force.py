"""search.sampler=brute_force: every layout of every variant once, in an order that the seed shuffles."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from rapid_dse.parallel.layouts import IntColumn
from rapid_dse.sweep.search.strategies.base import Strategy, Turn
from rapid_dse.sweep.search.study_space import SearchSpace

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class BruteForce(Strategy):
    """Walks through the legal layouts. Optuna's would walk through all combinations, most of them illegal, at 9 ms each."""

    name = "brute_force"

    def check(self, space: SearchSpace, n_objectives: int) -> None:
        """Numbers have no end."""
        if not space.countable:
            keys = ", ".join(number.key for number in space.numbers)
            raise ValueError(f"search.sampler=brute_force: {keys} is an interval; allowed: lists of values, or another sampler")

    def propose(self, turn: Turn) -> Mapping[str, Any] | None:
        """The first layout, from the turn's place in the shuffled order on, that was not tried."""
        variants = list(turn.space.variants())
        order = _order(tuple(len(variant.pool) for variant in variants), turn.seeds)
        starts = np.cumsum([0, *(len(variant.pool) for variant in variants)])
        for step in range(len(order)):
            position = int(order[(turn.number + step) % len(order)])
            at = int(np.searchsorted(starts, position, side="right")) - 1
            turn.bar(variants[at])
            if not variants[at].barred[position - starts[at]]:
                return turn.space.labels(variants[at], position - int(starts[at]))
        return None

    def sampler(self, turn: Turn) -> BaseSampler:
        """Optuna's random one: asked once everything has been tried."""
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=turn.seed())


@lru_cache(maxsize=4)
def _order(sizes: tuple[int, ...], seeds: tuple[int, ...]) -> IntColumn:
    return np.random.default_rng(list(seeds)).permutation(sum(sizes))


STRATEGY = BruteForce()
