"""The study in memory, where trials are asked and told: 0.6 ms each against 35 in a storage."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from rapid_dse.sweep.search.dimensions import distributions
from rapid_dse.sweep.search.lean import PLAIN_CONSTRAINTS
from rapid_dse.sweep.search.study_space import SearchSpace

_NOT_KEPT = ("fixed_params", "tpe:relative_params")  # what enqueued a trial, and what told other threads of it


class Mirror:
    """An Optuna study in memory whose trial numbers are the storage's."""

    def __init__(self, space: SearchSpace, directions: Sequence[Any], stored: Sequence[FrozenTrial]) -> None:
        self.distributions = distributions(space.dimensions)
        self._storage = InMemoryStorage()
        self.study = optuna.create_study(storage=self._storage, directions=list(directions))
        self._study_id = self._storage.get_all_studies()[0]._study_id
        self.study.add_trials([_lean(trial) for trial in stored])
        self.share(stored)
        self._asked: dict[int, optuna.Trial] = {}

    def __len__(self) -> int:
        return self._storage.get_n_trials(self._study_id)

    def ask(self, sampler: BaseSampler, given: Mapping[str, Any] | None) -> tuple[int, dict[str, Any]]:
        """The number and parameters of a new trial: those given, or the sampler's."""
        self.study.sampler = sampler
        if given is not None:
            self.study.enqueue_trial(dict(given))
        trial = self.study.ask(self.distributions)
        self._asked[trial.number] = trial
        if isinstance(sampler, optuna.samplers.NSGAIISampler | optuna.samplers.NSGAIIISampler):
            # A trial that was given belongs to a generation too: else it would never become a parent.
            sampler.get_trial_generation(self.study, self._frozen(trial.number))
        return trial.number, dict(trial.params)

    def settle(self, number: int, labels: Mapping[str, Any]) -> None:
        """Replaces a running trial's parameters by those of the layout that it was mapped onto: the sampler learns what was priced."""
        trial_id = self._frozen(number)._trial_id
        for key, label in labels.items():
            distribution = self.distributions[key]
            self._storage.set_trial_param(trial_id, key, distribution.to_internal_repr(label), distribution)

    def tell(self, number: int, values: Sequence[float] | None, state: TrialState, constraints: Mapping[str, float]) -> None:
        """Finishes a running trial."""
        trial = self._asked.pop(number)
        for name, excess in constraints.items():
            trial.set_constraint(name, excess)
        if state == TrialState.COMPLETE:
            self.study.tell(trial, list(values or ()))
        else:
            self.study.tell(trial, state=state)

    def finished(self, number: int, user_attrs: Mapping[str, Any]) -> FrozenTrial:
        """A finished trial as a storage shall keep it."""
        trial = copy.copy(self._frozen(number))
        kept = {key: value for key, value in trial.system_attrs.items() if not key.startswith(_NOT_KEPT)}
        if trial.constraints:
            kept[PLAIN_CONSTRAINTS] = list(trial.constraints.values())
        trial.system_attrs, trial.user_attrs = kept, dict(user_attrs)
        return trial

    def share(self, stored: Sequence[FrozenTrial]) -> None:
        """Takes over the finished trials that the storage holds in memory, so that there is one of each."""
        for trial in stored:
            own = self._frozen(trial.number)
            if trial.state == own.state and trial._trial_id == own._trial_id:
                self._storage._set_trial(own._trial_id, trial)
            elif trial.state == own.state:  # where the storage has other studies, or counts from 1
                own.params, own.distributions, own.system_attrs = trial.params, trial.distributions, trial.system_attrs
                own._values, own.user_attrs, own.intermediate_values = trial._values, trial.user_attrs, trial.intermediate_values
                own.datetime_start, own.datetime_complete = trial.datetime_start, trial.datetime_complete

    def _frozen(self, number: int) -> FrozenTrial:
        return self._storage.get_trial(self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number))


def _lean(trial: FrozenTrial) -> FrozenTrial:
    """A stored trial as the samplers need it; one that some program left open, or finished as Optuna would not, counts as failed."""
    lean = copy.copy(trial)
    lean.user_attrs = {}
    if lean.state.is_finished():
        try:
            lean._validate()
            return lean
        except (ValueError, TypeError, KeyError, AttributeError):  # another program's, as with a value that is NaN
            lean.params, lean.distributions = {}, {}
    lean.state, lean.values = TrialState.FAIL, None
    lean.datetime_start = lean.datetime_start or lean.datetime_complete or datetime.fromtimestamp(0)
    lean.datetime_complete = lean.datetime_start
    return lean
