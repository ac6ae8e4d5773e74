"""A micro-batch's passes on one GPU that shares nothing with others: what a script that times its phases sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rapid_dse.common.columns import summed
from rapid_dse.config.scenario import Scenario
from rapid_dse.cost.energy import moved_energy
from rapid_dse.device import OperatorModel, operator_model
from rapid_dse.model.architecture import LayerKind, architecture_of
from rapid_dse.model.recompute import recomputation
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.parallel.layouts import BoolColumn, Layouts
from rapid_dse.simulate.account import end_joules, layer_joules, part_joules
from rapid_dse.simulate.host_launches import (
    BACKWARD,
    EAGER_LAYER,
    end_seconds,
    gradient_launches,
    launches_of,
    layer_launches,
    micro_batch_seconds,
)
from rapid_dse.simulate.layer_memory import LayerTensors
from rapid_dse.simulate.layer_work import framework_block, layer_alone_block
from rapid_dse.simulate.operator_times import compute_bytes
from rapid_dse.simulate.recomputed import recomputed
from rapid_dse.simulate.slots import host_layer_seconds, launched_slot
from rapid_dse.simulate.training import price_operators

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class Phases:
    """One micro-batch, ``(n_layouts,)`` each: seconds of the forward pass, and of the backward pass with what it computes again; joules of
    both and of the forward pass alone, idle power left out."""

    forward: FloatColumn
    backward: FloatColumn
    joules: FloatColumn
    forward_joules: FloatColumn


@dataclass(frozen=True)
class Casts:
    """What autocast adds to the passes: operations of a layer's forward pass (``a_layer``), of its backward pass beside those that answer
    them (``of_gradients``), and of the forward pass of what stands around the layers (``around``); seconds on the device, ``(n_layouts,)``
    each."""

    a_layer: float
    of_gradients: float
    around: float
    forward: FloatColumn
    backward: FloatColumn


def phases(scenario: Scenario, layouts: Layouts, ends: BoolColumn, casts: Casts | None = None, *, recorded: bool = True) -> Phases:
    """The passes of all the model's layers on one GPU, each as long as the device computes or the host launches.

    Args:
        ends: whether embedding, head and loss run too, ``(n_layouts,)``; else the layers alone.
        casts: of autocast, if any.
        recorded: whether gradients are recorded; else the forward pass is one of inference.

    Raises:
        ValueError: where the chip lacks the precision, or the model is none that can be priced.
    """
    ready = price_operators(scenario, layouts)
    block = framework_block(scenario, ready.shape, ready.alone, ready.device).take(ready.where)
    counts, software = np.array(architecture_of(scenario).counts), scenario.software
    casts = casts or Casts(0.0, 0.0, 0.0, np.zeros(len(layouts)), np.zeros(len(layouts)))
    launches, of_gradients = _launches(scenario, layouts, ends, casts, recorded)
    forward = summed(counts, [layer.forward for layer in block.layers]) + ends * (block.head_forward + block.embedding_forward)
    again = [layer.backward + recomputed(scenario, layouts, layer) for layer in block.layers]
    backward = summed(counts, again) + ends * (block.head_backward + block.embedding - block.embedding_forward)
    # each pass has a third of the launches: forward, input gradients, weight gradients
    joules = summed(counts, layer_joules(scenario, layouts, block)) + ends * end_joules(scenario.hw, block)
    ahead = [layer.product_joules + layer.attention_joules + moved_energy(scenario.hw, layer.traffic / 3) for layer in block.layers]
    first = (ready.alone.embedding.forward_joules + ready.alone.head.forward_joules).take(ready.where)
    alone = summed(counts, ahead) + ends * (first + moved_energy(scenario.hw, block.ends_traffic / 3))
    launched = (launches - of_gradients) / 3
    passes = (
        launched_slot(software, forward + casts.forward, launched),
        launched_slot(software, backward + casts.backward, launches - launched),
    )
    return Phases(*passes, joules, alone)


def _launches(scenario: Scenario, layouts: Layouts, ends: BoolColumn, casts: Casts, recorded: bool) -> tuple[FloatColumn, FloatColumn]:
    """Seconds in which the host launches both passes, and those of them in which it launches what answers no operation of the forward
    pass."""
    host, layers = scenario.software.host, scenario.model.num_hidden_layers
    taken, operation = 1.0 if recorded else host.host_without_gradients, host.host_layer / EAGER_LAYER
    a_layer = host_layer_seconds(scenario, layouts) + taken * operation * casts.a_layer
    a_layer = a_layer - (1.0 - taken) * host.host_layer * layer_launches(scenario, layouts)
    around = micro_batch_seconds(scenario) + taken * ends * operation * casts.around - (1.0 - taken * ends) * end_seconds(scenario)
    more = BACKWARD * layers * operation * casts.of_gradients
    of_gradients = more + layers * host.host_layer * gradient_launches(scenario)
    return layers * a_layer + around + more, np.full(len(layouts), of_gradients)


def part_phases(scenario: Scenario, layouts: Layouts, kind: LayerKind, apart: float) -> Phases:
    """The passes of a layer of one kind on one GPU that nothing stands around: a part of a layer, as a script times it.

    Args:
        apart: how many of the launches of the layer's parts are not among them: of the norm ahead of it and the residual sum behind it.
    """
    shape, device, software = MicroBatch.of(layouts, scenario.workload), operator_model(scenario.hw), scenario.software
    block = layer_alone_block(scenario, kind, shape, device)
    launches = software.host.host_layer * launches_of(scenario, layouts, kind, apart)
    passes = launched_slot(software, block.forward, launches / 3), launched_slot(software, block.backward, launches * 2 / 3)
    joules = part_joules(scenario, block)
    return Phases(*passes, joules, joules / 3)


def part_memory(scenario: Scenario, layouts: Layouts, kind: LayerKind) -> FloatColumn:
    """Bytes at the peak of such passes where gradients are new: weights and gradients of 16 bits, and what autograd keeps."""
    shape = MicroBatch.of(layouts, scenario.workload)
    weights = sum((part.dense + part.routed for part in kind.parameters(shape)), np.zeros(len(layouts)))
    made = LayerTensors(scenario, tuple(kind.tensors(shape, scenario.software)))
    kept = made.kept(recomputation(kind, scenario.software, ()))
    return np.asarray(2.0 * compute_bytes(scenario) * weights + kept, dtype=np.float64)


def accumulation(scenario: Scenario, device: OperatorModel, parameters: ArrayLike) -> FloatColumn:
    """Seconds in which a micro-batch's gradients of so many parameters are added to those before it, where products do not do it: two
    gradients read, one written."""
    return device.elementwise(accumulation_bytes(scenario, parameters))


def accumulation_bytes(scenario: Scenario, parameters: ArrayLike) -> FloatColumn:
    """HBM bytes of that."""
    return 3.0 * compute_bytes(scenario) * np.asarray(parameters, dtype=np.float64)
