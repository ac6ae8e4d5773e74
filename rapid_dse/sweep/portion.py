"""What a sweep, an evaluation or a single trial hands to the pricing: one scenario with its layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np

from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel.layouts import IntColumn, Layouts


@dataclass(frozen=True)
class Portion:
    """One scenario and the layouts to price under it.

    Attributes:
        scenario: the validated configuration that all layouts share.
        choices: the option behind each group of the configuration: hw, model, software, backend.
        keys: every other override key that was given or swept, with this portion's value: columns of the results.
        layouts: resolved layouts, legal and illegal ones, ``(n_layouts,)``.
        rule: which of ``reasons`` a layout breaks, -1 where it is legal, ``(n_layouts,)``.
        reasons: texts of the rules.
        rejected: layouts that were enumerated and left out, counted by the rule they break.
        said: what is priced otherwise than imported files have it.
    """

    scenario: Scenario
    choices: Mapping[str, str]
    keys: Mapping[str, Any]
    layouts: Layouts
    rule: IntColumn
    reasons: tuple[str, ...]
    rejected: Mapping[str, int] = field(default_factory=dict)
    said: tuple[str, ...] = ()


def sharing(before: Portion, portion: Portion) -> Portion:
    """A portion with the columns of the one before in place of its own where they are equal: over prices a space is held once."""
    own, other = portion.layouts, before.layouts
    if type(own) is not type(other) or len(own) != len(other) or not np.array_equal(portion.rule, before.rule):
        return portion
    if not all(np.array_equal(getattr(own, field.name), getattr(other, field.name)) for field in fields(own)):
        return portion
    return replace(portion, layouts=other, rule=before.rule)


class Priceable(NamedTuple):
    """What stands behind a row: its scenario and its one layout."""

    scenario: Scenario
    layout: Layouts
