"""search.sampler=tpe: Optuna's tree-structured Parzen estimator, all parameters together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rapid_dse.sweep.search.strategies.base import Strategy, Turn

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

# Candidates times trials: what a turn costs. Many candidates find the best layouts early (512 against 24: in 10 of 10 seeds
# against 6 on GPT-3's), and once there are a thousand trials 24 do.
_WORK, _FEWEST, _MOST = 25_600, 24, 512


class Tpe(Strategy):
    """With several objectives as well."""

    name = "tpe"
    startup = 10

    def sampler(self, turn: Turn) -> BaseSampler:
        """Optuna's, told the space: it would gather it from all trials each time."""
        from optuna.samplers import TPESampler

        class InSpace(TPESampler):
            def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
                return {key: distribution for key, distribution in turn.distributions.items() if not distribution.single()}

        candidates = max(_FEWEST, min(_MOST, _WORK // max(1, turn.number)))
        return InSpace(seed=turn.seed(), n_startup_trials=self.startup, n_ei_candidates=candidates, multivariate=True)


STRATEGY = Tpe()
