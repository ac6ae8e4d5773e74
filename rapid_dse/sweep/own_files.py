"""What the program's own files compose to, put together of files that are each read once.

Hydra composes its own configuration with every composition, which takes ten times as long as an option. The program's own files say
nothing of it, options nothing outside their group; a named sweep chooses options and is merged over them. A file that says more, which a
user may have put among them, is Hydra's to compose (``NotPlain``). All is called within ``hydra_ready()``; ``state`` stands for what the
files and the environment say (``state_of_options``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.default_element import ConfigDefault, GroupDefault, InputDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from rapid_dse.sweep.overrides import GROUPS, SWEEPS
from rapid_dse.sweep.places import home
from rapid_dse.sweep.trusting import closed_environment

State = tuple[object, ...]
_ENVIRONMENT = "${oc.env:"  # the one kind of reference that config.yaml has


class NotPlain(Exception):
    """A file beside the program's own says more than what is put together here."""


def all_own(options: Mapping[str, str]) -> bool:
    """Whether the program ships each of the options, group to option; a path is none of its own."""
    folders = {SWEEPS: home() / SWEEPS, **{group: home() / "conf" / group for group in GROUPS}}
    return all("/" not in option and (folders[group] / f"{option}.yaml").is_file() for group, option in options.items())


def own_tree(options: Mapping[str, str], trusted: bool, state: State) -> tuple[dict[str, Any], dict[str, str]]:
    """The plain tree that options of the program's own compose to, and the option behind each group; nothing of it may be changed.

    Args:
        options: as of ``all_own``; the other groups take their default.
        trusted: whether files may read the environment.

    Raises:
        NotPlain: where one of the files is Hydra's to compose.
    """
    base = _file("config", trusted, state)
    sweep = _file(f"{SWEEPS}/{options[SWEEPS]}", trusted, state) if SWEEPS in options else None
    choices = {**_chosen(base), **({} if sweep is None else _chosen(sweep)), **options}
    tree = {group: _option(group, choices[group], trusted, state) for group in GROUPS}
    rest = {name: value for name, value in _plain(base.config, trusted).items() if name not in GROUPS}
    return (tree | rest if sweep is None else _merged(tree | rest, _plain(sweep.config, trusted))), choices


@lru_cache(maxsize=64)
def _file(name: str, trusted: bool, state: State) -> ConfigResult:
    """``config.yaml`` or a named sweep, as Hydra loads it.

    Raises:
        NotPlain: where it says more than which options are taken, and what is merged over them.
    """
    loaded = _loader().repository.load_config(name)
    if loaded is None or not isinstance(loaded.config, DictConfig):
        raise NotPlain(name)
    text, entries, sections = _text(loaded), loaded.defaults_list or [], {str(section) for section in loaded.config}
    groups = [entry for entry in entries if isinstance(entry, GroupDefault) and not str(entry.group).lstrip("/").startswith("hydra/")]
    if name == "config":
        plain = text.count("${") == text.count(_ENVIRONMENT) and _all_plain(groups, overrides=False)
        plain &= [entry for entry in entries if not isinstance(entry, GroupDefault)] == entries[len(groups) : len(groups) + 1]
    else:
        known = {*GROUPS, *(str(section) for section in _file("config", trusted, state).config)} - {"hydra"}
        plain = "${" not in text and loaded.header.get("package") == "_global_" and _all_plain(groups, overrides=True)
        plain &= sections <= known and all(isinstance(loaded.config._get_node(section), DictConfig) for section in sections)
        plain &= all(entry in groups or entry.is_self() for entry in entries)
    if not plain:
        raise NotPlain(name)
    return loaded


def _all_plain(entries: Sequence[GroupDefault], overrides: bool) -> bool:
    """Whether entries of a defaults list choose an option of a group each, once, as an override of another file's where that is asked."""
    names = [str(entry.group).removeprefix("/") for entry in entries]
    told = all(
        isinstance(entry.value, str) and entry.package is None and not entry.optional and bool(entry.override) == overrides
        for entry in entries
    )
    rooted = not overrides or all(str(entry.group).startswith("/") for entry in entries)
    return told and rooted and len(set(names)) == len(names) and set(names) <= set(GROUPS)


def _text(loaded: ConfigResult) -> str:
    """What a file holds, references as they stand there."""
    return str(OmegaConf.to_container(loaded.config, resolve=False))


def _require_plain_option(name: str, repository: CachingConfigRepository) -> None:
    """Requires that an option's file, and each that it builds on, speaks of its group alone.

    Raises:
        NotPlain: where one has a package of its own, a reference, an entry of another group or is named twice, or is none.
    """
    names = [name]
    for one in names:
        loaded = repository.load_config(one)
        if loaded is None or loaded.header.get("package") is not None or "${" in _text(loaded):
            raise NotPlain(one)
        built_on = [entry for entry in loaded.defaults_list or [] if not entry.is_self()]
        names += [f"{one.rpartition('/')[0]}/{_path(entry)}" for entry in built_on]
        if len(set(names)) < len(names):
            raise NotPlain(one)


def _path(entry: InputDefault) -> str:
    """The path of a file that an option builds on.

    Raises:
        NotPlain: where it is no such entry.
    """
    plain = isinstance(entry, ConfigDefault) and entry.package in (None, "", "_here_") and not entry.optional
    path = str(entry.path) if isinstance(entry, ConfigDefault) and plain else "/"
    if path.startswith("/") or "${" in path or ".." in path:
        raise NotPlain(path)
    return path


@lru_cache(maxsize=256)
def _option(group: str, option: str, trusted: bool, state: State) -> Any:
    """What an option's file says of its group, with the files that it builds on and what ``config.yaml`` says of the group itself.

    Raises:
        NotPlain: as of ``own_tree``.
    """
    loader = _loader()
    repository = CachingConfigRepository(loader.repository)
    _require_plain_option(f"{group}/{option}", repository)
    defaults = create_defaults_list(repository, f"{group}/{option}", overrides_list=[], prepend_hydra=False, skip_missing=False)
    config = loader._compose_config_from_defaults_list(defaults.defaults, repository)[group]
    own = OmegaConf.select(_file("config", trusted, state).config, group)
    with closed_environment(trusted):
        return OmegaConf.to_container(config if own is None else OmegaConf.merge(config, own), resolve=True)


def _loader() -> ConfigLoaderImpl:
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    return loader


def _chosen(loaded: ConfigResult) -> dict[str, str]:
    """The options of groups that a file chooses."""
    entries = [entry for entry in loaded.defaults_list or () if isinstance(entry, GroupDefault)]
    chosen = {str(entry.group).lstrip("/"): str(entry.value) for entry in entries}
    return {group: option for group, option in chosen.items() if group in GROUPS}


def _plain(config: Any, trusted: bool) -> dict[str, Any]:
    """What a file says by itself, Hydra's own configuration left out, references resolved."""
    assert isinstance(config, DictConfig)
    own = OmegaConf.masked_copy(config, [str(name) for name in config if name != "hydra"])
    with closed_environment(trusted):
        plain = OmegaConf.to_container(own, resolve=True)
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings together; where both have one, they are merged, else what lies ``over`` counts."""
    mappings = {name for name, value in over.items() if isinstance(value, Mapping) and isinstance(under.get(name), Mapping)}
    return {**under, **{name: _merged(under[name], value) if name in mappings else value for name, value in over.items()}}
