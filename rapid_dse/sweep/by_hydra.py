"""What Hydra composes: options of a user's, files that are options, and the program's own where they say more than they are shipped with.

All is called within ``compose.hydra_ready()``.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from yaml import YAMLError

from rapid_dse.imports.file_options import GROUPS as OF_FILES
from rapid_dse.imports.file_options import is_file_option
from rapid_dse.sweep.overrides import GROUPS, SWEEPS, for_hydra, read
from rapid_dse.sweep.places import home
from rapid_dse.sweep.trusting import OPTION, require_few_references

_UNREADABLE = (HydraException, OmegaConfBaseException, YAMLError)  # what composing raises for a file or a value that is wrong


@contextmanager
def started() -> Iterator[None]:
    """Hydra's composition on this program's ``conf/``; inside a running Hydra (the sweeper's) that one is used."""
    if GlobalHydra.instance().is_initialized():
        yield
        return
    with initialize_config_dir(version_base="1.3", config_dir=str(home() / "conf"), job_name="rapid_dse"):
        yield


def config_of(options: Mapping[str, str], hydra: Sequence[str], trusted: bool) -> DictConfig:
    """What Hydra composes of one option a group, its own configuration included.

    Raises:
        ValueError: one line, where an option does not exist or a file cannot be read.
    """
    with started():
        for group, option in options.items():
            _check_option(group, option, hydra)
        overrides = [f"{'+' if group == SWEEPS else ''}{group}={option}" for group, option in options.items()]
        try:
            with closed_environment(trusted):
                return compose("config", overrides=[*overrides, *hydra], return_hydra_config=True)
        except _UNREADABLE as error:
            raise ValueError(one_line(error)) from None


def resolved(config: DictConfig, trusted: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """The plain tree that files compose to, and the options behind it.

    Raises:
        ValueError: one line, where a reference in a file cannot be followed, or as of ``plain_parts``.
    """
    chosen_options = config.hydra.runtime.choices
    choices = {group: str(chosen_options[group]) for group in (*GROUPS, SWEEPS) if chosen_options.get(group) is not None}
    try:
        return plain_parts(config, trusted), choices
    except _UNREADABLE as error:
        raise ValueError(one_line(error)) from None


@contextmanager
def closed_environment(trusted: bool) -> Iterator[None]:
    """While this is open, ``${oc.env:NAME}`` gives the variables of this program alone (RAPID_*), unless files are trusted.

    One does not stand inside another: at its end the variables are all there again.
    """
    if trusted:
        yield
        return
    OmegaConf.register_new_resolver("oc.env", _own_variable, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _own_variable(name: str, *default: Any) -> Any:
    if not str(name).startswith("RAPID_"):
        raise ValueError(f"${{oc.env:{str(name)[:40]}}}: a file reads the environment; allowed: the value itself, or {OPTION}")
    return oc.env(name, *default)


def plain_parts(config: DictConfig, trusted: bool) -> dict[str, Any]:
    """The parts of a composition as plain values, references resolved.

    Hydra's own part is left out before: what files say refers to nothing there, where references could hide that double what they stand
    for.

    Raises:
        ValueError: where a file has a single value in place of a part, or too many references.
    """
    names: list[Any] = [name for name in config if name != "hydra"]
    own = OmegaConf.masked_copy(config, names)
    if not trusted:
        require_few_references(OmegaConf.to_container(own, resolve=False))
    with closed_environment(trusted), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what ${oc.deprecated:...} of a file says
        parts = {
            str(name): OmegaConf.to_container(own[name], resolve=True) if OmegaConf.is_config(own[name]) else own[name] for name in own
        }
    for name, value in parts.items():
        if not isinstance(value, dict | list):
            raise ValueError(f"{name}={'null' if value is None else value}: what a file says of a whole section; expected keys with values")
    return parts


def multirun(arguments: Sequence[str]) -> int:
    """Has Hydra compose the base and run this project's sweeper; the sweeper's exit code.

    Raises:
        ValueError: one line, where an override, an option or a file is wrong.
    """
    given = read(arguments)
    with started():
        for group, option in given.options.items():
            _check_option(group, option, given.hydra)
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        try:
            with closed_environment(given.trusted):
                config = hydra.compose_config("config", for_hydra(arguments), RunMode.MULTIRUN, with_log_configuration=False)
            return int(_own_sweeper(config).sweep(list(config.hydra.overrides.task)))
        except _UNREADABLE as error:
            raise ValueError(one_line(error)) from None


def _own_sweeper(config: DictConfig) -> Sweeper:
    """This program's sweeper, set up; nothing else that files name in Hydra's configuration is made or run.

    Raises:
        ValueError: where files ask for another sweeper, or for callbacks.
    """
    chosen, target = config.hydra.runtime.choices.get("hydra/sweeper"), OmegaConf.select(config, "hydra.sweeper._target_")
    if chosen != "rapid_dse" or target != _SWEEPER or set(config.hydra.sweeper) != {"_target_"} or config.hydra.get("callbacks"):
        raise ValueError("a file sets hydra.sweeper or hydra.callbacks, of which nothing is run here; allowed: a file without them")
    context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks())
    return Plugins.instance().instantiate_sweeper(config=config, hydra_context=context, task_function=_no_job)


def _no_job(_: DictConfig) -> None:
    raise AssertionError("the sweeper prices tables and starts no jobs")


def one_line(error: BaseException) -> str:
    """The messages of an error and of what caused it, in one line."""
    parts = [str(error)] + ([str(error.__cause__)] if error.__cause__ else [])
    return "; ".join(" ".join(part.split()) for part in parts if part.strip())


_SWEEPER = "hydra_plugins.rapid_dse_plugins.sweeper.TableSweeper"

# Families whose layers nothing here prices, by how their names begin, with what is missing.
UNMODELLED = {
    "qwen3_next": "linear attention (gated delta networks)",
    "qwen3_5": "linear attention (gated delta networks)",
    "glm5": "sparse attention behind an indexer",
    "glm_5": "sparse attention behind an indexer",
    "nemotron_3": "state-space layers (Mamba 2)",
    "nemotron3": "state-space layers (Mamba 2)",
}


def _check_option(group: str, option: str, hydra: Sequence[str]) -> None:
    if is_file_option(group, option):
        return
    loader = GlobalHydra.instance().config_loader()
    paths = [text for text in hydra if text.lstrip("+").startswith("hydra.searchpath")]
    allowed = sorted(set(loader.get_group_options(group, ObjectType.CONFIG, "config" if paths else None, paths or None)))
    if option in allowed:
        return
    for family, missing in UNMODELLED.items() if group == "model" else ():
        if option.startswith(family):
            raise ValueError(f"{group}={option}: needs {missing}, which is not modelled; allowed: {', '.join(allowed)}")
    near = difflib.get_close_matches(option.lower(), allowed, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    own = f"; or a file: ./conf/{group}/{option}.yaml, or {group}=./{option}.yaml" if group in OF_FILES else ""
    raise ValueError(f"{group}={option}: no such option{hint} (allowed: {', '.join(allowed)}{own})")
