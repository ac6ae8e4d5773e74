"""A training step in closed form, on columns: exposed times that add up, by term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import Positions, Shared, largest, summed
from rapid_dse.config.hardware import NARROW_BYTES
from rapid_dse.config.scenario import Scenario
from rapid_dse.cost.overlap import Window, exposed
from rapid_dse.device import OperatorModel
from rapid_dse.parallel import schedules
from rapid_dse.parallel.layouts import IntColumn, Layouts
from rapid_dse.parallel.stages import Stages
from rapid_dse.simulate.arrangement import END, Arrangement
from rapid_dse.simulate.communication import gradient_bytes
from rapid_dse.simulate.held_weights import Weights, mean_of_stages, stage_weights
from rapid_dse.simulate.host_launches import micro_batch_seconds
from rapid_dse.simulate.layer import Layers, layer_time
from rapid_dse.simulate.layer_work import Block
from rapid_dse.simulate.offload import offloaded_update
from rapid_dse.simulate.sharding import bucket, embedding_weights, reduction_overlap, trained_table
from rapid_dse.simulate.slots import Passes, StageSlots, host_layer_seconds, launched_passes, stage_slots
from rapid_dse.simulate.uneven import ChunkPasses, Steps, chunk_waits, passes_of

FloatColumn = NDArray[np.float64]


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


# Columns of Layouts on which a micro-batch depends, and what ends a step.
PACE = (*END, "micro_batch_size", "recompute", "overlaps_sends", "pairs_passes")


@dataclass(frozen=True)
class StageTerms:
    """Exposed seconds of all layers of each candidate stage for a micro-batch, ``(n_candidates, n_layouts)`` each."""

    compute: FloatColumn
    tp: FloatColumn
    cp: FloatColumn
    ep: FloatColumn
    copies: FloatColumn
    dp: FloatColumn
    total: FloatColumn

    @classmethod
    def of(cls, found: Stages, layers: Layers) -> StageTerms:
        """Those of stages, from a layer of each kind."""
        return cls(*(summed(found.of_kinds, [getattr(layer, field.name) for layer in layers.each]) for field in fields(cls)))


@dataclass(frozen=True)
class Pace:
    """What layouts take for a micro-batch and at the end of a step, whatever the batch and the order of passes.

    ``(n_layouts,)`` each, or ``(n_candidates, n_layouts)`` over the candidate stages.

    Attributes:
        slots: of the candidates, with their stages.
        sends: what a micro-batch's sends take on each candidate; ``ends`` and ``tables``: exposed transfers of embedding and head there.
        terms: what the layers of each candidate take.
        passes: what interleaved or unequal chunks are run with.
        end_dp: exposed transfers of gradients and weights at the end of a step; ``end_tp``: sums of weights that tensor-parallel ranks hold
            whole, ``end_pp`` of a tied table's.
        optimizer: its time.
    """

    slots: StageSlots
    sends: FloatColumn
    ends: FloatColumn
    tables: FloatColumn
    terms: StageTerms
    passes: ChunkPasses
    end_dp: FloatColumn
    end_tp: FloatColumn
    end_pp: FloatColumn
    optimizer: FloatColumn


def alike_in_pace(layouts: Layouts) -> tuple[Positions, Positions]:
    """The first layout of each kind that ``Pace`` tells apart, and the kind of each layout."""
    return layouts.alike.by(*PACE)


def step_time(
    scenario: Scenario, layouts: Layouts, block: Block, arranged: Arrangement, device: OperatorModel, layers: Layers | None = None
) -> StepTimes:
    """The exposed times of a step: m slots of the stage that all others wait for, the schedule's bubble, gradients, optimizer, host.

    ``layers`` None are the closed forms' own. Interleaved chunks of unequal layers have no closed form: their schedule is run.
    """
    layers = layer_time(scenario, layouts, block, arranged) if layers is None else layers
    return paced_step(scenario, layouts, Shared(pace(scenario, layouts, block, arranged, device, layers), np.arange(len(layouts))))


def pace(scenario: Scenario, layouts: Layouts, block: Block, arranged: Arrangement, device: OperatorModel, layers: Layers) -> Pace:
    """``Pace`` of each layout."""
    found = arranged.stages
    one_send = _one_send(scenario, layouts, arranged, layers)
    sends = _stage_sends(layouts, found, one_send)
    passes = [layer.passes for layer in layers.each]
    block = layers.tables.beside(layers.ends.beside(block))
    slots = stage_slots(scenario, layouts, block, found, passes, sends)
    ends, tables = (found.has_embedding * each.embedding + found.has_head * each.head for each in (layers.ends, layers.tables))
    first = _first_stage_passes(scenario, layouts, block, arranged, slots.device[0], passes)
    optimizer, last_share = _first_stage_weights(scenario, layouts, arranged, device)
    return Pace(
        slots=slots,
        sends=sends,
        ends=ends,
        tables=tables,
        terms=StageTerms.of(found, layers),
        passes=passes_of(scenario, layouts, block, passes, one_send),
        end_dp=_end_exposed(scenario, layouts, arranged, layers, last_share, first),
        end_tp=arranged.of_end.gather(lambda each: each.replicated.seconds),
        end_pp=arranged.of_end.gather(lambda each: each.tied.seconds),
        optimizer=optimizer,
    )


def paced_step(scenario: Scenario, layouts: Layouts, paced: Shared[Pace]) -> StepTimes:
    """The step of each layout, one schedule after the other."""
    micro_batches = layouts.num_micro_batches
    columns = {field.name: np.empty(len(layouts)) for field in fields(StepTimes)}
    for code in np.flatnonzero(np.bincount(layouts.schedule)).tolist():
        rows = np.flatnonzero(layouts.schedule == code)
        step = _scheduled(scenario, code, paced.of, paced.kind[rows], micro_batches[rows])
        for name, column in columns.items():
            column[rows] = getattr(step, name)
    return StepTimes(**columns)


def _scheduled(scenario: Scenario, code: int, paced: Pace, kind: Positions, micro_batches: IntColumn) -> StepTimes:
    """The step of layouts that have one schedule: ``kind`` says where they stand in ``paced``."""
    schedule = schedules.SCHEDULE_CLASSES[code]
    slots = paced.slots.of(kind, micro_batches, delayed=schedule.splits_backward)
    waits = chunk_waits(scenario, code, paced.passes, Steps(kind, micro_batches, slots.whole, schedule.bubble(slots)))
    # all others wait for the stage whose work and waits take longest
    stage, count = largest(micro_batches * slots.whole + waits), micro_batches.astype(float)
    idle = waits.reshape(-1).take(stage * len(kind) + np.arange(len(kind)))
    there, terms = stage * len(paced.optimizer) + kind, paced.terms
    slot, on_device, sent, beside, table, compute, tp, cp, ep, copies, dp, total = (
        column.reshape(-1).take(there)
        for column in (
            *(paced.slots.whole, paced.slots.device, paced.sends, paced.ends, paced.tables),
            *(terms.compute, terms.tp, terms.cp, terms.ep, terms.copies, terms.dp, terms.total),
        )
    )
    end_dp, end_tp, end_pp, optimizer = (column.take(kind) for column in (paced.end_dp, paced.end_tp, paced.end_pp, paced.optimizer))
    around = on_device - total - sent - beside - table
    return StepTimes(
        compute=count * (compute + around),
        tp=count * (tp + beside) + end_tp,
        cp=count * cp,
        ep=count * ep,
        pp=count * sent + end_pp,
        dp=count * (dp + table) + end_dp,
        bubble=idle,
        optimizer=optimizer,
        host=count * (slot - on_device + copies) + scenario.software.host.host_step,
    )


def _first_stage_passes(
    scenario: Scenario,
    layouts: Layouts,
    block: Block,
    arranged: Arrangement,
    device: FloatColumn,
    passes: Sequence[Passes],
) -> Passes:
    """Seconds that the layers of the first stage take forward and backward for a micro-batch, ``(n_layouts,)`` each.

    Each lasts at least as long as the host launches it (``launched_passes``).

    Args:
        device: a micro-batch's seconds on the first stage's device.
        passes: seconds of a layer of each kind on the device, exposed transfers included.
    """
    found = arranged.stages
    counts = found.of_kinds[:, 0]
    ahead = block.embedding + found.has_head[0] * block.head_forward
    forward, backward = (summed(counts, [each[way] for each in passes]) for way in (0, 1))
    launches = found.layers[0] * host_layer_seconds(scenario, layouts) + micro_batch_seconds(scenario)
    first, second = launched_passes(scenario.software, [forward + ahead, device - forward - ahead], [launches / 3, launches * (2 / 3)])
    return np.maximum(0.0, first - ahead), np.maximum(0.0, second - (device - forward - ahead - backward))


def _first_stage_weights(
    scenario: Scenario, layouts: Layouts, arranged: Arrangement, device: OperatorModel
) -> tuple[FloatColumn, FloatColumn]:
    """The optimizer's seconds on the first stage, and the share of its gradients that the last bucket has, ``(n_layouts,)`` each."""
    first, kind = layouts.alike.by(*END)
    some, found = layouts.take(first), arranged.of_stages.take(first).rows.alone("first")
    weights = stage_weights(scenario, some, found, trained=True).first_stage()
    # a bucket holds whole tensors, and the embedding's gradient is the last of all
    table = trained_table(scenario, embedding_weights(scenario, some)).times(gradient_bytes(scenario))
    last = np.maximum(bucket(scenario, some), table.total)
    share = np.minimum(1.0, last / np.maximum(1.0, weights.times(gradient_bytes(scenario)).total))
    return update_seconds(scenario, some, weights, device).take(kind), share.take(kind)


def _one_send(scenario: Scenario, layouts: Layouts, arranged: Arrangement, layers: Layers) -> tuple[FloatColumn, FloatColumn]:
    """Exposed seconds of one send to a neighbouring stage, and seconds of launching it, ``(n_layouts,)`` each.

    Schedules that send beside computation hide a share of it, as far as the layers of a chunk leave the ports that it needs.
    """
    software, hop = scenario.software, arranged.hop
    overlaps = layouts.overlaps_sends
    shown = np.where(overlaps, 1 - software.overlap.pp_overlap, 1.0) * (layouts.pp > 1)
    sent = shown * hop.seconds
    if software.overlap.pp_overlap > 0 and overlaps.any():
        left = [np.maximum(0.0, layer.total - layer.busy) for layer in layers.each]
        free = mean_of_stages(scenario, layouts, left) / (2.0 * layouts.chunks)  # of a chunk, forward or backward
        sent = np.maximum(sent, overlaps * np.max(hop.busy - free, axis=0))
    return sent, shown * software.pipeline.send_receive


def _stage_sends(layouts: Layouts, found: Stages, one: tuple[FloatColumn, FloatColumn]) -> FloatColumn:
    """What a micro-batch's sends take on each candidate stage, s, ``(n_candidates, n_layouts)``; ``one`` of them as ``_one_send`` has it.

    Two a chunk, one forward and one back. Chunks at the ends of the pipeline send once less, but pay the same launch cost for a receive.
    """
    sent, launched = one
    mine = schedules.by_map(layouts.stage_map, lambda each: each.sends(found.position, layouts.pp, layouts.chunks))
    return mine * sent + 2.0 * layouts.chunks * launched


def _end_exposed(
    scenario: Scenario,
    layouts: Layouts,
    arranged: Arrangement,
    layers: Layers,
    last_share: FloatColumn,
    first: Passes,
) -> FloatColumn:
    """Exposed seconds of the transfers at the end of a step, ``(n_layouts,)``.

    Gradients hide behind the last backward pass beside the layers' own transfers, all but the last bucket; new weights behind the next
    forward pass.

    Args:
        last_share: share of the first stage's gradients that the last bucket has.
        first: what ``_first_stage_passes`` gives.
    """
    software, end, counts = scenario.software, arranged.end, arranged.stages.of_kinds[:, 0]
    forward, backward = first
    overlap = reduction_overlap(software, layouts)
    # collectives of one group follow each other: a gather under way takes its time from the reductions behind it
    alone = end.gradients.waiting(summed(counts, [layer.sharded.backward.seconds for layer in layers.each]))
    hop_ports = layouts.chunks * arranged.hop.busy * (layouts.pp > 1)
    busy = summed(counts, [layer.moved.backward.busy + layer.sharded.backward.busy for layer in layers.each]) + hop_ports
    synchronise = np.minimum(exposed(alone, overlap, Window(backward, busy)), end.gradients.seconds)
    shown = np.maximum(synchronise, end.gradients.seconds * last_share)
    ahead = summed(counts, [layer.moved.forward.busy + layer.sharded.forward.busy for layer in layers.each]) + hop_ports
    return shown + exposed(end.weights, software.overlap.parameter_gather_overlap, Window(forward, ahead))


def update_seconds(scenario: Scenario, layouts: Layouts, weights: Weights, device: OperatorModel) -> FloatColumn:
    """The optimizer's time for a stage of so many trained parameters, of which ZeRO leaves each rank a share, s, ``(n_layouts,)``."""
    software = scenario.software
    if not scenario.model.of_kind.looped:
        return np.zeros(len(layouts))
    seconds = offloaded_update(scenario, weights.sharded(layouts, layouts.sharding.optimizer), device)
    library = scenario.narrow == "fp4" or software.precision.fp8_library == "transformer_engine"
    if scenario.narrow and library and not software.precision.fp8_parameters and scenario.workload.trains_all:
        # weights and their transposes are cast once a step
        moved = 2.0 + 2.0 * NARROW_BYTES[scenario.narrow]
        return seconds + device.elementwise(weights.total * (moved * software.precision.fp8_cast_passes))
    return seconds
