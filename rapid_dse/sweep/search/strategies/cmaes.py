"""search.sampler=cmaes: Optuna's CMA-ES, for spaces of numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rapid_dse.sweep.search.strategies.base import Strategy, Turn
from rapid_dse.sweep.search.study_space import SearchSpace

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler


class CmaEs(Strategy):
    """Numbers evolve, choices beside them are drawn."""

    name = "cmaes"
    startup = 1

    def check(self, space: SearchSpace, n_objectives: int) -> None:
        """It needs numbers, and one objective."""
        if not space.numbers:
            raise ValueError("search.sampler=cmaes: no key is an interval; allowed: hw.memory.bandwidth=interval(2e12,6e12), or tpe")
        if n_objectives > 1:
            raise ValueError("search.sampler=cmaes: several objectives; allowed: one, or search.sampler=nsga2, nsga3 or tpe")
        try:
            import cmaes  # noqa: F401
        except ImportError:
            raise ValueError("search.sampler=cmaes: cmaes is not installed; allowed: pip install 'rapid-dse[cmaes]', or tpe") from None

    def sampler(self, turn: Turn) -> BaseSampler:
        """Optuna's, told which dimensions are numbers; what it does not know it draws."""
        from optuna.distributions import CategoricalDistribution
        from optuna.samplers import CmaEsSampler

        class InSpace(CmaEsSampler):
            def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
                return {
                    key: distribution
                    for key, distribution in turn.distributions.items()
                    if not distribution.single() and not isinstance(distribution, CategoricalDistribution)
                }

        return InSpace(seed=turn.seed(), n_startup_trials=self.startup, warn_independent_sampling=False)


STRATEGY = CmaEs()
