"""What the grid of experts must hold, and how a model's MLPs are cut: rules of legality, each a text with the layouts that break it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario

if TYPE_CHECKING:
    from rapid_dse.parallel.layouts import Layouts

Broken: TypeAlias = tuple[str, NDArray[np.bool_]]


def width_rules(layouts: Layouts, scenario: Scenario) -> list[Broken]:
    """Each of a model's MLPs is cut evenly: dense ones and shared experts by tp, routed experts by etp."""
    model = scenario.model
    widths = dict(model.mlp_widths)
    routed = widths.pop("moe_intermediate_size", None)
    rules = [(f"tp must divide {name}", width % layouts.tp != 0) for name, width in widths.items()]
    if routed is not None:
        rules.append(("etp must divide moe_intermediate_size", routed % layouts.expert_tp != 0))
        shared = model.n_shared_experts * routed
        rules.append(("tp must divide n_shared_experts · moe_intermediate_size", shared % layouts.tp != 0))
    return rules


def grid_rules(layouts: Layouts, scenario: Scenario) -> list[Broken]:
    """The grid of experts lies on the ranks of tp, cp and dp."""
    experts, ranks = scenario.model.num_experts or 1, layouts.tp * layouts.cp * layouts.dp
    return [
        ("etp · ep must divide tp · cp · dp", ranks % (layouts.expert_tp * layouts.ep) != 0),
        ("ep must divide num_experts (1 for a dense model)", experts % layouts.ep != 0),
    ]


def adapter_rules(layouts: Layouts, scenario: Scenario) -> list[Broken]:
    """What ranks that share products share of the adapters beside them: their rank."""
    work = scenario.workload
    if work.trains_all:
        return []
    rules: list[Broken] = [("tp must divide lora_rank", work.lora_rank % layouts.tp != 0)]
    if scenario.model.num_experts:
        rules.append(("etp must divide lora_rank", work.lora_rank % layouts.expert_tp != 0))
    return rules


def tokens_rule(layouts: Layouts, scenario: Scenario) -> Broken:
    """A grid of their own needs experts whose ranks have different tokens; enumeration screens degrees before it knows of that."""
    other = (layouts.tp > 1) & (layouts.expert_tp != layouts.tp) & bool(scenario.model.num_experts)
    return "etp other than tp needs sequence_parallel where tp > 1", other & ~layouts.sequence_parallel
