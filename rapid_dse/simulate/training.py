"""A training step in closed form, on columns: exposed times that add up, by term."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from rapid_dse.columns import distinct_rows, rows_of
from rapid_dse.config.model import Model
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software import Software
from rapid_dse.device import OperatorModel, operator_model
from rapid_dse.layouts import INTERLEAVED, RECOMPUTE_FULL, RECOMPUTE_SELECTIVE, BoolColumn, IntColumn, Layouts
from rapid_dse.model.operators import MicroBatch, model_flops_per_token
from rapid_dse.network import closed_form
from rapid_dse.simulate.block import Block, distinct_shapes, framework_block
from rapid_dse.simulate.communication import Traffic, cluster_of, effective_network, gradient_bytes, placement_of, traffic
from rapid_dse.simulate.cost import StepWork, energy
from rapid_dse.simulate.memory import Memory, Weights, layer_weights, peak_memory, stage_weights
from rapid_dse.simulate.operators import Operators, operators
from rapid_dse.simulate.overlap import Window, exposed
from rapid_dse.simulate.results import Priced
from rapid_dse.simulate.sharding import (
    EndTransfers,
    Groups,
    Passes,
    Tables,
    bucket,
    end_transfers,
    layer_gathers,
    scatter_overlap,
    table_passes,
)
from rapid_dse.simulate.slots import host_layer_seconds, launched_part, stage_slots
from rapid_dse.simulate.stages import Split, Stages, stages
from rapid_dse.simulate.uneven import chunk_waits
from rapid_dse.simulate.vocabulary import Ends, VocabularyParallel, exposed_ends, vocabulary_parallel
from rapid_dse.trace.schedules import bubble

FloatColumn = NDArray[np.float64]

CHUNK = 16384  # layouts priced together: their columns stay in the CPU's cache


@dataclass(frozen=True)
class Step:
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


@dataclass(frozen=True)
class Arrangement:
    """What layouts are before anything is timed: their stages, and what their groups transfer."""

    stages: Stages
    traffic: Traffic
    vocabulary: VocabularyParallel
    sharded: Passes
    tables: Tables
    end: EndTransfers


@dataclass(frozen=True)
class Layer:
    """Exposed seconds of one layer and one micro-batch, ``(n_layouts,)`` each; ``forward`` and ``backward`` include the transfers.

    ``dp``, of which ``dp_forward`` shows during the forward pass, is no part of them. ``moved`` are all transfers of tensor, context and
    expert parallelism in each pass, hidden or not; ``sharded`` those of ZeRO 2 and 3. ``ends``: what shows of tensor parallelism's
    transfers ahead of the first and behind the last layer; ``tables`` of ZeRO 2's and 3's there.
    """

    compute: FloatColumn
    tp: FloatColumn
    cp: FloatColumn
    ep: FloatColumn
    forward: FloatColumn
    backward: FloatColumn
    dp: FloatColumn
    dp_forward: FloatColumn
    moved: Passes
    sharded: Passes
    ends: Ends
    tables: Ends

    @property
    def total(self) -> FloatColumn:
        """Forward and backward with all that is exposed, s."""
        return self.forward + self.backward + self.dp

    @property
    def busy(self) -> NDArray[np.float64]:
        """Seconds for which its transfers take the port of each network dimension, ``(n_dimensions, n_layouts)``."""
        return self.moved.forward.busy + self.moved.backward.busy + self.sharded.forward.busy + self.sharded.backward.busy


@dataclass(frozen=True)
class Prepared:
    """What the operators of a table's layouts cost alone; ``where`` says which shape each layout has, ``(n_layouts,)``."""

    device: OperatorModel
    shape: MicroBatch
    where: IntColumn
    alone: Operators


def prepare(scenario: Scenario, layouts: Layouts) -> Prepared:
    """Prices the operators of all distinct micro-batch shapes.

    Raises:
        ValueError: where the network has no closed form, the chip lacks the precision, or the model is none that can be priced.
    """
    closed_form.require_closed_form(scenario.hw.network)
    return price_operators(scenario, layouts)


def price_operators(scenario: Scenario, layouts: Layouts) -> Prepared:
    """Prices the operators of all distinct micro-batch shapes, whatever the network.

    Raises:
        ValueError: where the chip lacks the precision, or the model is none that can be priced.
    """
    _require_known(scenario.model)
    device = operator_model(scenario.hw)
    shape, where = distinct_shapes(layouts, scenario.workload.seq_len)
    return Prepared(device, shape, where, operators(scenario, shape, device))


def _require_known(model: Model) -> None:
    if model.kv_lora_rank:
        raise ValueError(
            f"model.kv_lora_rank={model.kv_lora_rank}: training of multi-head latent attention is not part of this version; allowed: 0"
        )
    if model.num_experts and model.first_k_dense_replace:
        raise ValueError(
            f"model.first_k_dense_replace={model.first_k_dense_replace}: training of a mixture of experts with dense layers among its "
            "layers is not part of this version; allowed: 0"
        )


def price(scenario: Scenario, layouts: Layouts) -> Priced:
    """Prices legal, resolved layouts in closed form.

    Returns:
        result columns, ``(n_layouts,)`` each, SI units.

    Raises:
        ValueError: where the network has no closed form, or the chip lacks the precision.
    """
    ready = prepare(scenario, layouts)
    block = framework_block(scenario, ready.shape, ready.alone, ready.device)
    parts = []
    for start in range(0, len(layouts), CHUNK):
        rows = slice(start, start + CHUNK)
        parts.append(_price_chunk(scenario, layouts.take(rows), block.take(ready.where[rows]), ready.device))
    return parts[0] if len(parts) == 1 else Priced.concatenate(parts)


def step_seconds(scenario: Scenario, layouts: Layouts, ready: Prepared) -> FloatColumn:
    """Step times alone, s, ``(n_layouts,)``, of layouts whose operators are priced: what a fit needs, many times over."""
    block = framework_block(scenario, ready.shape, ready.alone, ready.device).take(ready.where)
    return step_time(scenario, layouts, block, arrangement(scenario, layouts), ready.device).total


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


def _price_chunk(scenario: Scenario, layouts: Layouts, block: Block, device: OperatorModel) -> Priced:
    arranged = arrangement(scenario, layouts)
    layer = layer_time(scenario, layouts, block, arranged)
    return result_columns(scenario, layouts, block, arranged, step_time(scenario, layouts, block, arranged, device, layer))


def result_columns(scenario: Scenario, layouts: Layouts, block: Block, arranged: Arrangement, step: Step) -> Priced:
    """The results of steps whose times are known, whichever backend found them: memory, energy and cost are the same accounts for all."""
    memory = peak_memory(scenario, layouts, arranged.stages)
    work = _work(scenario, layouts, block, arranged, step)
    return _columns(scenario, layouts, step, memory, energy(scenario.hw, scenario.workload.precision, work))


def step_time(
    scenario: Scenario, layouts: Layouts, block: Block, arranged: Arrangement, device: OperatorModel, layer: Layer | None = None
) -> Step:
    """The exposed times of a step: m slots of the stage that all others wait for, the schedule's bubble, gradients, optimizer, host.

    ``layer`` None is the closed forms' own. Interleaved chunks of unequal layers have no closed form: their schedule is run.
    """
    software, micro_batches, found = scenario.software, layouts.num_micro_batches.astype(float), arranged.stages
    layer = layer_time(scenario, layouts, block, arranged) if layer is None else layer
    sends = _sends(scenario, layouts, arranged, layer)
    hops = _hops(layouts, found, sends)
    passes = (layer.forward + layer.dp_forward, layer.backward + layer.dp - layer.dp_forward)
    block = layer.tables.beside(layer.ends.beside(block))
    slots, on_stage = stage_slots(scenario, layouts, block, found, passes, hops, host_layer_seconds(scenario, layouts))
    waits = chunk_waits(scenario, layouts, block, passes, sends, slots.whole, bubble(layouts.schedule, slots))
    # all others wait for the stage whose work and waits take longest
    critical = (micro_batches * slots.whole + waits).argmax(axis=0)[None]
    beside, tables = (found.has_embedding * each.embedding + found.has_head * each.head for each in (layer.ends, layer.tables))
    slot, layers, on_device, sent, vocabulary, table, idle = (
        np.take_along_axis(column, critical, 0)[0] for column in (slots.whole, found.layers, on_stage, hops, beside, tables, waits)
    )
    around = on_device - layers * layer.total - sent - vocabulary - table
    first = _first_stage_passes(scenario, layouts, block, arranged, (slots.whole[0], on_stage[0]), passes)
    return Step(
        compute=micro_batches * (layers * layer.compute + around),
        tp=micro_batches * (layers * layer.tp + vocabulary) + arranged.end.replicated.seconds,
        cp=micro_batches * layers * layer.cp,
        ep=micro_batches * layers * layer.ep,
        pp=micro_batches * sent + arranged.end.tied.seconds,
        dp=micro_batches * (layers * layer.dp + table) + _end_exposed(scenario, layouts, arranged, layer, first),
        bubble=idle,
        optimizer=update_seconds(scenario, layouts, stage_weights(scenario, layouts, found.first()).first_stage(), device),
        host=micro_batches * (slot - on_device) + software.host_step,
    )


def _first_stage_passes(
    scenario: Scenario,
    layouts: Layouts,
    block: Block,
    arranged: Arrangement,
    slot: tuple[FloatColumn, FloatColumn],
    passes: tuple[FloatColumn, FloatColumn],
) -> tuple[FloatColumn, FloatColumn]:
    """Seconds that the layers of the first stage take forward and backward for a micro-batch, ``(n_layouts,)`` each.

    Each pass lasts at least as long as the host launches it (``launched_part``).

    Args:
        slot: a micro-batch's seconds on the first stage, and what its device has of them.
        passes: a layer's forward and backward seconds on the device with all that shows beside them.
    """
    software, found = scenario.software, arranged.stages
    whole, device = slot
    layers = found.layers[0]
    ahead = block.embedding + found.has_head[0] * block.head_forward
    forward, backward = layers * passes[0], layers * passes[1]
    split = launched_part(forward + ahead, whole, layers * host_layer_seconds(scenario, layouts) + software.host_micro_batch)
    return np.maximum(0.0, split - ahead), np.maximum(0.0, whole - split - (device - forward - ahead - backward))


def _sends(scenario: Scenario, layouts: Layouts, arranged: Arrangement, layer: Layer) -> tuple[FloatColumn, FloatColumn]:
    """What shows of one send to a neighbouring stage, and of launching it, s, ``(n_layouts,)`` each.

    Interleaved schedules hide a share of it, as far as the layers of a chunk leave the ports that it needs.
    """
    software, hop = scenario.software, arranged.traffic.pp_hop
    interleaved = layouts.schedule == INTERLEAVED
    shown = np.where(interleaved, 1 - software.pp_overlap, 1.0) * (layouts.pp > 1)
    sent = shown * hop.seconds
    if software.pp_overlap > 0 and interleaved.any():
        layers = scenario.model.num_hidden_layers / (2.0 * layouts.pp * layouts.vpp)  # forward, or backward
        free = layers * np.maximum(0.0, layer.total - layer.busy)
        sent = np.maximum(sent, interleaved * np.max(hop.busy - free, axis=0))
    return sent, shown * software.send_receive


def _hops(layouts: Layouts, found: Stages, one: tuple[FloatColumn, FloatColumn]) -> FloatColumn:
    """What a micro-batch's sends take on each candidate stage, s, ``(n_candidates, n_layouts)``; ``one`` of them as ``_sends`` has it.

    Two a chunk, one forward and one back; the first and the last stage have one less, but launch something all the same.
    """
    sends, (sent, launched) = 2.0 * layouts.vpp, one
    mine = np.where(found.has_embedding | found.has_head, sends - 1, sends)
    return mine * sent + sends * launched


def layer_time(scenario: Scenario, layouts: Layouts, block: Block, arranged: Arrangement) -> Layer:
    """One layer of one micro-batch: compute, and what of its transfers shows."""
    software, moved, sharded = scenario.software, arranged.traffic, arranged.sharded
    full, ring_again = layouts.recompute == RECOMPUTE_FULL, _ring_again(software, layouts)
    again = recomputed(software, layouts, block)
    pipelined = software.tp_overlap if software.async_tp else 0.0
    # attention, which rings of context parallelism hide behind, hides nothing of tensor parallelism's transfers
    forward_beside, backward_beside = block.layer_forward - block.attention_forward, block.layer_backward - block.attention_backward
    tp_forward = moved.tp_forward.seconds - np.minimum(pipelined * moved.tp_forward.seconds, forward_beside)
    beside = moved.tp_backward + moved.tp_gather_again
    hidden = pipelined * beside.seconds
    # behind weight gradients hides what the pipelined share leaves; all that hides fits into the pass
    hidden = hidden + np.minimum(software.tp_backward_overlap * (beside.seconds - hidden), block.weight_gradient)
    tp_backward = beside.seconds - np.minimum(hidden, backward_beside) + np.where(full, tp_forward, 0.0)
    ring = moved.cp_hop.times(layouts.cp - 1)
    cp_forward = _beside(ring.seconds, software.cp_overlap, block.attention_forward)
    cp_backward = _beside(2 * ring.seconds, software.cp_overlap, block.attention_backward) + np.where(ring_again, cp_forward, 0.0)
    ep_forward = 2 * moved.ep_exchange.seconds
    ep_backward = ep_forward * np.where(full, 2.0, 1.0)
    forward = block.layer_forward + tp_forward + cp_forward + ep_forward
    backward = block.layer_backward + again + tp_backward + cp_backward + ep_backward
    all_moved = layer_moved(scenario, layouts, moved)
    dp_forward = exposed(sharded.forward, software.dp_overlap, Window(forward, all_moved.forward.busy))
    dp_backward = exposed(sharded.backward, software.dp_overlap, Window(backward, all_moved.backward.busy))
    return Layer(
        compute=block.layer_forward + block.layer_backward + again,
        tp=tp_forward + tp_backward,
        cp=cp_forward + cp_backward,
        ep=ep_forward + ep_backward,
        forward=forward,
        backward=backward,
        dp=dp_forward + dp_backward,
        dp_forward=dp_forward,
        moved=all_moved,
        sharded=sharded,
        ends=exposed_ends(scenario, block, arranged.vocabulary),
        tables=exposed_tables(
            scenario.software,
            arranged,
            layouts.vpp,
            (Window(forward, all_moved.forward.busy), dp_forward),
            (Window(backward, all_moved.backward.busy), dp_backward),
        ),
    )


def exposed_tables(
    software: Software,
    arranged: Arrangement,
    vpp: IntColumn,
    forward: tuple[Window, FloatColumn],
    backward: tuple[Window, FloatColumn],
) -> Ends:
    """What shows of ZeRO 2's and 3's transfers of embedding table and head.

    Nothing is there to hide the table's gather, which comes first, and its reduction, which comes last. The head's gather is asked for when
    the last layer starts, and its gradient is reduced beside the backward passes of the last chunk's layers. There they follow the layers'
    own: what shows of both together is theirs but for what shows of the layers' alone.

    Args:
        forward, backward: a layer's pass, with what tensor, context and expert parallelism take of its ports, and what shows of the
            layer's own transfers of weights and gradients in it, s, ``(n_layouts,)``.
    """
    sharded, tables, layers = arranged.sharded, arranged.tables, arranged.stages.layers[-1] / vpp
    gather, reduce, share = tables.head.forward, tables.head.backward, software.dp_overlap
    one, shown = forward
    waits = exposed(gather + sharded.forward, share * (layers > 0), one) - shown
    each, shown = backward
    every = Window(layers * each.seconds, layers * each.busy)
    ends = exposed(reduce + sharded.backward.times(layers), share, every) - layers * shown
    return Ends(
        embedding_forward=tables.embedding.forward.seconds,
        embedding_backward=tables.embedding.backward.seconds,
        head_forward=np.clip(waits, 0.0, gather.seconds),
        head_backward=np.clip(ends, 0.0, reduce.seconds),
    )


def layer_moved(scenario: Scenario, layouts: Layouts, moved: Traffic) -> Passes:
    """All transfers of tensor, context and expert parallelism in each pass of a layer, what recomputation repeats included."""
    full, ring_again = layouts.recompute == RECOMPUTE_FULL, _ring_again(scenario.software, layouts)
    ring, routed = moved.cp_hop.times(layouts.cp - 1), moved.ep_exchange.times(2)
    backward = moved.tp_backward + moved.tp_gather_again + ring.times(2.0 + ring_again) + routed.times(1.0 + full)
    return Passes(moved.tp_forward + ring + routed, backward + moved.tp_forward.times(full))


def _ring_again(software: Software, layouts: Layouts) -> BoolColumn:
    """Whether the backward pass runs ring attention forward once more, ``(n_layouts,)``."""
    core = (layouts.recompute == RECOMPUTE_SELECTIVE) & (software.selective_recompute == "core_attention")
    again: BoolColumn = ((layouts.recompute == RECOMPUTE_FULL) | core) & software.recomputes_attention
    return again


def recomputed(software: Software, layouts: Layouts, block: Block) -> FloatColumn:
    """What the backward pass of a layer computes once more, s, ``(n_layouts,)``."""
    whole = block.layer_forward - (0.0 if software.recomputes_attention else block.attention_forward)
    partly = np.where(layouts.recompute == RECOMPUTE_SELECTIVE, block.selective_recompute, 0.0)
    return np.where(layouts.recompute == RECOMPUTE_FULL, whole, partly)


def _beside(transfer: FloatColumn, share: float, compute: FloatColumn) -> FloatColumn:
    """What shows of a transfer that can hide behind ``share`` of ``compute``."""
    return np.maximum(0.0, transfer - share * compute)


def _end_exposed(
    scenario: Scenario, layouts: Layouts, arranged: Arrangement, layer: Layer, first: tuple[FloatColumn, FloatColumn]
) -> FloatColumn:
    """What shows of the transfers at the end of a step, s, ``(n_layouts,)``.

    Gradients hide behind the last backward pass beside the layers' own transfers, all but the last bucket; new weights behind the next
    forward pass.

    Args:
        first: what ``_first_stage_passes`` gives.
    """
    software, end, layers = scenario.software, arranged.end, arranged.stages.layers[0]
    forward, backward = first
    overlap = np.where(layouts.zero == 1, scatter_overlap(software), software.dp_overlap)
    # collectives of one group follow each other: a gather under way takes its time from the reductions behind it
    alone = end.gradients.waiting(layers * layer.sharded.backward.seconds)
    hops = layouts.vpp * arranged.traffic.pp_hop.busy * (layouts.pp > 1)
    busy = layers * (layer.moved.backward.busy + layer.sharded.backward.busy) + hops
    synchronise = np.minimum(exposed(alone, overlap, Window(backward, busy)), end.gradients.seconds)
    stage = stage_weights(scenario, layouts, arranged.stages.first()).first_stage()
    last_bucket = end.gradients.seconds * np.minimum(1.0, bucket(scenario, layouts) / stage.times(gradient_bytes(scenario)).total)
    shown = np.maximum(synchronise, last_bucket)
    window = Window(forward, layers * (layer.moved.forward.busy + layer.sharded.forward.busy) + hops)
    return shown + exposed(end.weights, software.parameter_gather_overlap, window)


def update_seconds(scenario: Scenario, layouts: Layouts, weights: Weights, device: OperatorModel) -> FloatColumn:
    """The optimizer's time for a stage of so many parameters, of which ZeRO leaves each rank a share, s, ``(n_layouts,)``."""
    return device.elementwise(weights.sharded(layouts, layouts.zero >= 1) * scenario.software.update_traffic)


def _work(scenario: Scenario, layouts: Layouts, block: Block, arranged: Arrangement, step: Step) -> StepWork:
    """Mean work of a GPU in a step: layers spread evenly over the stages, the head's and the gradients' share included."""
    layers = scenario.model.num_hidden_layers / layouts.pp
    passes = 3.0 + (layouts.recompute == RECOMPUTE_FULL)
    micro_batches = layouts.num_micro_batches.astype(float)
    parameters = layer_weights(scenario, layouts).times(layers).total
    flops = micro_batches * (passes * layers * block.layer_flops + 3 * block.head_flops / layouts.pp)
    hbm = micro_batches * (layers * block.layer_traffic * passes / 3 + block.head_traffic / layouts.pp)
    hbm = hbm + parameters * scenario.software.update_traffic
    return StepWork(flops, hbm, sent_bytes(scenario, layouts, arranged), step.total, layouts.num_gpus)


def sent_bytes(scenario: Scenario, layouts: Layouts, arranged: Arrangement) -> NDArray[np.float64]:
    """Bytes that the mean GPU sends into each network dimension in a step, ``(n_dimensions, n_layouts)``."""
    moved = layer_moved(scenario, layouts, arranged.traffic)
    a_layer = moved.forward.sent + moved.backward.sent + arranged.sharded.forward.sent + arranged.sharded.backward.sent
    hops = 2.0 * (layouts.pp * layouts.vpp - 1) / layouts.pp * arranged.traffic.pp_hop.sent  # forward and back
    around = (arranged.vocabulary.sent + arranged.tables.sent) / layouts.pp
    micro_batch = scenario.model.num_hidden_layers / layouts.pp * a_layer + (layouts.pp > 1) * hops + around
    return layouts.num_micro_batches * micro_batch + _sent_at_end(layouts, arranged.end)


def _sent_at_end(layouts: Layouts, end: EndTransfers) -> NDArray[np.float64]:
    """The mean GPU's bytes of ``end``, ``(n_dimensions, n_layouts)``; a tied table's gradient is sent by the first and the last stage."""
    return end.mean * (end.gradients.sent + end.weights.sent + end.replicated.sent) + 2 * end.tied.sent / layouts.pp


def _columns(scenario: Scenario, layouts: Layouts, step: Step, memory: Memory, joules: FloatColumn) -> Priced:
    seconds, work = step.total, scenario.workload
    tokens = layouts.global_batch_size * float(work.seq_len)
    rate = tokens / seconds
    flops = rate * model_flops_per_token(scenario.model, work.seq_len)
    empty, absent, peak = np.zeros(len(layouts)), np.full(len(layouts), np.nan), memory.peak
    return Priced(
        step_time_s=seconds,
        tokens_per_s=rate,
        tokens_per_s_per_gpu=rate / layouts.num_gpus,
        mfu=flops / (layouts.num_gpus * scenario.hw.peak_flops(work.precision)),
        fits=peak <= scenario.hw.memory.usable,
        peak_memory_bytes=peak,
        **{f"memory_{f.name}_bytes": getattr(memory, f.name) for f in fields(memory)},
        memory_kv_cache_bytes=empty,
        **{f"time_{f.name}_s": getattr(step, f.name) for f in fields(step)},
        energy_j=joules,
        cost_usd=scenario.hw.price / 3600 * layouts.num_gpus * seconds,
        ttft_s=absent,
        tpot_s=absent,
        request_latency_s=absent,
    )
