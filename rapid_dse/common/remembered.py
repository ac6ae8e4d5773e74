"""What functions of frozen objects gave, kept by which objects they were: a configuration takes longer to compare than most of what is
found of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

Found = TypeVar("Found")
Given = ParamSpec("Given")


class Remembered:
    """The last few results, by the objects that each was found of; where there are ``most``, all are forgotten."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._results: dict[tuple[int, ...], tuple[tuple[object, ...], Any]] = {}

    def once(self, objects: tuple[object, ...], find: Callable[[], Found]) -> Found:
        """What ``find`` gives, which is asked for the first time alone that these very objects come. None of them may change."""
        key = tuple(map(id, objects))
        entry = self._results.get(key)
        if entry is None:
            if len(self._results) >= self._most:
                self._results.clear()
            entry = self._results[key] = (objects, find())  # with the objects, whose place in memory no others take then
        return cast(Found, entry[1])


def remembered(most: int) -> Callable[[Callable[Given, Found]], Callable[Given, Found]]:
    """Keeps up to ``most`` results of a function by its arguments' identity; called with names, it is called."""

    def around(function: Callable[Given, Found]) -> Callable[Given, Found]:
        kept = Remembered(most)

        @wraps(function)
        def remembering(*objects: Given.args, **named: Given.kwargs) -> Found:
            return function(*objects, **named) if named else kept.once(objects, lambda: function(*objects, **named))

        return remembering

    return around
