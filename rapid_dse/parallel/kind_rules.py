"""What the kind of a model asks of layouts: heads that divide, the parallelisms that divide it, and how one product is cut."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rapid_dse.config.model import Model
from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel.expert_rules import Broken
from rapid_dse.parallel.product_grid import product_grid

if TYPE_CHECKING:
    from rapid_dse.parallel.layouts import IntColumn, Layouts

ONE_MICRO_BATCH = 1  # micro_batch_size where nobody says how many rows there are


def kind_rules(layouts: Layouts, scenario: Scenario) -> list[Broken]:
    """Rules of the model's kind."""
    kind, name = scenario.model.of_kind, scenario.model.kind
    divided = ", ".join(kind.shared_by)
    rules = [key_value_rule(scenario.model, layouts.tp)]
    rules += [
        (f"{axis} must be 1: a model of the kind {name} is divided over {divided} alone", getattr(layouts, axis) != 1)
        for axis in ("cp", "ep", "pp")
        if axis not in kind.shared_by
    ]
    rules += [(f"tp must divide {divisor}", getattr(scenario.model, divisor) % layouts.tp != 0) for divisor in kind.divided]
    return rules + (_product_rules(layouts, scenario) if scenario.model.m else [])


def loop_rules(layouts: Layouts, scenario: Scenario) -> list[Broken]:
    """What its kind leaves nothing for; enumeration screens degrees before it knows of these settings."""
    kind, name, rules = scenario.model.of_kind, scenario.model.kind, list[Broken]()
    if not kind.streams:
        text = f"a model of the kind {name} has nothing for sequence_parallel to share"
        rules.append((text, layouts.sequence_parallel & (layouts.tp > 1)))
    if not kind.looped:
        rules.append((f"zero must be 0: a model of the kind {name} has no optimizer whose states could be sharded", layouts.zero > 0))
    return rules


def key_value_rule(model: Model, tp: IntColumn) -> Broken:
    """Heads of keys and values are divided, or replicated."""
    heads = max(1, model.num_key_value_heads)
    alike = model.num_key_value_heads == 0
    return "tp must divide num_key_value_heads or be a multiple of it", (heads % tp != 0) & (tp % heads != 0) & (not alike)


def _product_rules(layouts: Layouts, scenario: Scenario) -> list[Broken]:
    """What each side of the grid divides."""
    model, sharding = scenario.model, scenario.parallel.gemm_sharding
    m, n, k = model.m or 1, model.n or 1, model.k or 1
    replicas = np.maximum(1, layouts.dp)
    other_rows = (layouts.global_batch_size != m) | (layouts.micro_batch_size * replicas != m)
    grid, named = product_grid(sharding, layouts.tp), f"gemm_sharding={sharding}"
    rows, columns, depth = (np.maximum(1, side) for side in (grid.rows, grid.columns, grid.depth))
    inner = (k % (depth * rows) != 0) | ((not grid.whole) & (k % (depth * columns) != 0))
    return [
        ("dp must divide m: each replica has its share of the rows", m % replicas != 0),
        ("a product takes all its rows at once: leave out global_batch_size (m) and micro_batch_size (m / dp)", other_rows),
        (f"{named} needs tp that is a number of square grids, as 8 = 2 · 2² or 64 = 4 · 4²", grid.rows == 0),
        (f"{named}: its {'tp' if grid.whole else 'columns'} must divide n", n % columns != 0),
        (f"{named}: its rows must divide m / dp", (m // replicas) % rows != 0),
        (f"{named}: its {'tp' if sharding == 'row' else 'sides, each times its depth,'} must divide k", inner),
    ]


def of_rows(layouts: Layouts, scenario: Scenario) -> Layouts:
    """The layouts with all rows of a product in one micro-batch, shared evenly by the replicas; of other models as they are."""
    rows = scenario.model.m
    if rows is None:
        return layouts
    micro_batch = np.where(layouts.micro_batch_size == ONE_MICRO_BATCH, rows // np.maximum(1, layouts.dp), layouts.micro_batch_size)
    return replace(layouts, micro_batch_size=np.maximum(1, micro_batch))
