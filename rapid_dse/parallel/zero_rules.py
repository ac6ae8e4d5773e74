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
    """ZeRO++ is of ZeRO 3 alone, whose shards lie on all data-parallel ranks. Experts are sharded there as weights like others; DeepSpeed's
    own, which lie on ranks of their own (deepspeed.moe), it refuses under ZeRO 3 (runtime/engine.py: "MoE not supported with Stage 3")."""
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
    apart = (scenario.model.num_experts > 0) & ((layouts.ep > 1) | (layouts.expert_tp != layouts.tp))
    return [
        *((f"{name} needs zero 3", ~layouts.sharding.parameters) for name in asked),
        *((f"{name} goes with shard_group=null alone", layouts.shard_group != 0) for name in asked),
        *((f"{name} needs ep 1 and etp = tp: DeepSpeed has no ZeRO 3 with expert parallelism", apart) for name in asked),
        ("zero_hpz_partition_size must divide dp · cp", layouts.dp * layouts.cp % second != 0),
    ]
