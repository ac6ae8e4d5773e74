"""What a GPU holds at the peak of a training step, stage by stage, term by term.

Bytes; the candidate stages (first, fullest inner ones, last) are rows of ``(n_candidates, n_layouts)`` arrays, the worst is reported.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import Shared, at, distinct, largest, numbered
from rapid_dse.config.hardware import PRECISION_BYTES
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software import Software
from rapid_dse.device.contract import UNFUSED
from rapid_dse.model.operators import local_kv_heads, mlp_projections, padded_vocab
from rapid_dse.parallel.layouts import RECOMPUTE_FULL, RECOMPUTE_NONE, BoolColumn, Layouts
from rapid_dse.parallel.schedules import HOLDS_ALL, SPLITS_BACKWARD, in_flight
from rapid_dse.simulate.loss import loss_memory
from rapid_dse.simulate.operator_times import compute_bytes
from rapid_dse.simulate.stages import Stages

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class PeakMemory:
    """Bytes a GPU holds on its worst stage, ``(n_layouts,)`` each; they add up to the peak."""

    parameters: FloatColumn
    gradients: FloatColumn
    optimizer: FloatColumn
    activations: FloatColumn
    gathered: FloatColumn
    buffers: FloatColumn
    framework: FloatColumn

    @property
    def peak(self) -> FloatColumn:
        """Bytes the allocator holds, ``(n_layouts,)``."""
        total: FloatColumn = np.sum([getattr(self, f.name) for f in fields(self)], axis=0)
        return total


@dataclass(frozen=True)
class Weights:
    """Parameters that a rank holds, by the group that shares their gradients: cp·dp ranks hold the same ``dense`` ones,
    tp·cp·dp/(etp·ep) the same ``experts`` (None in a dense model); arrays whose last axis is ``(n_layouts,)``.
    """

    dense: FloatColumn
    experts: FloatColumn | None = None

    @property
    def total(self) -> FloatColumn:
        """All of them."""
        return self.dense if self.experts is None else self.dense + self.experts

    def first_stage(self) -> Weights:
        """Those of the first candidate stage, ``(n_layouts,)``."""
        return Weights(self.dense[0], None if self.experts is None else self.experts[0])

    def times(self, share: NDArray[Any] | float) -> Weights:
        """So many times the parameters of both kinds."""
        return Weights(self.dense * share, None if self.experts is None else self.experts * share)

    def without(self, other: Weights) -> Weights:
        """What is left where ``other`` is taken away."""
        return Weights(self.dense - other.dense, None if self.experts is None or other.experts is None else self.experts - other.experts)

    def sharded(self, layouts: Layouts, where: BoolColumn) -> FloatColumn:
        """What is left a rank where they are sharded, ``(n_layouts,)``, and all of them elsewhere."""
        shards = np.where(where, layouts.shards.astype(float), 1.0)
        if self.experts is None:
            return self.dense / shards
        return self.dense / shards + self.experts / np.where(where, layouts.expert_shards.astype(float), 1.0)


def product_weights(scenario: Scenario, layouts: Layouts) -> Weights:
    """Weights of one layer's products that a rank holds, the router's left out, ``(n_layouts,)``."""
    model, tp = scenario.model, layouts.tp
    head, hidden = model.attention_head_dim, model.hidden_size
    attention = hidden * head * (2 * model.num_attention_heads / tp + 2 * local_kv_heads(model, tp))
    wide = model.n_shared_experts * model.moe_intermediate_size if model.num_experts else model.intermediate_size
    dense = attention + hidden * wide * (mlp_projections(model) + 1) / tp
    if not model.num_experts:
        return Weights(dense)
    expert = hidden * model.moe_intermediate_size * (mlp_projections(model) + 1) / layouts.expert_tp
    return Weights(dense, expert * (model.num_experts / layouts.ep))


def layer_weights(scenario: Scenario, layouts: Layouts) -> Weights:
    """Parameters of one layer that a rank holds, ``(n_layouts,)``; router and norms are whole on each tensor-parallel rank."""
    model, tp, products = scenario.model, layouts.tp, product_weights(scenario, layouts)
    head, hidden = model.attention_head_dim, model.hidden_size
    wide = model.n_shared_experts * model.moe_intermediate_size if model.num_experts else model.intermediate_size
    norms = (2 * hidden + (2 * head if model.qk_norm else 0)) * (2 if model.norm == "layernorm" else 1)
    biases = (2 * hidden + mlp_projections(model) * wide / tp) if model.linear_bias else 0.0
    if model.attention_bias or model.linear_bias:  # of queries, keys and values
        biases = biases + head * (model.num_attention_heads / tp + 2 * local_kv_heads(model, tp))
    dense = products.dense + norms + biases
    if products.experts is None:
        return Weights(dense)
    bias = hidden + mlp_projections(model) * model.moe_intermediate_size / layouts.expert_tp if model.linear_bias else 0.0
    return Weights(dense + hidden * model.num_experts, products.experts + bias * (model.num_experts / layouts.ep))


def vocabulary_parameters(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """Parameters of one embedding table, or of one head, that a tensor-parallel rank holds, ``(n_layouts,)``."""
    return padded_vocab(scenario.model, layouts.tp) * (scenario.model.hidden_size / layouts.tp)


def stage_weights(scenario: Scenario, layouts: Layouts, stages: Stages) -> Weights:
    """Parameters a rank holds on each candidate stage, ``(n_candidates, n_layouts)``; tied tables are one where a stage has both."""
    table = vocabulary_parameters(scenario, layouts)
    both = stages.has_embedding & stages.has_head & scenario.model.tie_word_embeddings
    tables = stages.has_embedding.astype(float) + stages.has_head - both
    positions = scenario.workload.seq_len * scenario.model.hidden_size if scenario.model.position_embedding == "learned" else 0.0
    layers = layer_weights(scenario, layouts).times(stages.layers)
    return Weights(layers.dense + tables * table + stages.has_embedding * positions, layers.experts)


@dataclass(frozen=True)
class LayerTensors:
    """What one layer of one micro-batch makes on a rank; elements, ``(n_layouts,)`` each.

    ``stream``: activations between layers (the rank's share under sequence parallelism); ``queries``, ``keys`` (values are as many);
    ``wide``: one of the MLP's ``gates`` projections; ``down``: what its last product gives; ``routed``: the rows of a rank's experts.
    """

    stream: FloatColumn
    queries: FloatColumn
    keys: FloatColumn
    wide: FloatColumn
    gates: int
    down: FloatColumn
    routed: FloatColumn | float

    @classmethod
    def of(cls, scenario: Scenario, layouts: Layouts) -> LayerTensors:
        """Those of each layout."""
        model, tp = scenario.model, layouts.tp
        tokens = layouts.micro_batch_size * (scenario.workload.seq_len / layouts.cp)
        stream = tokens / np.where(layouts.sequence_parallel, tp, 1) * model.hidden_size
        queries = tokens * (model.num_attention_heads / tp) * model.attention_head_dim
        keys = tokens * local_kv_heads(model, tp) * model.attention_head_dim
        gates, hidden = mlp_projections(model), model.hidden_size
        if not model.num_experts:
            return cls(stream, queries, keys, tokens * (model.intermediate_size / tp), gates, stream, 0.0)
        own = stream / hidden * model.num_experts_per_tok  # rows that a rank sends to experts
        rows = own * np.where(layouts.gathers_rows, layouts.expert_tp, 1)
        shared = tokens * (model.n_shared_experts * model.moe_intermediate_size / tp)
        wide = rows * (model.moe_intermediate_size / layouts.expert_tp) + shared
        return cls(stream, queries, keys, wide, gates, np.where(layouts.gathers_rows, own, rows) * hidden, rows * hidden)

    def outputs(self, scenario: Scenario) -> FloatColumn:
        """Bytes of what products give (qkv, out, up, down), and of the gradients of that."""
        return compute_bytes(scenario) * ((self.queries + 2 * self.keys) + self.stream + self.gates * self.wide + self.down)

    def inputs(self, scenario: Scenario) -> FloatColumn:
        """Bytes of what products read: of qkv and up (what the router and shared experts read, and the rows of the rank's experts), of
        out, of down."""
        return _input_bytes(scenario, 2 * self.stream + self.routed, self.queries, self.wide)


def weight_gradient_bytes(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """Bytes that a layer's weight gradients need of one micro-batch, ``(n_layouts,)``: inputs of products, gradients of their outputs.

    M_W of Qi et al. (arXiv 2401.10241, section 3.1): 32 bytes a token and hidden unit of a GPT.
    """
    made = LayerTensors.of(scenario, layouts)
    return made.inputs(scenario) + made.outputs(scenario)


def layer_activations(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """Bytes that autograd keeps for one layer of one micro-batch, by the layout's recomputation, ``(n_layouts,)``.

    Counted tensor by tensor as in Korthikanti et al. (arXiv 2205.05198, section 4.1), generalised to grouped queries, gated MLPs and
    flash attention, which keeps its output and a log-sum-exp in place of the scores (Dao, arXiv 2307.08691, section 2.3).
    """
    software, width, made = scenario.software, compute_bytes(scenario), LayerTensors.of(scenario, layouts)
    stream, queries, keys, wide = made.stream, made.queries, made.keys, made.wide
    heads = scenario.model.num_attention_heads / layouts.tp
    # inputs of norms, and of products
    inputs = width * 2 * stream + made.inputs(scenario) + _routing_bytes(scenario, layouts, made.down)
    # copies of queries and keys: before their norms, which go backward from there, and before an unfused rotation
    copies = width * (
        (scenario.model.qk_norm + (not software.kernels.fused_rotary)) * (queries + keys)
        + (0 if software.kernels.fused_activation else wide)
    )
    dropout = 2 * stream if software.kernels.dropout else 0.0  # two masks of a byte
    log_sum_exp = 4 * layouts.micro_batch_size * (scenario.workload.seq_len / layouts.cp) * heads
    kept = inputs + width * (queries + 2 * keys + made.gates * wide) + copies + dropout + log_sum_exp
    every_other = software.memory.selective_recompute == "every_other_matmul"
    selective = width * stream + 0.5 * made.outputs(scenario) + width * queries if every_other else kept
    full, scores = width * stream, _score_bytes(scenario, layouts, heads)
    by_mode = np.where(layouts.recompute == RECOMPUTE_FULL, full, np.where(layouts.recompute == RECOMPUTE_NONE, kept + scores, selective))
    return by_mode * np.where(layouts.recompute == RECOMPUTE_FULL, 1.0, software.memory.activation_overhead)


def _routing_bytes(scenario: Scenario, layouts: Layouts, returned: FloatColumn) -> FloatColumn | float:
    """What a mixture of experts keeps for the gradient of its routing: fp32 logits and probabilities, and the rows (``returned`` elements)
    that come back to be weighted and summed."""
    model = scenario.model
    if not model.num_experts:
        return 0.0
    tokens = layouts.micro_batch_size * (scenario.workload.seq_len / layouts.cp) / np.where(layouts.sequence_parallel, layouts.tp, 1)
    return 8.0 * tokens * model.num_experts + compute_bytes(scenario) * returned


def _input_bytes(scenario: Scenario, streams: FloatColumn, queries: FloatColumn, wide: FloatColumn) -> FloatColumn:
    """Inputs of products that weight gradients need. Transformer Engine keeps its fp8 copies, beside attention's own 16-bit output; torchao
    keeps the 16-bit inputs and casts them again."""
    width = compute_bytes(scenario)
    if scenario.workload.precision == "fp8" and scenario.software.precision.keeps_fp8:
        return streams + queries * (1 + width) + wide
    return width * (streams + queries + wide)


def _score_bytes(scenario: Scenario, layouts: Layouts, heads: FloatColumn) -> FloatColumn:
    # Softmax output and dropout output, both 16 bits, and a mask of one byte: 5 a s of the paper; the first alone without dropout.
    if scenario.attention_kernel not in UNFUSED:
        return np.zeros(len(layouts))
    width = compute_bytes(scenario)
    each = 2.0 * width + 1 if scenario.software.kernels.dropout else width
    return each * layouts.micro_batch_size * heads * float(scenario.workload.seq_len) ** 2 / layouts.cp


# Columns of Layouts on which memory depends, beside the number of micro-batches: what ZeRO shards, and activations.
STATES = ("tp", "cp", "dp", "pp", "ep", "expert_tp", "chunks", "stage_map", "zero", "shard_group")
ACTIVATIONS = ("tp", "cp", "expert_tp", "pp", "vpp", "micro_batch_size", "sequence_parallel", "recompute", "schedule")
FILLED = 3  # of so many micro-batches a stage, no schedule holds more than of fewer but those that hold all


def peak_memory(scenario: Scenario, layouts: Layouts, stages: Stages) -> PeakMemory:
    """The terms on the stage whose sum is the largest."""
    return shared_memory(scenario, layouts, Shared(stages, np.arange(len(layouts))))


def shared_memory(scenario: Scenario, layouts: Layouts, found: Shared[Stages]) -> PeakMemory:
    """As ``peak_memory``; states and activations are counted once for layouts that are alike in them."""
    software, table, micro_batches = scenario.software, layouts.alike, layouts.num_micro_batches
    filled = np.where(HOLDS_ALL.take(layouts.schedule), micro_batches, np.minimum(micro_batches, FILLED * layouts.pp))
    first, kept = distinct([*table.numbers(*ACTIVATIONS), numbered(filled)])
    activations = _activations(scenario, layouts.take(first), found.take(first).rows)
    lost = (software.memory.fragmentation - 1) * activations  # to the allocator
    fresh = fresh_gradients(scenario, layouts)  # they take the place of activations
    first, state = distinct([*table.numbers(*STATES), numbered(micro_batches > 1), numbered(np.where(fresh, kept + 1, 0))])
    states = _states(scenario, layouts.take(first), found.take(first).rows)
    total = np.sum(list(states.values()), axis=0).take(state, axis=1) + (activations + lost).take(kept, axis=1)
    worst = largest(total)
    on_worst = {name: at(term, worst, state) for name, term in states.items()}
    bucket = on_worst.pop("bucket")
    return PeakMemory(
        **on_worst,
        activations=at(activations, worst, kept),
        buffers=at(lost, worst, kept) + bucket,
        framework=np.full(len(layouts), software.memory.context),
    )


def reduces_each(software: Software, layouts: Layouts) -> BoolColumn:
    """Whether each micro-batch's gradients are reduced, as ZeRO 2 and 3 keep them sharded, ``(n_layouts,)``."""
    each = software.overlap.reduce_each_micro_batch
    found: BoolColumn = (layouts.zero >= 2) & (layouts.pp == 1 if each == "without_pipelines" else each)
    return found


def gradients_sharded(software: Software, layouts: Layouts) -> BoolColumn:
    """Whether a rank keeps its shard of the gradients alone, ``(n_layouts,)``: under ZeRO 2 and 3, unless micro-batches accumulate without
    synchronisation."""
    at_once: BoolColumn = (layouts.zero >= 2) & (layouts.num_micro_batches == 1)
    return reduces_each(software, layouts) | at_once


def _states(scenario: Scenario, layouts: Layouts, stages: Stages) -> dict[str, NDArray[np.float64]]:
    """Bytes of parameters, gradients and optimizer states that stay all step long, of what ZeRO holds whole for a while, and of the bucket
    in which gradients are reduced, ``(n_candidates, n_layouts)`` each."""
    software, width, weights = scenario.software, compute_bytes(scenario), stage_weights(scenario, layouts, stages)
    accumulates, parameters = layouts.num_micro_batches > 1, weights.total
    gradient = PRECISION_BYTES[software.precision.gradient_dtype] + np.where(accumulates, software.memory.extra_gradient_bytes, 0.0)
    # Under fp32 and TF32 the weights that compute are the master weights; FSDP's shards are those that the optimizer steps.
    fsdp = (layouts.zero >= 3) & (layouts.shards > 1) & software.precision.master_shards
    own_master = fsdp | (width == 4)
    shard = np.where(fsdp, max(width, software.precision.master_bytes), width)
    _, stay = _fp8_copies(scenario, layouts)
    gradients = weights.sharded(layouts, gradients_sharded(software, layouts)) * gradient
    bucket = np.minimum(software.overlap.gradient_bucket, parameters * PRECISION_BYTES[software.precision.gradient_dtype])
    return {
        "parameters": weights.sharded(layouts, layouts.zero >= 3) * shard + stages.layers * stay,
        "gradients": _beyond_activations(scenario, layouts, stages, gradients),
        "optimizer": weights.sharded(layouts, layouts.zero >= 1)
        * (software.precision.optimizer_bytes - np.where(own_master, software.precision.master_bytes, 0.0)),
        "gathered": _gathered(scenario, layouts, stages, parameters),
        "bucket": np.where(layouts.dp * layouts.cp > 1, bucket, 0.0),
    }


def fresh_gradients(scenario: Scenario, layouts: Layouts) -> BoolColumn:
    """Whether no buffer keeps gradients: those of a step's only micro-batch, where products do not add to them, ``(n_layouts,)``."""
    fresh: BoolColumn = (layouts.num_micro_batches == 1) & (not scenario.software.kernels.fused_accumulation)
    return fresh


def _beyond_activations(scenario: Scenario, layouts: Layouts, stages: Stages, gradients: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bytes of ``gradients`` at the peak beyond those of the activations whose place they take, ``(n_candidates, n_layouts)``.

    Where no buffer keeps gradients, those of a step's only micro-batch come layer by layer as the layer's activations go. While a layer's
    backward pass runs, both its own are alive, with the activations of the layers ahead and the gradients of those behind: the peak is
    at the last layer or at the first.
    """
    fresh = fresh_gradients(scenario, layouts)
    if not fresh.any():
        return gradients
    freed = np.maximum(0, stages.layers - 1) * layer_activations(scenario, layouts)
    own = layer_weights(scenario, layouts).total * PRECISION_BYTES[scenario.software.precision.gradient_dtype]
    return np.where(fresh, np.maximum(np.minimum(own, gradients), gradients - freed), gradients)


def _fp8_copies(scenario: Scenario, layouts: Layouts) -> tuple[FloatColumn, FloatColumn]:
    """Bytes that a layer's products keep in 8 bits beyond their 16-bit weights, ``(n_layouts,)`` each: of weights that ZeRO 3 gathers, kept
    while these are whole, and of others, kept all step long.

    A weight and its transpose, as Hopper's fp8 products read both operands along their inner dimension (Transformer Engine's
    ``Float8Tensor`` with ``_transpose``); none beyond where these take the 16-bit weight's place.
    """
    while_whole, stay = np.zeros(len(layouts)), np.zeros(len(layouts))
    if scenario.workload.precision != "fp8" or not scenario.software.precision.keeps_fp8:
        return while_whole, stay
    each = 2.0 - (compute_bytes(scenario) if scenario.software.precision.fp8_parameters else 0.0)
    products = product_weights(scenario, layouts)
    for weights, shards in ((products.dense, layouts.shards), (products.experts, layouts.expert_shards)):
        if weights is not None:
            gathered = (layouts.zero >= 3) & (shards > 1)
            while_whole = while_whole + np.where(gathered, each * weights, 0.0)
            stay = stay + np.where(gathered, 0.0, each * weights)
    return while_whole, stay


def _activations(scenario: Scenario, layouts: Layouts, stages: Stages) -> NDArray[np.float64]:
    """Layers in flight, what one layer's backward needs besides, and the logits on the last stage."""
    micro_batches = layouts.num_micro_batches
    each, none = layer_activations(scenario, layouts), np.zeros(len(layouts))

    def held_on(position: NDArray[np.int64], late: FloatColumn) -> NDArray[np.float64]:
        return in_flight(layouts.schedule, position, layouts.pp, layouts.chunks, micro_batches, late)

    held, left = held_on(stages.position, none), each
    embeddings = held * stages.has_embedding
    splits = SPLITS_BACKWARD.take(layouts.schedule)
    if splits.any():
        # what weight gradients need may be more than what is kept under recomputation: then later stages hold more
        late = weight_gradient_bytes(scenario, layouts) / each
        held = np.maximum(held_on(stages.position, late), held_on(stages.latest, late))
        left = np.where(splits, np.maximum(1.0, late) * each, each)
    whole = layer_activations(scenario, _without_recompute(layouts)) - left  # of the layer whose backward pass runs
    tokens = layouts.micro_batch_size * (scenario.workload.seq_len / layouts.cp)
    logits = loss_memory(scenario, tokens, layouts.tp, compute_bytes(scenario))
    whole_stream = compute_bytes(scenario) * tokens * scenario.model.hidden_size * (layouts.tp > 1)
    embedded, headed = (
        whole_stream * copies for copies in (scenario.software.memory.embedding_copies, scenario.software.memory.head_copies)
    )
    transient = np.maximum(0.0, whole) * (stages.layers > 0) + stages.has_head * (logits + headed)
    return held * stages.layers * each + embeddings * embedded + transient


def _without_recompute(layouts: Layouts) -> Layouts:
    return replace(layouts, recompute=np.full_like(layouts.recompute, RECOMPUTE_NONE))


def _gathered(scenario: Scenario, layouts: Layouts, stages: Stages, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
    """What ZeRO holds whole for a while, ``(n_candidates, n_layouts)``: from 2 on the gradient of what computes, until it is reduced, and
    under 3 its weights (with Transformer Engine's 8-bit copies) and those that are fetched meanwhile, no more than the stage has.

    What computes is a layer, with another fetched beside it, or, on the stages that have them, embedding or head beside a layer.
    """
    held = layer_weights(scenario, layouts)
    # experts that no other rank has a shard of are not gathered, but FSDP makes 16-bit copies of its shards all the same
    of_experts = (layouts.expert_shards > 1) | scenario.software.precision.master_shards
    layer = held.dense if held.experts is None else held.dense + np.where(of_experts, held.experts, 0.0)
    layer = layer * (stages.layers > 0)
    table = (stages.has_embedding | stages.has_head) * vocabulary_parameters(scenario, layouts)
    beside, two = np.maximum(layer, table), np.minimum(2, stages.layers)
    copies, _ = _fp8_copies(scenario, layouts)
    sharded = (layouts.zero >= 3) & (layouts.shards > 1)
    weights = np.where(sharded, np.minimum(layer + beside, parameters) * compute_bytes(scenario) + two * copies, 0.0)
    gradient = beside * PRECISION_BYTES[scenario.software.precision.gradient_dtype]
    return weights + np.where(gradients_sharded(scenario.software, layouts) & (layouts.shards > 1), gradient, 0.0)
