"""What files may say: sweeps, options and tables that come from others say what is priced, not where results go and what is run.

Which folder results go to, which storage and which cluster are used, which program is run, and what the environment holds is the
command line's to say, unless ``--trust`` (``search.trust=true``) says that the files are as good.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from rapid_dse.config.parts import value_of
from rapid_dse.config.run import Backend, Debug, Search

TRUST = "search.trust"
OPTION = "--trust"
# What a file of others may not set: where something is written, what is connected to, what is run.
GUARDED = {
    "search.trust": Search(),
    "search.storage": Search(),
    "search.results_dir": Search(),
    "search.launcher_address": Search(),
    "backend.astrasim.binary": Backend().astrasim,
    "debug.hw_snapshots": Debug(),
    **{f"backend.artifacts.{name}": Backend().artifacts for name in ("persist", "graphs", "pictures", "timeline")},
}
GUARDED_PARTS = frozenset(key.split(".", 1)[0] for key in GUARDED)
_OF_ENVIRONMENT = {  # conf/config.yaml sets these keys by these variables
    "backend.artifacts.persist": "RAPID_PERSIST_ASTRASIM_ARTIFACTS",
    "backend.artifacts.graphs": "RAPID_VISUALIZE_GRAPHS",
    "backend.artifacts.pictures": "RAPID_PERSIST_ARTIFACT_VIZ",
}
_MOST_REFERENCES = 16  # ${...} in a composition; each can double what another one stands for


def require_unset(tree: Mapping[str, Any], named: Collection[str], trusted: bool) -> None:
    """Refuses a composition in which files have set what only the command line may say.

    Args:
        tree: what files compose to, before the command line's own values.
        named: keys that the command line sets itself.
        trusted: nothing is refused.

    Raises:
        ValueError: one line, with the key and the value.
    """
    for key, part in () if trusted else GUARDED.items():
        value, default = _at(tree, key), value_of(part, key.rsplit(".", 1)[1])
        if value is None or value == default or key in named or str(value).lower() == str(default).lower():
            continue
        if key not in _OF_ENVIRONMENT or os.environ.get(_OF_ENVIRONMENT[key]) is None:
            raise ValueError(refused(key, value))


def refused(key: str, value: Any) -> str:
    """What is said of a guarded key in a file."""
    return f"{key}={str(value)[:80]}: set by a file, which may say what is priced alone; allowed: {key} on the command line, or {OPTION}"


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def require_few_references(tree: Any) -> None:
    """Refuses values whose references, each of which can double what another stands for, are more than a bounded memory holds.

    Raises:
        ValueError: one line, with how many they are.
    """
    count = _references(tree)
    if count > _MOST_REFERENCES:
        raise ValueError(f"files hold {count:,} references ${{…}}; allowed: up to {_MOST_REFERENCES}, or {OPTION}")


def _references(value: Any) -> int:
    if isinstance(value, str):
        return value.count("${")
    if isinstance(value, Mapping):
        return sum(map(_references, value.values()))
    return sum(map(_references, value)) if isinstance(value, list | tuple) else 0
