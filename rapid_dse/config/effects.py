"""Where a setting has an effect: a condition that stands beside its field in the schema, and what is said where it does not hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from rapid_dse.common.remembered import remembered
from rapid_dse.config.parts import group_of, keys_of, value_of

if TYPE_CHECKING:
    from rapid_dse.config.scenario import Scenario

COMMAND = "command"  # stands for a key in conditions: "trial", "sweep" (-m) or "table" (of cases)
SWEEP = "-m"  # what makes it a sweep


@dataclass(frozen=True)
class Where:
    """A condition: the dotted ``key`` has one of ``values``; without values, it is a number above 0 or a text."""

    key: str
    values: tuple[Any, ...] = ()

    def holds(self, value: Any) -> bool:
        """Whether the condition holds at this value of its key."""
        return value in self.values if self.values else bool(value)

    def __str__(self) -> str:
        if self.key == COMMAND:
            return SWEEP if self.values == ("sweep",) else f"without {SWEEP}"
        if not self.values:
            return f"{self.key} above 0"
        return f"{self.key.removesuffix('.name')}={'|'.join(_word(value) for value in self.values)}"


def _word(value: Any) -> str:
    return "null" if value is None else str(value).lower()


class Only:
    """Metadata of a field, or of a part of the configuration, that has an effect only where one of ``conditions`` holds.

    ``refused``: a value elsewhere is an error; else it is said that it has no effect. Without a condition it has one everywhere, whatever
    the part that it lies in needs.
    """

    def __init__(self, *conditions: Where, refused: bool = False) -> None:
        self.conditions, self.refused = conditions, refused


TRAINED = Only(Where("workload.kind", ("training",)))


def in_vain(scenario: Scenario, keys: Iterable[str], command: str) -> list[str]:
    """A line for each of the dotted ``keys``, which somebody has set, that has no effect under the scenario.

    Args:
        command: "trial", "sweep" or "table".
    """
    lines = []
    for key in dict.fromkeys(keys):
        conditions = list(_conditions(scenario, key))
        for only in conditions if all(condition.conditions for condition in conditions) else ():
            if only.refused:
                continue
            values = {where: _value(scenario, where.key, command) for where in only.conditions}
            if not any(where.holds(value) for where, value in values.items()):
                needs = ", or ".join(str(where) for where in only.conditions)
                lines.append(f"{key} has no effect here: it has one with {needs}")
                break
    return lines


def require_no_refused(scenario: Scenario) -> None:
    """Raises ``ValueError`` where a key that is refused outside its conditions is set there."""
    for key, value, default, only in _refused(scenario):
        if not any(where.holds(_value(scenario, where.key, "")) for where in only.conditions):
            raise ValueError(without_effect(scenario, key, value, default, only))


def without_effect(scenario: Scenario, key: str, value: Any, default: Any, only: Only) -> str:
    """What is said of a key that is refused outside its conditions."""
    needs = " or ".join(str(where) for where in only.conditions)
    now = ", ".join(f"{where.key}={_value(scenario, where.key, '')}" for where in only.conditions)
    usual = "null" if default is None or isinstance(default, BaseModel) else str(default).lower()
    named = {name: part for name, part in value if part is not None} if isinstance(value, BaseModel) else value
    return f"{key}={named} has no effect with {now}; allowed: {usual}, or {needs}"


@remembered(1024)
def _refused(part: BaseModel) -> tuple[tuple[str, Any, Any, Only], ...]:
    """The keys below a part, which several scenarios may share, that are refused somewhere and set, with value, default and where not."""
    listed: list[tuple[str, Any, Any, Only]] = []
    for name, within, default, conditions in _conditional(type(part)):
        value = getattr(part if within is None else getattr(part, within), name, None)
        if conditions and value != default:
            listed += [(name, value, default, only) for only in conditions]
        if isinstance(value, BaseModel):
            listed += [(f"{name}.{key}", *told) for key, *told in _refused(value)]
    return tuple(listed)


@cache
def _conditional(part: type[BaseModel]) -> tuple[tuple[str, str | None, Any, tuple[Only, ...]], ...]:
    """The keys of a part that are refused somewhere, each with the group that it lies in, its default and where it is not, and those that
    are parts themselves."""
    listed, groups = [], group_of(part)
    for name, info in keys_of(part).items():
        conditions = tuple(only for only in info.metadata if isinstance(only, Only) and only.refused)
        if conditions or _may_be_part(info.annotation):
            listed.append((name, groups.get(name), info.default, conditions))
    return tuple(listed)


def _may_be_part(annotation: Any) -> bool:
    """Whether a value of this type may be a part of the configuration."""
    return (isinstance(annotation, type) and issubclass(annotation, BaseModel)) or any(map(_may_be_part, get_args(annotation)))


def _conditions(scenario: Scenario, key: str) -> Iterator[Only]:
    """Those on the way to a key: of the parts that it is in, and its own."""
    node: Any = scenario
    for part in key.split("."):
        if isinstance(node, BaseModel) and part in keys_of(type(node)):
            yield from (only for only in keys_of(type(node))[part].metadata if isinstance(only, Only))
        node = _inside(node, part)


def _value(scenario: Scenario, key: str, command: str) -> Any:
    if key == COMMAND:
        return command
    node: Any = scenario
    for part in key.split("."):
        node = _inside(node, part)
    return node


def _inside(node: Any, part: str) -> Any:
    if isinstance(node, tuple | list):
        return node[int(part)] if part.isdigit() and int(part) < len(node) else None
    if isinstance(node, Mapping):
        return node.get(part)
    return value_of(node, part) if isinstance(node, BaseModel) else None
