"""Files of options as Hydra loads them, read without Hydra where they are plain."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rapid_dse.common.bounded_files import MOST_BYTES_OF_OPTION, require_few_aliases, require_file

HEADER = 512  # characters at most in which Hydra looks for a file's package


class NotPlain(Exception):
    """A file says more than what is read here, or something wrong: Hydra composes it, or says what is wrong."""


@dataclass(frozen=True)
class OptionFile:
    """What a file says.

    Attributes:
        content: its keys, without the defaults list.
        defaults: the entries of that list, as they stand.
        package: what its header says of the package, as in ``# @package _global_``.
    """

    content: dict[str, Any]
    defaults: tuple[Any, ...]
    package: str | None


def option_file(path: Path) -> OptionFile:
    """The file.

    Raises:
        NotPlain: where it cannot be loaded, holds other than keys with plain values, or a header of more than a package.
    """
    import yaml

    try:
        require_file(path, most=MOST_BYTES_OF_OPTION)
        text = path.read_text(encoding="utf-8")
        require_few_aliases(text)
        content = yaml.load(text, Loader=_loader())
    except (OSError, ValueError, yaml.YAMLError):
        raise NotPlain(str(path)) from None
    if not isinstance(content, dict) or not content or not _is_plain(content):
        raise NotPlain(str(path))
    defaults = content.pop("defaults", [])
    if not isinstance(defaults, list):
        raise NotPlain(str(path))
    return OptionFile(content, tuple(defaults), _package(text))


def texts_of(tree: Any) -> Iterator[str]:
    """All texts that stand as values in a tree."""
    if isinstance(tree, str):
        yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from texts_of(value)


def _is_plain(tree: Any) -> bool:
    """Whether a tree holds texts, numbers, truth values and nulls alone, below keys that are texts, and none that OmegaConf asks for."""
    if isinstance(tree, dict):
        return all(isinstance(name, str) and _is_plain(value) for name, value in tree.items())
    if isinstance(tree, list):
        return all(map(_is_plain, tree))
    return tree is None or (type(tree) in (bool, int, float, str) and tree != "???")


def _package(text: str) -> str | None:
    """The package in the lines ``# @package NAME`` at a file's head, as far as Hydra looks; ``NotPlain`` where one says more.

    Any other line ends the head, a comment too: Hydra takes no package from below it.
    """
    said: str | None = None
    for line in filter(None, map(str.strip, text[:HEADER].splitlines())):
        if re.match(r"#\s*@", line) is None:
            break
        words = [word for word in line.lstrip("#").strip().split(" ") if word]
        if len(words) != 2 or words[0] != "@package" or said is not None:
            raise NotPlain(line)
        said = words[1]
    return said


@cache
def _loader() -> Any:
    """A loader that takes numbers, dates and repeated keys as OmegaConf's does; on libyaml's parser, where PyYAML comes with it."""
    import yaml

    class Loader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [key.value for key, _ in node.value]
            if len(set(map(str, names))) < len(names):
                raise yaml.YAMLError("a key that stands twice")
            return super().construct_mapping(node, deep=deep)

    number = re.compile(r"[-+]?\d+(?:_\d+)*(?:\.[\d_]*)?[eE][-+]?\d+", re.ASCII)  # 1e5, which YAML 1.1 has as a text
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^{number.pattern}$", re.ASCII), list("-+0123456789"))
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in Loader.yaml_implicit_resolvers.items()
    }
    return Loader
