"""An explanation of a layout as one value: what the command prints, and what ``--json`` gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rapid_dse.analysis.reasons.chosen import PricedTrial, settings
from rapid_dse.analysis.reasons.differences import Difference, Sum, difference, memory_of, times_of
from rapid_dse.analysis.reasons.neighbours import Neighbour, neighbours
from rapid_dse.analysis.reasons.operator_roofline import Operator, operators_of
from rapid_dse.analysis.reasons.sensitivity import Sensitivity
from rapid_dse.analysis.reasons.turning_points import TurningPoint, turning_points
from rapid_dse.sweep.outside import judged


@dataclass(frozen=True)
class Explanation:
    """Why one layout stands where it does.

    Attributes:
        of: the layout; ``against``: another one; None where the results have no other.
        difference: the first against the second; ``turning_points`` of their order.
        expected_error, outside: how far to trust the layout's row; None where that is not known, and where nothing lies outside.
        sensitivity: of the whole study; None where it was not asked for, or cannot be had.
    """

    of: PricedTrial
    against: PricedTrial | None
    difference: Difference | None
    turning_points: tuple[TurningPoint, ...]
    neighbours: tuple[Neighbour, ...]
    operators: tuple[Operator, ...]
    expected_error: float | None
    outside: str | None
    sensitivity: Sensitivity | None


def explained(of: PricedTrial, against: PricedTrial | None, by: str = "step_time_s", sensitivity: Sensitivity | None = None) -> Explanation:
    """Puts together all that is said of a layout, and of its order to another one."""
    trust = judged(of.scenario, of.layout, of.figures)
    error, outside = float(trust.expected_error[0]), int(trust.outside[0])
    return Explanation(
        of=of,
        against=against,
        difference=None if against is None else difference(of, against),
        turning_points=() if against is None else tuple(turning_points(of, against, by)),
        neighbours=tuple(neighbours(of)),
        operators=tuple(operators_of(of)),
        expected_error=None if np.isnan(error) else error,
        outside=None if outside < 0 else trust.texts[outside],
        sensitivity=sensitivity,
    )


def to_dict(explanation: Explanation) -> dict[str, Any]:
    """The explanation as plain values, SI units; the keys are stable (docs/json.md)."""
    return {
        "of": trial_dict(explanation.of),
        "against": None if explanation.against is None else trial_dict(explanation.against),
        "difference": None if explanation.difference is None else _difference_dict(explanation.difference),
        "turning_points": [_turning_dict(point) for point in explanation.turning_points],
        "neighbours": [neighbour_dict(neighbour) for neighbour in explanation.neighbours],
        "operators": [_operator_dict(operator) for operator in explanation.operators],
        "expected_error": explanation.expected_error,
        "outside": explanation.outside,
        "sensitivity": None if explanation.sensitivity is None else _sensitivity_dict(explanation.sensitivity),
    }


def trial_dict(of: PricedTrial) -> dict[str, Any]:
    """A layout with its settings, times and memory by term."""
    return {
        "key": of.key,
        "settings": {**of.choices, **of.keys, **settings(of.layout)},
        "fits": of.fits,
        "step_time_s": of.figures["step_time_s"],
        "time_s": times_of(of.figures),
        "peak_memory_bytes": of.figures["peak_memory_bytes"],
        "memory_bytes": memory_of(of.figures),
        "mfu": of.figures.get("mfu"),
        "energy_j": of.figures.get("energy_j"),
        "cost_usd": of.figures.get("cost_usd"),
        "priced_as_stored": of.stored,
    }


def _sum_dict(of: Sum) -> dict[str, Any]:
    terms = [{"term": term.name, "of": term.first, "against": term.second, "difference": term.difference} for term in of.terms]
    return {"of": of.first, "against": of.second, "difference": of.difference, "terms": terms}


def _difference_dict(of: Difference) -> dict[str, Any]:
    changed = {key: {"of": first, "against": second} for key, (first, second) in of.settings.items()}
    return {"settings": changed, "step_time_s": _sum_dict(of.time), "peak_memory_bytes": _sum_dict(of.memory)}


def _turning_dict(of: TurningPoint) -> dict[str, Any]:
    whose: Mapping[str, str] = {"both": "both", "first": "of", "second": "against"}
    return {"key": of.key, "side": whose[of.of], "now": of.now, "value": of.value, "before": of.before}


def neighbour_dict(of: Neighbour) -> dict[str, Any]:
    """A layout beside another one: the setting that differs, and what that does."""
    return {
        "key": of.key,
        "before": of.before,
        "value": of.value,
        "fits": of.fits,
        "step_time_s": of.figures["step_time_s"],
        "peak_memory_bytes": of.figures["peak_memory_bytes"],
        "more_step_time_s": of.step_time_s,
        "more_peak_memory_bytes": of.peak_memory_bytes,
    }


def _operator_dict(of: Operator) -> dict[str, Any]:
    return {
        "name": of.name,
        "time_s": of.seconds,
        "flops": of.flops,
        "bytes": of.bytes,
        "flops_per_byte": of.intensity,
        "roofline_time_s": of.least,
        "roofline_share": of.reached,
        "bound": of.bound,
    }


def _sensitivity_dict(of: Sensitivity) -> dict[str, Any]:
    shifts = [
        {
            "what": shift.what,
            "keys": list(shift.keys),
            "factor": shift.factor,
            "hw": shift.hw,
            "by": shift.by,
            "same_winner": shift.same,
            "winner": {**shift.winner.choices, **settings(shift.winner.layout)},
            "value": shift.value,
            "value_of_the_present_winner": shift.stayed,
            "gain": shift.gain,
        }
        for shift in of.shifts
    ]
    return {"rows": of.rows, "of": of.of, "shifts": shifts}
