"""What a request asks and what it is answered with, before either is HTTP."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class NotListed(ValueError):
    """A name that no list of the page has."""


@dataclass(frozen=True)
class Asking:
    """The parameters of a request, each once."""

    values: Mapping[str, str] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """A parameter that must be there.

        Raises:
            ValueError: where it is not.
        """
        value = self.values.get(name, "")
        if not value:
            raise ValueError(f"{name}: is missing; allowed: {name}=…")
        return value

    def number(self, name: str, usual: int, most: int) -> int:
        """A parameter that is a whole number from 0 to ``most``.

        Raises:
            ValueError: where it is none.
        """
        text = self.values.get(name) or str(usual)
        if not (text.isascii() and text.isdigit() and int(text) <= most):
            raise ValueError(f"{name}={text[:40]!r}: allowed: a whole number from 0 to {most:,}")
        return int(text)

    def float_of(self, name: str) -> float:
        """A parameter that is a finite number.

        Raises:
            ValueError: where it is none.
        """
        text = self.text(name)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{name}={text[:40]!r}: allowed: a finite number")
        return value


def asked(pairs: list[tuple[str, str]], names: tuple[str, ...], prefix: str | None = None) -> Asking:
    """The parameters of a request.

    Args:
        names: that it may have; ``prefix``: what further ones begin with.

    Raises:
        ValueError: another name, or one twice.
    """
    values: dict[str, str] = {}
    for name, value in pairs:
        if name not in names and (prefix is None or not name.startswith(prefix)):
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            raise ValueError(
                f"{name[:40]!r}: no parameter here" + (f"; did you mean {near[0]!r}?" if near else f"; allowed: {', '.join(names)}")
            )
        if name in values:
            raise ValueError(f"{name}: is given twice; allowed: once")
        values[name] = value
    return Asking(values)


@dataclass(frozen=True)
class WebAnswer:
    """An answer: a template with what fills it, or ``content`` as it is.

    Attributes:
        template: its name; empty where there is content.
        redirect: an address to go to instead.
    """

    template: str
    context: Mapping[str, Any]
    content: bytes = b""
    redirect: str = ""
