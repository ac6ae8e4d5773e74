"""From overrides to validated scenarios: Hydra composes a combination of groups once, values are set on the plain tree."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from rapid_dse.common.plain_trees import copied
from rapid_dse.config import nodes
from rapid_dse.config.cluster import Cluster
from rapid_dse.config.hardware import Hardware
from rapid_dse.config.model import Model
from rapid_dse.config.parts import InParts, nested, value_of
from rapid_dse.config.run import Backend, Debug, Parallel, Search, Workload
from rapid_dse.config.scenario import Scenario, explain, path_of, without_parts
from rapid_dse.config.software import Software
from rapid_dse.imports.data_sheet import completed
from rapid_dse.imports.reader import RUN, SAID
from rapid_dse.imports.run_values import settled_by, values_of
from rapid_dse.parallel.layouts import KEYS, SERVING_KEYS
from rapid_dse.sweep.option_files import state_of_options
from rapid_dse.sweep.overrides import ALL_KEYS, check_key
from rapid_dse.sweep.own_files import all_own, own_tree
from rapid_dse.sweep.places import home
from rapid_dse.sweep.plain_files import NotPlain

if TYPE_CHECKING:
    from omegaconf import DictConfig

SHOWN = ("hw", "cluster", "model", "software", "backend")  # groups whose option is a column of the results

_HYDRA = threading.RLock()  # guards GlobalHydra, and the resolvers that ``by_hydra.closed_environment`` replaces


@dataclass(frozen=True)
class Composed:
    """One combination of options: ``tree`` is plain and resolved, ``choices`` the option behind each group.

    ``whole`` are the keys for which the files say all: every value that can be legal; ``tree`` has their defaults. ``said`` is what is
    priced otherwise than imported files have it, a sentence each.
    """

    tree: Mapping[str, Any]
    choices: Mapping[str, str]
    whole: tuple[str, ...] = ()
    said: tuple[str, ...] = ()


@contextmanager
def hydra_ready() -> Iterator[None]:
    """Within, options are composed by this thread alone: Hydra, which reads what is not the program's own, is one for a process."""
    with _HYDRA:
        yield


def composed(options: Mapping[str, str], hydra: tuple[str, ...] = (), trusted: bool = False) -> Composed:
    """Composes one option a group; call it within ``hydra_ready()``.

    Args:
        options: group to option; the others take their default. ``sweeps`` is merged last, over all groups.
        hydra: overrides of Hydra's own configuration.
        trusted: whether files may read the environment.

    Raises:
        ValueError: one line, where an option does not exist or a file cannot be read.
    """
    if not hydra and all_own(options):
        with contextlib.suppress(NotPlain):
            composition = _composed_of_own(tuple(options.items()), state_of_options())
            return replace(composition, tree=copied(composition.tree))
    from rapid_dse.sweep import by_hydra  # imports Hydra

    return from_hydra(by_hydra.config_of(options, hydra, trusted), trusted)


@lru_cache(maxsize=256)
def _composed_of_own(options: tuple[tuple[str, str], ...], state: tuple[object, ...]) -> Composed:
    """``composed`` of options that the program ships; what their files and the environment say stands for ``state``."""
    tree, choices = own_tree(dict(options), state)
    return _finished(Composed(copied(tree), choices), {group for group, _ in options})


def from_hydra(config: DictConfig, trusted: bool) -> Composed:
    """What Hydra composed, its own configuration left out; files that are not trusted read no environment."""
    from rapid_dse.sweep import by_hydra

    tree, choices = by_hydra.resolved(config, trusted)
    return _finished(Composed(tree, choices), {text.lstrip("+").split("=", 1)[0] for text in config.hydra.overrides.task})


def _finished(of: Composed, named: Collection[str]) -> Composed:
    """The composition of what files say: with what imported ones say of the run, figures that a chip's file leaves open, and the keys of
    which all values are meant.

    Args:
        named: groups whose option the command line names.
    """
    choices = dict(of.choices)
    tree, said = _with_run(dict(of.tree), named)
    if isinstance(tree.get("hw"), dict):
        tree["hw"] = completed(tree["hw"], home())
    choices["backend"] = tree["backend"].get("name", choices.get("backend"))
    layout, names = tree["parallel"], [key.split(".")[1] for key in ALL_KEYS if key.count(".") == 1]
    whole = [name for name in names if layout.get(name) == "all"]
    tree["parallel"] = {**layout, **{name: Parallel.model_fields[name].default for name in whole}}
    own = SERVING_KEYS if tree["workload"].get("kind") == "inference" else KEYS
    keys = tuple(key for name in whole if (key := f"parallel.{name}") in own.values())
    return Composed(tree, choices, keys, said)


def _with_run(tree: dict[str, Any], named: Collection[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The tree with what imported files say of the run beside their group, and what is said of it.

    Args:
        named: groups whose option the command line names; it wins over what a file says of that group.
    """
    parts = {group: dict(tree[group]) for group in ("hw", "model") if isinstance(tree.get(group), dict)}
    runs = {group: dict(part.pop(RUN)) for group, part in parts.items() if RUN in part}
    if not runs:
        return tree, ()
    said = [text for run in runs.values() for text in run.pop(SAID, ())]
    asked, kind = runs.get("model", {}).get("kind"), tree["workload"]["kind"]
    if asked not in (None, kind) and "workload" not in named:
        raise ValueError(f"the model file asks for a run of {asked}; allowed: workload={asked} beside it, or workload={kind}")
    values, more = values_of(runs.get("hw"), runs.get("model"), parts["model"], kind)
    kept = {key: value for key, value in values.items() if settled_by(key) not in named}
    if tree["cluster"]["name"] != "reference":
        kept.pop("cluster.hop_latency", None)  # a cluster's own is what its jobs meet
    return with_values(tree | parts, kept), (*said, *more)


def multirun(arguments: Sequence[str]) -> int:
    """Has Hydra compose the base and run this project's sweeper; the sweeper's exit code.

    Raises:
        ValueError: one line, where an override, an option or a file is wrong.
    """
    from rapid_dse.sweep import by_hydra

    with hydra_ready():
        return by_hydra.multirun(arguments)


def with_values(tree: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``tree`` in which each dotted key has its value; only the parts that change are copied.

    A mapping is merged into a mapping; an index must be one that the list has. The GPUs of a node and the sizes of its network
    dimensions follow from each other where one of the two is set.

    Raises:
        ValueError: one line, for a key that the schema does not have or an index beyond the list's end.
    """
    changed = {key: tree[key] for key in tree}
    for section in {key.split(".", 1)[0] for key in values}:
        changed[section] = _in_parts(section, copied(changed.get(section)))
    for key, value in values.items():
        check_key(key)
        _set(changed, path_of(key), copied(value))
    if isinstance(changed.get("hw"), dict):
        nodes.follow(changed["hw"], values, nodes.raw_dimensions_in_node(tree.get("hw")))
    return changed


def _in_parts(section: str, part: Any) -> Any:
    """A section of a tree with its keys in the parts that files group them in; what stands in a wrong part is left to the schema."""
    model = Scenario.model_fields[section].annotation
    if not isinstance(model, type) or not issubclass(model, InParts):
        return part
    try:
        return nested(model, part)
    except ValueError:
        return part


def _set(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    node: Any = tree
    key = without_parts(".".join(path))
    *parents, last = path
    for part in parents:
        index = _index(node, part, key)
        if not isinstance(node, list) and not isinstance(node.get(part), dict | list):
            node[part] = {}
        node = node[index]
    index = _index(node, last, key)
    if isinstance(value, dict) and not isinstance(node, list) and isinstance(node.get(last), dict):
        for name, inner in value.items():
            _set(node[last], [str(name)], inner)
        return
    node[index] = value


def _index(node: Any, part: str, key: str) -> Any:
    if isinstance(node, list):
        if not part.isdigit() or int(part) >= len(node):
            raise ValueError(f"{key}: {part!r} is no index of a list of {len(node)}; allowed: 0 to {len(node) - 1}")
        return int(part)
    if not isinstance(node, dict):
        raise ValueError(f"{key}: what stands before {part!r} is a single value")
    return part


def scenario_of(tree: Mapping[str, Any]) -> tuple[Scenario, str | None]:
    """The scenario of a tree, and the rule between its keys that it breaks, if one is broken (the scenario then is for a row alone).

    Raises:
        ValueError: one line, where a key's type, unit or bound is wrong.
    """
    try:
        return Scenario.model_validate(tree), None
    except ValidationError as error:
        faults = error.errors(include_url=False)
        if any(entry["type"] != "value_error" or entry["loc"] not in ((), ("model",)) for entry in faults):
            raise ValueError(explain(error)) from None
        return _unchecked(tree), explain(error)


def _unchecked(tree: Mapping[str, Any]) -> Scenario:
    # Each key is right by itself, only a rule between them is not: nothing is priced under this, it fills a row's columns.
    try:
        model = Model.model_validate(tree["model"])
    except ValidationError:
        model = Model.model_construct(**tree["model"])
    return Scenario.model_construct(
        hw=Hardware.model_validate(tree["hw"]),
        model=model,
        parallel=Parallel.model_validate(tree["parallel"]),
        workload=Workload.model_validate(tree["workload"]),
        cluster=Cluster.model_validate(tree["cluster"]),
        software=Software.model_validate(tree["software"]),
        backend=Backend.model_validate(tree["backend"]),
        search=Search.model_validate(tree["search"]),
        debug=Debug.model_validate(tree["debug"]),
    )


def value_at(scenario: Scenario, key: str) -> Any:
    """The validated value behind a dotted key: SI numbers, plain types.

    Raises:
        ValueError: for an index beyond a list's end.
    """
    node: Any = scenario
    for part in key.split("."):
        if isinstance(node, tuple | list):
            node = node[_index(list(node), part, key)]
        elif isinstance(node, Mapping):
            node = node[part]
        else:
            node = value_of(node, part)
    return _plain(node)


def _plain(node: Any) -> Any:
    if isinstance(node, tuple | list):
        return [_plain(item) for item in node]
    return node.model_dump(mode="json") if hasattr(node, "model_dump") else node
