"""search.sampler=nsga2: Optuna's NSGA-II, for the front of several objectives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rapid_dse.sweep.search.strategies.base import Strategy, Turn

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

POPULATION = 50


class Nsga2(Strategy):
    """A population that starts from legal layouts, evenly drawn."""

    name = "nsga2"
    startup = POPULATION

    def sampler(self, turn: Turn) -> BaseSampler:
        """Optuna's, told the space. Who becomes a parent hangs on no random number, so a resumed study selects the same."""
        from optuna.samplers import NSGAIISampler

        class InSpace(NSGAIISampler):
            def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
                return {key: found for key, found in turn.distributions.items() if not found.single()}

        return InSpace(seed=turn.seed(), population_size=POPULATION)


STRATEGY = Nsga2()
