"""A training step in closed form, on columns: exposed times that add up, by term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import GatheredInTurn, Positions, Shared, at, joined, largest, rows_of, summed
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software import Software
from rapid_dse.device import OperatorModel
from rapid_dse.parallel.layouts import IntColumn, Layouts
from rapid_dse.parallel.schedules import SCHEDULE_CLASSES
from rapid_dse.parallel.schedules.schedule import Schedule
from rapid_dse.parallel.stages import Stages
from rapid_dse.simulate.arrangement import Arrangement
from rapid_dse.simulate.end_of_step import Ending, FirstStage, endings
from rapid_dse.simulate.host_launches import micro_batch_seconds
from rapid_dse.simulate.layer import Layers, layer_columns, layer_time
from rapid_dse.simulate.layer_kinds import LayerKinds, MicroBatchTimes, micro_batch_times
from rapid_dse.simulate.layer_work import Block
from rapid_dse.simulate.pipeline_blocks import PipelineBlock, pipeline_blocks
from rapid_dse.simulate.stage_slots import stage_slots
from rapid_dse.simulate.uneven import ChunkPasses, chunk_waits, passes_of
from rapid_dse.simulate.vocabulary import Ends

FloatColumn = NDArray[np.float64]

EVERY = slice(None)  # all rows of a table


@dataclass(frozen=True)
class StepTimes:
    """Exposed seconds of a step on the stage that ends it, by term, ``(n_layouts,)`` each."""

    compute: FloatColumn
    tp: FloatColumn
    cp: FloatColumn
    ep: FloatColumn
    pp: FloatColumn
    dp: FloatColumn
    bubble: FloatColumn
    optimizer: FloatColumn
    host: FloatColumn

    @property
    def total(self) -> FloatColumn:
        """Seconds of the whole step, ``(n_layouts,)``."""
        total = self.compute + self.tp
        for term in (self.cp, self.ep, self.pp, self.dp, self.bubble, self.optimizer, self.host):
            total = total + term
        return total


# Columns of Layouts on which a step depends but for its end, beside those of a layer.
MICRO_BATCHES = ("chunks", "stage_map", "schedule", "num_micro_batches")


@dataclass(frozen=True)
class AllMicroBatches:
    """Exposed seconds of all micro-batches of a step, ``(n_layouts,)`` each, on the stage that all others wait for; ``first`` is of the
    first stage, whose last passes hide what ends the step."""

    compute: FloatColumn
    tp: FloatColumn
    cp: FloatColumn
    ep: FloatColumn
    pp: FloatColumn
    dp: FloatColumn
    bubble: FloatColumn
    host: FloatColumn
    first: FirstStage


@dataclass(frozen=True)
class SharedSteps:
    """The steps of a table: their micro-batches and their ends, each found once for layouts that are alike in them."""

    micro_batches: Shared[AllMicroBatches]
    endings: Shared[Ending]

    def times(self, scenario: Scenario, rows: slice = EVERY) -> StepTimes:
        """The exposed times of some neighbouring layouts' steps."""
        steps, end = self.micro_batches.part(rows), self.endings.part(rows)
        return StepTimes(
            compute=steps.compute,
            tp=steps.tp + end.replicated,
            cp=steps.cp,
            ep=steps.ep,
            pp=steps.pp + end.tied,
            dp=steps.dp + end.exposed(scenario, steps.first),
            bubble=steps.bubble,
            optimizer=end.optimizer,
            host=steps.host,
        )


def step_time(
    scenario: Scenario, layouts: Layouts, block: Block, arranged: Arrangement, device: OperatorModel, layers: Layers | None = None
) -> StepTimes:
    """The exposed times of a step: m slots of the stage that all others wait for, the schedule's bubble, gradients, optimizer, host.

    ``layers`` None are the closed forms' own. Interleaved chunks of unequal layers have no closed form: their schedule is run.
    """
    layers = layer_time(scenario, layouts, block, arranged) if layers is None else layers
    alone = LayerKinds.single(layouts, arranged, block)
    times = micro_batch_times(scenario, alone, layers.of_kinds, layers.ends)
    return shared_steps(scenario, layouts, arranged, device, (Shared(times, alone.kind), layers.tables)).times(scenario)


def shared_steps(
    scenario: Scenario,
    layouts: Layouts,
    arranged: Arrangement,
    device: OperatorModel,
    parts: tuple[Shared[MicroBatchTimes], Ends | None],
) -> SharedSteps:
    """The step of each layout, from what its micro-batches take.

    Args:
        parts: times of a micro-batch, and exposed transfers of the tables, ``(n_layouts,)`` each, where there are any.
    """
    first, kind = layouts.alike.by(*layer_columns(scenario), *MICRO_BATCHES)
    tables = None if parts[1] is None else rows_of(parts[1], first)
    repeated_steps = _repeated(scenario, layouts.take(first), arranged.of_stages.take(first), parts[0].take(first), tables).take(kind)
    return SharedSteps(repeated_steps, endings(scenario, layouts, arranged, device))


def _repeated(
    scenario: Scenario, layouts: Layouts, stages: Shared[Stages], times: Shared[MicroBatchTimes], tables: Ends | None
) -> Shared[AllMicroBatches]:
    """All micro-batches of each layout, block by block: of the blocks' rows one after the other."""
    place, of_blocks, done, gathered = np.empty(len(layouts), np.intp), [], 0, GatheredInTurn(times)
    for block in pipeline_blocks(layouts.schedule, stages):
        of_tables = None if tables is None else rows_of(tables, block.rows)
        of_blocks.append(_of_block(scenario, layouts, block, gathered.rows(block.rows), of_tables))
        place[block.rows] = np.arange(done, done + len(block.rows))
        done += len(block.rows)
    return Shared(joined(of_blocks), place)


def _of_block(scenario: Scenario, layouts: Layouts, block: PipelineBlock, times: MicroBatchTimes, tables: Ends | None) -> AllMicroBatches:
    """All micro-batches of the layouts of a block, whose ``times`` and ``tables`` are."""
    schedule, stages, software = SCHEDULE_CLASSES[block.schedule], block.stages, scenario.software
    pp, chunks = block.of_pipeline(layouts.pp), block.of_pipeline(layouts.chunks)
    micro_batches, times = layouts.num_micro_batches.take(block.rows), times if tables is None else times.with_tables(tables)
    one = _one_send(software, schedule, times, pp, chunks)
    sends = _stage_sends(schedule, stages.position, pp, chunks, one)
    slots = stage_slots(software, stages, times, (sends, micro_batch_seconds(scenario)), schedule.directions_apart)
    passes = passes_of(scenario, layouts.take(block.rows), times, one, block.one_pipeline)
    waits = chunk_waits(
        scenario,
        block.schedule,
        passes,
        slots.whole,
        lambda: schedule.bubble(slots.of_schedule(software, block, times, (pp, chunks, micro_batches))),
    )
    # all others wait for the stage whose work and waits take longest
    stage, count, here = largest(micro_batches * slots.whole + waits), micro_batches.astype(float), np.arange(len(micro_batches))
    slot, on_device, sent, idle = (at(seconds, stage, here) for seconds in (slots.whole, slots.device, sends, waits))
    counts, has_embedding, has_head = (_at_stage(column, stage) for column in (stages.of_kinds, stages.has_embedding, stages.has_head))
    terms = times.terms.of_stage(counts)
    beside_ends = has_embedding * times.beside_embedding + has_head * times.beside_head
    table = 0.0 if tables is None else has_embedding * tables.embedding + has_head * tables.head
    around = on_device - summed(counts, times.forward + times.backward) - sent - beside_ends - table
    return AllMicroBatches(
        compute=count * (terms.compute + around),
        tp=count * (terms.tp + beside_ends),
        cp=count * terms.cp,
        ep=count * terms.ep,
        pp=count * sent,
        dp=count * (terms.dp + table),
        bubble=idle,
        host=count * (slot - on_device + terms.copies) + software.host.host_step,
        first=FirstStage.of(stages.of_kinds[:, 0], times, slots.first, chunks * (pp > 1)),
    )


def passes_of_layout(scenario: Scenario, layout: Layouts, block: Block, arranged: Arrangement) -> ChunkPasses:
    """What the passes of one layout's pipeline take."""
    layers = layer_time(scenario, layout, block, arranged)
    times = micro_batch_times(scenario, LayerKinds.single(layout, arranged, block), layers.of_kinds, layers.ends).with_tables(layers.tables)
    one = _one_send(scenario.software, SCHEDULE_CLASSES[int(layout.schedule[0])], times, layout.pp, layout.chunks)
    return passes_of(scenario, layout, times, one, True)


def _at_stage(of_stages: NDArray[Any], stage: Positions) -> NDArray[Any]:
    """What stages have, ``(…, n_candidates, 1 or n_layouts)``, of one stage of each layout, ``(…, n_layouts)``."""
    columns = np.zeros(1, np.intp) if of_stages.shape[-1] == 1 else np.arange(len(stage))
    values: NDArray[Any] = of_stages[..., stage, columns]
    return values


def _one_send(
    software: Software, schedule: Schedule, times: MicroBatchTimes, pp: IntColumn, chunks: IntColumn
) -> tuple[FloatColumn, FloatColumn]:
    """Exposed seconds of one send to a neighbouring stage, and seconds of launching it, ``(n_layouts,)`` each.

    Schedules that send beside computation hide a share of it, as far as the layers of a chunk leave the ports that it needs.
    """
    hides = software.overlap.pp_overlap if schedule.overlaps_sends else 0.0
    exposed_share = (1 - hides) * (pp > 1)
    sent = exposed_share * times.hop
    if hides > 0:
        free = times.free / (2.0 * chunks)  # of a chunk, forward or backward
        sent = np.maximum(sent, np.max(times.hop_busy - free, axis=0))
    return sent, np.broadcast_to(exposed_share * software.pipeline.send_receive, sent.shape)


def _stage_sends(
    schedule: Schedule, position: IntColumn, pp: IntColumn, chunks: IntColumn, one: tuple[FloatColumn, FloatColumn]
) -> FloatColumn:
    """What a micro-batch's sends take on each candidate stage, s, ``(n_candidates, n_layouts)``; ``one`` of them as ``_one_send`` has it.

    Two a chunk, one forward and one back. Chunks at the ends of the pipeline send once less, but pay the same launch cost for a receive.
    """
    sent, launched = one
    return schedule.stage_map.sends(position, pp, chunks) * sent + 2.0 * chunks * launched
