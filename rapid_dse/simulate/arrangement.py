"""How layouts lie on the machine before anything is timed: their stages, and what their groups transfer.

Most layouts of a table share most of that with others: each part is found once for all layouts that are alike in what it depends on.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

from rapid_dse.common.columns import Positions, Shared, rows_of
from rapid_dse.config.scenario import Scenario
from rapid_dse.interconnect.transfer import Transfer
from rapid_dse.model.architecture import split_of
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.parallel.stages import Stages, alike_in_stages, stages
from rapid_dse.simulate.communication import MicroBatchTransfers, cluster_of, effective_network, micro_batch_transfers, placement_of
from rapid_dse.simulate.sharding import (
    EndTransfers,
    PassTransfers,
    ShardedLayers,
    ShardGroups,
    TableTransfers,
    end_transfers,
    layer_gathers,
    table_passes,
)
from rapid_dse.simulate.vocabulary import VocabularyParallel, vocabulary_parallel

# Columns of Layouts on which each part depends. Where a group lies depends on all degrees, whatever their order.
STAGES = ("pp", "chunks", "stage_map")
GROUPS = ("num_gpus", "tp", "cp", "dp", "pp", "ep", "expert_tp", "shard_group")
MICRO_BATCH = (*GROUPS, "micro_batch_size", "sequence_parallel")
SHARDING = (*GROUPS, "sharded_passes")
END = (*GROUPS, "zero", "sequence_parallel")  # beside what the first stage has


@dataclass(frozen=True)
class Arrangement:
    """What layouts are before anything is timed: their stages, and what their groups transfer, each found once a kind of layouts.

    The properties have a row for each layout, and are gathered when they are asked for.
    """

    of_stages: Shared[Stages]
    of_transfers: Shared[MicroBatchTransfers]
    of_vocabulary: Shared[VocabularyParallel]
    of_sharded: Shared[ShardedLayers]
    of_tables: Shared[TableTransfers]
    of_end: Shared[EndTransfers]

    def take(self, rows: Positions) -> Arrangement:
        """That of some of the layouts."""
        return Arrangement(*(getattr(self, field.name).take(rows) for field in fields(self)))

    @property
    def stages(self) -> Stages:
        return self.of_stages.rows

    @property
    def transfers(self) -> MicroBatchTransfers:
        return self.of_transfers.rows

    @cached_property
    def hop(self) -> Transfer:
        """One send to the next stage."""
        return rows_of(self.of_transfers.of.pp_hop, self.of_transfers.kind)

    @property
    def vocabulary(self) -> VocabularyParallel:
        return self.of_vocabulary.rows

    @property
    def sharded(self) -> tuple[PassTransfers, ...]:
        """ZeRO 2's and 3's of a layer of each kind."""
        return self.of_sharded.rows.layers

    @property
    def tables(self) -> TableTransfers:
        return self.of_tables.rows

    @property
    def end(self) -> EndTransfers:
        return self.of_end.rows


def groups_of(scenario: Scenario, layouts: Layouts) -> ShardGroups:
    """Where the layouts' groups lie.

    Raises:
        ValueError: where a network dimension does not hold the parallelisms that it lists.
    """
    placement = placement_of(scenario, layouts)
    for reason, broken in placement.reasons:
        if broken.any():
            raise ValueError(reason)
    return ShardGroups(replace(placement, reasons=()), effective_network(scenario), cluster_of(scenario))


def alike_at_end(layouts: Layouts, shared: Shared[Stages]) -> tuple[Positions, Positions]:
    """A layout of each kind that differs in what ends its step, and the kind of each layout; ``shared`` are their stages."""
    return layouts.alike.remembered.once((alike_at_end, shared.of), lambda: alike_in_stages(layouts, END, shared, slice(0, 1)))


def arrangement(scenario: Scenario, layouts: Layouts) -> Arrangement:
    """Stages and transfers of layouts.

    Raises:
        ValueError: where a network dimension does not hold the parallelisms that it lists.
    """
    first, stage = layouts.alike.by(*STAGES)
    stages_of_rows = Shared(stages(split_of(scenario), layouts.take(first)), stage)
    first, place = layouts.alike.by(*GROUPS)
    every = groups_of(scenario, layouts.take(first))

    def some(rows: Positions) -> tuple[Layouts, ShardGroups]:
        """The layouts at these positions, with their groups."""
        return layouts.take(rows), replace(every, placement=rows_of(every.placement, place[rows]))

    first, kind = layouts.alike.by(*MICRO_BATCH)
    part, groups = some(first)
    transfers = micro_batch_transfers(scenario, part, groups.placement, groups.network)
    vocabulary = vocabulary_parallel(scenario, part, transfers.stream, groups.placement, groups.network)
    first, shard_kind = layouts.alike.by(*SHARDING)
    part, groups = some(first)
    sharded, tables = ShardedLayers(layer_gathers(scenario, part, groups)), table_passes(scenario, part, groups)
    first, end_kind = alike_at_end(layouts, stages_of_rows)
    part, groups = some(first)
    end = end_transfers(scenario, part, stages_of_rows.take(first).rows, groups)
    return Arrangement(
        stages_of_rows,
        Shared(transfers, kind),
        Shared(vocabulary, kind),
        Shared(sharded, shard_kind),
        Shared(tables, shard_kind),
        Shared(end, end_kind),
    )
