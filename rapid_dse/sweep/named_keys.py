"""Which keys a sweep sets, and which of them are columns of its results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rapid_dse.parallel.layouts import COLUMN_OF
from rapid_dse.sweep.compose import Composed


def keys_of_sweep(base: Composed, plain: Composed) -> list[str]:
    """Keys that the named sweep sets itself: they are overrides of every trial, as those on a command line are."""
    return [key for key in _leaves(base.tree) if _at(plain.tree, key) != _at(base.tree, key)]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def listed_keys(keys: Sequence[str]) -> list[str]:
    """The keys that are columns of the results beside those of the layouts; how a search runs is no part of a trial."""
    return [key for key in dict.fromkeys(keys) if key not in COLUMN_OF and key.split(".")[0] not in ("search", "debug")]
