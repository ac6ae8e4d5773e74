"""A dense MLP: one projection or two (gate and up) into the intermediate size, an activation, and one back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rapid_dse.config.model import Model
from rapid_dse.config.software import Software
from rapid_dse.model.layers.eager_kernels import ACTIVATION, kernel_by_kernel, layer_norm, residual_sum, summed_gradients
from rapid_dse.model.layers.part import (
    Counted,
    Exchanged,
    ForwardStep,
    Number,
    Part,
    PartParameters,
    SmallKernel,
    Tensor,
    norm_parameters,
)
from rapid_dse.model.shapes import FloatColumn, MatMul, MicroBatch

GATED = ("swiglu", "geglu")  # whose activated gate is multiplied with a second projection


def mlp_projections(model: Model) -> int:
    """Matrices into the intermediate size: gate and up where the activation is gated, one otherwise."""
    return 2 if model.mlp_type in GATED else 1


def mlp_products(name: str, model: Model, tokens: FloatColumn, wide: Number, batch: Number = 1.0, routed: bool = False) -> list[MatMul]:
    """Into the intermediate size, ``wide`` on a rank, and back; ``batch`` of each in one kernel, ``routed`` experts' or one MLP's.

    Behind attention's four products the fifth is the gate, the sixth what it is multiplied with; without a gate the fifth is all.
    """
    hidden, wide = np.full_like(tokens, model.hidden_size), np.broadcast_to(wide, tokens.shape)
    inward = mlp_projections(model)
    names = ("gate_proj", "up_proj")[-inward:]
    up = MatMul(f"{name}_up", tokens, inward * wide, hidden, batch, second=1 - 1 / inward, routed=routed, megatron="linear_fc1")
    down = MatMul(f"{name}_down", tokens, hidden, wide, batch, second=0.0, routed=routed, megatron="linear_fc2", cut="rows")
    return [replace(up, modules=tuple((product, 1 / inward) for product in names)), replace(down, modules=(("down_proj", 1.0),))]


def mlp_kernels(model: Model, shape: MicroBatch, wide: FloatColumn, software: Software) -> list[SmallKernel]:
    """A norm, a residual sum and the activation of ``wide`` elements: it reads each projection and writes one; backward it reads them
    and a gradient, and writes one for each."""
    stream, gates = shape.norm_tokens * model.hidden_size, mlp_projections(model)
    activation = SmallKernel("activation", wide * (gates + 1), wide * (2 * gates + 1))
    if gates == 1 and kernel_by_kernel(model, software):
        activation = SmallKernel("activation", ACTIVATION[0] * wide, ACTIVATION[1] * wide, counted=Counted((0.0, 0.0), (1.0, 1.0)))
    return [
        layer_norm(model, software, "mlp_norm", stream),
        activation,
        residual_sum(model, software, "mlp_residual", stream),
    ]


def activated(model: Model, wide: FloatColumn, software: Software) -> list[Tensor]:
    """What stands between the projections, of ``wide`` elements each."""
    copy = [] if software.kernels.fused_activation else [Tensor("activation_copy", wide)]
    return [
        Tensor("up", mlp_projections(model) * wide, product=True, first=1 / mlp_projections(model)),
        *copy,
        Tensor("down_input", wide, "input"),
    ]


@dataclass(frozen=True)
class Mlp(Part):
    """Norm and MLP of a dense layer."""

    def parameters(self, shape: MicroBatch) -> PartParameters:
        model, wide, inward = self.model, self.model.intermediate_size / shape.tp, mlp_projections(self.model)
        return PartParameters(
            products=model.hidden_size * wide * (inward + 1),
            biases=inward * wide if model.linear_bias else 0.0,
            norms=norm_parameters(model, model.hidden_size),
            added=model.hidden_size * (model.linear_bias + model.layer_scale),
        )

    def products(self, shape: MicroBatch) -> list[MatMul]:
        return mlp_products("mlp", self.model, shape.tokens, self.model.intermediate_size / shape.tp)

    def operations(self) -> float:
        """Norm, projections, activation, the product with a gate, projection back, sum."""
        return 7.0 if self.model.mlp_type in GATED else 5.0

    def gradient_operations(self, software: Software) -> float:
        """Sums of biases' gradients."""
        return 2.0 * software.kernels.gradient_sums * self.model.linear_bias

    def small_kernels(self, shape: MicroBatch, software: Software) -> list[SmallKernel]:
        kernels = mlp_kernels(self.model, shape, self._wide(shape), software)
        kernels += summed_gradients(software, "mlp_sums", shape, self.model.hidden_size, mlp_projections(self.model) - 1.0)
        if self.model.linear_bias and software.kernels.gradient_sums:
            read = mlp_projections(self.model) * self._wide(shape) + shape.tokens * self.model.hidden_size
            kernels.append(SmallKernel("mlp_bias_gradients", 0.0, read, counted=Counted((0.0, 0.0), (0.0, 2.0))))
        return kernels

    def steps(self) -> tuple[ForwardStep, ...]:
        return (
            ForwardStep("mlp_norm", "mlp_norm_input", ("up_input",)),
            ForwardStep("mlp_gather", "up_input", ("up_gathered",)),
            ForwardStep("mlp_up", "up_gathered", ("up",)),
            ForwardStep("activation", "up", ("down_input", "activation_copy")),
            ForwardStep("mlp_down", "down_input", ("down",)),
            ForwardStep("mlp_scatter", "down", ("down_scattered",)),
            ForwardStep("mlp_residual", "down_scattered", ("mlp_mask",)),
        )

    def tensors(self, shape: MicroBatch, software: Software) -> list[Tensor]:
        """As counted in Korthikanti et al. (arXiv 2205.05198, section 4.1), generalised to gated MLPs."""
        stream = shape.norm_tokens * self.model.hidden_size
        mask = [Tensor("mlp_mask", stream, "byte")] if self.model.drops_out(software.kernels.dropout) else []
        return [
            Tensor("mlp_norm_input", stream),
            Tensor("up_input", stream, "input"),
            *activated(self.model, self._wide(shape), software),
            Tensor("down", stream, product=True, kept=self.model.layer_scale, first=1.0),
            *mask,
        ]

    def exchanged(self) -> tuple[Exchanged, ...]:
        return (Exchanged(),)

    def _wide(self, shape: MicroBatch) -> FloatColumn:
        return shape.tokens * self.model.intermediate_size / shape.tp


PART = Mlp
