"""Finished trials as this process holds them: of a trial's row what the study asks for, and what trials share once.

A study keeps each of its trials, since samplers learn from all of them; their rows are in the store, and stand in the journal or the
database for other programs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

_KEPT = ("key", "status", "reason")
_KEY = re.compile("[0-9a-f]{32}")

_SOME_TIME = datetime.fromtimestamp(0)
# Nobody writes into a trial's dictionaries: Optuna's storages copy them first.
_NOTHING: dict[str, Any] = {}
_NO_STEPS: dict[int, float] = {}

# Where programs of before Optuna 5 (optuna-dashboard) look for a trial's constraints: without them all its trials are feasible.
PLAIN_CONSTRAINTS = "constraints"


def kept_attributes(attributes: Any) -> dict[str, Any]:
    """Of a trial's user attributes those that the study asks for; none of another program's, whose ``key`` is no row's."""
    if not isinstance(attributes, Mapping):
        return {}
    texts = {name: attributes[name] for name in _KEPT if isinstance(attributes.get(name), str)}
    is_row = _KEY.fullmatch(texts.get("key", "")) is not None and "status" in texts
    return texts if is_row else {name: text for name, text in texts.items() if name == "reason"}


class RowFacts(Mapping[str, Any]):
    """A row's key, half as long in bytes as in digits, and what it shares with other rows: a third of what a dictionary takes."""

    __slots__ = ("_key", "_shared")

    def __init__(self, key: str, shared: Mapping[str, Any]) -> None:
        self._key, self._shared = bytes.fromhex(key), shared

    def __getitem__(self, name: str) -> Any:
        return self._key.hex() if name == "key" else self._shared[name]

    def __iter__(self) -> Iterator[str]:
        yield "key"
        yield from self._shared

    def __len__(self) -> int:
        return 1 + len(self._shared)


class LeanTrials:
    """What many trials have alike."""

    def __init__(self) -> None:
        self._distributions: dict[tuple[tuple[str, BaseDistribution], ...], dict[str, BaseDistribution]] = {}
        self._attributes: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}

    def shrink(self, trial: FrozenTrial) -> None:
        """Leaves of a trial what the study asks for; what it holds in common with others becomes theirs."""
        attributes = kept_attributes(trial.user_attrs)
        key = attributes.pop("key", None)
        shared = self._attributes.setdefault(tuple(attributes.items()), attributes)
        trial.user_attrs = shared if key is None else RowFacts(key, shared)  # type: ignore[assignment]
        system = {sys.intern(name): value for name, value in trial.system_attrs.items() if name != PLAIN_CONSTRAINTS}
        trial.system_attrs = system or _NOTHING
        trial.intermediate_values = trial.intermediate_values or _NO_STEPS
        trial.params = {sys.intern(name): sys.intern(value) if type(value) is str else value for name, value in trial.params.items()}
        trial.distributions = self._distributions.setdefault(tuple(trial.distributions.items()), trial.distributions)
        if trial.state.is_finished():  # when it ran is in the storage, and no sampler asks
            trial.datetime_start = trial.datetime_complete = _SOME_TIME
