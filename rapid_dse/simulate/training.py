"""A training step in closed form, on columns: exposed times that add up, by term."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.hardware import Network
from rapid_dse.config.model import Model
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software import Software
from rapid_dse.device import OperatorModel, operator_model
from rapid_dse.layouts import INTERLEAVED, RECOMPUTE_FULL, RECOMPUTE_SELECTIVE, IntColumn, Layouts
from rapid_dse.model.operators import MicroBatch, model_flops_per_token
from rapid_dse.network import closed_form
from rapid_dse.network.placement import Halves, Placement, Span
from rapid_dse.simulate.block import Block, distinct_shapes, framework_block
from rapid_dse.simulate.communication import Traffic, effective_network, gradient_bytes, placement_of, sum_of, traffic
from rapid_dse.simulate.cost import StepWork, energy
from rapid_dse.simulate.memory import Memory, Weights, layer_weights, peak_memory, stage_weights, vocabulary_parameters
from rapid_dse.simulate.operators import Operators, compute_bytes, operators
from rapid_dse.simulate.results import Priced
from rapid_dse.simulate.slots import stage_slots
from rapid_dse.simulate.stages import Stages, stages
from rapid_dse.simulate.strain import by_state
from rapid_dse.simulate.uneven import chunk_waits
from rapid_dse.simulate.vocabulary import tied_bytes, tied_table
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
class Groups:
    """Where the layouts' groups lie, and the network that they find."""

    placement: Placement
    network: Network


@dataclass(frozen=True)
class Layer:
    """Exposed seconds of one layer and one micro-batch, ``(n_layouts,)`` each; ``forward`` and ``backward`` include the transfers.

    ``dp``, of which ``dp_forward`` shows during the forward pass, is no part of them, nor is ``gathers``: what ZeRO 3's transfers take
    during the backward pass, hidden or not.
    """

    compute: FloatColumn
    tp: FloatColumn
    cp: FloatColumn
    ep: FloatColumn
    forward: FloatColumn
    backward: FloatColumn
    dp: FloatColumn
    dp_forward: FloatColumn
    gathers: FloatColumn

    @property
    def total(self) -> FloatColumn:
        """Forward and backward with all that is exposed, s."""
        return self.forward + self.backward + self.dp


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
    seconds = np.empty(len(layouts))
    for state, rows in by_state(scenario, layouts):
        part = layouts.take(rows)
        found, groups, moved = setting(state, part)
        seconds[rows] = step_time(state, part, block.take(rows), found, groups, moved, ready.device).total
    return seconds


def setting(scenario: Scenario, layouts: Layouts) -> tuple[Stages, Groups, Traffic]:
    """Stages, groups and transfers of layouts.

    Raises:
        ValueError: where a network dimension does not hold the parallelisms that it lists.
    """
    placement = placement_of(scenario, layouts)
    for reason, broken in placement.reasons:
        if broken.any():
            raise ValueError(reason)
    groups = Groups(placement, effective_network(scenario))
    found = stages(scenario.model, scenario.software.pipeline_split, layouts.pp, layouts.vpp)
    return found, groups, traffic(scenario, layouts, placement, groups.network)


def _price_chunk(scenario: Scenario, layouts: Layouts, block: Block, device: OperatorModel) -> Priced:
    states = by_state(scenario, layouts)
    if len(states) == 1:
        return _price_state(states[0][0], layouts, block, device)
    priced = Priced.concatenate([_price_state(state, layouts.take(rows), block.take(rows), device) for state, rows in states])
    return priced.take(np.argsort(np.concatenate([rows for _, rows in states])))


def _price_state(scenario: Scenario, layouts: Layouts, block: Block, device: OperatorModel) -> Priced:
    found, groups, moved = setting(scenario, layouts)
    step = step_time(scenario, layouts, block, found, groups, moved, device)
    return result_columns(scenario, layouts, block, found, moved, step)


def result_columns(scenario: Scenario, layouts: Layouts, block: Block, found: Stages, moved: Traffic, step: Step) -> Priced:
    """The results of steps whose times are known, whichever backend found them: memory, energy and cost are the same accounts for all."""
    memory = peak_memory(scenario, layouts, found)
    work = _work(scenario, layouts, block, moved, step)
    return _columns(scenario, layouts, step, memory, energy(scenario.hw, scenario.workload.precision, work))


def step_time(
    scenario: Scenario,
    layouts: Layouts,
    block: Block,
    found: Stages,
    groups: Groups,
    moved: Traffic,
    device: OperatorModel,
    layer: Layer | None = None,
) -> Step:
    """The exposed times of a step: m slots of the stage that all others wait for, the schedule's bubble, gradients, optimizer, host.

    ``layer`` None is the closed forms' own. Interleaved chunks of unequal layers have no closed form: their schedule is run.
    """
    software, micro_batches = scenario.software, layouts.num_micro_batches.astype(float)
    layer = layer_time(scenario, layouts, block, moved, groups) if layer is None else layer
    sends = _sends(scenario, layouts, moved)
    hops = _hops(layouts, found, sends)
    passes = (layer.forward + layer.dp_forward, layer.backward + layer.dp - layer.dp_forward)
    slots, device_slots = stage_slots(scenario, layouts, block, found, passes, hops, host_layer_seconds(scenario, layouts))
    waits = chunk_waits(scenario, layouts, block, passes, sends, (slots.whole, device_slots), bubble(layouts.schedule, slots))
    # all others wait for the stage whose work and waits take longest
    critical = (micro_batches * slots.whole + waits).argmax(axis=0)[None]
    slot, layers, on_device, sent, idle = (
        np.take_along_axis(column, critical, 0)[0] for column in (slots.whole, found.layers, device_slots, hops, waits)
    )
    ends = on_device - layers * layer.total - sent
    data_parallel, optimizer = _end_of_step(scenario, layouts, found, layer, groups, device)
    tied = tied_table(scenario, layouts, groups.placement, groups.network)
    return Step(
        compute=micro_batches * (layers * layer.compute + ends),
        tp=micro_batches * layers * layer.tp,
        cp=micro_batches * layers * layer.cp,
        ep=micro_batches * layers * layer.ep,
        pp=micro_batches * sent + tied.seconds,
        dp=micro_batches * layers * layer.dp + data_parallel,
        bubble=idle,
        optimizer=optimizer,
        host=micro_batches * (slot - on_device) + software.host_step,
    )


def _sends(scenario: Scenario, layouts: Layouts, moved: Traffic) -> tuple[FloatColumn, FloatColumn]:
    """What shows of one send to a neighbouring stage, and of launching it, s, ``(n_layouts,)`` each."""
    software = scenario.software
    shown = np.where(layouts.schedule == INTERLEAVED, 1 - software.pp_overlap, 1.0) * (layouts.pp > 1)
    return shown * moved.pp_hop, shown * software.send_receive


def _hops(layouts: Layouts, found: Stages, one: tuple[FloatColumn, FloatColumn]) -> FloatColumn:
    """What a micro-batch's sends take on each candidate stage, s, ``(CANDIDATES, n_layouts)``; ``one`` of them as ``_sends`` has it.

    Two a chunk, one forward and one back; the first and the last stage have one less, but launch something all the same.
    """
    sends, (sent, launched) = 2.0 * layouts.vpp, one
    mine = np.where(found.has_embedding | found.has_head, sends - 1, sends)
    return mine * sent + sends * launched


def layer_time(scenario: Scenario, layouts: Layouts, block: Block, moved: Traffic, groups: Groups) -> Layer:
    """One layer of one micro-batch: compute, and what of its transfers shows."""
    software = scenario.software
    full, selective = layouts.recompute == RECOMPUTE_FULL, layouts.recompute == RECOMPUTE_SELECTIVE
    again = recomputed(software, layouts, block)
    ring_again = (full | (selective & (software.selective_recompute == "core_attention"))) & software.recomputes_attention
    pipelined = software.tp_overlap if software.async_tp else 0.0
    # attention, which rings of context parallelism hide behind, hides nothing of tensor parallelism's transfers
    forward_beside, backward_beside = block.layer_forward - block.attention_forward, block.layer_backward - block.attention_backward
    tp_forward = moved.tp_forward - np.minimum(pipelined * moved.tp_forward, forward_beside)
    beside = moved.tp_backward + moved.tp_gather_again
    hidden = pipelined * beside
    # behind weight gradients hides what the pipelined share leaves; all that hides fits into the pass
    hidden = np.minimum(hidden + np.minimum(software.tp_backward_overlap * (beside - hidden), block.weight_gradient), backward_beside)
    tp_backward = beside - hidden + np.where(full, tp_forward, 0.0)
    cp_forward = _beside(moved.cp_forward, software.cp_overlap, block.attention_forward)
    cp_backward = _beside(moved.cp_backward, software.cp_overlap, block.attention_backward) + np.where(ring_again, cp_forward, 0.0)
    ep_forward = 2 * moved.ep_exchange
    ep_backward = ep_forward * np.where(full, 2.0, 1.0)
    forward = block.layer_forward + tp_forward + cp_forward + ep_forward
    backward = block.layer_backward + again + tp_backward + cp_backward + ep_backward
    gather, gathers = layer_gathers(scenario, layouts, groups)
    dp_forward = _beside(gather, software.dp_overlap, forward)
    return Layer(
        compute=block.layer_forward + block.layer_backward + again,
        tp=tp_forward + tp_backward,
        cp=cp_forward + cp_backward,
        ep=ep_forward + ep_backward,
        forward=forward,
        backward=backward,
        dp=dp_forward + _beside(gathers, software.dp_overlap, backward),
        dp_forward=dp_forward,
        gathers=gathers,
    )


def recomputed(software: Software, layouts: Layouts, block: Block) -> FloatColumn:
    """What the backward pass of a layer computes once more, s, ``(n_layouts,)``."""
    whole = block.layer_forward - (0.0 if software.recomputes_attention else block.attention_forward)
    partly = np.where(layouts.recompute == RECOMPUTE_SELECTIVE, block.selective_recompute, 0.0)
    return np.where(layouts.recompute == RECOMPUTE_FULL, whole, partly)


def _beside(transfer: FloatColumn, share: float, compute: FloatColumn) -> FloatColumn:
    """What shows of a transfer that can hide behind ``share`` of ``compute``."""
    return np.maximum(0.0, transfer - share * compute)


def layer_gathers(scenario: Scenario, layouts: Layouts, groups: Groups, weights: Weights | None = None) -> tuple[FloatColumn, FloatColumn]:
    """Transfers of a layer (of its ``weights``; None: all) during its forward and during its backward, s: ZeRO 3's gathers of weights, and
    gradients reduced each time."""
    software = scenario.software
    if not (layouts.zero >= 2).any():
        return np.zeros(len(layouts)), np.zeros(len(layouts))
    weights = layer_weights(scenario, layouts) if weights is None else weights
    gather = _by_group(closed_form.all_gather, weights.times(gathered_bytes(scenario)), groups)
    gather = np.where(layouts.zero >= 3, gather, 0.0)
    sizes = weights.times(gradient_bytes(scenario))
    scatter = _by_group(closed_form.reduce_scatter, sizes, groups) + across_replicas(software, sizes, groups)
    return gather, gather + np.where((layouts.zero >= 2) & software.reduce_each_micro_batch, scatter, 0.0)


def _by_group(collective: Callable[[FloatColumn, Span, Network], FloatColumn], sizes: Weights, groups: Groups) -> FloatColumn:
    """Seconds of a collective on dense weights over the ranks that share their shards, and of one on the experts' over theirs."""
    seconds = collective(sizes.dense, groups.placement.shard, groups.network)
    return seconds if sizes.experts is None else seconds + collective(sizes.experts, groups.placement.expert_shard, groups.network)


def across_replicas(software: Software, sizes: Weights, groups: Groups) -> FloatColumn | float:
    """Seconds of the all-reduce that keeps the copies of the shards equal under hybrid sharding: each rank's shard of ``sizes`` bytes of
    gradients, over the ranks that hold the same one."""
    found: FloatColumn | float = 0.0
    placement = groups.placement
    for size, halves in ((sizes.dense, placement.halves), (sizes.experts, placement.expert_halves)):
        if halves is not None and size is not None:
            found = found + all_reduce(software, size / halves.shard.size, halves.replica, groups.network)
    return found


def all_reduce(software: Software, size: FloatColumn, span: Span, network: Network) -> FloatColumn:
    """Seconds of one all-reduce of gradients, ``size`` bytes, as the framework's jobs run it: trees, or rings alone under strain."""
    if software.strained_trees:
        seconds = closed_form.all_reduce(size, span, network)
    else:
        seconds = closed_form.reduce_scatter(size, span, network) + closed_form.all_gather(size, span, network)
    return seconds + software.strained_all_reduce_wait * (span.size - 1)


def gathered_bytes(scenario: Scenario) -> int:
    return 1 if scenario.workload.precision == "fp8" and "all-gather" in scenario.software.fp8_recipe else compute_bytes(scenario)


def host_layer_seconds(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    software = scenario.software
    collective = np.where(layouts.tp > 1, software.host_collective_layer, 0.0)
    in_turn = np.where(layouts.tp > 1, software.strained_host_layer * layouts.tp, 0.0)
    # Full recomputation launches the forward pass again, half of what the host does for a layer.
    again = np.where(layouts.recompute == RECOMPUTE_FULL, 1.5, 1.0)
    seconds: FloatColumn = np.maximum((software.host_layer + collective) * again, in_turn)
    return seconds


def _end_of_step(
    scenario: Scenario, layouts: Layouts, found: Stages, layer: Layer, groups: Groups, device: OperatorModel
) -> tuple[FloatColumn, FloatColumn]:
    """What shows of the gradients' reduction and of the weights' gather, and the optimizer's time, on the first stage.

    The first stage ends the step in every schedule here, so that its transfers cannot hide behind other stages' work.
    """
    software = scenario.software
    weights = stage_weights(scenario, layouts, found.first()).first_stage()
    # Where layers are reduced after each micro-batch, the look-up's gradient is left, which comes last and hides behind nothing.
    each = (layouts.zero >= 2) & software.reduce_each_micro_batch
    left = weights.without(layer_weights(scenario, layouts).times(np.where(each, found.layers[0], 0)))
    sent = left.times(gradient_bytes(scenario))
    synchronise = gradient_sync(scenario, layouts, sent, groups)
    last_bucket = synchronise * np.minimum(1.0, bucket(scenario, layouts) / sent.total)
    overlap = np.where(layouts.zero == 1, scatter_overlap(software), software.dp_overlap)
    window = found.layers[0] * np.maximum(0.0, overlap * layer.backward - layer.gathers)
    shown = np.where(each, synchronise, np.maximum(_beside(synchronise, 1.0, window), last_bucket))
    gather = weight_gather(scenario, layouts, weights, found.layers[0], groups)
    shown = shown + _beside(gather, software.parameter_gather_overlap, found.layers[0] * layer.forward)
    table = vocabulary_parameters(scenario, layouts) * gathered_bytes(scenario)
    shown = shown + np.where(layouts.zero >= 3, closed_form.all_gather(table, groups.placement.shard, groups.network), 0.0)
    return shown, update_seconds(scenario, layouts, weights, device)


def update_seconds(scenario: Scenario, layouts: Layouts, weights: Weights, device: OperatorModel) -> FloatColumn:
    """The optimizer's time for a stage of so many parameters, of which ZeRO leaves each rank a share, s, ``(n_layouts,)``."""
    return device.elementwise(weights.sharded(layouts, 1) * scenario.software.optimizer_traffic)


def gradient_sync(scenario: Scenario, layouts: Layouts, sent: Weights, groups: Groups) -> FloatColumn:
    """Reduction of ``sent`` bytes of gradients, bucket by bucket: all-reduce, or reduce-scatter where ZeRO shards what follows, s."""
    placement, seconds = groups.placement, []
    of_experts = (sent.experts, placement.expert_gradient, placement.expert_halves)
    for size, span, halves in ((sent.dense, placement.gradient, placement.halves), of_experts):
        if size is not None:
            seconds.append(group_sync(scenario, layouts, size, span, halves, groups.network))
    return sum_of(seconds)


def group_sync(scenario: Scenario, layouts: Layouts, sent: FloatColumn, span: Span, halves: Halves | None, network: Network) -> FloatColumn:
    """The reduction of ``sent`` bytes over one group, s; 0 bytes take no time.

    Under hybrid sharding (``halves``) the gradients are scattered within the group that shares the shards, and each shard is then summed
    over its replicas.
    """
    software, calls = scenario.software, np.maximum(1.0, np.ceil(sent / bucket(scenario, layouts)))
    scatter = closed_form.reduce_scatter(sent / calls, span if halves is None else halves.shard, network)
    if halves is not None:
        scatter = scatter + all_reduce(software, sent / calls / halves.shard.size, halves.replica, network)
    reduce = all_reduce(software, sent / calls, span, network)
    return np.where(sent > 0, calls * np.where(layouts.zero == 0, reduce, scatter), 0.0)


def scatter_overlap(software: Software) -> float:
    """Share of the backward pass that ZeRO 1's reduce-scatter may hide behind."""
    return software.dp_overlap if software.scatter_overlap is None else software.scatter_overlap


def bucket(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """Bytes of gradients that one call reduces."""
    software = scenario.software
    size: FloatColumn = np.maximum(software.gradient_bucket, software.gradient_bucket_per_rank * (layouts.dp * layouts.cp))
    return size


def weight_gather(scenario: Scenario, layouts: Layouts, weights: Weights, layers: IntColumn, groups: Groups) -> FloatColumn:
    """Gather of the weights that each rank of ZeRO 1 or 2 has updated, s."""
    calls = np.maximum(1.0, layers * scenario.software.gather_calls_per_layer)
    gather = calls * _by_group(closed_form.all_gather, weights.times(compute_bytes(scenario) / calls), groups)
    return np.where((layouts.zero == 1) | (layouts.zero == 2), gather, 0.0)


def _work(scenario: Scenario, layouts: Layouts, block: Block, moved: Traffic, step: Step) -> StepWork:
    """Mean work of a GPU in a step: layers spread evenly over the stages, the head's and the gradients' share included."""
    layers = scenario.model.num_hidden_layers / layouts.pp
    passes = 3.0 + (layouts.recompute == RECOMPUTE_FULL)
    micro_batches = layouts.num_micro_batches.astype(float)
    weights = layer_weights(scenario, layouts).times(layers)
    parameters = weights.total
    flops = micro_batches * (passes * layers * block.layer_flops + 3 * block.head_flops / layouts.pp)
    hbm = micro_batches * (layers * block.layer_traffic * passes / 3 + block.head_traffic / layouts.pp)
    shared = weights.dense * (layouts.dp * layouts.cp > 1)
    if weights.experts is not None:
        shared = shared + weights.experts * (layouts.dp * layouts.cp > layouts.ep)
    synced = 2.0 * shared * gradient_bytes(scenario)
    inner = micro_batches * layers * (moved.tp_bytes + moved.cp_bytes)
    synced = synced + 2 * tied_bytes(scenario, layouts) / layouts.pp  # the mean GPU's share of what first and last stage send
    outer = micro_batches * (layouts.vpp * moved.pp_bytes + layers * moved.ep_bytes) + synced
    return StepWork(flops, hbm + parameters * scenario.software.optimizer_traffic, inner, outer, step.total, layouts.num_gpus)


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
