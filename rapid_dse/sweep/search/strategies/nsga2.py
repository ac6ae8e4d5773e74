"""search.sampler=nsga2: Optuna's NSGA-II, for the front of several objectives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rapid_dse.sweep.search.strategies.base import Strategy, Turn

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

POPULATION = 50


class Nsga2(Strategy):
    """A population that starts from legal layouts, evenly drawn."""

    name = "nsga2"
    startup = POPULATION

    def sampler(self, turn: Turn) -> BaseSampler:
        """Optuna's, told the space. Which trials become parents hangs on no random number, so a resumed study selects the same."""
        from optuna.samplers import NSGAIISampler

        class InSpace(NSGAIISampler):
            def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
                return {key: distribution for key, distribution in turn.distributions.items() if not distribution.single()}

            def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
                # Optuna's order is another one the first time than later, and a study that is resumed has its first time again.
                return sorted(super().get_parent_population(study, generation), key=lambda trial: trial.number)

        return InSpace(seed=turn.seed(), population_size=POPULATION)


STRATEGY = Nsga2()
