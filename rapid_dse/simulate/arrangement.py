"""How layouts lie on the machine before anything is timed: their stages, and what their groups transfer."""

from __future__ import annotations

from dataclasses import dataclass, fields

from rapid_dse.columns import distinct_rows, rows_of
from rapid_dse.config.scenario import Scenario
from rapid_dse.layouts import Layouts
from rapid_dse.simulate.communication import Traffic, cluster_of, effective_network, placement_of, traffic
from rapid_dse.simulate.sharding import EndTransfers, Groups, Passes, Tables, end_transfers, layer_gathers, table_passes
from rapid_dse.simulate.stages import Split, Stages, stages
from rapid_dse.simulate.vocabulary import VocabularyParallel, vocabulary_parallel


@dataclass(frozen=True)
class Arrangement:
    """What layouts are before anything is timed: their stages, and what their groups transfer."""

    stages: Stages
    traffic: Traffic
    vocabulary: VocabularyParallel
    sharded: Passes
    tables: Tables
    end: EndTransfers


def groups_of(scenario: Scenario, layouts: Layouts) -> Groups:
    """Where the layouts' groups lie.

    Raises:
        ValueError: where a network dimension does not hold the parallelisms that it lists.
    """
    placement = placement_of(scenario, layouts)
    for reason, broken in placement.reasons:
        if broken.any():
            raise ValueError(reason)
    return Groups(placement, effective_network(scenario), cluster_of(scenario))


def arrangement(scenario: Scenario, layouts: Layouts) -> Arrangement:
    """Stages and transfers of layouts; what layouts share that differ in recomputation, schedule or batch is priced once.

    Raises:
        ValueError: where a network dimension does not hold the parallelisms that it lists.
    """
    alike = ("recompute", "schedule", "global_batch_size")
    first, kind = distinct_rows([getattr(layouts, field.name) for field in fields(layouts) if field.name not in alike])
    some = layouts.take(first)
    groups, found = groups_of(scenario, some), stages(Split.of(scenario), some.pp, some.vpp)
    moved = traffic(scenario, some, groups.placement, groups.network)
    vocabulary = vocabulary_parallel(scenario, some, moved.stream, groups.placement, groups.network)
    sharded, tables = layer_gathers(scenario, some, groups), table_passes(scenario, some, groups)
    return rows_of(Arrangement(found, moved, vocabulary, sharded, tables, end_transfers(scenario, some, found, groups)), kind)
