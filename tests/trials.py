"""Scenarios and layouts for tests of the simulator: composed from conf/ once, changed by dotted keys."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from rapid_dse.config.run import RECOMPUTE
from rapid_dse.config.scenario import Scenario, parse
from rapid_dse.config.schedule_names import SCHEDULES
from rapid_dse.events.backends import price
from rapid_dse.parallel.enumeration import Space as LayoutSpace
from rapid_dse.parallel.enumeration import enumerate_layouts
from rapid_dse.parallel.layouts import AUTO_SCHEDULE, KEYS, Layouts, broken_rules, resolved
from rapid_dse.simulate.results import MEMORY_TERMS, TIME_TERMS, Priced
from rapid_dse.sweep.compose import Composed, composed, hydra_ready, with_values

DEFAULTS: dict[str, Any] = {
    "num_gpus": 64,
    "global_batch_size": 256,
    "tp": 1,
    "cp": 1,
    "dp": 0,
    "pp": 1,
    "ep": 1,
    "vpp": 1,
    "zero": 1,
    "sequence_parallel": None,
    "micro_batch_size": 1,
    "recompute": "selective",
    "schedule": None,
    "shard_group": 0,
    "etp": 0,
}


@cache
def _composed(hw: str, model: str, software: str) -> Composed:
    with hydra_ready():
        return composed({"hw": hw, "model": model, "software": software})


def scenario(hw: str = "h100", model: str = "llama3_1_8b", software: str = "megatron_lm", **changes: Any) -> Scenario:
    """The scenario of three options; a change is a dotted key with ``__`` for each dot (``workload__seq_len=4096``).

    Physics is tested on what the mathematics allow, whatever a framework offers, on GPUs that are all alike and under even routing.
    """
    alike = {"software.enforce": False, "cluster.gpu_spread": 0.0, "workload.expert_imbalance": 1.0}
    values = alike | {key.replace("__", "."): value for key, value in changes.items()}
    tree = with_values(_composed(hw, model, software).tree, values)
    return parse(tree)


def layouts(*rows: dict[str, Any]) -> Layouts:
    """One layout a row: what is not given is the default, words stand for codes, dp 0 is auto."""
    columns: dict[str, list[int]] = {name: [] for name in KEYS}
    for row in rows:
        assert row.keys() <= DEFAULTS.keys(), row
        full = DEFAULTS | row
        if full["sequence_parallel"] is None:
            full["sequence_parallel"] = full["tp"] > 1
        full["recompute"] = RECOMPUTE.index(full["recompute"])
        full["schedule"] = AUTO_SCHEDULE if full["schedule"] is None else SCHEDULES.index(full["schedule"])
        for name in columns:
            columns[name].append(int(full[name]))
    return resolved(Layouts.of(columns))


def legal(of: Scenario, table: Layouts) -> Layouts:
    """``table``, which must be legal."""
    rule, texts = broken_rules(table, of)
    assert (rule < 0).all(), [texts[index] for index in set(rule[rule >= 0])]
    return table


def priced(of: Scenario, *rows: dict[str, Any]) -> Priced:
    """Results of legal layouts."""
    return price(of, legal(of, layouts(*rows)))


def random_layouts(of: Scenario, num_gpus: int, batch: int, count: int, seed: int = 0) -> Layouts:
    """At most ``count`` of all legal layouts, drawn without repetition."""
    values: dict[str, Any] = dict.fromkeys(KEYS) | {"num_gpus": [num_gpus], "global_batch_size": [batch], "dp": [0]}
    every, _ = enumerate_layouts(LayoutSpace(values), of)
    rows = np.random.default_rng(seed).permutation(len(every))[:count]
    return every.take(rows)


def time_terms(result: Priced) -> dict[str, np.ndarray]:
    return {name: getattr(result, f"time_{name}_s") for name in TIME_TERMS}


def memory_terms(result: Priced) -> dict[str, np.ndarray]:
    return {name: getattr(result, f"memory_{name}_bytes") for name in MEMORY_TERMS}
