"""What ZeRO's shards must hold: which ranks share a copy of them, and what ZeRO++ asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel.expert_rules import Broken

if TYPE_CHECKING:
    from rapid_dse.parallel.layouts import Layouts


def zero_rules(layouts: Layouts, scenario: Scenario) -> list[Broken]:
    """Of shard groups, and of ZeRO++ where it is asked for."""
    replicas, hybrid = layouts.dp * layouts.cp, layouts.shard_group != 0
    shards = np.maximum(1, layouts.shards)
    return [
        ("shard_group must divide dp · cp", replicas % shards != 0),
        ("shard_group needs zero 1, 2 or 3: zero 0 shards nothing", hybrid & ~layouts.sharding.optimizer),
        ("etp · ep must divide tp · shard_group", hybrid & (layouts.tp * shards % (layouts.expert_tp * layouts.ep) != 0)),
        *_plus_plus_rules(layouts, scenario),
    ]


def _plus_plus_rules(layouts: Layouts, scenario: Scenario) -> list[Broken]:
    """ZeRO++ is of ZeRO 3 alone, whose shards lie on all data-parallel ranks; experts' shards lie on others."""
    second, precision = scenario.parallel.zero_hpz_partition_size, scenario.software.precision
    asked = [
        name
        for name, wanted in (
            ("zero_hpz_partition_size", second > 1),
            ("zero_quantized_weights", precision.zero_quantized_weights),
            ("zero_quantized_gradients", precision.zero_quantized_gradients),
        )
        if wanted
    ]
    if not asked:
        return []
    every = np.ones(len(layouts), bool)
    return [
        *((f"{name} needs zero 3", ~layouts.sharding.parameters) for name in asked),
        *((f"{name} goes with shard_group=null alone", layouts.shard_group != 0) for name in asked),
        *((f"{name} is not priced in models with experts", every & (scenario.model.num_experts > 0)) for name in asked),
        ("zero_hpz_partition_size must divide dp · cp", layouts.dp * layouts.cp % second != 0),
    ]
