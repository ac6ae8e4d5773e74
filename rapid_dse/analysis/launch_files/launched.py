"""From what a launch file says, with what the command line adds, to the trial that it launches; and which settings a file leaves unsaid."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from rapid_dse.analysis.launch_files import torchtitan
from rapid_dse.analysis.launch_files.field_table import ACCUMULATION, CARDS, CHUNKS, INSTANCES
from rapid_dse.analysis.launch_files.framework import LaunchReading
from rapid_dse.analysis.reasons.chosen import settings
from rapid_dse.config.fields import MOST_GPUS
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.units import shortened
from rapid_dse.model.architecture import split_of
from rapid_dse.parallel.layouts import COLUMN_OF, broken_rules
from rapid_dse.parallel.schedules import schedule_of
from rapid_dse.parallel.schedules.stage_maps import LOOPED
from rapid_dse.sweep.compose import SHOWN, Composed, composed, hydra_ready, scenario_of, with_values
from rapid_dse.sweep.overrides import Given, read
from rapid_dse.sweep.portion import Portion
from rapid_dse.sweep.space import base_codes, explicit
from rapid_dse.sweep.trusting import GUARDED, refused

BASE_MODEL = "llama"  # the option whose dimensions a file's replace
# What a prediction hangs on, and is named where nobody gave it.
MACHINE = ("hw", "cluster")
ASSUMED = {
    "training": ("workload.seq_len", "workload.global_batch_size", "parallel.micro_batch_size"),
    "inference": ("workload.prompt_len", "workload.decode_len"),
}
_PLAIN = re.compile(r"^[\w./+-]+$")
_ALIKE = ("hw", "cluster", "model", "workload", "software", "parallel")
_ASIDE = ("name", "measured", "served", "offers", "known")


@dataclass(frozen=True)
class Launched:
    """The trial that a launch file starts.

    Attributes:
        portion: its scenario and layout.
        assumed: keys that neither file nor command line gave, as overrides.
    """

    portion: Portion
    assumed: tuple[str, ...]


class Composer:
    """Composes trials from options and values; the files of an option are read once."""

    def __init__(self) -> None:
        self._bases: dict[tuple[tuple[str, str], ...], Composed] = {}

    def trial(self, options: Mapping[str, str], values: Mapping[str, Any]) -> Portion:
        """The one trial that options and values describe; where a rule is broken it says which.

        Raises:
            ValueError: where an option, a key or a value is wrong.
        """
        all_options = self._base(options)
        scenario, broken = scenario_of(with_values(all_options.tree, values))
        layouts = explicit({name: np.array([code]) for name, code in base_codes(scenario).items()}, scenario)
        rule, reasons = broken_rules(layouts, scenario) if broken is None else (np.zeros(1, np.int64), [broken])
        return Portion(scenario, {group: all_options.choices[group] for group in SHOWN}, {}, layouts, rule, tuple(reasons))

    def options_alone(self, choices: Mapping[str, str]) -> Scenario:
        """The scenario of options without any value beside them."""
        options = {group: choices[group] for group in ("hw", "cluster", "model", "software") if group in choices}
        scenario, _ = scenario_of(self._base(options).tree)
        return scenario

    def _base(self, options: Mapping[str, str]) -> Composed:
        key = tuple(options.items())
        if key not in self._bases:
            with hydra_ready():
                self._bases[key] = composed(options)
        return self._bases[key]


def launched(reading: LaunchReading, overrides: Sequence[str] = (), composer: Composer | None = None) -> Launched:
    """The trial of a launch file.

    ``overrides`` count more than the file, and its comments, which say what its fields cannot, more than those.

    Raises:
        ValueError: where the model or the number of GPUs is nowhere, a value is wrong, or the layout breaks a rule.
    """
    marked, asked = read(reading.marked), read(overrides)
    for key in marked.values.keys() & GUARDED.keys():
        raise ValueError(refused(key, marked.values[key]))
    for given in (marked, asked):
        if given.swept:
            raise ValueError(f"{next(iter(given.swept))}: several values are a sweep; allowed: one value")
    keys = dict(reading.keys)
    options = _options(reading, keys, marked, asked)
    if "model" in asked.options:
        # of the model dropout alone stays the file's: it says how it is trained
        keys = {key: value for key, value in keys.items() if not key.startswith("model.") or key == "model.dropout"}
    values = {**keys, **marked.values, **asked.values}
    portion = _settled(options, values, composer or Composer())
    given_keys = {*options, *values, *marked.options, *asked.options}
    given_keys |= {"workload.global_batch_size"} if ACCUMULATION in values else set()
    assumed = [f"{key}={_value_of(portion, key)}" for key in (*MACHINE, *ASSUMED[reading.kind]) if key not in given_keys]
    return Launched(portion, tuple(assumed))


def _options(reading: LaunchReading, keys: dict[str, Any], marked: Given, asked: Given) -> dict[str, str]:
    """The option of each group; those that a file's fields tell are taken out of ``keys``."""
    kind = {} if reading.kind == "training" else {"workload": reading.kind}
    told = (
        kind | {"software": str(keys.pop("software", reading.framework))} | ({"model": str(keys.pop("model"))} if "model" in keys else {})
    )
    options = {**told, **marked.options, **asked.options}
    if "model" not in options:
        if "model.hidden_size" not in keys:
            raise ValueError("the model is not in this file; give one, as model=llama3_1_70b")
        options["model"] = BASE_MODEL
    return options


def _settled(options: Mapping[str, str], values: dict[str, Any], composer: Composer) -> Portion:
    """Composes a trial; the number of GPUs follows from the degrees where dp is among them."""
    dp = values.get("parallel.dp")
    if "hw.num_gpus" not in values and isinstance(dp, int):
        values["hw.num_gpus"] = dp * prod(_degrees(values))
    if "hw.num_gpus" not in values:
        raise ValueError("the number of GPUs is not in this file; give it, as hw.num_gpus=64")
    return _legal(options, _resolved(options, values, composer), composer)


def _degrees(values: Mapping[str, Any]) -> list[int]:
    """tp, cp and pp, and of inference attention_dp: GPUs of a replica.

    Raises:
        ValueError: where one of them is no number of GPUs.
    """
    degrees = {name: int(values.get(f"parallel.{name}") or 1) for name in ("tp", "cp", "pp", "attention_dp")}
    for name, degree in degrees.items():
        if not 1 <= degree <= MOST_GPUS:
            raise ValueError(f"parallel.{name}={shortened(degree)}; allowed: 1 to {MOST_GPUS:,}")
    return list(degrees.values())


def _resolved(options: Mapping[str, str], values: Mapping[str, Any], composer: Composer) -> dict[str, Any]:
    """The values with keys in the place of what hangs on the number of GPUs or of layers."""
    settled = dict(values)
    copies, rounds, cards = (settled.pop(name, None) for name in (INSTANCES, ACCUMULATION, CARDS))
    degrees = _degrees(settled)
    replicas = max(1, int(settled["hw.num_gpus"]) // prod(degrees))
    if rounds is not None and "workload.global_batch_size" not in settled:
        settled["workload.global_batch_size"] = replicas * int(settled.get("parallel.micro_batch_size", 1)) * rounds
    if copies is not None:
        settled["parallel.shard_group"] = max(1, replicas * degrees[1] // copies)
    if cards is not None:
        _share_cards(
            settled, composer.trial(options, {key: value for key, value in settled.items() if key.startswith("hw.")}).scenario, cards
        )
    if CHUNKS in settled or torchtitan.ENDS in settled:
        base = composer.trial(
            options, {key: value for key, value in settled.items() if key.split(".")[0] in ("model", "software")}
        ).scenario
        torchtitan.settle_stages(settled, base.model.num_hidden_layers)
        _settle_chunks(settled, base)
    return {key: value for key, value in settled.items() if key != "parallel.schedule" or value is not None}


def _share_cards(values: dict[str, Any], base: Scenario, cards: int) -> None:
    """The bandwidth between nodes where their GPUs share fewer network cards than there are GPUs."""
    share = cards / base.hw.gpus_per_node
    for at, dimension in enumerate(base.hw.network.dimensions):
        if at >= base.hw.node_dimensions and share < 1:
            values.setdefault(f"hw.network.dimensions.{at}.bandwidth", dimension.bandwidth * share)


def _settle_chunks(values: dict[str, Any], base: Scenario) -> None:
    """Puts ``parallel.stage_layers`` in the place of each chunk's layers, where they are not the framework's own split."""
    chunks, pp = values.pop(CHUNKS), int(values.get("parallel.pp") or 1)
    if len(chunks) % pp:
        raise ValueError(f"the file deals the layers to {len(chunks)} parts; allowed: as many, or a multiple of them, as its {pp} stages")
    chunks_a_stage, schedule = max(1, len(chunks) // pp), schedule_of(values.get("parallel.schedule") or "none")
    fixed = schedule.fixed_chunks == chunks_a_stage > 1
    values["parallel.vpp"] = 1 if fixed else chunks_a_stage
    stage_map = schedule.stage_map if fixed else LOOPED
    layers_of_chunks = np.array(chunks)[stage_map.places(pp, chunks_a_stage)]
    if replace(split_of(base), given=None).chunks(pp, chunks_a_stage, stage_map) != layers_of_chunks.tolist():
        values["parallel.stage_layers"] = layers_of_chunks.sum(axis=1).tolist()


def _legal(options: Mapping[str, str], values: Mapping[str, Any], composer: Composer) -> Portion:
    """The trial; where its framework's profile does not offer what the file asks for, it is priced all the same.

    Raises:
        ValueError: where it breaks a rule of the mathematics.
    """
    portion = composer.trial(options, values)
    if portion.rule[0] >= 0 and "software.enforce" not in values:
        portion = composer.trial(options, {**values, "software.enforce": False})
    if portion.rule[0] >= 0:
        raise ValueError(f"what this file asks for cannot run: {portion.reasons[int(portion.rule[0])]}")
    return _own_split(portion)


def _own_split(portion: Portion) -> Portion:
    """The same without ``parallel.stage_layers`` where that is how the framework splits the layers anyway."""
    scenario, layout = portion.scenario, portion.layouts
    if scenario.parallel.stage_layers is None:
        return portion
    given, pp, vpp = split_of(scenario), int(layout.pp[0]), int(layout.vpp[0])
    if replace(given, given=None).chunks(pp, vpp) != given.chunks(pp, vpp):
        return portion
    parallel = scenario.parallel.model_copy(update={"stage_layers": None})
    return replace(portion, scenario=scenario.model_copy(update={"parallel": parallel}))


def _value_of(portion: Portion, key: str) -> Any:
    if key in portion.choices:
        return portion.choices[key]
    settled = settings(portion.layouts)
    return settled[key] if key in settled else getattr(portion.scenario.workload, key.split(".")[1])


def unsaid(wanted: Portion, reading: LaunchReading, chosen: Mapping[str, str], composer: Composer) -> list[str]:
    """The overrides that a file needs beside its fields, so that it launches the trial ``wanted``.

    Args:
        reading: of the file, without comments.
        chosen: the option of each group behind the trial.
    """
    said = reading.keys
    groups = [group for group in ("hw", "cluster") if group in chosen]
    overrides = [f"{group}={chosen[group]}" for group in groups if (group, chosen[group]) != ("cluster", "reference")]
    if "software" in chosen and chosen["software"] != said.get("software", reading.framework):
        overrides.append(f"software={chosen['software']}")
    if "model" in chosen and "model" not in said and "model.hidden_size" not in said:
        overrides.append(f"model={chosen['model']}")
    gpus = settings(wanted.layouts)["hw.num_gpus"]
    if "hw.num_gpus" not in said and not isinstance(said.get("parallel.dp"), int):
        overrides.append(f"hw.num_gpus={gpus}")
    for key in ASSUMED[reading.kind]:
        if key not in said and not (key == "workload.global_batch_size" and ACCUMULATION in said):
            overrides.append(f"{key}={_value_of(wanted, key)}")
    for _ in range(3):  # a degree that is put in changes what follows from it
        trial = _try(replace(reading, marked=()), overrides, gpus, composer)
        missing = [text for text in _differing(wanted, trial) if text not in overrides]
        if not missing:
            return overrides
        overrides += missing
    return overrides


def _try(reading: LaunchReading, overrides: Sequence[str], gpus: int, composer: Composer) -> Portion:
    """The trial so far; while degrees are missing it may break a rule, and is composed all the same."""
    marked = read(overrides)
    keys = dict(reading.keys)
    options = _options(reading, keys, marked, Given())
    values = {"hw.num_gpus": gpus, **{key: value for key, value in keys.items() if key != "parallel.dp"}, **marked.values}
    return _own_split(composer.trial(options, _resolved(options, {"software.enforce": False, **values}, composer)))


def _differing(wanted: Portion, got: Portion) -> Iterator[str]:
    """Overrides that ``got`` lacks to be ``wanted``."""
    mine, theirs = settings(wanted.layouts), settings(got.layouts)
    for key, value in mine.items():
        if value != theirs.get(key) and key not in ("hw.num_gpus", "parallel.dp", "parallel.schedule"):
            yield f"{key}={override_value(value)}"
    schedules = [layouts.get("parallel.schedule") for layouts in (mine, theirs)]
    if schedules[0] != schedules[1] and mine["parallel.pp"] == theirs["parallel.pp"] > 1:
        yield f"parallel.schedule={mine['parallel.schedule']}"
    for section in _ALIKE:
        leaves, others = (dict(_leaves(_dumped(portion.scenario, section), f"{section}.")) for portion in (wanted, got))
        for key, value in leaves.items():
            if others.get(key) != value and key not in COLUMN_OF:
                yield f"{key}={override_value(value)}"


def _dumped(scenario: Scenario, section: str) -> dict[str, Any]:
    """A part of the scenario as plain values, without names and records of measurements; head_dim where it is not hidden / heads."""
    tree: dict[str, Any] = getattr(scenario, section).model_dump(mode="json")
    tree = {name: value for name, value in tree.items() if name not in _ASIDE and (section, name) != ("software", "enforce")}
    if section == "parallel":
        tree["cp_kind"] = scenario.cp_kind
    if section == "software":
        tree.pop("dropout")  # whether it runs is said by the model's
    if section == "model":
        tree["dropout"] = scenario.model.drops_out(scenario.software.kernels.dropout)
        usual = scenario.model.hidden_size / scenario.model.num_attention_heads
        tree["head_dim"] = None if tree["head_dim"] == usual else tree["head_dim"]
        if not scenario.model.num_experts:
            tree = {
                name: value
                for name, value in tree.items()
                if name not in ("num_experts_per_tok", "moe_intermediate_size", "n_shared_experts")
            }
        if scenario.workload.kind == "training":
            tree.pop("max_position_embeddings")  # requests alone are held to it
        if scenario.model.linear_bias:
            tree.pop("attention_bias")  # biases on all products are on these too
    return tree


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _leaves(value, f"{prefix}{name}.")
    elif isinstance(tree, list) and tree and isinstance(tree[0], Mapping):
        for at, value in enumerate(tree):
            yield from _leaves(value, f"{prefix}{at}.")
    else:
        yield prefix[:-1], tree


def override_value(value: Any) -> str:
    """A value as an override of a command line has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(override_value, value))}]"
    text = str(value)
    return text if _PLAIN.match(text) else f"'{text}'"
