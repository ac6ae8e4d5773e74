"""Trees of mappings, lists and single values, as files hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def copied(tree: Any) -> Any:
    """A copy of all mappings and lists of a tree; what else stands in it is shared."""
    if isinstance(tree, Mapping):
        return {name: copied(value) for name, value in tree.items()}
    return [copied(value) for value in tree] if isinstance(tree, list) else tree


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings together; where both have one, they are merged, else what lies ``over`` counts."""
    mappings = {name for name, value in over.items() if isinstance(value, Mapping) and isinstance(under.get(name), Mapping)}
    return {**under, **{name: merged(under[name], value) if name in mappings else value for name, value in over.items()}}
