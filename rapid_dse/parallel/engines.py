"""Layouts of inference as columns: how an engine cuts a model over its GPUs, what it is asked for, and which of these are legal.

An engine has tp · attention_dp · cp · pp GPUs; ``dp`` engines serve alike. A disaggregated system has two pools of engines in its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import product
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel import schedules
from rapid_dse.parallel.enumeration import MAX_CP, MAX_TP, Space, times_broken
from rapid_dse.parallel.kind_rules import key_value_rule, kind_rules
from rapid_dse.parallel.layouts import POOL_DEGREES, POOLS, RECOMPUTE_NONE, SERVING_KEYS, BoolColumn, IntColumn, Layouts, Rule, first_broken
from rapid_dse.parallel.offered import Unoffered, listed, of_the_job

NOT_GIVEN = 0  # of columns that may be null
MAX_ATTENTION_DP = 16
# Training's columns, which inference has none of.
_OF_TRAINING = dict.fromkeys(("zero", "sequence_parallel", "recompute", "schedule", "shard_group"), 0)
_OF_TRAINING |= dict.fromkeys(("global_batch_size", "vpp", "micro_batch_size"), 1)
_ONE = {"tp": 1, "cp": 1, "pp": 1, "ep": 1}


@dataclass(frozen=True)
class Degrees:
    """How one engine is cut, ``(n,)`` each: attention over tp (and cp), ``attention_dp`` times; experts over etp and ep; layers over pp."""

    tp: IntColumn
    attention_dp: IntColumn
    cp: IntColumn
    pp: IntColumn
    ep: IntColumn
    etp: IntColumn

    @property
    def wide(self) -> IntColumn:
        """GPUs of a pipeline stage."""
        return np.asarray(self.tp * self.attention_dp * self.cp)

    @property
    def gpus(self) -> IntColumn:
        """GPUs of an engine."""
        return np.asarray(self.wide * self.pp)

    def take(self, rows: NDArray[Any]) -> Degrees:
        """Those at these positions."""
        return Degrees(*(getattr(self, f.name)[rows] for f in fields(self)))

    @staticmethod
    def concatenate(tables: Sequence[Degrees]) -> Degrees:
        """Those of several tables, one behind the other."""
        if len(tables) == 1:
            return tables[0]
        return Degrees(*(np.concatenate([getattr(table, f.name) for table in tables]) for f in fields(Degrees)))


@dataclass(frozen=True)
class Engines(Layouts):
    """One row a system; of its columns ``NOT_GIVEN`` stands for null. Columns of ``Layouts`` that are training's are at their defaults."""

    attention_dp: IntColumn
    batch_size: IntColumn
    concurrency: IntColumn
    request_rate: NDArray[np.float64]
    num_prompts: IntColumn
    prefill_tp: IntColumn
    prefill_pp: IntColumn
    prefill_attention_dp: IntColumn
    prefill_etp: IntColumn
    prefill_ep: IntColumn
    prefill_workers: IntColumn
    decode_tp: IntColumn
    decode_pp: IntColumn
    decode_attention_dp: IntColumn
    decode_etp: IntColumn
    decode_ep: IntColumn
    decode_workers: IntColumn

    keys: ClassVar[Mapping[str, str]] = SERVING_KEYS
    optional: ClassVar[Mapping[str, int]] = _OF_TRAINING | dict.fromkeys(SERVING_KEYS, NOT_GIVEN) | _ONE

    @cached_property
    def pooled(self) -> BoolColumn:
        """Whether prefill and decode have engines of their own, ``(n_layouts,)``."""
        given = np.zeros(len(self), bool)
        for pool, name in product(POOLS, POOL_DEGREES):
            given |= getattr(self, f"{pool}_{name}") != NOT_GIVEN
        return given

    def degrees(self, pool: str | None = None) -> Degrees:
        """How the engines are cut; of one of the two pools where its name is given."""
        if pool is None:
            return Degrees(self.tp, self.attention_dp, self.cp, self.pp, self.ep, self.etp)
        tp, pp, attention_dp, etp, ep = (np.maximum(1, getattr(self, f"{pool}_{name}")) for name in POOL_DEGREES[:-1])
        return Degrees(tp, attention_dp, np.ones_like(tp), pp, ep, etp)

    def batches(self, scenario: Scenario) -> Layouts:
        """The same engines, of a model that decodes nothing, as layouts of one micro-batch that keeps nothing."""
        ones, none = np.ones_like(self.tp), np.zeros_like(self.tp)
        asked = np.where(self.batch_size > 0, self.batch_size, self.dp)  # null: a sample for each replica
        if scenario.model.m is not None:
            asked = ones * scenario.model.m
        columns = {name: getattr(self, name) for name in ("num_gpus", "tp", "cp", "dp", "pp")}
        columns |= {
            "global_batch_size": asked,
            "micro_batch_size": np.maximum(1, asked // np.maximum(1, self.dp)),
            "ep": self.ep,
            "vpp": ones,
        }
        columns |= {"ep": self.ep, "vpp": ones, "zero": none, "sequence_parallel": none, "recompute": none + RECOMPUTE_NONE}
        columns["schedule"] = np.where(self.pp == 1, schedules.NONE, schedules.USUAL)
        return Layouts.of(columns)

    def rules(self, scenario: Scenario) -> list[Rule]:
        """Every rule of inference with the layouts that break it."""
        broken = [
            *_loads(self),
            *_divisions(self),
            *_sizes(self),
        ]
        for pool in (None, *POOLS):
            where = ~self.pooled if pool is None else self.pooled
            if where.any():
                broken += _cuts(self.degrees(pool), scenario, "" if pool is None else f"{pool}.", where)
        if not scenario.model.of_kind.decodes:
            broken += _one_pass(self, scenario)
        software = scenario.software
        return broken + ([Rule(rule.rule(software.name), rule.where) for rule in unoffered(self, scenario)] if software.enforce else [])


def _loads(engines: Engines) -> list[Rule]:
    given = [getattr(engines, name) != NOT_GIVEN for name in ("batch_size", "concurrency", "request_rate")]
    several = np.sum(given, axis=0) > 1
    static = given[0] & (engines.num_prompts != NOT_GIVEN)
    return [
        Rule("one of batch_size (a static batch), concurrency (closed loop) and request_rate (open loop), not several", several),
        Rule("num_prompts goes with concurrency, request_rate or neither: a static batch is sent once", static),
    ]


def _one_pass(engines: Engines, scenario: Scenario) -> list[Rule]:
    """Rules of models that decode nothing, of which a batch runs forward once."""
    asked, batch = (engines.concurrency != NOT_GIVEN) | (engines.request_rate != NOT_GIVEN), engines.batch_size
    rows = scenario.model.m or NOT_GIVEN
    return [
        *(Rule(*rule) for rule in kind_rules(engines.batches(scenario), scenario)),
        Rule("a product has model.m rows: leave out batch_size", (rows != NOT_GIVEN) & (batch != NOT_GIVEN) & (batch != rows)),
        Rule("a model that decodes nothing runs a batch forward: batch_size, and no concurrency, request_rate or num_prompts", asked),
        Rule("dp must divide batch_size", (batch > engines.dp) & (batch % np.maximum(1, engines.dp) != 0)),  # of fewer some are idle
        Rule("attention_dp and pools are of models that decode", (engines.attention_dp > 1) | engines.pooled),
    ]


def _divisions(engines: Engines) -> list[Rule]:
    plain = np.ones(len(engines), bool)
    for name in ("tp", "attention_dp", "cp", "pp", "ep"):
        plain &= getattr(engines, name) == 1
    pooled = engines.pooled
    return [
        Rule("parallel.prefill and parallel.decode stand in place of tp, attention_dp, cp, pp and ep", pooled & ~plain),
        Rule("a static batch runs on one engine; leave out batch_size, or the pools", pooled & (engines.batch_size != NOT_GIVEN)),
    ]


def _sizes(engines: Engines) -> list[Rule]:
    dp, gpus, pooled = engines.dp.astype(float), engines.num_gpus, engines.pooled
    rules = [Rule("tp · attention_dp · cp · pp · dp must equal hw.num_gpus", ~pooled & (engines.degrees().gpus * dp != gpus))]
    if pooled.any():
        both = sum(engines.degrees(pool).gpus.astype(float) * getattr(engines, f"{pool}_workers") for pool in POOLS)
        none = (engines.prefill_workers < 1) | (engines.decode_workers < 1)
        text = "the engines of prefill.workers + decode.workers, times dp, must have hw.num_gpus GPUs"
        rules.append(Rule(text, pooled & ((both * dp != gpus) | none)))
    return rules


def _cuts(degrees: Degrees, scenario: Scenario, pool: str, where: BoolColumn) -> list[Rule]:
    """Rules of one engine; ``pool`` is what stands before its keys, ``where`` the layouts that have it."""
    model, tp = scenario.model, degrees.tp
    wide = degrees.wide
    rules = [
        Rule(f"{pool}tp must divide num_attention_heads", model.num_attention_heads % tp != 0),
        Rule(f"{pool}pp must not exceed num_hidden_layers", degrees.pp > model.num_hidden_layers),
        Rule(f"{pool}ep must divide num_experts (1 for a dense model)", (model.num_experts or 1) % degrees.ep != 0),
    ]
    if not model.kv_lora_rank:
        text, broken = key_value_rule(model, tp)
        rules.append(Rule(f"{pool}{text}", broken))
    widths = model.mlp_widths
    if "intermediate_size" in widths:
        cut = tp * degrees.cp if model.num_experts else wide  # beside experts, dense layers are cut as attention is
        rules.append(Rule(f"{pool}tp · attention_dp · cp must divide intermediate_size", widths["intermediate_size"] % cut != 0))
    if model.num_experts:
        rules.append(
            Rule(f"{pool}etp must divide moe_intermediate_size", widths["moe_intermediate_size"] % np.maximum(1, degrees.etp) != 0)
        )
        text = f"{pool}etp · ep must equal {pool}tp · attention_dp · cp: ep does not fit the engine"
        rules.append(Rule(text, degrees.etp.astype(float) * degrees.ep != wide))
    else:
        rules.append(Rule(f"{pool}etp of a dense model is tp · attention_dp · cp, or null", degrees.etp != wide))
    return [Rule(rule.text, rule.broken & where) for rule in rules]


def unoffered(engines: Engines, scenario: Scenario) -> list[Unoffered]:
    """Every setting that the framework does not offer, with the layouts that have it."""
    offers, rules = scenario.software.offers, of_the_job(len(engines), scenario)
    for name in ("tp", "cp", "pp", "ep", "attention_dp"):
        if name not in offers.parallelisms:
            above = getattr(engines, name) > 1
            for pool in POOLS if name != "cp" else ():
                above = above | (getattr(engines, f"{pool}_{name}") > 1)
            rules.append(Unoffered(f"{name} > 1", f"{name} > 1", f"dp{''.join(f', {other}' for other in offers.parallelisms)}", above))
    rules += _served_alone(engines, scenario)
    if "pools" not in offers.parallelisms:
        rules.append(Unoffered("pools of prefill and decode", "pools of prefill and decode", listed(offers.parallelisms), engines.pooled))
    return rules


def _served_alone(engines: Engines, scenario: Scenario) -> list[Unoffered]:
    """What of inference alone the framework does not offer: how experts and attention are cut, and the cache's precision."""
    offers, experts, cache = scenario.software.offers, scenario.model.num_experts, scenario.workload.kv_precision
    cuts = [(engines.degrees(), ~engines.pooled), *((engines.degrees(pool), engines.pooled) for pool in POOLS)]
    none, rules = np.zeros(len(engines), bool), []
    if experts and "etp" not in offers.parallelisms:
        both = none.copy()
        for cut, where in cuts:
            both |= where & (cut.ep > 1) & (cut.etp > 1)
        setting = "ep > 1 with etp > 1"
        rules.append(Unoffered(setting, setting, "ep = 1, or ep = tp · attention_dp", both))
    if ("experts" if experts else "dense") not in offers.attention_dp_of:
        copied = none.copy()
        for cut, where in cuts:
            copied |= where & (cut.attention_dp > 1)
        setting = f"attention_dp > 1 of {'experts' if experts else 'a dense model'}"
        rules.append(Unoffered(setting, setting, "dp, engines beside one another", copied))
    if cache is not None and (cache not in offers.kv_precisions or (cache == "fp4" and "fp4" not in scenario.hw.precisions)):
        offered = [precision for precision in offers.kv_precisions if precision != "fp4" or "fp4" in scenario.hw.precisions]
        setting = f"kv_precision {cache}"
        rules.append(Unoffered(setting, f"{setting} on {scenario.hw.name}", listed(offered), ~none))
    return rules


def resolved(engines: Engines) -> Engines:
    """The same layouts with what is automatic settled.

    attention_dp is 1, etp what makes etp · ep the GPUs of a stage, dp what the engine leaves of the GPUs (0 where nothing comes out). A
    pool's degrees are 1; of workers prefill has one and decode what is left.
    """
    pooled = engines.pooled
    degrees: dict[str, Any] = {"attention_dp": np.maximum(1, engines.attention_dp)}
    if not pooled.any():
        whole = Degrees(engines.tp, degrees["attention_dp"], engines.cp, engines.pp, engines.ep, engines.etp)
        return replace(engines, **degrees, etp=_experts(engines.etp, whole), dp=_replicas(engines, whole))
    for pool, name in product(POOLS, POOL_DEGREES[:-1]):
        column = getattr(engines, f"{pool}_{name}")
        degrees[f"{pool}_{name}"] = column if name == "etp" else np.where(pooled, np.maximum(1, column), NOT_GIVEN)
    engines = replace(engines, **degrees)
    etp: dict[str, Any] = {"etp": _experts(engines.etp, engines.degrees())}
    for pool in POOLS:
        etp[f"{pool}_etp"] = np.where(pooled, _experts(getattr(engines, f"{pool}_etp"), engines.degrees(pool)), NOT_GIVEN)
    engines = replace(engines, **etp)
    dp = _replicas(engines, engines.degrees())
    return _with_workers(replace(engines, dp=np.where(pooled, np.maximum(1, engines.dp), dp)))


def _replicas(engines: Engines, degrees: Degrees) -> IntColumn:
    """Engines of one kind that the GPUs make, where that is automatic; 0 where nothing comes out."""
    gpus, alone = engines.num_gpus, degrees.gpus
    return np.where(engines.dp == 0, np.where(gpus % alone == 0, gpus // alone, 0), engines.dp)


def _with_workers(engines: Engines) -> Engines:
    pooled = engines.pooled
    prefill = np.where(pooled, np.maximum(1, engines.prefill_workers), NOT_GIVEN)
    gpus_for_decoding = engines.num_gpus // np.maximum(1, engines.dp) - prefill * engines.degrees("prefill").gpus
    decode = np.where(
        engines.decode_workers == NOT_GIVEN, np.maximum(0, gpus_for_decoding // engines.degrees("decode").gpus), engines.decode_workers
    )
    return replace(engines, prefill_workers=prefill, decode_workers=np.where(pooled, decode, NOT_GIVEN))


def _experts(etp: IntColumn, degrees: Degrees) -> IntColumn:
    return np.where(etp == NOT_GIVEN, np.maximum(1, degrees.wide // np.maximum(1, degrees.ep)), etp)


def engine_grid(columns: Mapping[str, Sequence[Any]]) -> Engines:
    """All combinations of the columns' values, the last column fastest, resolved; columns that are not named are null."""
    names = list(columns)
    axes = np.meshgrid(*(np.asarray(columns[name]) for name in names), indexing="ij")
    return resolved(Engines.of({name: axis.ravel() for name, axis in zip(names, axes, strict=True)}))


def enumerate_engines(space: Space, scenario: Scenario) -> tuple[Engines, Counter[str]]:
    """Every legal layout of a space, and how many others break which rule first; equal ones once."""
    parts: list[Engines] = []
    rejected: Counter[str] = Counter()
    for num_gpus in space.options("num_gpus", ()):
        columns = {name: space.options(name, _every(name, int(num_gpus), scenario)) for name in SERVING_KEYS} | {"num_gpus": [num_gpus]}
        engines = _distinct(engine_grid(columns))
        first, texts = first_broken(engines.rules(scenario), len(engines))
        rejected.update(times_broken(first, texts))
        parts.append(engines.take(first < 0))
    return Engines.concatenate(parts), rejected


def _every(name: str, num_gpus: int, scenario: Scenario) -> Sequence[int]:
    """Values of a column that can be legal; one of pools is null in systems that have none."""
    base = name.removeprefix("prefill_").removeprefix("decode_")
    divisors = [d for d in range(1, num_gpus + 1) if num_gpus % d == 0] if num_gpus <= 10**6 else [1]
    experts = scenario.model.num_experts or 1
    if base == "pp":
        return [d for d in divisors if d <= scenario.model.num_hidden_layers]
    if base == "ep":
        return [d for d in divisors if experts % d == 0]
    if base == "workers":
        return range(1, num_gpus + 1) if name.startswith("prefill") else [NOT_GIVEN]
    most = {"tp": MAX_TP, "cp": MAX_CP, "attention_dp": MAX_ATTENTION_DP}.get(base)
    return [NOT_GIVEN] if most is None else [d for d in range(1, min(most, num_gpus) + 1) if d & (d - 1) == 0 or d in divisors]


def _distinct(engines: Engines) -> Engines:
    first, _ = engines.alike.by(*(name for name in SERVING_KEYS if name != "request_rate"))
    one_rate = bool((engines.request_rate == engines.request_rate[:1]).all())
    return engines.take(np.sort(first)) if one_rate else engines
