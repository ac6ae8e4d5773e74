"""Caches of functions whose arguments are frozen objects, by the arguments' identity.

``functools.cache`` compares arguments: for a configuration that takes longer than most of what is computed from it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class Remembered:
    """Up to ``most`` results by the objects that they were computed from; where one more comes, all before it are forgotten."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.entries: dict[tuple[int, ...], tuple[tuple[object, ...], Any]] = {}

    def once(self, objects: tuple[object, ...], compute: Callable[[], Result]) -> Result:
        """The result of ``compute``, which is called where there is none of these objects yet. None of the objects may change."""
        key = tuple(map(id, objects))
        entry = self.entries.get(key)
        if entry is None:
            if len(self.entries) >= self._most:
                self.entries.clear()
            entry = self.entries[key] = (objects, compute())  # the objects are kept: else others could get their id
        return cast(Result, entry[1])


def remembered(most: int) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Keeps up to ``most`` results of a function by its arguments' identity; a call with named arguments is not kept."""

    def around(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        kept = Remembered(most)
        entries = kept.entries

        @wraps(function)
        def remembering(*objects: Arguments.args, **named: Arguments.kwargs) -> Result:
            if named:
                return function(*objects, **named)
            entry = entries.get(tuple(map(id, objects)))  # looked up here, since most calls find one
            return kept.once(objects, lambda: function(*objects, **named)) if entry is None else cast(Result, entry[1])

        return remembering

    return around
