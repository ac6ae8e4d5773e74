"""Settings as Python has them: short and full keys, options of groups, lists that sweep."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from rapid_dse.config.scenario import Scenario
from rapid_dse.sweep.overrides import ALL_KEYS, GROUPS, SWEEPS, Given, Values, check_key, usual_options
from rapid_dse.sweep.pairs import ZIP, Pairs, check_pairs, mappings_of, side_by_side, text_of_pairs

Settings = Mapping[str, Any]
PREFERRED = ("parallel", "workload")  # sections whose key a short one means where others have one of that name too


def warn(lines: Iterable[str]) -> None:
    """Says as warnings what the command line says on standard error."""
    for line in lines:
        warnings.warn(line, UserWarning, stacklevel=4)


@cache
def short_names() -> dict[str, tuple[str, ...]]:
    """The full keys behind each short one: tp is parallel.tp, network is hw.network and backend.network."""
    keys: dict[str, tuple[str, ...]] = {}
    for section, info in Scenario.model_fields.items():
        part = info.annotation
        if isinstance(part, type) and issubclass(part, BaseModel):
            for leaf in part.model_fields:
                if leaf != "name":
                    keys[leaf] = (*keys.get(leaf, ()), f"{section}.{leaf}")
    return keys


def full_key(key: str) -> str:
    """The key that a short or full one names.

    Raises:
        ValueError: where there is none, or a short one stands for several.
    """
    if key in GROUPS or key == SWEEPS or "." in key:
        check_key(key)
        return key
    names = short_names()
    if key not in names:
        near = difflib.get_close_matches(key, [*names, *GROUPS], n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{key}: no such key{hint} (python -m rapid_dse --help lists the keys)")
    first = [full_name for section in PREFERRED for full_name in names[key] if full_name.startswith(f"{section}.")]
    if first:
        return first[0]
    if len(names[key]) > 1:
        raise ValueError(f"{key}: stands for several keys; allowed: {' or '.join(names[key])}, in full")
    return names[key][0]


def given_of(keys: Settings | None, settings: Settings) -> Given:
    """Settings as a command line's overrides.

    Args:
        keys: by full key (which no Python keyword can have), or by short key.
        settings: by short key, or group; ``zip`` pairs lists: ``zip={"tp": [1, 2], "pp": [4, 2]}``.

    Raises:
        ValueError: an unknown key, or one that is set twice.
    """
    options: dict[str, str] = {}
    values: dict[str, Any] = {}
    swept: dict[str, Any] = {}
    together = {**(keys or {}), **settings}.get(ZIP)
    paired = tuple(_pairs(one) for one in mappings_of(_plain(together)))
    for short, value in [*(keys or {}).items(), *settings.items()]:
        if short == ZIP:
            continue
        key = full_key(str(short))
        if key in options or key in values or key in swept:
            raise ValueError(f"{key}: is set twice; allowed: once")
        plain = _plain(value)
        items = _swept(key, plain)
        if items is not None:
            swept[key] = items
        elif key in GROUPS or key == SWEEPS:
            if not isinstance(plain, str):
                raise ValueError(f"{key}={plain!r}: allowed: the name of an option, as hw='h100', or a file")
            options[key] = plain
        else:
            values[key] = plain
    check_pairs(paired, [*options, *values, *swept])
    named = [*swept, *(key for pairs in paired for key in pairs[0])]
    return Given(*usual_options(options, values, named), swept, paired=paired)


def _pairs(one: Mapping[str, Any]) -> Pairs:
    """The settings that one mapping of keys to lists pairs."""
    key_values: dict[str, Any] = {}
    for short, value in one.items():
        key = full_key(str(short))
        values = _swept(key, value)
        if values is None or values.items is None:
            raise ValueError(f"{ZIP}={dict(one)!r}: {key} has no list; allowed: as many values of each, as 'tp': [1, 2]")
        key_values[key] = values.items
    return side_by_side(text_of_pairs(one), key_values)


def _swept(key: str, value: Any) -> Values | None:
    """What a key is swept over; None where it has one value."""
    if value == "all" and key in ALL_KEYS:
        return Values(None)
    if not isinstance(value, list) or (_takes_list(key) and not any(isinstance(value_of_axis, list) for value_of_axis in value)):
        return None
    if not value:
        raise ValueError(f"{key}=[]: no value is left to sweep; allowed: at least one")
    return Values(tuple({repr(value_of_axis): value_of_axis for value_of_axis in value}.values()))


def _takes_list(key: str) -> bool:
    """Whether one value of a key is a list."""
    node: Any = Scenario
    for part in key.split("."):
        if part.isdigit() or node is None:
            continue
        info = node.model_fields.get(part) if isinstance(node, type) and issubclass(node, BaseModel) else None
        node = None if info is None else info.annotation
    return _is_list(node)


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) in (tuple, list) or any(_is_list(part) for part in get_args(annotation) if part is not annotation)


def _plain(value: Any) -> Any:
    """Ranges, tuples and NumPy's values as lists and Python's own."""
    if hasattr(value, "tolist"):  # NumPy's arrays and numbers, and pandas' columns
        value = value.tolist()
    if isinstance(value, range | tuple | list | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if hasattr(value, "__fspath__") else value
