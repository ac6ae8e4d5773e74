"""Layouts that go first: what practice recommends, or the best by closed forms where trials are simulated."""

from __future__ import annotations

from typing import Any

import numpy as np

from rapid_dse.events.backends import price
from rapid_dse.parallel import schedules
from rapid_dse.parallel.layouts import RECOMPUTE_SELECTIVE, Layouts
from rapid_dse.sweep.search.study_space import SearchSpace

_SCREENED = 100_000  # layouts priced in closed form to choose the first few: half a second


def known_good(space: SearchSpace, count: int) -> list[dict[str, Any]]:
    """Parameters of up to ``count`` layouts that fit, the fastest first; none where the base variant cannot be priced in closed form.

    With a simulated backend the closed forms choose among all layouts. Else they would do the study's work, and choose only among
    what Megatron's authors recommend: tp within a node, the rest pp and dp, sequence parallelism, selective recomputation, zero 1.
    """
    if not count:
        return []
    variant = space.variant(space.base())
    scenario, layouts = variant.setting.scenario, variant.pool.layouts
    rows = np.arange(len(layouts))
    if scenario.backend.name == "analytical":
        rows = np.flatnonzero(_usual(layouts, scenario.hw.gpus_per_node))
    rows = rows[:: max(1, -(-len(rows) // _SCREENED))]
    if not len(rows):
        return []
    closed = scenario.model_copy(update={"backend": scenario.backend.model_copy(update={"name": "analytical"})})
    try:
        priced = price(closed, layouts.take(rows))
    except ValueError:  # a network without closed forms: the study starts without a hint, and its trials say what is wrong
        return []
    fits = priced.peak_memory_bytes <= scenario.hw.memory.usable * (1 - scenario.search.headroom)
    order = np.argsort(np.where(fits, priced.step_time_s, np.inf), kind="stable")[:count]
    return [space.labels(variant, int(rows[at])) for at in order if fits[at]]


def _usual(layouts: Layouts, node: int) -> Any:
    piped = (layouts.pp == 1) | (layouts.schedule == schedules.USUAL) | (layouts.vpp == 2)
    plain = (layouts.cp == 1) & (layouts.tp <= node) & (layouts.recompute == RECOMPUTE_SELECTIVE) & (layouts.micro_batch_size <= 2)
    return plain & piped & ((layouts.zero == 1) | (layouts.dp == 1)) & (layouts.sequence_parallel | (layouts.tp == 1))
