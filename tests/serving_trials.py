"""Scenarios and engines for tests of inference: composed from conf/ once, changed by dotted keys."""

from __future__ import annotations

from functools import cache
from typing import Any

from rapid_dse.config.scenario import Scenario, parse
from rapid_dse.parallel.engines import Degrees, Engines, resolved
from rapid_dse.parallel.layouts import SERVING_KEYS, broken_rules
from rapid_dse.simulate.inference.pricing import price
from rapid_dse.simulate.results import Priced
from rapid_dse.sweep.compose import Composed, composed, hydra_ready, with_values


@cache
def _composed(hw: str, model: str, software: str) -> Composed:
    with hydra_ready():
        return composed({"hw": hw, "model": model, "software": software, "workload": "inference"})


def scenario(hw: str = "h100", model: str = "llama3_1_8b", software: str = "vllm", **changes: Any) -> Scenario:
    """The scenario of three options; a change is a dotted key with ``__`` for each dot."""
    values = {"software.enforce": False} | {key.replace("__", "."): value for key, value in changes.items()}
    return parse(with_values(_composed(hw, model, software).tree, values))


def engines(*rows: dict[str, float]) -> Engines:
    """One system a row, resolved; of one GPU unless it says otherwise; what is not given is null."""
    names = list(SERVING_KEYS)
    assert all(row.keys() <= set(names) for row in rows)
    full = [{"tp": 1, "cp": 1, "pp": 1, "ep": 1, "num_gpus": row.get("tp", 1) * row.get("pp", 1)} | row for row in rows]
    return resolved(Engines.of({name: [row.get(name, 0) for row in full] for name in names}))


def priced(of: Scenario, *rows: dict[str, float]) -> Priced:
    """Results of legal systems."""
    table = engines(*rows)
    rule, texts = broken_rules(table, of)
    assert (rule < 0).all(), [texts[index] for index in set(rule[rule >= 0])]
    return price(of, table)


def cut(**degrees: int) -> Degrees:
    """How one engine is cut; what is not given is 1."""
    table = engines({"num_gpus": 1, **degrees})
    return table.degrees()
