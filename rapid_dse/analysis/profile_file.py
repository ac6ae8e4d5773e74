"""Software profiles as files: keys in the parts that the schema groups them in, and fitted values put where they belong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rapid_dse.config.parts import group_of, keys_of
from rapid_dse.config.software import Software

FITTED = "fitted"  # the comment beside a value that a fit has found
_BOXES = ("measured:", "served:", "  - {chip:")  # starts of the lines that sum up measured runs
_COLUMN = 34  # where comments start


def profile_lines(values: Mapping[str, Any], comments: Mapping[str, str]) -> list[str]:
    """Keys of a profile, flat, as the lines of its file: each part with its keys, in the schema's order.

    Args:
        values: by key; comments: what stands beside some of them.
    """
    groups, lines, part = group_of(Software), list[str](), None
    for key in (key for key in keys_of(Software) if key in values):
        if groups.get(key) != part and key in groups:
            lines.append(f"{groups[key]}:")
        part = groups.get(key)
        lines.append(_line(key, values[key], comments.get(key, ""), "  " if part else ""))
    return lines


def with_fitted(text: str, values: Mapping[str, float], about: Sequence[str]) -> str:
    """A profile's file with fitted values in their parts, in the place of those of an earlier fit.

    Args:
        text: the file; its settings that are not fitted keep their lines and comments.
        values: fitted values by key.
        about: lines that end the file: comments on the fit, and the measured runs behind it.
    """
    groups = group_of(Software)
    lines = [line for line in text.splitlines() if not _of_a_fit(line) and _key(line) not in values]
    for key, value in values.items():
        header = f"{groups[key]}:"
        if header not in lines:
            lines.append(header)
        end = lines.index(header) + 1
        while end < len(lines) and lines[end].startswith("  "):
            end += 1
        lines.insert(end, _line(key, f"{value:.4g}", FITTED, "  "))
    kept = [line for line, after in zip(lines, [*lines[1:], ""], strict=True) if line[:-1] not in groups.values() or after[:2] == "  "]
    return "\n".join([*kept, *about]) + "\n"


def without_measured(text: str) -> str:
    """A profile's file without the measured runs behind it, which end it."""
    return "\n".join(line for line in text.splitlines() if not line.startswith(_BOXES)) + "\n"


def _line(key: str, value: Any, comment: str, indent: str) -> str:
    text = f"{indent}{key}: {_text(value)}"
    return f"{text:{_COLUMN - 1}} # {comment}" if comment else text


def _text(value: Any) -> str:
    """A plain value as YAML writes it in one line."""
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {_text(part)}' for name, part in value.items())}}}"
    return str(value)


def _key(line: str) -> str:
    return re.split("[:#]", line)[0].strip()


def _of_a_fit(line: str) -> bool:
    """Whether a line is what an earlier fit wrote: a value, a remark on the fit, or the measured runs behind it."""
    return line.endswith(f"# {FITTED}") or line.startswith(("# fitted to", "# mean relative error", *_BOXES))
