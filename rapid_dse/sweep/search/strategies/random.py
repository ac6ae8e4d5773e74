"""search.sampler=random: legal layouts, each as likely, none twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rapid_dse.sweep.search.strategies.base import Strategy, Turn

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class Random(Strategy):
    """Draws from the legal layouts: Optuna's draws each parameter, which favours layouts with many illegal neighbours."""

    name = "random"

    def propose(self, turn: Turn) -> Mapping[str, Any]:
        """A variant and one of its layouts."""
        return turn.draw()

    def sampler(self, turn: Turn) -> BaseSampler:
        """Optuna's, which is not asked."""
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=turn.seed())


STRATEGY = Random()
