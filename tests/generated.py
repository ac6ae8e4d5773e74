"""Portions made for tests: small models, real chips, as many layouts as a test needs."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rapid_dse.config import Scenario, parse
from rapid_dse.parallel.enumeration import grid
from rapid_dse.parallel.layouts import Layouts, broken_rules
from rapid_dse.sweep.compose import composed, hydra_ready
from rapid_dse.sweep.portion import Portion

ROOT = Path(__file__).parent.parent
CHOICES = {"hw": "h100", "cluster": "reference", "model": "llama3_1_8b", "software": "megatron_lm", "backend": "analytical"}
ONE = {
    "num_gpus": [64],
    "global_batch_size": [1024],
    "tp": [1],
    "cp": [1],
    "dp": [0],
    "pp": [1],
    "ep": [1],
    "vpp": [1],
    "zero": [1],
    "sequence_parallel": [0],
    "micro_batch_size": [1],
    "recompute": [1],
    "schedule": [2],
}


@cache
def _group(group: str, name: str) -> Any:
    return yaml.safe_load((ROOT / "conf" / group / f"{name}.yaml").read_text())


@cache
def profile(name: str) -> dict[str, Any]:
    """A software profile as its file and the files that it builds on have it."""
    with hydra_ready():
        found: dict[str, Any] = dict(composed({"software": name}).tree["software"])
    return found


def scenario(hw: str = "h100", model: str = "llama3_1_8b", **changes: Any) -> Scenario:
    """A scenario of real options; ``changes`` are dotted keys with '__' for dots."""
    tree: dict[str, Any] = {
        "hw": _group("hw", hw),
        "cluster": _group("cluster", "reference"),
        "model": _group("model", model),
        "software": profile("megatron_lm"),
        "workload": {"expert_imbalance": 1.0},  # rows are counted by hand where routing is even
    }
    tree = deepcopy(tree)
    for key, value in changes.items():
        *path, last = key.split("__")
        part = tree
        for name in path:
            part = part[int(name)] if isinstance(part, list) else part.setdefault(name, {})
        part[last] = value
    # physics is tested on what the mathematics allow, whatever a framework offers
    tree["software"] = {"enforce": False} | tree["software"]
    return parse(tree)


def portion(layouts: Layouts | None = None, keys: dict[str, Any] | None = None, **changes: Any) -> Portion:
    """A portion of legal and illegal layouts under one scenario; by default tp over 1, 8, 32 and 3, which divides no heads."""
    found = scenario(**changes)
    layouts = grid({**ONE, "tp": [1, 8, 32, 3]}) if layouts is None else layouts
    rule, texts = broken_rules(layouts, found)
    choices = {**CHOICES, "hw": found.hw.name, "model": found.model.name}
    return Portion(found, choices, keys or {}, layouts, rule, tuple(texts))


def many(n_layouts: int) -> Layouts:
    """As many layouts, legal and different: global batches that 1,024 divides."""
    rows = {name: np.full(n_layouts, values[0]) for name, values in ONE.items()}
    rows["dp"] = np.full(n_layouts, 8)
    rows["tp"] = np.full(n_layouts, 8)
    rows["global_batch_size"] = 1024 * np.arange(1, n_layouts + 1)
    return Layouts.of(rows)
