"""What the program's own files compose to, put together of files that are each read once.

Hydra takes a fifth of a second to import, and composes its own configuration with every composition, which takes ten times as long as an
option. The program's own files say nothing of it, options nothing outside their group; a named sweep chooses options and is merged over
them. A file that says more, which a user may have put among them, is Hydra's to compose (``NotPlain``). ``state`` stands for what the files
and the environment say (``state_of_options``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from rapid_dse.common.plain_trees import merged
from rapid_dse.sweep.overrides import GROUPS, SWEEPS
from rapid_dse.sweep.places import home
from rapid_dse.sweep.plain_files import NotPlain, OptionFile, option_file, texts_of

State = tuple[object, ...]
_HERE = "@_here_"  # behind the path of a file in another folder: its keys are those of the file that names it
_OF_ENVIRONMENT = re.compile(r"\$\{oc\.env:(RAPID_\w+),(true|false)\}", re.ASCII)  # the one kind of reference that config.yaml has


def all_own(options: Mapping[str, str]) -> bool:
    """Whether the program ships each of the options, group to option; a path is none of its own."""
    folders = {SWEEPS: home() / SWEEPS, **{group: home() / "conf" / group for group in GROUPS}}
    return all("/" not in option and (folders[group] / f"{option}.yaml").is_file() for group, option in options.items())


def own_tree(options: Mapping[str, str], state: State) -> tuple[dict[str, Any], dict[str, str]]:
    """The plain tree that options of the program's own compose to, and the option behind each group; nothing of it may be changed.

    Args:
        options: as of ``all_own``; the other groups take their default.

    Raises:
        NotPlain: where one of the files is Hydra's to compose.
    """
    base, chosen = _base(state)
    sweep, chosen_by_sweep = _sweep(options[SWEEPS], state) if SWEEPS in options else ({}, {})
    choices = {**chosen, **chosen_by_sweep, **options}
    tree = {group: _option(group, choices[group], state) for group in GROUPS}
    rest = {name: value for name, value in base.items() if name not in GROUPS}
    return merged(tree | rest, sweep), choices


@lru_cache(maxsize=8)
def _base(state: State) -> tuple[dict[str, Any], dict[str, str]]:
    """What ``config.yaml`` says of the run, and the option of each group that it chooses.

    Raises:
        NotPlain: where it does more than choose an option a group, before what it says itself.
    """
    file = option_file(home() / "conf" / "config.yaml")
    groups = [entry for entry in file.defaults if isinstance(entry, dict) and not _is_of_hydra(entry)]
    plain = list(file.defaults[: len(groups) + 1]) == [*groups, "_self_"] and all(map(_is_of_hydra, file.defaults[len(groups) + 1 :]))
    chosen = _chosen(groups, "")
    if not plain or file.package is not None or set(chosen) != set(GROUPS):
        raise NotPlain("config.yaml")
    return {name: _resolved(value) for name, value in file.content.items() if name != "hydra"}, chosen


def _is_of_hydra(entry: Any) -> bool:
    return isinstance(entry, dict) and len(entry) == 1 and next(iter(entry)).startswith("override hydra/")


@lru_cache(maxsize=64)
def _sweep(name: str, state: State) -> tuple[dict[str, Any], dict[str, str]]:
    """What a named sweep says of the run, and the options that it chooses.

    Raises:
        NotPlain: where it does more than choose options of groups, and say something of sections that there are.
    """
    file = option_file(home() / SWEEPS / f"{name}.yaml")
    entries = [entry for entry in file.defaults if entry != "_self_"]
    plain = file.package == "_global_" and file.defaults.count("_self_") <= 1 and file.content.keys() <= {*GROUPS, *_base(state)[0]}
    if not plain or not all(isinstance(value, dict) for value in file.content.values()) or _refers(file):
        raise NotPlain(name)
    return file.content, _chosen(entries, "override /")


def _chosen(entries: Sequence[Any], before: str) -> dict[str, str]:
    """The option that each entry of a defaults list chooses; ``before`` stands before the name of its group.

    Raises:
        NotPlain: where one does anything else, or two choose for one group.
    """
    known = {f"{before}{group}": group for group in GROUPS}
    if not all(isinstance(entry, dict) and len(entry) == 1 for entry in entries):
        raise NotPlain(str(entries))
    pairs = [pair for entry in entries for pair in entry.items()]
    chosen = {known[key]: option for key, option in pairs if key in known and isinstance(option, str)}
    if len(chosen) < len(pairs):
        raise NotPlain(str(entries))
    return chosen


@lru_cache(maxsize=256)
def _option(group: str, option: str, state: State) -> Any:
    """What an option's file says of its group, with the files that it builds on and what ``config.yaml`` says of the group itself.

    Raises:
        NotPlain: as of ``own_tree``.
    """
    content = _built(home() / "conf" / group, option, set())
    return merged(content, _base(state)[0].get(group, {}))


def _built(folder: Path, option: str, named: set[str]) -> dict[str, Any]:
    """What a file says with those that it builds on, which its keys win over.

    Args:
        named: files that were read before for the same option.

    Raises:
        NotPlain: where one has a package of its own, a reference, an entry of another group or is named twice, or is none.
    """
    if option in named:
        raise NotPlain(option)
    named.add(option)
    file = option_file(folder / f"{option}.yaml")
    if file.package is not None or _refers(file) or file.defaults.count("_self_") > 1 or (file.defaults and "/" in option):
        raise NotPlain(option)
    together: dict[str, Any] = {}
    for entry in file.defaults if "_self_" in file.defaults else (*file.defaults, "_self_"):
        together = merged(together, file.content if entry == "_self_" else _built(folder, _path(entry), named))
    return together


def _path(entry: Any) -> str:
    """The path of a file that an option builds on, ``base/fsdp2@_here_`` or ``llama3_1_8b``.

    Raises:
        NotPlain: where it is no such entry.
    """
    path = entry.removesuffix(_HERE) if isinstance(entry, str) else ""
    if not re.fullmatch(r"\w+(/\w+)*", path) or ("/" in path and path == entry):
        raise NotPlain(str(entry))
    return path


def _refers(file: OptionFile) -> bool:
    return any("${" in text for text in texts_of([file.content, list(file.defaults)]))


def _resolved(tree: Any) -> Any:
    """A tree with what the environment says in place of references to it; ``NotPlain`` where there are others."""
    if isinstance(tree, dict):
        return {name: _resolved(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_resolved(value) for value in tree]
    if not isinstance(tree, str) or "${" not in tree:
        return tree
    named = _OF_ENVIRONMENT.fullmatch(tree)
    if named is None:
        raise NotPlain(tree)
    return os.environ.get(named[1], named[2].capitalize())  # as OmegaConf writes the truth values that it parses
