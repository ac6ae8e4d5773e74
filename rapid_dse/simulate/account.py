"""The results of steps whose times are known: memory, energy, cost, and the columns that say so."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.layouts import RECOMPUTE_FULL, Layouts
from rapid_dse.model.operators import model_flops_per_token
from rapid_dse.simulate.arrangement import Arrangement
from rapid_dse.simulate.block import Block
from rapid_dse.simulate.cost import StepWork, energy
from rapid_dse.simulate.layer import layer_moved
from rapid_dse.simulate.memory import Memory, layer_weights, peak_memory
from rapid_dse.simulate.results import Priced
from rapid_dse.simulate.sharding import EndTransfers
from rapid_dse.simulate.step import Step

FloatColumn = NDArray[np.float64]


def result_columns(scenario: Scenario, layouts: Layouts, block: Block, arranged: Arrangement, step: Step) -> Priced:
    """The results of steps whose times are known, whichever backend found them: memory, energy and cost are the same accounts for all."""
    memory = peak_memory(scenario, layouts, arranged.stages)
    work = _work(scenario, layouts, block, arranged, step)
    return _columns(scenario, layouts, step, memory, energy(scenario.hw, scenario.workload.precision, work))


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
