"""How many kernels the host launches for a layer, against a dense layer, and what CUDA graphs leave of its work.

The counts are of a forward pass; a backward pass has about twice as many of each. They are those of a framework that fuses what
Transformer Engine does (a norm, an activation, a rotation or a residual sum is a kernel each).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import added
from rapid_dse.config.scenario import Scenario
from rapid_dse.model.architecture import LayerKind, architecture_of
from rapid_dse.model.shapes import ONE, MicroBatch
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.fused_softmax import LAUNCHES, by_torch

FloatColumn = NDArray[np.float64]

ATTENTION = 7.0  # norm, projection, rotation of queries and keys, the kernel, projection, residual sum
NORMED = 2.0  # norms of queries and of keys, where a model has them
MLP = 5.0  # norm, two products, activation, residual sum
ROUTER = 3.0  # product, one kernel for scores, choice and its map of tokens (--moe-router-fusion), the balancing loss
DISPATCH = 6.0  # rows counted and copied to the host, split sizes, permutation, its reverse with the weighted sum
EXCHANGES = 3.0  # rows there, probabilities there, rows back
SORTING = 2.0  # by expert, and back, where a rank has several
ADAPTER = 3.0  # two products, the sum of what they give with its product's
# Beside ROUTER and DISPATCH where routing is eager: softmax and choice apart, rows sorted, counted, offsets of groups, their padding, zeros
# to add into.
EAGER = 7.0
EAGER_LAYER = 24.0  # operations of a Llama's layer where nothing is fused (``Part.operations``), of which host_layer is told
BACKWARD = 2 / 3  # of the host's time for an operation, what its backward pass takes
# A graph of a module and its backward pass: the framework's own call around it, which copies what goes in and comes out (Transformer
# Engine's make_graphed_callables), takes as long as so many launches: what 20 runs of Qwen3 on H100 and GB200 leave of the host's time.
REPLAY = 4.0


def layer_launches(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """Launches of the mean layer of one micro-batch over those of a dense layer of Llama, ``(n_layouts,)``."""
    model = architecture_of(scenario)
    launches = [count * _launches(scenario, layouts, kind) for count, kind in zip(model.counts, model.kinds, strict=True)]
    total: FloatColumn = added(launches) / max(1, len(model.order))
    return total


def gradient_launches(scenario: Scenario) -> float:
    """Launches of the mean layer's backward pass that answer none of its forward pass, over those of a dense layer of Llama."""
    model, software = architecture_of(scenario), scenario.software
    if not software.kernels.eager or software.host.cuda_graphs != "none":
        return 0.0
    counts = zip(model.counts, model.kinds, strict=True)
    operations = [count * part.gradient_operations(software) for count, kind in counts for part in kind.parts]
    return BACKWARD * sum(operations) / max(1, len(model.order)) / EAGER_LAYER


def host_pace(scenario: Scenario) -> float:
    """How long the chip's host takes for what the profile's times say, over the hosts that they were taken on."""
    taken_on = scenario.software.host.host_pace
    return 1.0 if taken_on is None else scenario.hw.launch_pace / taken_on


def library_seconds(scenario: Scenario) -> float:
    """The host's time for what libraries launch by loops of their own in the mean layer of a micro-batch, forward and backward."""
    host, model = scenario.software.host, architecture_of(scenario)
    if host.cuda_graphs == "full_iteration":
        return 0.0
    seconds = [
        count * part.library_launches(scenario.workload.seq_len)
        for count, kind in zip(model.counts, model.kinds, strict=True)
        for part in kind.parts
    ]
    return host.host_library_launch * sum(seconds) / max(1, len(model.order))


def _launches(scenario: Scenario, layouts: Layouts, kind: LayerKind) -> FloatColumn:
    dense, graphs = ATTENTION + MLP, scenario.software.host.cuda_graphs
    if graphs == "full_iteration":
        return np.zeros(len(layouts))
    captured = graphs == "modules"
    adapters = sum(bool(product.adapts) for product in kind.products(ONE)) / 2  # of two products each
    ahead = REPLAY if captured else ATTENTION + NORMED * scenario.model.qk_norm + ADAPTER * adapters
    own = [part.launches() for part in kind.parts]
    if any(kernel is not None for kernel in own):
        return np.full(len(layouts), sum(kernel or 0.0 for kernel in own) / dense)
    eager = [part.operations() for part in kind.parts]
    if not captured and scenario.software.kernels.eager and all(kernel is not None for kernel in eager):
        return np.full(len(layouts), (sum(kernel or 0.0 for kernel in eager) + ADAPTER * adapters) / EAGER_LAYER)
    known = ahead + (np.zeros(len(layouts)) if captured else _softmax_launches(scenario, layouts, kind))
    if not kind.copies:
        return np.full(len(layouts), REPLAY / dense) if captured else (known + MLP) / dense
    return (known + _expert_launches(scenario, layouts, captured)) / dense


def _softmax_launches(scenario: Scenario, layouts: Layouts, kind: LayerKind) -> FloatColumn:
    """Those that stand beyond a fused softmax's one."""
    shape = MicroBatch.of(layouts, scenario.workload)
    core = kind.attention(shape)
    if core is None:
        return np.zeros(len(layouts))
    launches: FloatColumn = LAUNCHES * by_torch(scenario, core, shape).astype(np.float64)
    return launches


def launches_of(scenario: Scenario, layouts: Layouts, kind: LayerKind, apart: float) -> FloatColumn:
    """Launches of a part of a layer, over those of a dense layer: of attention, or of experts in a layer without it; ``apart`` of them
    are not there."""
    of_part = np.full(len(layouts), ATTENTION) if not kind.copies else _expert_launches(scenario, layouts, captured=False)
    return (of_part - apart) / (ATTENTION + MLP)


def _expert_launches(scenario: Scenario, layouts: Layouts, captured: bool) -> FloatColumn:
    """Those of a mixture of experts: norm, residual sum, router, shared experts, and what the routed rows take."""
    model = scenario.model
    known = ROUTER + 2.0 + (3.0 if model.n_shared_experts else 0.0)  # shapes that do not depend on the routing
    launches: FloatColumn = (
        (REPLAY if captured else known)
        + DISPATCH
        + 3.0  # grouped products, activation between them
        + EXCHANGES * (layouts.ep > 1)
        + SORTING * (layouts.ep < model.num_experts)
        + EAGER * (scenario.software.experts.permutation == "eager")
    )
    return launches


def micro_batch_seconds(scenario: Scenario) -> float:
    """The host's time for a micro-batch beside its layers; none where a graph holds the whole step."""
    host = scenario.software.host
    return 0.0 if host.cuda_graphs == "full_iteration" else host.host_micro_batch * host_pace(scenario) + end_seconds(scenario)


def end_seconds(scenario: Scenario) -> float:
    """The part of it for what stands around the layers, where its operations are counted one by one."""
    host, model = scenario.software.host, architecture_of(scenario)
    if not scenario.software.kernels.eager or host.cuda_graphs == "full_iteration":
        return 0.0
    recorded = 1.0 if scenario.workload.kind == "training" else host.host_without_gradients
    operations = (model.embedding.operations() or 0.0) + (model.head.operations() or 0.0)
    return host.host_layer * host_pace(scenario) * recorded * operations / EAGER_LAYER
