"""Inference of models that decode nothing: a batch runs forward once, through the same layers as in training."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import added, largest_of, summed
from rapid_dse.config.scenario import Scenario
from rapid_dse.cost.energy import gpu_energy, moved_energy, sent_energy
from rapid_dse.interconnect.transfer import Transfer
from rapid_dse.model.architecture import architecture, model_flops_per_token
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.parallel.engines import Engines
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.arrangement import Arrangement, arrangement
from rapid_dse.simulate.held_weights import stage_weights
from rapid_dse.simulate.host_launches import micro_batch_seconds
from rapid_dse.simulate.layer import Layer, beside_compute, layer_time
from rapid_dse.simulate.layer_work import Block, framework_block, moving
from rapid_dse.simulate.operator_times import compute_bytes
from rapid_dse.simulate.recomputed import repeated
from rapid_dse.simulate.results import REQUEST_COSTS, TIME_TERMS, Priced
from rapid_dse.simulate.slots import host_layer_seconds, launched_slot
from rapid_dse.simulate.training import Prepared, prepare

FloatColumn = NDArray[np.float64]

FORWARD = 1 / 3  # share of a micro-batch's launches that are its forward pass


def price_batches(scenario: Scenario, engines: Engines) -> tuple[Priced, FloatColumn]:
    """Prices legal, resolved engines: ``batch_size`` samples are shared evenly by the replicas, and pass an engine's stages one after the
    other.

    Returns:
        results without what a sample costs, and the joules of all GPUs for one, ``(n_layouts,)``.

    Raises:
        ValueError: where the network has no closed form, or the chip lacks the precision.
    """
    layouts = engines.batches(scenario)
    ready = prepare(scenario, layouts)
    block = framework_block(scenario, ready.shape, ready.alone, ready.device).take(ready.where)
    arranged = arrangement(scenario, layouts)
    prepared, layers = (ready, block, arranged), layer_time(scenario, layouts, block, arranged).of_kinds
    return passed(scenario, layouts, prepared, pass_times(scenario, layouts, prepared, layers))


@dataclass(frozen=True)
class PassTimes:
    """Seconds of a batch's pass through all stages, by term, ``(n_layouts,)`` each; ``transfer``: what a stage's rank sends on average."""

    compute: FloatColumn
    tp: FloatColumn
    cp: FloatColumn
    pp: FloatColumn
    host: FloatColumn
    transfer: Transfer

    @property
    def total(self) -> FloatColumn:
        """Seconds of the pass."""
        return self.compute + self.tp + self.cp + self.pp + self.host


def passed(
    scenario: Scenario, layouts: Layouts, prepared: tuple[Prepared, Block, Arrangement], times: PassTimes
) -> tuple[Priced, FloatColumn]:
    """The results of batches whose passes are known, whichever backend found them, as of ``price_batches``."""
    ready, block, arranged = prepared
    joules = _energy(scenario, layouts, (ready, block), times)
    memory = _memory(scenario, layouts, arranged)
    samples, seconds, tokens = layouts.global_batch_size.astype(np.float64), times.total, float(scenario.workload.seq_len)
    rate, peak, absent = samples / seconds, added(memory.values()), np.full(len(layouts), np.nan)
    flops = model_flops_per_token(scenario.model, scenario.workload) / 3
    none = np.zeros(len(layouts))
    terms = {field.name: getattr(times, field.name) for field in fields(times) if field.name != "transfer"}
    result = Priced(
        step_time_s=seconds,
        tokens_per_s=rate * tokens,
        tokens_per_s_per_gpu=rate * tokens / layouts.num_gpus,
        mfu=rate * tokens * flops / (layouts.num_gpus * scenario.hw.peak_flops(scenario.workload.precision)),
        fits=peak <= scenario.hw.memory.usable,
        peak_memory_bytes=peak,
        **{f"memory_{name}_bytes": column for name, column in memory.items()},
        **{f"memory_{name}_bytes": none for name in ("gradients", "optimizer", "gathered", "buffers")},
        **{f"time_{name}_s": terms.get(name, none) for name in TIME_TERMS},
        ttft_s=seconds,
        tpot_s=absent,
        request_latency_s=seconds,
        requests_per_s=rate,
        running_requests=samples,
        time_prefill_s=none,
        **dict.fromkeys((*REQUEST_COSTS, "train_time_s", "train_cost_usd", "train_energy_j", "goodput"), absent),
    )
    return result, joules / samples


def pass_times(scenario: Scenario, layouts: Layouts, prepared: tuple[Prepared, Block, Arrangement], layers: tuple[Layer, ...]) -> PassTimes:
    """The pass of a batch: all layers, what stands around them, and the sends between stages.

    There is no loss; a stage is as long as its device computes and transfers, or as the host launches it.
    """
    _, block, arranged = prepared
    counts = np.array(architecture(scenario.model).counts)
    hidden = [
        beside_compute(scenario, layouts, own, transfers, again)
        for own, transfers, again in zip(block.layers, arranged.transfers.layers, repeated(scenario, layouts), strict=True)
    ]
    tp, cp = (summed(counts, [getattr(part, name) for part in hidden]) for name in ("tp_forward", "cp_forward"))
    forward = summed(counts, [layer.forward for layer in layers])
    ends = sum(forward_ends(prepared))
    around = arranged.vocabulary.look_up + arranged.vocabulary.head_input
    hops = arranged.hop.times(layouts.pp - 1)
    device = forward + ends + around.seconds
    sent = [transfers.tp_forward + transfers.cp_hop.times(layouts.cp - 1) for transfers in arranged.transfers.layers]
    transfers = Transfer(device, *(sum(n * getattr(part, name) for n, part in zip(counts, sent, strict=True)) for name in ("sent", "busy")))
    return PassTimes(
        compute=forward - tp - cp + ends,
        tp=tp + around.seconds,
        cp=cp,
        pp=hops.seconds,
        host=waits_for_host(scenario, layouts, device),
        transfer=Transfer(device, (transfers.sent + around.sent + hops.sent) / layouts.pp, transfers.busy),
    )


def waits_for_host(scenario: Scenario, layouts: Layouts, device: FloatColumn) -> FloatColumn:
    """Seconds that a pass waits for its launches, where its device computes and transfers for so long."""
    layers = float(len(architecture(scenario.model).order))
    launches = FORWARD * (layers * host_layer_seconds(scenario, layouts) + layouts.pp * micro_batch_seconds(scenario))
    return launched_slot(scenario.software, device, launches) - device


def forward_ends(arranged: tuple[Prepared, Block, Arrangement]) -> tuple[FloatColumn, FloatColumn]:
    """Seconds forward of what stands before the layers, and behind them, where there is no loss."""
    ready, block, _ = arranged
    loss = (moving(ready.device, ready.alone.loss_bytes) / 2).take(ready.where)
    return block.embedding_forward, block.head_forward - loss


def _energy(scenario: Scenario, layouts: Layouts, arranged: tuple[Prepared, Block], times: PassTimes) -> FloatColumn:
    """Joules of a batch on all GPUs, of which an engine's stages share the work; ``traffic`` and ``ends_traffic`` are of three passes."""
    counts, (ready, block), hw = np.array(architecture(scenario.model).counts), arranged, scenario.hw
    ends = (ready.alone.head.forward_joules + ready.alone.embedding.forward_joules).take(ready.where)
    work = summed(counts, [layer.product_joules + layer.attention_joules for layer in block.layers]) + ends
    traffic = (summed(counts, [layer.traffic for layer in block.layers]) + block.ends_traffic) / 3
    dynamic = (work + moved_energy(hw, traffic)) / layouts.pp + sent_energy(hw, times.transfer.sent)
    return gpu_energy(hw, dynamic, times.total) * layouts.num_gpus


def _memory(scenario: Scenario, layouts: Layouts, arranged: Arrangement) -> dict[str, FloatColumn]:
    """Bytes of the worst stage's GPU: its weights, and what lives at the widest point of a layer: the stream, and what a product reads and
    gives. Nothing is kept for a backward pass."""
    shape, width = MicroBatch.of(layouts, scenario.workload), compute_bytes(scenario)
    stages = arranged.stages
    stream = shape.tokens * scenario.model.hidden_size
    widest = [
        np.max([product.batch * product.m * (product.k + product.n) for product in kind.products(shape)], axis=0)
        + sum(part.gathered(shape) for part in kind.parts)
        for kind in architecture(scenario.model).kinds
    ]
    alive = width * (stream + largest_of(stages.of_kinds, widest))
    weights = stage_weights(scenario, layouts, stages).total * width
    carried = [added(part.carried(shape) for part in kind.parts) for kind in architecture(scenario.model).kinds]
    state = width * summed(stages.of_kinds, carried)
    worst = np.argmax(weights + alive + state, axis=0)
    rows = np.arange(len(layouts))
    return {
        "parameters": weights[worst, rows],
        "kv_cache": state[worst, rows],
        "activations": alive[worst, rows],
        "framework": np.full(len(layouts), scenario.software.memory.context),
    }
