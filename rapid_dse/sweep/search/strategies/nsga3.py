"""search.sampler=nsga3: Optuna's NSGA-III, for the front of three and more objectives."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rapid_dse.sweep.search.strategies.base import Strategy, Turn
from rapid_dse.sweep.search.strategies.nsga2 import POPULATION

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial


class Nsga3(Strategy):
    """A population that starts from legal layouts, evenly drawn."""

    name = "nsga3"
    startup = POPULATION

    def sampler(self, turn: Turn, selects: int | None = None) -> BaseSampler:
        """Optuna's, told the space.

        Its choice of parents is random: it is seeded by the generation (``selects``), so that a resumed study chooses the same.
        """
        from optuna.samplers import NSGAIIISampler

        strategy, seed = self, turn.seed() if selects is None else replace(turn, number=0).seed(selects)

        class InSpace(NSGAIIISampler):
            def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
                return {key: distribution for key, distribution in turn.distributions.items() if not distribution.single()}

            def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
                # As in nsga2.
                return sorted(super().get_parent_population(study, generation), key=lambda trial: trial.number)

            def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
                if selects == generation:
                    chosen: list[FrozenTrial] = super().select_parent(study, generation)
                    return chosen
                chooser: Any = strategy.sampler(turn, generation)
                parents: list[FrozenTrial] = chooser.select_parent(study, generation)
                return parents

        return InSpace(seed=seed, population_size=POPULATION)


STRATEGY = Nsga3()
