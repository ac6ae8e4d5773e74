"""Lists every key of the configuration for a page: meaning, type and unit, bounds, default, and where it has an effect.

All of it is read from the schema: types, bounds and defaults from its fields, the meaning from the comment beside a field or from the
sentence of its class's docstring that names it.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rapid_dse.config.effects import Only
from rapid_dse.config.fields import Unit
from rapid_dse.config.parts import parts_of
from rapid_dse.config.scenario import Scenario

# What fits write into a profile, and nobody sets.
WRITTEN = {("Software", "measured"), ("Software", "served"), ("Software", "known"), ("Cluster", "measured")}
SECTIONS = ("hw", "cluster", "model", "workload", "parallel", "software", "backend", "search", "debug")


@dataclass(frozen=True)
class Key:
    """One key as a page shows it; ``part`` is the class of the schema that it lies in."""

    name: str
    meaning: str
    kind: str
    default: str
    effect: str
    part: type[BaseModel]


def keys(section: str) -> Iterator[Key]:
    """The keys of a section of the configuration, in the schema's order."""
    model = Scenario.model_fields[section].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    yield from _keys(model, f"{section}.")


def _keys(model: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        if (model.__name__, name) in WRITTEN:
            continue
        inner = _models(field.annotation)
        if not inner:
            yield Key(prefix + name, meaning(model, name), _kind(field), _default(field), _effect(field), model)
        elif name in parts_of(model):  # what groups keys in files has no place in their names
            yield from _keys(inner[0], prefix)
        else:
            index = "<i>." if get_origin(field.annotation) in (tuple, list) else ""
            for each in inner:
                yield from _keys(each, f"{prefix}{name}.{index}")


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def meaning(model: type[BaseModel], name: str) -> str:
    """What a field is, by the comment at its line or by its class's docstring; empty where neither says it."""
    for owner in model.__mro__:
        if name in inspect.get_annotations(owner):
            found = _comments(owner).get(name) or _of_docstring(inspect.cleandoc(owner.__doc__ or ""), name)
            return re.sub(r"\s*fmt: skip", "", found).rstrip(";")
    return ""


@cache
def _comments(owner: type) -> dict[str, str]:
    """The comment above each field of a class and behind it, by its name."""
    source = textwrap.dedent(inspect.getsource(owner))
    lines, found = source.splitlines(), {}
    tree = ast.parse(source).body[0]
    assert isinstance(tree, ast.ClassDef)
    for statement in tree.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        above, at = [], statement.lineno - 2
        while at >= 0 and lines[at].strip().startswith("#"):
            above.insert(0, lines[at].strip().lstrip("# "))
            at -= 1
        inside = [lines[at] for at in range(statement.lineno - 1, statement.end_lineno or statement.lineno)]
        behind = [comment[1] for line in inside if (comment := re.search(r"  # (?!noqa)(.*)", line))]
        text = [*above, *behind]
        if text:
            found[statement.target.id] = " ".join(text)
    return found


def _of_docstring(text: str, name: str) -> str:
    """The sentences of a docstring that name a field, or its entry under ``Attributes:``."""
    entry = re.search(rf"^ +(?:\w+, )*{name}(?:, \w+)*: (.*(?:\n {{8,}}.*)*)", text, re.MULTILINE)
    if entry:
        return " ".join(entry[1].split())
    sentences = re.split(r"(?<=[.;])\s+", " ".join(text.split()))
    return " ".join(each for each in sentences if re.search(rf"``{name}``", each))


def _kind(field: FieldInfo) -> str:
    """Type, unit and bounds, as a person writes them."""
    unit = next((each.name for each in _metadata(field.annotation, field.metadata) if isinstance(each, Unit)), "")
    limits = [_bound(each) for each in _metadata(field.annotation, field.metadata)]
    return ", ".join(part for part in (_type(field.annotation), unit, *limits) if part)


def _metadata(annotation: Any, own: list[Any]) -> Iterator[Any]:
    for each in own:
        yield from each.metadata if isinstance(each, FieldInfo) else [each]
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        yield from _metadata(inner, more)
    elif get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from _metadata(part, [])


def _bound(each: Any) -> str:
    for kind, name, sign in ((Ge, "ge", "≥"), (Gt, "gt", ">"), (Le, "le", "≤"), (Lt, "lt", "<")):
        if isinstance(each, kind):
            return f"{sign} {getattr(each, name):g}"
    return ""


def _type(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _type(get_args(annotation)[0])
    if origin is Literal:
        return ", ".join(str(each) for each in get_args(annotation))
    if origin in (tuple, list):
        return f"list of {_type(get_args(annotation)[0])}"
    if origin is dict:
        first, second = get_args(annotation)
        return f"{_type(first)} to {_type(second)}"
    if origin is not None:
        return " or ".join(dict.fromkeys(_type(part) for part in get_args(annotation) if part is not NoneType))
    names = {int: "whole number", float: "number", bool: "true, false", str: "text"}
    return names.get(annotation, "")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "the option's"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "null"
    if isinstance(value, tuple | list):
        return ", ".join(_word(each) for each in value) or "none"
    return _word(value) or "empty"


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _effect(field: FieldInfo) -> str:
    found = [each for each in _metadata(field.annotation, field.metadata) if isinstance(each, Only) and each.conditions]
    return "; ".join(" or ".join(str(where) for where in each.conditions) for each in found)
