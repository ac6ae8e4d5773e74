"""What the operators of a layer cost alone, before a framework's factors: seconds of products and attention, bytes of the rest.

Nothing here depends on what ``calibrate`` fits to a framework, so that a fit prices it once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.hardware import PRECISION_BYTES
from rapid_dse.config.model import Model
from rapid_dse.config.scenario import Scenario
from rapid_dse.device import OperatorModel
from rapid_dse.model.operators import (
    MatMul,
    MicroBatch,
    head_matmul,
    layer_matmuls,
    local_kv_heads,
    mean_context,
    mlp_projections,
    wide_elements,
)
from rapid_dse.simulate.loss import loss_traffic
from rapid_dse.simulate.ring_attention import AttentionKernels, ring_attention

FloatColumn = NDArray[np.float64]

# Passes over an operand against one fused cast: rowwise scales need a pass for the maxima and one to cast, along rows and along columns.
RECIPE_PASSES = {"delayed": 1.0, "tensorwise": 1.0, "tensorwise + fp8 all-gather": 1.0, "rowwise": 4.0}


@dataclass(frozen=True)
class Operators:
    """One layer and the head for each micro-batch shape.

    ``matmul_seconds`` and ``cast_bytes`` are ``(3, n_matmuls, n_shapes)``: forward, input gradient, weight gradient; the head is the
    last product. The others are ``(n_shapes,)``: seconds of attention, HBM bytes of fully fused elementwise kernels, of the loss and of
    the products' operands, FLOP forward.
    """

    matmul_seconds: NDArray[np.float64]
    cast_bytes: NDArray[np.float64]
    attention_forward: FloatColumn
    attention_backward: FloatColumn
    glue_forward_bytes: FloatColumn
    glue_backward_bytes: FloatColumn
    loss_bytes: FloatColumn
    layer_operand_bytes: FloatColumn
    head_operand_bytes: FloatColumn
    layer_flops: FloatColumn


def compute_bytes(scenario: Scenario) -> int:
    """Bytes of an activation, and of the weight that computes: 16 bits, under fp8 too, 32 under fp32 and TF32."""
    return int(max(2, PRECISION_BYTES[scenario.workload.precision]))


def operators(scenario: Scenario, shape: MicroBatch, device: OperatorModel) -> Operators:
    """Prices a layer's operators and the head's for each shape."""
    layer, head = layer_matmuls(scenario.model, shape), head_matmul(scenario.model, shape)
    matmuls = [*layer, head]
    shapes = _three_directions(matmuls)
    narrow = np.array([scenario.workload.precision == "fp8" and not each.sixteen_bit for each in matmuls])
    forward, backward = (_attention_seconds(scenario, shape, device, direction) for direction in ("forward", "backward"))
    glue_forward, glue_backward = elementwise_bytes(scenario, shape)
    flops = np.sum([each.flops for each in layer], axis=0)
    return Operators(
        matmul_seconds=_matmul_seconds(scenario, shapes, narrow, device),
        cast_bytes=_cast_bytes(scenario, shapes, narrow),
        attention_forward=forward,
        attention_backward=backward,
        glue_forward_bytes=glue_forward,
        glue_backward_bytes=glue_backward,
        loss_bytes=loss_traffic(scenario, shape.tokens, shape.tp, compute_bytes(scenario)),
        layer_operand_bytes=compute_bytes(scenario) * np.sum([_operands(each) for each in layer], axis=0),
        head_operand_bytes=compute_bytes(scenario) * _operands(head),
        layer_flops=flops + attention_flops(scenario, shape),
    )


def _three_directions(matmuls: list[MatMul]) -> NDArray[np.float64]:
    """(m, n, k, batch) of forward, input gradient and weight gradient: ``(3, n_matmuls, n_shapes, 4)``."""
    m, n, k = (np.stack([getattr(matmul, axis) for matmul in matmuls]) for axis in "mnk")
    batch = np.stack([np.broadcast_to(matmul.batch, matmul.m.shape) for matmul in matmuls])
    directions = ((m, n, k, batch), (m, k, n, batch), (n, k, m, batch))
    return np.stack([np.stack(each) for each in directions]).transpose(0, 2, 3, 1)


def _matmul_seconds(
    scenario: Scenario, shapes: NDArray[np.float64], narrow: NDArray[np.bool_], device: OperatorModel
) -> NDArray[np.float64]:
    """Seconds of each product, ``(3, n_matmuls, n_shapes)``, a distinct shape priced once; ``narrow`` ones run in fp8."""
    precision = scenario.workload.precision
    times = np.empty(shapes.shape[:3])
    wide = "bf16" if precision == "fp8" else precision
    for part, used in ((narrow, "fp8"), (~narrow, wide)):
        for rows, accumulate in ((slice(0, 2), False), (slice(2, 3), scenario.software.kernels.fused_accumulation)) if part.any() else ():
            wanted = shapes[rows, part]
            distinct, where = np.unique(wanted.reshape(-1, 4), axis=0, return_inverse=True)
            m, n, k, batch = distinct.T
            cost = device.gemm(m, n, k, batch=batch, precision=used, accumulate=accumulate)
            times[rows, part] = cost[where].reshape(wanted.shape[:3])
    return times / scenario.hw.efficiency.sustained


def _cast_bytes(scenario: Scenario, shapes: NDArray[np.float64], narrow: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Bytes that quantising the operands of fp8 products moves in a micro-batch, by library and recipe.

    torchao casts both operands of each product, 2 bytes read and 1 written an element. Transformer Engine casts a product's input and the
    gradient of its output once, with their transposes in the same kernel (2 read, 2 written), which the weight gradient takes; weights it
    casts once a step, at the first micro-batch (its ``is_first_microbatch``).
    """
    m, n, k, batch = (shapes[..., axis] for axis in range(4))
    passes = RECIPE_PASSES[scenario.software.precision.fp8_recipe]
    if scenario.software.precision.fp8_library == "transformer_engine":
        once = np.array([1.0, 1.0, 0.0])[:, None, None]  # forward casts the input, the input gradient the gradient of the output
        return np.where(narrow[:, None], passes * 4.0 * once * batch * m * k, 0.0)
    return np.where(narrow[:, None], passes * 3.0 * batch * (m * k + k * n), 0.0)


def _attention_seconds(
    scenario: Scenario, shape: MicroBatch, device: OperatorModel, direction: Literal["forward", "backward"]
) -> FloatColumn:
    """Seconds of one layer's attention, s, ``(n_shapes,)``."""
    seconds = np.empty(len(shape.tp))
    ring, kernels = shape.cp > 1, AttentionKernels(scenario, shape, device, direction)
    if (~ring).any():
        seconds[~ring] = kernels.of(~ring, shape.seq_len, shape.seq_len)
    if ring.any():
        seconds[ring] = ring_attention(scenario, shape, kernels, ring)
    return seconds / scenario.hw.efficiency.sustained


def attention_flops(scenario: Scenario, shape: MicroBatch) -> FloatColumn:
    """FLOP of one layer's causal attention forward on one rank."""
    width = scenario.model.num_attention_heads * scenario.model.attention_head_dim / shape.tp
    return 4.0 * shape.tokens * mean_context(scenario.model, shape.seq_len) * width


def elementwise_bytes(scenario: Scenario, shape: MicroBatch) -> tuple[FloatColumn, FloatColumn]:
    """HBM bytes of a layer's norms (of queries and keys too where the model has those), residuals, rotary embedding and
    activation, forward and backward.

    The counts are passes of fully fused kernels: a norm reads and writes (backward reads two and writes one), a residual sum reads
    two and writes one; ``software.elementwise_traffic`` says how many times that a framework moves.
    """
    model, software = scenario.model, scenario.software
    width = compute_bytes(scenario)
    stream = shape.norm_tokens * model.hidden_size * width
    head = model.attention_head_dim
    heads = shape.tokens * head * (model.num_attention_heads / shape.tp + local_kv_heads(model, shape.tp)) * width  # queries and keys
    rotary = heads if model.position_embedding == "rope" else np.zeros_like(heads)
    wide = wide_elements(model, shape) * width
    gates = mlp_projections(model)
    dropout = 1.0 if software.kernels.dropout else 0.0
    normed = heads if model.qk_norm else np.zeros_like(heads)
    forward = stream * (2 * 2 + 2 * 3 + dropout) + 2 * (rotary + normed) + wide * (gates + 1)
    backward = stream * (2 * 3 + 2 * 2 + dropout) + 2 * rotary + 3 * normed + wide * (2 * gates + 1)
    routing = _routing_bytes(model, shape, width) if model.num_experts else 0.0
    return forward + routing, backward + routing


def _routing_bytes(model: Model, shape: MicroBatch, width: int) -> FloatColumn:
    """HBM bytes, one way, of what takes tokens to their experts and back: the router's softmax and choice in fp32 (two passes), a copy of
    each token for each of its experts, sorting what has arrived by expert and back where a rank has several, the weighted sum."""
    copies, row = model.num_experts_per_tok, model.hidden_size * width
    choice = shape.norm_tokens * model.num_experts * 4.0 * 4
    spread_and_summed = shape.norm_tokens * row * (2.0 * copies + copies + 1)
    sorted_ = shape.routed_rows(model) * row * 4.0 * (shape.ep < model.num_experts)
    return choice + spread_and_summed + sorted_


def _operands(matmul: MatMul) -> FloatColumn:
    return matmul.batch * (matmul.m * matmul.k + matmul.k * matmul.n + matmul.m * matmul.n)
