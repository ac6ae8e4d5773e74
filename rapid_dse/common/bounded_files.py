"""Files that a command reads, refused where reading them would not end, or would fill the memory: pipes and devices, files that are too
large, and YAML whose aliases stand for more than they hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

MOST_BYTES_OF_TEXT = 64 << 20  # of a text that is parsed as a whole
MOST_BYTES_OF_OPTION = 1 << 20  # of an option's file
MOST_VALUES_OF_ALIASES = 100_000  # scalars, lists and mappings of a YAML file with its aliases written out


def require_file(path: Path, label: str | None = None, most: int = MOST_BYTES_OF_TEXT) -> None:
    """Lets regular files through, of at most ``most`` bytes; what is not there is left to whoever opens it.

    Args:
        label: the file's name in the message; None: its path.

    Raises:
        ValueError: one line: a folder, a pipe or a device, whose reading may never end, or a file that is too large.
    """
    label = str(path) if label is None else label
    if path.is_dir():
        raise ValueError(f"{label}: is a folder; allowed: a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"{label}: is a pipe or a device; allowed: a file")
    if path.is_file() and (size := path.stat().st_size) > most:
        raise ValueError(f"{label}: has {size:,} bytes; allowed: up to {most:,}")


def yaml_of(text: str) -> Any:
    """What a YAML text holds.

    Raises:
        ValueError: one line, where it is no YAML, or as ``require_few_aliases``.
    """
    import yaml

    require_few_aliases(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def require_few_aliases(text: str) -> None:
    """Refuses YAML whose aliases, written out, hold more than ``MOST_VALUES_OF_ALIASES`` values: ten lines can stand for 10⁹.

    Raises:
        ValueError: one line; also where an alias stands inside of what it names.
    """
    if "*" not in text or "&" not in text:
        return
    import yaml

    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]  # the anchor of each node that has begun, and the values in it so far
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                if event.anchor is None or event.anchor in (anchor for anchor, _ in open_nodes):
                    raise ValueError(f"its alias *{str(event.anchor)[:40]} stands inside of what it names")
                _count(open_nodes, sizes.get(event.anchor, 1))
            elif isinstance(event, yaml.ScalarEvent):
                _count(open_nodes, 1)
                sizes |= {event.anchor: 1} if event.anchor else {}
            elif isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, 1))
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, size = open_nodes.pop()
                sizes |= {anchor: size} if anchor else {}
                _count(open_nodes, size)
    except yaml.YAMLError:
        return  # whoever loads the text says what is wrong


def _count(open_nodes: list[tuple[str | None, int]], values: int) -> None:
    anchor, size = open_nodes[-1]
    if size + values > MOST_VALUES_OF_ALIASES:
        raise ValueError(f"its aliases stand for more than {MOST_VALUES_OF_ALIASES:,} values")
    open_nodes[-1] = anchor, size + values
