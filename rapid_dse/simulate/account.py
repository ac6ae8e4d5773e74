"""The results of steps whose times are known: memory, energy, cost, and the columns that say so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import Positions
from rapid_dse.config.hardware import Hardware
from rapid_dse.config.scenario import Scenario
from rapid_dse.cost.energy import BACKWARD_ATTENTION, gpu_energy, moved_energy, sent_energy, site_energy
from rapid_dse.model.architecture import model_flops_per_token
from rapid_dse.parallel.layouts import RECOMPUTE_SELECTIVE, Layouts
from rapid_dse.simulate.arrangement import Arrangement, alike_at_end
from rapid_dse.simulate.held_weights import layer_weights, mean_of_stages
from rapid_dse.simulate.layer import layer_moved
from rapid_dse.simulate.layer_kinds import LayerKinds
from rapid_dse.simulate.layer_work import Block, LayerBlock
from rapid_dse.simulate.memory import PeakMemory, SharedMemory, peak_memory
from rapid_dse.simulate.recomputed import repeated, whole_layers
from rapid_dse.simulate.results import Priced
from rapid_dse.simulate.sharding import EndTransfers
from rapid_dse.simulate.step import EVERY, SharedSteps, StepTimes
from rapid_dse.simulate.whole_run import HOUR, WholeRun, whole_run

FloatColumn = NDArray[np.float64]


PIECE = 16384  # layouts whose columns are worked out together: what is worked out of them stays in the processor's cache


def result_columns(scenario: Scenario, layouts: Layouts, block: Block, arranged: Arrangement, step: StepTimes) -> Priced:
    """The results of steps whose times are known, whichever backend found them: memory, energy and cost are the same accounts for all."""
    joules = joules_of(scenario, layouts, LayerKinds.single(layouts, arranged, block), arranged).part(layouts, EVERY)
    return columns_of(scenario, layouts, step, peak_memory(scenario, layouts, arranged.stages), joules)


def results(scenario: Scenario, layouts: Layouts, steps: SharedSteps, joules: SharedJoules, memory: SharedMemory) -> Iterator[Priced]:
    """The results of a table's layouts, as many at a time as are worked out together."""
    for start in range(0, max(1, len(layouts)), PIECE):
        rows = slice(start, start + PIECE)
        some = layouts if len(layouts) <= PIECE else layouts.take(rows)
        yield columns_of(scenario, some, steps.times(scenario, rows), memory.part(rows), joules.part(some, rows))


@dataclass(frozen=True)
class SharedJoules:
    """Mean energy of a GPU's work in a step beside idle power, J: of a micro-batch's layers, and of one boundary that it crosses, both of
    each ``kind`` of layouts; and of each kind of ``end``."""

    layers: FloatColumn
    crossing: FloatColumn
    kind: Positions
    at_end: FloatColumn
    end: Positions

    def part(self, layouts: Layouts, rows: slice) -> FloatColumn:
        """That of some neighbouring layouts, which these are."""
        kind, end = self.kind[rows], self.end[rows]
        micro_batch = self.layers.take(kind) + layouts.crossings * self.crossing.take(kind)
        joules: FloatColumn = layouts.num_micro_batches * micro_batch + self.at_end.take(end)
        return joules


def joules_of(scenario: Scenario, layouts: Layouts, kinds: LayerKinds, arranged: Arrangement) -> SharedJoules:
    """The energy of a table's layouts: layers spread evenly over the stages, the head's and the gradients' share included."""
    hw, some = scenario.hw, kinds.layouts
    layers = mean_of_stages(scenario, some, layer_joules(scenario, some, kinds.block)) + end_joules(hw, kinds.block) / some.pp
    layers = layers + sent_energy(hw, _layers_sent(scenario, some, kinds.arranged) + _ends_sent(some, kinds.arranged))
    crossing = sent_energy(hw, _crossing_sent(some, kinds.arranged))
    first, end = alike_at_end(layouts, arranged.of_stages)
    return SharedJoules(layers, crossing, kinds.kind, _end_joules_of_step(scenario, layouts.take(first), arranged.take(first)), end)


def _end_joules_of_step(scenario: Scenario, layouts: Layouts, arranged: Arrangement) -> FloatColumn:
    """What the optimizer's traffic and the transfers at the end of a step take of it."""
    updated = [weights.sharded(layouts, layouts.sharding.optimizer) for weights in layer_weights(scenario, layouts, trained=True)]
    updated_bytes = mean_of_stages(scenario, layouts, updated) * (scenario.software.update_traffic * scenario.model.of_kind.looped)
    return moved_energy(scenario.hw, updated_bytes) + sent_energy(scenario.hw, _end_sent(layouts, arranged))


def layer_joules(scenario: Scenario, layouts: Layouts, block: Block) -> list[FloatColumn]:
    """Energy of a layer of each kind for a micro-batch, forward, backward and what is computed again, ``(n_layouts,)`` each."""
    whole, partly = whole_layers(scenario, layouts), layouts.recompute == RECOMPUTE_SELECTIVE
    return [
        (1.0 + whole) * layer.product_joules
        + layer.backward_joules
        + (1.0 + BACKWARD_ATTENTION + repeats.core) * layer.attention_joules
        + partly * layer.again_joules
        + moved_energy(scenario.hw, layer.traffic * (1.0 + whole / 3.0))
        for layer, repeats in zip(block.layers, repeated(scenario, layouts), strict=True)
    ]


def part_joules(scenario: Scenario, layer: LayerBlock) -> FloatColumn:
    """Energy of a layer for a micro-batch, forward and backward, of which nothing runs again, ``(n,)``."""
    attention = (1.0 + BACKWARD_ATTENTION) * layer.attention_joules
    return layer.product_joules + layer.backward_joules + attention + moved_energy(scenario.hw, layer.traffic)


def end_joules(hw: Hardware, block: Block) -> FloatColumn:
    """Energy of what stands around the layers, and of the loss, for a micro-batch, forward and backward, ``(n_layouts,)``."""
    return block.ends_joules + moved_energy(hw, block.ends_traffic)


def sent_bytes(scenario: Scenario, layouts: Layouts, arranged: Arrangement) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bytes that the mean GPU sends into each network dimension for a micro-batch, and at the end of a step.

    ``(n_dimensions, n_layouts)`` each.
    """
    hops = layouts.crossings * _crossing_sent(layouts, arranged)
    return _layers_sent(scenario, layouts, arranged) + _ends_sent(layouts, arranged) + hops, _end_sent(layouts, arranged)


def _crossing_sent(layouts: Layouts, arranged: Arrangement) -> NDArray[np.float64]:
    """Of one boundary between stages, forward and back, for a micro-batch."""
    crossing: NDArray[np.float64] = (layouts.pp > 1) * 2.0 / layouts.pp * arranged.hop.sent
    return crossing


def _ends_sent(layouts: Layouts, arranged: Arrangement) -> NDArray[np.float64]:
    """Of embedding and head, for a micro-batch."""
    sent: NDArray[np.float64] = arranged.of_vocabulary.gather(lambda side: side.sent) + arranged.of_tables.gather(lambda side: side.sent)
    return sent / layouts.pp


def _end_sent(layouts: Layouts, arranged: Arrangement) -> NDArray[np.float64]:
    """At the end of a step."""
    sent: NDArray[np.float64] = arranged.of_end.gather(_mean_sent) + 2 * arranged.of_end.gather(lambda side: side.tied.sent) / layouts.pp
    return sent


def _layers_sent(scenario: Scenario, layouts: Layouts, arranged: Arrangement) -> NDArray[np.float64]:
    """Bytes of the mean stage's layers for one micro-batch, ``(n_dimensions, n_layouts)``."""
    sent = []
    for transfers, sharded, repeats in zip(arranged.transfers.layers, arranged.sharded, repeated(scenario, layouts), strict=True):
        layers_sent = layer_moved(layouts, transfers, repeats)
        sent.append(layers_sent.forward.sent + layers_sent.backward.sent + sharded.forward.sent + sharded.backward.sent)
    return mean_of_stages(scenario, layouts, sent)


def _mean_sent(end: EndTransfers) -> NDArray[np.float64]:
    """The mean GPU's bytes of ``end``, ``(n_dimensions, n_layouts)``, but for a tied table, which the first and the last stage send."""
    sent: NDArray[np.float64] = end.mean * (end.gradients.sent + end.weights.sent + end.replicated.sent)
    return sent


def columns_of(scenario: Scenario, layouts: Layouts, step: StepTimes, memory: PeakMemory, joules: FloatColumn) -> Priced:
    """The results of steps whose times, memory and energy (of a GPU beside idle power, J) are known."""
    return columns_of_energy(scenario, layouts, step, memory, gpu_energy(scenario.hw, joules, step.total) * layouts.num_gpus)


def columns_of_energy(scenario: Scenario, layouts: Layouts, step: StepTimes, memory: PeakMemory, of_gpus: FloatColumn) -> Priced:
    """The same of all GPUs' energy, J."""
    seconds, work = step.total, scenario.workload
    joules = site_energy(scenario.cluster, scenario.hw, of_gpus, seconds, layouts.num_gpus)
    tokens = layouts.global_batch_size * float(work.seq_len)
    rate = tokens / seconds
    flops = rate * model_flops_per_token(scenario.model, work)
    run = whole_run(scenario, layouts, seconds, joules)
    dollars = scenario.hw.price / HOUR * layouts.num_gpus / rate if run is None else run.train_cost_usd / float(work.train_tokens or 1)
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
        energy_j_per_token=joules / tokens,
        power_w_per_gpu=of_gpus / seconds / layouts.num_gpus,
        cost_usd=scenario.hw.price / HOUR * layouts.num_gpus * seconds,
        ttft_s=absent,
        tpot_s=absent,
        request_latency_s=absent,
        requests_per_s=absent,
        running_requests=absent,
        time_prefill_s=absent,
        usd_per_million_tokens=dollars * 1e6,
        **{f.name: absent if run is None else getattr(run, f.name) for f in fields(WholeRun)},
    )
