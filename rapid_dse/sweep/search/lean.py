"""Finished trials as this process holds them: of a trial's row what the study asks for, and what trials share once.

A study keeps each of its trials, since samplers learn from all of them; their rows are in the store, and stand in the journal or the
database for other programs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

_KEPT = ("key", "status", "reason")
_KEY = re.compile("[0-9a-f]{32}")

# Where programs of before Optuna 5 (optuna-dashboard) look for a trial's constraints: without them all its trials are feasible.
PLAIN_CONSTRAINTS = "constraints"


def kept_attributes(attributes: Any) -> dict[str, Any]:
    """Of a trial's user attributes those that the study asks for; none of another program's, whose ``key`` is no row's."""
    if not isinstance(attributes, Mapping):
        return {}
    texts = {name: attributes[name] for name in _KEPT if isinstance(attributes.get(name), str)}
    is_row = _KEY.fullmatch(texts.get("key", "")) is not None and "status" in texts
    return texts if is_row else {name: text for name, text in texts.items() if name == "reason"}


class LeanTrials:
    """What many trials have alike."""

    def __init__(self) -> None:
        self._distributions: dict[tuple[tuple[str, BaseDistribution], ...], dict[str, BaseDistribution]] = {}

    def shrink(self, trial: FrozenTrial) -> None:
        """Leaves of a trial what the study asks for; what it holds in common with others becomes theirs."""
        trial.user_attrs = kept_attributes(trial.user_attrs)
        trial.system_attrs = {sys.intern(name): value for name, value in trial.system_attrs.items() if name != PLAIN_CONSTRAINTS}
        trial.params = {sys.intern(name): sys.intern(value) if type(value) is str else value for name, value in trial.params.items()}
        trial.distributions = self._distributions.setdefault(tuple(trial.distributions.items()), trial.distributions)
