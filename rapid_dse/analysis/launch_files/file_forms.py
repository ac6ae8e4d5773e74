"""Texts of launch files as fields, and fields as texts: scripts, YAML, TOML, JSON.

A comment ``# rapid_dse: key=value …`` holds the override keys that the framework's own fields cannot say.
"""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from rapid_dse.analysis.launch_files import shell_script
from rapid_dse.analysis.launch_files.field_table import Fields, flat, nested
from rapid_dse.common.bounded_files import yaml_of

MARK = "# rapid_dse:"
WIDTH = 120


@dataclass(frozen=True)
class FileForm:
    """How a kind of file holds fields.

    Attributes:
        suffixes: of such files, the one that is written first.
        fields: of a text; ValueError where it is none of the kind.
        text: of fields, with comment lines above where the kind has comments.
        comments: whether it has.
    """

    suffixes: tuple[str, ...]
    fields: Callable[[str], dict[str, Any]]
    text: Callable[[Fields, Sequence[str]], str]
    comments: bool = True


def marked(text: str) -> list[str]:
    """The overrides in the comments of a file."""
    lines = [line.strip().removeprefix(MARK) for line in text.splitlines() if line.strip().startswith(MARK)]
    return [word for line in lines for word in shlex.split(line)]


def mark_lines(overrides: Sequence[str]) -> list[str]:
    """Comment lines with the overrides."""
    lines: list[str] = []
    for word in map(shlex.quote, overrides):
        if lines and len(lines[-1]) + len(word) < WIDTH:
            lines[-1] += f" {word}"
        else:
            lines.append(f"{MARK} {word}")
    return lines


def _document(parsed: Any) -> dict[str, Any]:
    if not isinstance(parsed, Mapping):
        raise ValueError("holds no fields; allowed: names with values")
    return dict(flat(parsed))


def _yaml_fields(text: str) -> dict[str, Any]:
    try:
        return _document(yaml_of(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no YAML ({str(error)[:200]})") from None


def _toml_fields(text: str) -> dict[str, Any]:
    try:
        return _document(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"is no TOML ({error})") from None


def _json_fields(text: str) -> dict[str, Any]:
    try:
        return _document(json.loads(text))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"is no JSON ({error})") from None


def _yaml_text(fields: Fields, comments: Sequence[str]) -> str:
    return "\n".join([*comments, yaml.safe_dump(nested(fields), sort_keys=False, width=WIDTH)])


def _json_text(fields: Fields, _: Sequence[str]) -> str:
    return json.dumps(nested(fields), indent=2) + "\n"


def _toml_text(fields: Fields, comments: Sequence[str]) -> str:
    """TOML of tables that hold values and lists; a table stands below those that hold it."""
    sections: dict[str, list[str]] = {}
    for path, value in fields.items():
        section, _, name = path.rpartition(".")
        sections.setdefault(section, []).append(f"{name} = {_toml_value(value)}")
    return "\n".join([*comments, *("\n".join([f"\n[{name}]", *lines]) for name, lines in sections.items())]) + "\n"


def _toml_value(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, list) else f"[{', '.join(map(_toml_value, value))}]"


YAML = FileForm((".yaml", ".yml"), _yaml_fields, _yaml_text)
TOML = FileForm((".toml",), _toml_fields, _toml_text)
JSON = FileForm((".json",), _json_fields, _json_text, comments=False)


def script(program: str, launcher: Sequence[str]) -> FileForm:
    """Scripts that start ``program`` by torchrun; ``launcher`` are the flags that torchrun takes, ``env:NAME`` variables that both see."""

    def text(fields: Fields, comments: Sequence[str]) -> str:
        variables = [name for name in fields if name.startswith(shell_script.ENVIRONMENT)]
        exported = [f"export {name.removeprefix(shell_script.ENVIRONMENT)}={shell_script.quoted(fields[name])}" for name in variables]
        ahead = [_flag(name, fields[name]) for name in launcher if name in fields]
        own = [name for name in fields if name not in launcher and name not in variables and fields[name] is not False]
        lines = [f"torchrun {' '.join(ahead)} {program}", *(f"  {_flag(name, fields[name])}" for name in own), '  "$@"']
        meets = ["# Run it on every node, with MASTER_ADDR the name of one of them."] if "$MASTER_ADDR" in lines[0] else []
        return "\n".join(["#!/bin/bash", *comments, *meets, *exported, " \\\n".join(lines)]) + "\n"

    return FileForm((".sh", ".bash", ".slurm", ".sbatch", ".txt", ".args", ""), shell_script.fields_of, text)


def _flag(name: str, value: Any) -> str:
    words = value if isinstance(value, list) else [value]
    return name if value is True else " ".join([name, *map(shell_script.quoted, words)])


WAITS = "# The server runs until it is ended: this one in another shell, once it answers."


def serving(server: str, client: str, of_client: Sequence[str]) -> FileForm:
    """Scripts that start a server, and then the benchmark that sends it requests; ``of_client`` are the flags of the latter."""

    def text(fields: Fields, comments: Sequence[str]) -> str:
        said = {name: value for name, value in fields.items() if value is not False}
        parts = ((server, [name for name in said if name not in of_client]), (client, [name for name in said if name in of_client]))
        commands = [" \\\n".join([command, *(f"  {_flag(name, said[name])}" for name in names)]) for command, names in parts]
        return "\n".join(["#!/bin/bash", *comments, commands[0], WAITS, commands[1]]) + "\n"

    return FileForm((".sh", ".bash", ".slurm", ".sbatch", ".txt", ".args", ""), shell_script.fields_of, text)
