"""From overrides to portions: groups and scenario keys span scenarios, layout keys span columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate, product
from math import prod
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError

from rapid_dse.config import nodes
from rapid_dse.config.hardware import Hardware
from rapid_dse.config.run import Debug, Parallel, Pool, Search, Workload
from rapid_dse.config.scenario import Scenario, explain
from rapid_dse.parallel.engines import Engines, enumerate_engines
from rapid_dse.parallel.engines import resolved as resolved_engines
from rapid_dse.parallel.enumeration import Space, enumerate_layouts
from rapid_dse.parallel.kind_rules import of_rows
from rapid_dse.parallel.layouts import (
    AUTO_SCHEDULE,
    CODES,
    COLUMN_OF,
    KEYS,
    POOL_DEGREES,
    POOLS,
    SERVING_KEYS,
    USUAL_ETP,
    WHOLE_GROUP,
    IntColumn,
    Layouts,
    broken_rules,
    resolved,
)
from rapid_dse.parallel.offered import AUTO, settled, usual_sequence_parallel
from rapid_dse.sweep.compose import SHOWN, Composed, composed, hydra_ready, scenario_of, value_at, with_values
from rapid_dse.sweep.named_keys import keys_of_sweep, listed_keys
from rapid_dse.sweep.overrides import GROUPS, LAYOUT, SWEEPS, Given, Interval, Values, read_space
from rapid_dse.sweep.pairs import Pairs, flat, together, without
from rapid_dse.sweep.portion import Portion, sharing
from rapid_dse.sweep.trusting import require_unset

SECTIONS: dict[str, type[BaseModel]] = {"hw": Hardware, "workload": Workload, "parallel": Parallel}
AUTO_SEQUENCE = -1  # sequence_parallel wherever tp > 1


@dataclass(frozen=True)
class Plan:
    """What a sweep prices, and how; ``keys`` are what the command line and the sweep file set."""

    portions: tuple[Portion, ...]
    search: Search
    debug: Debug
    keys: tuple[str, ...]


class ColumnType:
    """Turns values of one layout key into the codes of its column.

    Automatic values: dp auto is 0, zero and recompute auto ``AUTO``, schedule null ``AUTO_SCHEDULE``, sequence_parallel null
    ``AUTO_SEQUENCE``, others of ``OPTIONAL``.
    """

    def __init__(self, key: str) -> None:
        section, *_, name = key.split(".")
        info = (Pool if key.count(".") > 1 else SECTIONS[section]).model_fields[name]
        self.key, self.column = key, COLUMN_OF[key]
        self._adapter: TypeAdapter[Any] = TypeAdapter(_annotated(info.annotation, info.metadata))

    def code(self, value: Any) -> float:
        """The code of one value; ``ValueError`` names the key, the value and what is allowed."""
        try:
            as_code = self._adapter.validate_python(value)
        except ValidationError as error:
            raise ValueError(explain(error, self.key)) from None
        if as_code == "auto":
            return 0 if self.column == "dp" else AUTO
        if self.column in CODES:
            return AUTO_SCHEDULE if as_code is None else CODES[self.column].index(as_code)
        if self.column == "request_rate":
            return float(as_code or 0)
        absent = AUTO_SEQUENCE if self.column == "sequence_parallel" else 0
        return absent if as_code is None else int(as_code)


def _annotated(annotation: Any, metadata: Sequence[Any]) -> Any:
    kind = annotation
    for item in metadata:
        kind = Annotated[kind, item]
    return kind


def keys_of(scenario: Scenario) -> Mapping[str, str]:
    """Key of the configuration behind each column of the layouts of a scenario's workload."""
    return KEYS if scenario.workload.kind == "training" else SERVING_KEYS


def base_codes(scenario: Scenario) -> dict[str, float]:
    """The codes of the scenario's own layout, by column; null is 0 but for ``AUTO_SCHEDULE`` and ``AUTO_SEQUENCE``."""
    return _training_codes(scenario) if scenario.workload.kind == "training" else _serving_codes(scenario)


def _serving_codes(scenario: Scenario) -> dict[str, float]:
    parallel, work = scenario.parallel, scenario.workload
    codes: dict[str, float] = {"num_gpus": scenario.hw.num_gpus, "dp": 0 if parallel.dp == "auto" else parallel.dp}
    codes |= {name: getattr(parallel, name) or 0 for name in ("tp", "attention_dp", "cp", "pp", "ep", "etp")}
    codes |= {name: getattr(work, name) or 0 for name in ("batch_size", "concurrency", "request_rate", "num_prompts")}
    pools = {f"{pool}_{name}": getattr(getattr(parallel, pool), name) or 0 for pool in POOLS for name in POOL_DEGREES}
    return {name: (codes | pools)[name] for name in SERVING_KEYS}


def _training_codes(scenario: Scenario) -> dict[str, float]:
    parallel = scenario.parallel
    codes: dict[str, float] = {"num_gpus": scenario.hw.num_gpus, "global_batch_size": scenario.workload.global_batch_size}
    for name in ("tp", "cp", "pp", "ep", "vpp", "micro_batch_size"):
        codes[name] = getattr(parallel, name)
    codes["zero"] = AUTO if parallel.zero == "auto" else parallel.zero
    codes["dp"] = 0 if parallel.dp == "auto" else parallel.dp
    codes["sequence_parallel"] = AUTO_SEQUENCE if parallel.sequence_parallel is None else int(parallel.sequence_parallel)
    codes["shard_group"] = WHOLE_GROUP if parallel.shard_group is None else parallel.shard_group
    codes["etp"] = USUAL_ETP if parallel.etp is None else parallel.etp
    codes["recompute"] = AUTO if parallel.recompute == "auto" else CODES["recompute"].index(parallel.recompute)
    codes["schedule"] = AUTO_SCHEDULE if parallel.schedule is None else CODES["schedule"].index(parallel.schedule)
    return codes


@dataclass(frozen=True)
class Axes:
    """What a command line spans: groups and scenario keys span scenarios, layout keys span columns.

    Attributes:
        given: the overrides.
        base: what the options that are not swept compose to.
        groups: names of options, a tuple a group.
        variants: values, a tuple a key of the scenario.
        intervals: keys of the scenario that take any number between two.
        pairs: settings of groups and keys that change together, a tuple of alternatives each.
        codes: codes of each swept layout column; None is every value that can be legal.
        keys: what becomes a column of the results beside the layout.
        every_key: what the command line and the sweep file set by name, how the search runs included.
        filed: the GPUs of a node, where the sweep file sets them and leaves the sizes of the network's dimensions to follow.
    """

    given: Given
    base: Composed
    groups: Mapping[str, tuple[Any, ...]]
    variants: Mapping[str, tuple[Any, ...]]
    intervals: Mapping[str, Interval]
    codes: Mapping[str, list[float] | None]
    keys: tuple[str, ...]
    filed: Mapping[str, Any]
    every_key: tuple[str, ...]
    pairs: tuple[Pairs, ...] = ()

    def composed(self, combination: Mapping[str, str]) -> Composed:
        """The composition of one option a swept group; within ``hydra_ready()``."""
        if not combination:
            return self.base
        composition = composed({**self.given.options, **combination}, self.given.hydra, self.given.trusted)
        require_unset(composition.tree, self.given.values, self.given.trusted)
        return composition

    def setting(self, composition: Composed, variant: Mapping[str, Any]) -> Setting:
        """The scenario in which the swept keys have these values; ``ValueError`` where one has a wrong type or bound."""
        values = {**self.given.values, **variant}
        if not any(nodes.settles(key) for key in values):
            values = {**self.filed, **values}
        scenario, broken = scenario_of(with_values(composition.tree, values))
        choices = {group: composition.choices[group] for group in SHOWN}
        return Setting(scenario, broken, choices, {key: value_at(scenario, key) for key in self.keys}, composition.said)

    def scenarios(self) -> Iterator[Scenario]:
        """The scenario of every combination of options and listed values; within ``hydra_ready()``."""
        for setting in self.settings():
            yield setting.scenario

    def settings(self) -> Iterator[Setting]:
        """The setting of every combination of options, pairs and listed values; within ``hydra_ready()``."""
        for combination in combinations({**self.groups, **together(self.pairs)}):
            settings = flat(combination)
            option = self.composed({key: value for key, value in settings.items() if key in GROUPS})
            paired = {key: value for key, value in settings.items() if key not in GROUPS}
            for variant in combinations(self.variants):
                yield self.setting(option, {**paired, **variant})

    def run_settings(self) -> tuple[Search, Debug]:
        """How the search runs, a study's name by its sweep included."""
        return _run_settings(next(self.scenarios()), self.base)


@dataclass(frozen=True)
class Setting:
    """A scenario with what its rows show of it; ``broken`` is the rule between its keys that it breaks, ``said`` as of ``Portion``."""

    scenario: Scenario
    broken: str | None
    choices: Mapping[str, str]
    keys: Mapping[str, Any]
    said: tuple[str, ...] = ()


def first_of(axes: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The first value of each axis."""
    return {key: values[0] for key, values in axes.items()}


def axes(given: Given, base: Composed | None = None) -> Axes:
    """Reads what is swept, the sweep file's space included; within ``hydra_ready()``.

    Raises:
        ValueError: one line, where an option, a key or a value is wrong.
    """
    if base is None or nodes.KEY in given.values:  # Hydra sets that key without what follows from it
        base = composed(given.options, given.hydra, given.trusted)
    require_unset(base.tree, given.values, given.trusted)
    own = {group: option for group, option in base.choices.items() if group in GROUPS}
    plain = composed(own, given.hydra, given.trusted) if SWEEPS in base.choices else base
    swept, pairs = _swept(given, with_values(base.tree, given.values))
    paired = [key for pair in pairs for key in pair[0]]
    named = [*given.values, *(key for key in [*swept, *paired] if key not in GROUPS)]
    swept = {**{key: Values(None) for key in base.whole if key not in given.values and key not in paired}, **swept}
    intervals = {key: values for key, values in swept.items() if isinstance(values, Interval)}
    lists = {key: values for key, values in swept.items() if isinstance(values, Values)}
    _check_swept(swept)
    groups = {key: values.items or () for key, values in lists.items() if key in GROUPS}
    variants = {key: values.items or () for key, values in lists.items() if key not in GROUPS and key not in COLUMN_OF}
    codes = {COLUMN_OF[key]: _codes(key, values) for key, values in lists.items() if key in COLUMN_OF}
    every = tuple(dict.fromkeys([*keys_of_sweep(base, plain), *named]))
    keys = listed_keys(list(every))
    filed = {nodes.KEY: base.tree["hw"]["gpus_per_node"]} if nodes.set_beside_same_sizes(base.tree["hw"], plain.tree["hw"]) else {}
    return Axes(given, base, groups, variants, intervals, codes, tuple(keys), filed, every, pairs)


def plan(given: Given, base: Composed | None = None) -> Plan:
    """Composes every combination of what is swept.

    Args:
        base: what the options that are not swept compose to, where that is at hand.

    Raises:
        ValueError: one line, where an option, a key or a value is wrong.
    """
    with hydra_ready():
        return plan_of(axes(given, base))


def plan_of(axes_of_study: Axes) -> Plan:
    """Every combination of the axes' values, composed; within ``hydra_ready()``.

    Raises:
        ValueError: one line, where there are too many, a key takes an interval, or a setting is wrong.
    """
    for key in axes_of_study.intervals:
        raise ValueError(f"{key}: an interval has no end of values; allowed: search=optuna, or a list (1,2,4) or range(start,stop[,step])")
    count = prod(map(len, (*axes_of_study.groups.values(), *axes_of_study.variants.values(), *axes_of_study.pairs)))
    if count > MOST_SCENARIOS:
        raise ValueError(f"the sweep has {count:,} combinations of options and keys outside the layout; allowed: up to {MOST_SCENARIOS:,}")
    portions = list(accumulate((_portion(setting, axes_of_study.codes) for setting in axes_of_study.settings()), sharing))
    search, debug = _run_settings(portions[0].scenario, axes_of_study.base)
    return Plan(tuple(portions), search, debug, axes_of_study.every_key)


def _swept(given: Given, tree: Mapping[str, Any]) -> tuple[dict[str, Values | Interval], tuple[Pairs, ...]]:
    """The sweep file's space, over which the command line's own keys win: what is swept, and what is paired."""
    space = tree.get("search", {}).get("space") or {}
    if not isinstance(space, Mapping):
        raise ValueError(f"search.space={space!r}; allowed: a mapping of keys to lists of values, or to all")
    swept, pairs = read_space(space)
    own = {*given.values, *given.options, *given.swept, *(key for pair in given.paired for key in pair[0])}
    named = {key: values for key, values in swept.items() if key not in own}
    remaining = (without(pair, own) for pair in pairs)
    return {**named, **given.swept}, (*given.paired, *(pair for pair in remaining if pair))


def _check_swept(swept: Mapping[str, Values | Interval]) -> None:
    for key, values in swept.items():
        if key == SWEEPS or key.split(".")[0] in ("search", "debug"):
            raise ValueError(f"{key}: cannot be swept; allowed: one value")
        if key == LAYOUT:
            raise ValueError(f"{key}: its options are no values of a sweep; allowed: {key}=all alone, or keys as {key}.tp=1,2,4")
        for item in (values.items or ()) if isinstance(values, Values) else ():
            if key in GROUPS and not isinstance(item, str):
                raise ValueError(f"{key}={item!r}: allowed: names of options")


def _codes(key: str, values: Values) -> list[float] | None:
    if values.items is None:
        return None
    kind = ColumnType(key)
    return list(dict.fromkeys(kind.code(item) for item in values.items))


def combinations(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of one value an axis, the last axis fastest."""
    return (dict(zip(axes, values, strict=True)) for values in product(*axes.values()))


def _portion(setting: Setting, codes: Mapping[str, list[float] | None]) -> Portion:
    return Portion(setting.scenario, setting.choices, setting.keys, *layouts_of(setting, codes), said=setting.said)


def layouts_of(setting: Setting, codes: Mapping[str, list[float] | None]) -> tuple[Layouts, IntColumn, tuple[str, ...], Mapping[str, int]]:
    """The layouts of a setting: they, which of the reasons each breaks (-1: none), the reasons, and what was left out by reason."""
    scenario = setting.scenario
    require_own(scenario, [name for name, values in codes.items() if values is not None])
    columns = {name: codes.get(name, [code]) for name, code in base_codes(scenario).items()}
    if setting.broken is not None:
        closed = {name: values or [base_codes(scenario)[name]] for name, values in columns.items()}
        layouts = explicit(_grid_columns(closed, keys_of(scenario)), scenario)
        return layouts, np.zeros(len(layouts), np.int64), (setting.broken,), {}
    if any(values is None for values in columns.values()):
        layouts, rejected = _enumerated(columns, scenario)
        return layouts, np.full(len(layouts), -1, np.int64), (), dict(rejected)
    layouts = explicit(_grid_columns({name: values or [] for name, values in columns.items()}, keys_of(scenario)), scenario)
    rule, reasons = broken_rules(layouts, scenario)
    return layouts, rule, tuple(reasons), {}


def require_own(scenario: Scenario, columns: Sequence[str]) -> None:
    """Raises ``ValueError`` where one of the columns is of the other workload's layouts alone, with its key."""
    for name in columns:
        if name not in keys_of(scenario):
            raise ValueError(of_other_workload(scenario, name))


def of_other_workload(scenario: Scenario, column: str) -> str:
    """What is said of a column of the other workload's layouts that is given."""
    key, kind = next(key for key, name in COLUMN_OF.items() if name == column), scenario.workload.kind
    other = "inference" if kind == "training" else "training"
    return f"{key} has no effect with workload.kind={kind}; leave it out, or workload={other}"


def _enumerated(columns: Mapping[str, list[float] | None], scenario: Scenario) -> tuple[Layouts, Counter[str]]:
    if scenario.workload.kind == "inference":
        return enumerate_engines(Space({name: columns[name] for name in SERVING_KEYS}), scenario)
    return enumerate_layouts(_open_space(columns, scenario), scenario)


def _open_space(columns: Mapping[str, list[float] | None], scenario: Scenario) -> Space:
    values: dict[str, Sequence[float] | None] = dict(columns)
    sequence = columns["sequence_parallel"]
    if sequence is not None:  # enumeration turns it off where tp = 1
        usual = int(usual_sequence_parallel(scenario.software.offers) and scenario.model.of_kind.streams)
        values["sequence_parallel"] = list(dict.fromkeys(usual if code == AUTO_SEQUENCE else code for code in sequence))
    return Space(values)


MOST_LAYOUTS = 10**8  # of one scenario: their columns alone are 11 GB
MOST_SCENARIOS = 20_000  # of a sweep, 0.2 MB each


def _grid_columns(columns: Mapping[str, Sequence[float]], keys: Mapping[str, str]) -> dict[str, Any]:
    count = prod(len(values) for values in columns.values())
    if count > MOST_LAYOUTS:
        raise ValueError(f"the sweep has {count:,} combinations of layout keys; allowed: up to {MOST_LAYOUTS:,}, or search=optuna")
    axes = np.meshgrid(*(np.asarray(columns[name]) for name in keys), indexing="ij")
    return {name: axis.ravel() for name, axis in zip(keys, axes, strict=True)}


def explicit(codes: Mapping[str, Any], scenario: Scenario) -> Layouts:
    """Resolved layouts from columns of codes, ``(n_layouts,)`` each, in which automatic values may stand.

    Where tp = 1 there is nothing for sequence parallelism to share, so it is off.
    """
    if scenario.workload.kind == "inference":
        return resolved_engines(Engines.of(codes))
    offers, sequence = scenario.software.offers, np.asarray(codes["sequence_parallel"])
    usual = usual_sequence_parallel(offers) and scenario.model.of_kind.streams
    shared = np.where(sequence == AUTO_SEQUENCE, usual, sequence)
    zero = codes["zero"] if scenario.model.of_kind.looped else np.where(np.asarray(codes["zero"]) == AUTO, 0, codes["zero"])
    columns = {f.name: codes[f.name] for f in fields(Layouts)} | {"sequence_parallel": shared, "zero": zero}
    layouts = of_rows(settled(resolved(Layouts.of(columns)), offers), scenario)
    alone = layouts.sequence_parallel & (layouts.tp == 1)
    return replace(layouts, sequence_parallel=layouts.sequence_parallel & ~alone) if alone.any() else layouts


def _run_settings(scenario: Scenario, base: Composed) -> tuple[Search, Debug]:
    search = scenario.search
    if search.study is None and SWEEPS in base.choices:
        search = search.model_copy(update={"study": base.choices[SWEEPS]})
    return search, scenario.debug


def single(given: Given) -> Portion:
    """The one trial that a command line without ``-m`` describes.

    Raises:
        ValueError: one line, where something is swept, or an option, a key or a value is wrong.
    """
    if given.swept or given.paired:
        key = next(iter(given.swept or given.paired[0][0]))
        raise ValueError(f"{key}: several values are a sweep; allowed: one value, or -m before the overrides (in Python rd.sweep)")
    planned = plan(given)
    if len(planned.portions) != 1 or len(planned.portions[0].layouts) != 1:
        named = next(f"{group}={given.options[group]}" for group in (SWEEPS, LAYOUT) if group in given.options)
        raise ValueError(f"{named}: is a sweep; allowed: -m before the overrides")
    return planned.portions[0]
