"""Overrides that any reader takes alike, as ``parallel.tp=1,2,4`` and ``hw=h100``: read without Hydra's grammar, whose parser takes a fifth
of a second to import. All others, right or wrong, are left to that (``grammar``)."""

from __future__ import annotations

import re
from typing import Any

_KEY = re.compile(r"\+{0,2}([A-Za-z_]\w*(?:\.(?:[A-Za-z_]\w*|0|[1-9]\d*))*)", re.ASCII)
_INTEGER = re.compile(r"-?(?:0|[1-9]\d{0,17})", re.ASCII)
_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,17})(?:\.\d{1,30})?(?:e[+-]?\d{1,3})?", re.ASCII)
# Names, paths, and quantities such as 80 GiB.
_TEXT = re.compile(r"(?:\.{0,2}/)?[A-Za-z_][\w./-]*|[1-9]\d*(?:\.\d+)? [A-Za-z][A-Za-z/]*", re.ASCII)
_CONSTANTS = {"true": True, "false": False, "null": None}
_NUMBERS = {"inf", "nan"}  # numbers to Hydra, in any spelling


def plain_override(text: str) -> tuple[str, tuple[Any, ...]] | None:
    """The key and the values of an override, of which there are several where commas part them; None where it is not plain."""
    key, equals, listed = text.partition("=")
    named = _KEY.fullmatch(key)
    if not equals or named is None or named[1].split(".")[0] == "hydra":
        return None
    values = [_value(item) for item in listed.split(",")]
    return None if any(value is _OTHER for value in values) else (named[1], tuple(values))


class _Other:
    """Stands for a value that is not plain."""


_OTHER = _Other()


def _value(text: str) -> Any:
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    return text if _TEXT.fullmatch(text) and text.lower() not in _NUMBERS else _OTHER
