"""Keys that are swept side by side: the first value of each, the second of each.

``zip(parallel.tp=1,2;parallel.pp=4,2)`` on a command line, ``zip: {parallel.tp: [1, 2], parallel.pp: [4, 2]}`` in a sweep file's space,
``zip={"tp": [1, 2], "pp": [4, 2]}`` in Python.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

ZIP = "zip"  # the word for them in a sweep file and in Python
Pairs = tuple[Mapping[str, Any], ...]
"""The settings that follow from one zip, one of each list a time."""

_ALLOWED = {
    "text": "several lists, as 'zip(parallel.tp=1,2;parallel.pp=4,2)'",
    "mapping": "several lists, as {parallel.tp: [1, 2], parallel.pp: [4, 2]}, or a list of such mappings",
}


def parts_of(text: str) -> list[str]:
    """The overrides within ``zip(a=1,2;b=3,4)``; ``ValueError`` where it is none."""
    parts = [part.strip() for part in text.removeprefix(f"{ZIP}(").removesuffix(")").split(";")]
    if not text.endswith(")") or len(parts) < 2 or not all("=" in part for part in parts):
        raise ValueError(f"{text}: allowed: {_ALLOWED['text']}")
    return parts


def mappings_of(given: Any) -> list[Mapping[str, Any]]:
    """What a file or a program pairs: one mapping of keys to lists, or several; ``ValueError`` where it is neither."""
    given_pairs = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    for one in given_pairs:
        if not isinstance(one, Mapping) or len(one) < 2:
            raise ValueError(f"{ZIP}={given!r}: allowed: {_ALLOWED['mapping']}")
    return given_pairs


def text_of_pairs(lists: Mapping[str, Any]) -> str:
    """A mapping of keys to lists as a command line has it."""
    values = {key: ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value) for key, value in lists.items()}
    return f"{ZIP}({';'.join(f'{key}={value}' for key, value in values.items())})"


def side_by_side(text: str, lists: Mapping[str, Sequence[Any]]) -> Pairs:
    """One setting for the first value of each list, one for the second, and so on.

    Raises:
        ValueError: where the lists have not as many values, or a key is none of a trial's.
    """
    if len({len(items) for items in lists.values()}) != 1:
        counted = ", ".join(f"{key} {len(items)}" for key, items in lists.items())
        raise ValueError(f"{text}: lists of different lengths ({counted}); allowed: as many values of each, each value once")
    for key in lists:
        if key.split(".")[0] in ("search", "debug"):
            raise ValueError(f"{key}: cannot be swept; allowed: one value")
    return tuple(dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True))


def check_pairs(paired: Sequence[Pairs], others: Collection[str]) -> None:
    """Raises ``ValueError`` where a key of a zip is set elsewhere too."""
    seen = set(others)
    for pairs in paired:
        for key in pairs[0]:
            if key in seen:
                raise ValueError(f"{key}: stands in {ZIP}(...) and elsewhere; allowed: once")
            seen.add(key)


def without(pairs: Pairs, keys: Collection[str]) -> Pairs:
    """The same where ``keys`` are set by what wins over them: the other keys' values, each combination once."""
    remaining = [{key: value for key, value in pair.items() if key not in keys} for pair in pairs]
    return tuple({repr(pair): pair for pair in remaining}.values()) if remaining[0] else ()


def together(paired: Sequence[Pairs]) -> dict[str, Pairs]:
    """Each by a name of its own: zip(parallel.tp;parallel.pp)."""
    return {f"{ZIP}({';'.join(pairs[0])})": pairs for pairs in paired}


def keys_in(name: str) -> list[str]:
    """The keys behind a key, or behind the name of a zip."""
    return name.removeprefix(f"{ZIP}(").removesuffix(")").split(";") if name.startswith(f"{ZIP}(") else [name]


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which a zip's stand under its name, as keys alone."""
    merged: dict[str, Any] = {}
    for key, value in values.items():
        merged |= value if key.startswith(f"{ZIP}(") else {key: value}
    return merged
