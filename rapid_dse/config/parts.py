"""Parts of the schema that group keys in files: the kernels of a software profile hold ``software.attention``.

A key that lies in such a part has no name of the part in it: overrides, tables and stored rows say ``software.attention``, and a file
says ``kernels: {attention: flash}``. Which part a key lies in follows from the schema.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Self

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic.fields import FieldInfo

from rapid_dse.config.fields import Frozen


class SchemaPart(Frozen):
    """A group of keys whose names do not say that they lie in it."""


class InParts(Frozen):
    """A configuration whose keys are grouped in parts. It is validated from nested and from flat mappings, a flat key counting before a
    nested one, and dumped flat: as overrides name its keys."""

    @model_validator(mode="before")
    @classmethod
    def _grouped(cls, data: Any) -> Any:
        return nested(cls, data)

    @model_serializer(mode="wrap")
    def _flat(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        groups, dumped = parts_of(type(self)), handler(self)
        flat: dict[str, Any] = {}
        for name, value in dumped.items():
            flat |= value if name in groups else {name: value}
        return flat

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy in which keys, flat, have other values; they are not validated."""
        groups, changes = group_of(type(self)), dict[str, Any]()
        for key, value in (update or {}).items():
            if key not in groups:
                changes[key] = value
                continue
            part = changes.get(groups[key], getattr(self, groups[key]))
            changes[groups[key]] = part.model_copy(update={key: value})
        return super().model_copy(update=changes, deep=deep)


@cache
def parts_of(model: type[BaseModel]) -> Mapping[str, type[SchemaPart]]:
    """The parts that group a model's keys, by name."""
    annotations = {name: info.annotation for name, info in model.model_fields.items()}
    return {name: part for name, part in annotations.items() if isinstance(part, type) and issubclass(part, SchemaPart)}


@cache
def group_of(model: type[BaseModel]) -> Mapping[str, str]:
    """The part that each grouped key of a model lies in."""
    return {key: name for name, part in parts_of(model).items() for key in part.model_fields}


@cache
def keys_of(model: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """The fields of a model by the names that their keys have: those of its parts in the parts' place."""
    groups = parts_of(model)
    keys: dict[str, FieldInfo] = {}
    for name, info in model.model_fields.items():
        keys |= groups[name].model_fields if name in groups else {name: info}
    return keys


def value_of(node: BaseModel, key: str) -> Any:
    """The value of a model's key, wherever in its parts it lies; None where there is no such key."""
    part = group_of(type(node)).get(key)
    return getattr(node if part is None else getattr(node, part), key, None)


def nested(model: type[BaseModel], data: Any) -> Any:
    """A mapping of a model's keys with each in its part; what is no mapping stays as it is.

    Raises:
        ValueError: where a key stands in another part than its own.
    """
    if not isinstance(data, Mapping):
        return data
    groups = group_of(model)
    grouped = {name: _mapping(value) if name in groups.values() else value for name, value in data.items() if name not in groups}
    for name in set(groups.values()) & grouped.keys():
        for key in grouped[name] if isinstance(grouped[name], dict) else ():
            if groups.get(key, name) != name:
                raise ValueError(f"{key} stands in {name}; expected it in {groups[key]}")
    for key in groups.keys() & data.keys():
        part = grouped.setdefault(groups[key], {})
        if isinstance(part, dict):
            part[key] = data[key]
    return grouped


def _mapping(part: Any) -> Any:
    """A part as a dictionary of its own, be it a mapping or validated already."""
    if isinstance(part, SchemaPart):
        return {name: getattr(part, name) for name in type(part).model_fields}
    return dict(part) if isinstance(part, Mapping) else part
