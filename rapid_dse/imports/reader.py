"""What an import gives: an option of a group, and for each key of the file where it went, or why it went nowhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rapid_dse.config.units import shortened

RUN = "run"  # of an option: what its file says of the run beside the group, which ``run_values.py`` turns into values of keys
SAID = "said"  # in it: what is priced otherwise than the file has it
UNKNOWN = "not a key that is known here: if it changes what a step costs, that is not priced"


@dataclass(frozen=True)
class Imported:
    """A file of another program, read.

    Attributes:
        group: the group that it is an option of: hw or model.
        kind: what the file is, as messages name it.
        option: the option's content, as a file of ``conf/`` has it; ``run`` is what the file says beside the group.
        taken: keys of the file, each with what it became.
        not_taken: keys of the file that nothing was made of, each with the reason.
        remarks: what is priced otherwise than the file has it, a sentence each.
    """

    group: str
    kind: str
    option: Mapping[str, Any]
    taken: Mapping[str, str]
    not_taken: Mapping[str, str]
    remarks: tuple[str, ...] = ()


Rules = Sequence[tuple[str, str]]  # pattern of a key's name, and why nothing is made of it


@dataclass
class Reader:
    """The keys of a file, and what became of each; keys of nested mappings are dotted."""

    tree: Mapping[str, Any]
    name: str
    taken: dict[str, str] = field(default_factory=dict)
    not_taken: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def get(self, *path: str, default: Any = None) -> Any:
        """The value of a dotted key, of the first of several that the file has and that is not null."""
        for part in path:
            value = _at(self.tree, part)
            if value is not None:
                return value
        return default

    def take(self, path: str, into: str, default: Any = None) -> Any:
        """The value of a dotted key, which becomes ``into``; null counts as missing."""
        value = _at(self.tree, path)
        if _has(self.tree, path):
            self.taken[path] = into if value is not None else f"{into}, as where it is missing"
        return default if value is None else value

    def number(self, path: str, into: str, default: float | None = None) -> float:
        """A number; YAML takes 9e-6 for text. Of a list (a level of the network each) the first, the leaf's.

        Raises:
            ValueError: where it is none, or is missing and has no default.
        """
        value = self.take(path, into, default)
        value = value[0] if isinstance(value, list) and value else value
        if value is None:
            raise ValueError(f"{self.name}: {path} is missing")
        try:
            if isinstance(value, bool):
                raise ValueError
            return float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{self.name}: {path}={shortened(value)}: expected a number") from None

    def whole(self, path: str, into: str, default: int | None = None) -> int:
        """A whole number of at least 0; ``ValueError`` as ``number``."""
        number = self.number(path, into, default)
        if number != int(number) or number < 0:
            raise ValueError(f"{self.name}: {path}={shortened(self.get(path))}: expected a whole number of at least 0")
        return int(number)

    def positive(self, path: str, into: str) -> float:
        """A number above 0; ``ValueError`` as ``number``."""
        number = self.number(path, into)
        if not number > 0:
            raise ValueError(f"{self.name}: {path}={shortened(self.get(path))}: expected a number above 0")
        return number

    def degree(self, path: str, into: str) -> int:
        """A whole number of at least 1, which it is where it is missing; ``ValueError`` as ``number``."""
        count = self.whole(path, into, 1)
        if count < 1:
            raise ValueError(f"{self.name}: {path}={count}: expected a whole number of at least 1")
        return count

    def leave(self, path: str, reason: str) -> None:
        """Nothing is made of a key, or of all keys inside it."""
        for leaf in _leaves(self.tree):
            if (leaf == path or leaf.startswith(f"{path}.")) and leaf not in self.taken:
                self.not_taken.setdefault(leaf, reason)

    def leave_rest(self, rules: Rules) -> None:
        """Of each key that is left over, the reason of the first rule whose pattern its name matches; where none does, it is unknown."""
        for leaf in _leaves(self.tree):
            if leaf in self.taken or leaf in self.not_taken:
                continue
            self.not_taken[leaf] = next((why for pattern, why in rules if re.fullmatch(pattern, leaf)), UNKNOWN)

    def imported(self, group: str, kind: str, option: Mapping[str, Any]) -> Imported:
        """What was read, as an option of a group."""
        unknown = [key for key, why in self.not_taken.items() if why == UNKNOWN]
        listed = f"{', '.join(unknown[:8])}{' …' if len(unknown) > 8 else ''}: not known here, and without effect"
        said = [f"{self.name}: {text}" for text in (*self.remarks, *([listed] if unknown else []))]
        run = {**option.get(RUN, {}), **({SAID: said} if said else {})}
        return Imported(group, kind, {**option, RUN: run} if run else option, self.taken, self.not_taken, tuple(self.remarks))


def _at(tree: Any, path: str) -> Any:
    for part in path.split("."):
        if isinstance(tree, list) and part.isdigit():
            tree = tree[int(part)] if int(part) < len(tree) else None
        else:
            tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _has(tree: Any, path: str) -> bool:
    *parents, last = path.split(".")
    node = _at(tree, ".".join(parents)) if parents else tree
    return (isinstance(node, Mapping) and last in node) or (isinstance(node, list) and last.isdigit() and int(last) < len(node))


def _leaves(tree: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all values; a list of plain values, an empty mapping and an empty list are values."""
    for name, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
        inner = (isinstance(value, Mapping) and value) or (isinstance(value, list) and any(isinstance(item, Mapping) for item in value))
        if inner:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
