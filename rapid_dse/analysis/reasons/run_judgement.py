"""What is said of a run that somebody has: predicted against measured, what may be wrong with it, and what would be better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from rapid_dse.analysis.launch_files.framework import LaunchReading
from rapid_dse.analysis.launch_files.launched import Composer, Launched
from rapid_dse.analysis.reasons.chosen import PricedTrial, figures_of, trial
from rapid_dse.analysis.reasons.explanation import neighbour_dict, trial_dict
from rapid_dse.analysis.reasons.hidden_causes import Cause, hidden_causes
from rapid_dse.analysis.reasons.levers import turned
from rapid_dse.analysis.reasons.neighbours import Neighbour, neighbours
from rapid_dse.analysis.reasons.suspects import Suspect, suspects
from rapid_dse.events.backends import price
from rapid_dse.parallel.engines import Engines, enumerate_engines
from rapid_dse.parallel.enumeration import Space, enumerate_layouts
from rapid_dse.parallel.layouts import KEYS, Layouts
from rapid_dse.sweep.outside import judged

UNKNOWN_ERROR = 0.2  # taken where nothing alike was measured
_CHUNK = 100_000


@dataclass(frozen=True)
class RunJudgement:
    """All that is said of a run.

    Attributes:
        reading: of its launch file; ``assumed`` what neither it nor the command line said.
        predicted: the run as it is priced; ``expected_error`` of that (None: not known), ``outside`` as the column of results.
        measured: seconds of a step, None where nobody said.
        causes: what would explain a measured time that is longer than predicted, the likeliest first.
        suspects: settings that cost time for nothing, the costliest first.
        neighbours: layouts that differ in one setting, fit, and are faster.
        best: the fastest layout that fits, of so many ``legal`` ones; None where none does.
    """

    reading: LaunchReading
    assumed: Sequence[str]
    predicted: PricedTrial
    expected_error: float | None
    outside: str | None
    measured: float | None
    causes: Sequence[Cause]
    suspects: Sequence[Suspect]
    neighbours: Sequence[Neighbour]
    best: PricedTrial | None
    legal: int

    @property
    def share(self) -> float | None:
        """What was measured beyond the prediction, a share of it."""
        return None if self.measured is None else self.measured / self.predicted.figures["step_time_s"] - 1

    @property
    def error(self) -> float:
        """The error to expect, or what is taken for it where nothing alike was measured."""
        return UNKNOWN_ERROR if self.expected_error is None else self.expected_error

    @property
    def as_predicted(self) -> bool | None:
        """Whether the measured time is within the error to expect."""
        return None if self.share is None else abs(self.share) <= self.error

    @property
    def spoilt(self) -> str | None:
        """What most likely makes the run slow: the likeliest cause where it took longer than the error to expect allows, else the first
        suspect."""
        order: list[Cause | Suspect] = [*self.causes[:1], *self.suspects[:1]]
        return order[0].key if order else None


def judgement(reading: LaunchReading, run: Launched, measured: float | None, composer: Composer) -> RunJudgement:
    """Judges a run."""
    portion = run.portion
    predicted = replace(trial(portion.scenario, portion.layouts, portion.choices), keys=portion.keys)
    trust = judged(portion.scenario, portion.layouts, predicted.figures)
    error, outside = float(trust.expected_error[0]), int(trust.outside[0])
    known = None if np.isnan(error) else error
    offered = trial(turned(predicted.scenario, "software.enforce", True), portion.layouts, portion.choices)
    better = [neighbour for neighbour in neighbours(offered) if neighbour.fits and (neighbour.step_time_s < 0 or not predicted.fits)]
    own = composer.options_alone(portion.choices)
    best, legal = _best(offered)
    slow = measured is not None and measured / predicted.figures["step_time_s"] - 1 > (UNKNOWN_ERROR if known is None else known)
    return RunJudgement(
        reading=reading,
        assumed=run.assumed,
        predicted=predicted,
        expected_error=known,
        outside=None if outside < 0 else trust.texts[outside],
        measured=measured,
        causes=hidden_causes(predicted, measured) if slow and measured is not None else (),
        suspects=suspects(predicted, own),
        neighbours=sorted(better, key=lambda neighbour: neighbour.step_time_s),
        best=best,
        legal=legal,
    )


def _best(run: PricedTrial) -> tuple[PricedTrial | None, int]:
    """The fastest layout that fits of all legal ones of the same job on the same GPUs, and how many these are."""
    layout = run.layout
    if isinstance(layout, Engines):
        return _best_engine(run, layout)
    values: dict[str, Sequence[int] | None] = dict.fromkeys(KEYS)
    values |= {name: [int(getattr(layout, name)[0])] for name in ("num_gpus", "global_batch_size")} | {"dp": [0]}
    scenario = run.scenario.model_copy(update={"parallel": run.scenario.parallel.model_copy(update={"stage_layers": None})})
    every, _ = enumerate_layouts(Space(values), scenario)
    best: tuple[float, Layouts] | None = None
    for start in range(0, len(every), _CHUNK):
        part = every.take(slice(start, start + _CHUNK))
        priced = price(scenario, part)
        seconds = np.where(priced.fits, priced.step_time_s, np.inf)
        at = int(np.argmin(seconds))
        if np.isfinite(seconds[at]) and (best is None or seconds[at] < best[0]):
            best = float(seconds[at]), part.take(np.array([at]))
    if best is None:
        return None, len(every)
    return PricedTrial(scenario, best[1], figures_of(price(scenario, best[1])), run.choices), len(every)


def _best_engine(run: PricedTrial, layout: Engines) -> tuple[PricedTrial | None, int]:
    """As ``_best``, of inference: engines for the same load."""
    values: dict[str, Sequence[Any] | None] = {name: [getattr(layout, name)[0].item()] for name in layout.keys}
    values |= {name: [0] for name in layout.keys if name.startswith(("prefill_", "decode_"))} | {"dp": [0]}
    values |= dict.fromkeys(("tp", "attention_dp", "cp", "pp", "ep", "etp"))
    every, _ = enumerate_engines(Space(values), run.scenario)
    if not len(every):
        return None, 0
    priced = price(run.scenario, every)
    seconds = np.where(priced.fits, priced.step_time_s, np.inf)
    at = int(np.argmin(seconds))
    best = PricedTrial(run.scenario, every.take(np.array([at])), figures_of(priced, at), run.choices)
    return (best if np.isfinite(seconds[at]) else None), len(every)


def to_dict(verdict: RunJudgement) -> dict[str, Any]:
    """The judgement as plain values, SI units; the keys are stable (docs/json.md)."""
    reading = verdict.reading
    return {
        "framework": reading.framework,
        "fields_read": reading.used,
        "unread": list(reading.unread),
        "notes": list(reading.notes),
        "assumed": list(verdict.assumed),
        "predicted": trial_dict(verdict.predicted),
        "expected_error": verdict.expected_error,
        "outside": verdict.outside,
        "measured_step_time_s": verdict.measured,
        "share_beyond_predicted": verdict.share,
        "as_predicted": verdict.as_predicted,
        "spoilt": verdict.spoilt,
        "causes": [_plain(cause) for cause in verdict.causes],
        "suspects": [_plain(suspect) for suspect in verdict.suspects],
        "neighbours": [neighbour_dict(neighbour) for neighbour in verdict.neighbours],
        "best": None if verdict.best is None else trial_dict(verdict.best),
        "legal_layouts": verdict.legal,
    }


def _plain(of: Cause | Suspect) -> dict[str, Any]:
    return {f.name: dict(value) if isinstance(value := getattr(of, f.name), dict) else value for f in fields(of)}
