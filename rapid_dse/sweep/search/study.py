"""A study: asks a batch, answers it, tells it, writes it; goes on where a killed process left it, beside other processes."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from optuna.trial import FrozenTrial, TrialState

from rapid_dse.config.run import Search
from rapid_dse.sweep.search.aims import Aims
from rapid_dse.sweep.search.answers import Answers, Row
from rapid_dse.sweep.search.bounding import Bounding, Proof, Skips
from rapid_dse.sweep.search.known_good import known_good
from rapid_dse.sweep.search.mirror import Mirror
from rapid_dse.sweep.search.storage import StudyStorage
from rapid_dse.sweep.search.strategies import strategy
from rapid_dse.sweep.search.strategies.base import Turn
from rapid_dse.sweep.search.study_space import SearchSpace, Trial, Variant

if TYPE_CHECKING:
    import pyarrow as pa

PRICED, PRUNED, FAILED = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
_KEY = "key"  # the user attribute that names a trial's row


class Watch(Protocol):
    """Is told what happens, as it happens."""

    def answered(self) -> None:
        """A trial of the batch has its row."""

    def read_again(self) -> None:
        """All trials of the study are told anew."""

    def told(self, row: Row, feasible: bool, new: bool) -> None:
        """A trial is in the study; ``new`` where this run has made it."""

    def notice(self, line: str) -> None:
        """Something that the user should hear of."""


@dataclass(frozen=True)
class Parts:
    """What a study is made of."""

    space: SearchSpace
    aims: Aims
    storage: StudyStorage
    answers: Answers
    search: Search
    skips: Skips
    watch: Watch


@dataclass
class StudyOutcome:
    """What a study holds at its end: its trials' rows, whether each is feasible, their parameters, and what was left out.

    ``answered`` counts the rows while it runs.
    """

    rows: pa.Table | None = None
    feasible: list[bool] = field(default_factory=list)
    labels: list[Mapping[str, Any]] = field(default_factory=list)
    answered: int = 0
    pruned: int = 0
    exhausted: bool = False


class Study:
    """Runs to search.n_trials trials in the storage."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._search = parts, parts.search
        self._strategy = strategy(parts.search.sampler)
        self._strategy.check(parts.space, len(parts.aims.objectives))
        self._seeds: tuple[int, ...] = (parts.search.seed,)
        self._first: list[dict[str, Any]] = []
        self.outcome = StudyOutcome()
        self.bounding = self._no_bounds()
        self._stored = 0

    def run(self) -> None:
        """Asks and tells until the study has its trials, or until no layout is left that could win.

        Raises:
            ValueError: the storage cannot be read or written; OSError where the rows cannot be; KeyboardInterrupt.
        """
        storage = self._parts.storage
        if storage.join():
            # The same seed would make the same proposals as the process that is at work already.
            self._seeds = (self._search.seed, secrets.randbits(32))
            self._parts.watch.notice("another process works on this study: its trials are shared")
        else:
            self._first = known_good(self._parts.space, self._search.enqueue)
        for damage in storage.damages:
            self._parts.watch.notice(f"{storage.where}: {damage}")
        try:
            self._resume()
            self._replace_lost_rows()
            while len(self._mirror) < self._search.n_trials and not self.outcome.exhausted:
                self._batch()
                storage.keep_joined()
            self._conclude()
        finally:
            storage.leave()

    def proof(self) -> Proof | None:
        """How sure the best is; None where nothing was bounded."""
        return self.bounding.proof(self._parts.space) if self._bounded else None

    @property
    def _bounded(self) -> bool:
        return self._parts.skips != "nothing"

    def _no_bounds(self) -> Bounding:
        return Bounding(self._parts.aims, self._parts.skips == "beaten")

    def _resume(self) -> None:
        """Takes over what is stored; a batch that is stored in part is asked again, to be the one that it was."""
        stored = self._parts.storage.trials()
        whole = len(stored) // self._search.batch * self._search.batch
        if len(self._seeds) == 1 and whole < len(stored) and len(stored) < self._search.n_trials:
            self._load(stored[:whole])
            self._stored = len(stored)
            trials = self._asked()
            same = all(trial.labels == old.params for trial, old in zip(trials, stored[whole:], strict=False))
            if same and len(trials) >= len(stored) - whole:
                self._finish(trials)
                return
        self._load(stored)

    def _replace_lost_rows(self) -> None:
        """Prices again what trials of the study say of layouts whose rows are in no readable file any more."""
        space, lost = self._parts.space, []
        stored = {trial.user_attrs[_KEY]: trial for trial in self._parts.storage.trials() if _has_row(trial)}
        for key in self._parts.answers.missing(list(stored)):
            trial = stored[key]
            variant = space.variant(trial.params)
            row = variant.points.row(trial.params)
            if row is not None:
                lost.append(Trial(trial.number, variant, row, trial.params))
        if lost:
            self._parts.answers.of(lost)

    def _load(self, stored: Sequence[FrozenTrial]) -> None:
        parts = self._parts
        self._mirror = Mirror(parts.space, [objective.direction for objective in parts.aims.objectives], stored)
        self.outcome, self.bounding, self._stored = StudyOutcome(), self._no_bounds(), len(stored)
        parts.watch.read_again()
        if parts.space.countable:
            for variant in parts.space.variants():
                variant.tried[:], variant.hopeless[:] = False, False
        for trial in stored:
            self._learn(trial, new=False)
            if parts.space.countable and trial.params:
                variant = parts.space.variant(trial.params)
                row = variant.points.row(trial.params)
                if row is not None:
                    variant.tried[row] = True

    def _learn(self, trial: FrozenTrial, new: bool) -> None:
        # The values are the row's objectives, which are not kept beside them.
        names = [objective.name for objective in self._parts.aims.objectives]
        row = {**trial.user_attrs, **dict(zip(names, trial.values or (), strict=False))}
        outcome, feasible = self.outcome, _feasible(trial)
        outcome.pruned += trial.state == PRUNED
        if _KEY not in row:  # one that was pruned, or another program's
            return
        outcome.answered += 1
        if feasible and self._bounded:
            self.bounding.learn(row)
        self._parts.watch.told(row, feasible, new)

    def _conclude(self) -> None:
        """Takes the rows out of the store, as a table: a long study's would be too many to be held all the time."""
        outcome = self.outcome
        answered = [trial for trial in self._parts.storage.trials() if _KEY in trial.user_attrs]
        outcome.feasible = [_feasible(trial) for trial in answered]
        outcome.labels = [trial.params for trial in answered]
        outcome.rows = self._parts.answers.table([trial.user_attrs for trial in answered])

    def _batch(self) -> None:
        trials = self._asked()
        if trials:
            self._finish(trials)

    def _asked(self) -> list[Trial]:
        """The rest of the batch: up to the next multiple of search.batch, and no more than search.n_trials."""
        start, size = len(self._mirror), self._search.batch
        end = min((start // size + 1) * size, self._search.n_trials)
        trials: list[Trial] = []
        for _ in range(start, end):
            trial = self._ask()
            if trial is None:
                self.outcome.exhausted = True
                break
            trials.append(trial)
        return trials

    def _ask(self) -> Trial | None:
        """The next trial; None where no layout is left."""
        space, number = self._parts.space, len(self._mirror)
        turn = Turn(number, space, self._mirror.distributions, self._seeds, self._bar)
        given = self._first[number] if number < len(self._first) else self._strategy.propose(turn)
        number, labels = self._mirror.ask(self._strategy.sampler(turn), given)
        trial = self._settled(number, labels)
        if trial is not None:
            self._mirror.settle(number, trial.labels)
        return trial

    def _settled(self, number: int, labels: Mapping[str, Any]) -> Trial | None:
        space = self._parts.space
        if not space.countable:
            variant = space.variant(labels)
            row = variant.points.nearest(labels, variant.barred)
            if row is None:
                return Trial(number, variant, -1, labels)
            beaten = self.bounding.beaten_by(variant, row) if self._bounded else None
            return Trial(number, variant, row, space.labels(variant, row), beaten)
        proposed = space.variant(labels)
        for variant in (proposed, *(other for other in space.variants() if other is not proposed)):
            self._bar(variant)
            row = variant.points.nearest(labels, variant.barred)
            if row is not None:
                variant.tried[row] = True
                return Trial(number, variant, row, space.labels(variant, row))
        return None

    def _bar(self, variant: Variant) -> None:
        if self._bounded and self._parts.space.countable:
            self.bounding.bar(variant)

    def _finish(self, trials: Sequence[Trial]) -> None:
        """Answers and tells a batch, and writes what is not stored yet: rows first, so that every trial has its row."""
        parts = self._parts
        priced = [trial for trial in trials if trial.beaten is None]
        rows = dict(zip((trial.number for trial in priced), parts.answers.of(priced, parts.watch.answered), strict=True))
        finished = [self._told(trial, rows.get(trial.number)) for trial in trials]
        with parts.storage.exclusive():
            others = parts.storage.trials()[self._stored :]
            known = {trial.user_attrs.get(_KEY) for trial in others}
            own = [trial for trial in finished if trial.number >= self._stored]
            fresh = [trial for trial in own if trial.user_attrs.get(_KEY) is None or trial.user_attrs[_KEY] not in known]
            fresh = fresh[: max(0, self._search.n_trials - self._stored - len(others))]
            parts.storage.append(fresh)
            stored = parts.storage.trials()  # before another process adds its own
        self._stored += len(others) + len(fresh)
        if others or len(fresh) < len(own):
            self._load(stored)
        else:
            self._mirror.share(stored[len(stored) - len(fresh) :])

    def _told(self, trial: Trial, row: Row | None) -> FrozenTrial:
        state, values, constraints, attributes = self._verdict(trial, row)
        self._mirror.tell(trial.number, values, state, constraints)
        finished = self._mirror.finished(trial.number, attributes)
        self._learn(finished, new=True)
        return finished

    def _verdict(self, trial: Trial, row: Row | None) -> tuple[TrialState, list[float] | None, dict[str, float], dict[str, Any]]:
        if row is None:
            known = trial.beaten is not None and math.isfinite(trial.beaten)
            return PRUNED, None, {}, {"lower_bound": trial.beaten} if known else {"reason": "cannot meet the constraints"}
        attributes = {key: value for key, value in row.items() if value is not None}
        if row["status"] not in ("ok", "oom"):
            return FAILED, None, {}, attributes
        usable = trial.variant.setting.scenario.hw.memory.usable
        constraints = {constraint.text: constraint.excess(row, usable) for constraint in self._parts.aims.constraints}
        return PRICED, self._parts.aims.values(row), constraints, attributes


def _has_row(trial: FrozenTrial) -> bool:
    """Whether the store must hold the trial's row (one that failed is asked again by none)."""
    return _KEY in trial.user_attrs and bool(trial.params) and trial.user_attrs.get("status") != "error"


def _feasible(trial: FrozenTrial) -> bool:
    return trial.state == PRICED and all(excess <= 0 for excess in trial.constraints.values())
