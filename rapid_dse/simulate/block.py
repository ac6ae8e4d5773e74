"""What one layer, the embedding and the head cost one rank for one micro-batch: device time, traffic, kernels.

Priced once a distinct micro-batch shape, then gathered: a table of a million layouts has a few hundred of them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.device import AttentionKernel, OperatorModel
from rapid_dse.layouts import Layouts
from rapid_dse.model.operators import MatMul, MicroBatch, head_matmul, layer_matmuls, local_kv_heads, mlp_projections

FloatColumn = NDArray[np.float64]

# Passes over an operand against one fused cast: rowwise scales need a pass for the maxima and one to cast, along rows and along columns.
RECIPE_PASSES = {"delayed": 1.0, "tensorwise": 1.0, "tensorwise + fp8 all-gather": 1.0, "rowwise": 4.0}
ACTIVATION_BYTES = 2  # bf16 or fp16, under fp8 too


@dataclass(frozen=True)
class Block:
    """Device seconds and HBM bytes of one micro-batch on one rank; each ``(n,)``.

    ``layer_*`` are of one layer, ``head_*`` of head and loss, ``embedding_*`` of the look-up; ``attention_forward`` is the part of
    ``layer_forward`` that ring attention's transfers can hide behind, ``weight_gradient`` the part of ``layer_backward`` that nothing waits for.
    """

    layer_forward: FloatColumn
    layer_backward: FloatColumn
    weight_gradient: FloatColumn
    attention_forward: FloatColumn
    attention_backward: FloatColumn
    selective_recompute: FloatColumn
    head_forward: FloatColumn
    head_backward: FloatColumn
    embedding: FloatColumn
    layer_flops: FloatColumn
    head_flops: FloatColumn
    layer_traffic: FloatColumn
    head_traffic: FloatColumn

    def take(self, rows: NDArray[np.int64]) -> Block:
        """The entries at ``rows``."""
        return Block(*(getattr(self, f.name)[rows] for f in fields(self)))


def distinct_shapes(layouts: Layouts, seq_len: int) -> tuple[MicroBatch, NDArray[np.int64]]:
    """The distinct micro-batch shapes of the layouts, and which of them each layout has, ``(n_layouts,)``."""
    packed = ((layouts.tp * 65536 + layouts.cp) * 65536 + layouts.micro_batch_size) * 2 + layouts.sequence_parallel
    _, first, where = np.unique(packed, return_index=True, return_inverse=True)
    rows = layouts.take(first)
    return MicroBatch(rows.tp, rows.cp, rows.micro_batch_size, rows.sequence_parallel, seq_len), where


def price_block(scenario: Scenario, shape: MicroBatch, device: OperatorModel) -> Block:
    """Prices a layer, the head and the embedding for each shape."""
    matmuls = layer_matmuls(scenario.model, shape)
    forward, inputs, weights = _matmul_times(scenario, [*matmuls, head_matmul(scenario.model, shape)], device)
    attention_forward, attention_backward = _attention_times(scenario, shape, device)
    glue_forward, glue_backward = elementwise_bytes(scenario, shape)
    glue_f, glue_b = device.elementwise(glue_forward), device.elementwise(glue_backward)
    head_glue = device.elementwise(loss_bytes(scenario, shape))
    layer_forward = forward[:-1].sum(0) + attention_forward + glue_f
    weight_gradient = weights[:-1].sum(0)
    half_recompute = glue_f + 0.5 * forward[:-1].sum(0)
    core_recompute = attention_forward
    operands = sum(_operand_bytes(matmul) for matmul in matmuls)
    layer_flops = sum(2 * matmul.m * matmul.n * matmul.k for matmul in matmuls) + attention_flops(scenario, shape)
    return Block(
        layer_forward=layer_forward,
        layer_backward=inputs[:-1].sum(0) + weight_gradient + attention_backward + glue_b,
        weight_gradient=weight_gradient,
        attention_forward=attention_forward,
        attention_backward=attention_backward,
        selective_recompute=half_recompute if scenario.software.selective_recompute == "every_other_matmul" else core_recompute,
        head_forward=forward[-1] + head_glue / 2,
        head_backward=inputs[-1] + weights[-1] + head_glue / 2,
        embedding=device.elementwise(3.0 * ACTIVATION_BYTES * shape.tokens * scenario.model.hidden_size),
        layer_flops=layer_flops,
        head_flops=2 * shape.tokens * scenario.model.hidden_size * scenario.model.vocab_size / shape.tp,
        layer_traffic=3 * operands + glue_forward + glue_backward,
        head_traffic=3 * _operand_bytes(head_matmul(scenario.model, shape)) + loss_bytes(scenario, shape),
    )


def _matmul_times(scenario: Scenario, matmuls: list[MatMul], device: OperatorModel) -> tuple[NDArray[np.float64], ...]:
    """Forward, input-gradient and weight-gradient seconds, each ``(n_matmuls, n_shapes)``; each distinct shape is priced once.

    The head stays in 16 bits under fp8, as every recipe keeps it.
    """
    m, n, k = (np.stack([getattr(matmul, axis) for matmul in matmuls]) for axis in "mnk")
    shapes = np.stack([np.stack([m, n, k]), np.stack([m, k, n]), np.stack([n, k, m])]).transpose(0, 2, 3, 1)
    precision = scenario.workload.precision
    times = np.empty(shapes.shape[:3])
    for part, used in ((slice(0, -1), precision), (slice(-1, None), "bf16" if precision == "fp8" else precision)):
        for direction in range(3):
            distinct, where = np.unique(shapes[direction, part].reshape(-1, 3), axis=0, return_inverse=True)
            cost = device.gemm(*distinct.T, precision=used, accumulate=direction == 2)
            times[direction, part] = cost[where].reshape(times[direction, part].shape)
    times /= scenario.software.matmul_efficiency * scenario.hw.efficiency.sustained
    if precision == "fp8":
        times[:, :-1] += _cast_times(scenario, shapes[:, :-1], device)
    return times[0], times[1], times[2]


def _cast_times(scenario: Scenario, shapes: NDArray[np.float64], device: OperatorModel) -> NDArray[np.float64]:
    """Quantisation of both operands of each fp8 product: the recipe's passes over them, 2 bytes read and 1 written."""
    m, n, k = shapes[..., 0], shapes[..., 1], shapes[..., 2]
    return device.elementwise(scenario.software.fp8_cast_passes * RECIPE_PASSES[scenario.software.fp8_recipe] * 3.0 * (m * k + k * n))


def _attention_times(scenario: Scenario, shape: MicroBatch, device: OperatorModel) -> tuple[FloatColumn, FloatColumn]:
    model, software = scenario.model, scenario.software
    heads, kv_heads = model.num_attention_heads / shape.tp, local_kv_heads(model, shape.tp)
    precision = "bf16" if scenario.workload.precision == "fp8" else scenario.workload.precision
    unfused: AttentionKernel = "fused_softmax" if software.fused_softmax else "unfused"
    kernel: AttentionKernel = software.flash_kernel if software.attention == "flash" else unfused
    arguments = np.stack([shape.micro_batch_size.astype(float), heads, kv_heads, shape.cp.astype(float)], axis=1)
    distinct, where = np.unique(arguments, axis=0, return_inverse=True)
    batch, heads, kv_heads, cp = distinct.T
    # Zigzag ring attention gives each rank half of the full rectangle; without cp the kernel skips the masked half itself.
    times = [
        np.where(
            cp == 1,
            device.attention(
                batch,
                heads,
                kv_heads,
                shape.seq_len,
                shape.seq_len,
                model.attention_head_dim,
                direction=direction,
                causal=True,
                kernel=kernel,
                precision=precision,
                window=model.sliding_window,
                dropout=software.dropout,
            ),
            device.attention(
                batch,
                heads,
                kv_heads,
                shape.seq_len / cp,
                shape.seq_len / 2,
                model.attention_head_dim,
                direction=direction,
                causal=False,
                kernel=kernel,
                precision=precision,
                dropout=software.dropout,
            ),
        )[where]
        for direction in ("forward", "backward")
    ]
    held = scenario.hw.efficiency.sustained
    # Without zigzag the last rank of the ring sees every key: (2 cp - 1) / cp of the mean work (arXiv 2310.01889, causal case).
    uneven = np.where(shape.cp > 1, 1.0 if software.cp_balanced else (2.0 * shape.cp - 1) / shape.cp, 1.0)
    return times[0] * (uneven / held), times[1] * (uneven / held)


def attention_flops(scenario: Scenario, shape: MicroBatch) -> FloatColumn:
    """FLOP of one layer's causal attention forward on one rank."""
    width = scenario.model.num_attention_heads * scenario.model.attention_head_dim / shape.tp
    return 2.0 * shape.tokens * shape.seq_len * width


def elementwise_bytes(scenario: Scenario, shape: MicroBatch) -> tuple[FloatColumn, FloatColumn]:
    """HBM bytes of a layer's norms, residuals, rotary embedding and activation, forward and backward.

    The counts are passes of fully fused kernels: a norm reads and writes (backward reads two and writes one), a residual sum reads
    two and writes one; ``software.elementwise_traffic`` says how many times that the framework moves.
    """
    model, software = scenario.model, scenario.software
    stream = shape.norm_tokens * model.hidden_size * ACTIVATION_BYTES
    head = model.attention_head_dim
    rotary = shape.tokens * head * (model.num_attention_heads / shape.tp + local_kv_heads(model, shape.tp)) * ACTIVATION_BYTES
    rotary = rotary if model.position_embedding == "rope" else np.zeros_like(rotary)
    wide = shape.tokens * model.intermediate_size / shape.tp * ACTIVATION_BYTES
    gates = mlp_projections(model)
    dropout = 1.0 if software.dropout else 0.0
    forward = stream * (2 * 2 + 2 * 3 + dropout) + 2 * rotary + wide * (gates + 1)
    backward = stream * (2 * 3 + 2 * 2 + dropout) + 2 * rotary + wide * (2 * gates + 1)
    return forward * software.elementwise_traffic, backward * software.elementwise_traffic


def loss_bytes(scenario: Scenario, shape: MicroBatch) -> FloatColumn:
    """HBM bytes of cross-entropy, forward and backward: 16-bit logits, and fp32 copies where the loss is not fused."""
    logits = shape.tokens * scenario.model.vocab_size / shape.tp
    return logits * (8.0 if scenario.software.fused_cross_entropy else 34.0)


def _operand_bytes(matmul: MatMul) -> FloatColumn:
    return ACTIVATION_BYTES * (matmul.m * matmul.k + matmul.k * matmul.n + matmul.m * matmul.n)
