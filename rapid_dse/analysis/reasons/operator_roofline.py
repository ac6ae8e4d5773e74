"""The operators of a layout on the roofline of its chip: what each takes, what its arithmetic and its traffic alone would take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rapid_dse.analysis.reasons.chosen import PricedTrial
from rapid_dse.model.operators import MatMul, MicroBatch, head_matmul, layer_matmuls
from rapid_dse.simulate.layer_work import distinct_shapes
from rapid_dse.simulate.operator_times import Operators, compute_bytes
from rapid_dse.simulate.training import Prepared, prepare


@dataclass(frozen=True)
class Operator:
    """An operator of one layer, or of the head, for a micro-batch on one GPU, forward and backward together.

    Attributes:
        seconds: as it runs alone.
        flops, bytes: its arithmetic, and the bytes of HBM that it cannot do without; flops 0 where they do not count.
        peak_flops, bandwidth: the roofs of the chip, FLOP/s and bytes/s.
        kernels: how many, at least.
        latency: what the smallest kernel takes, s.
    """

    name: str
    seconds: float
    flops: float
    bytes: float
    peak_flops: float
    bandwidth: float
    kernels: int
    latency: float

    @property
    def intensity(self) -> float:
        """FLOP a byte."""
        return self.flops / self.bytes

    @property
    def least(self) -> float:
        """Seconds that the roofline allows."""
        return max(self.flops / self.peak_flops, self.bytes / self.bandwidth)

    @property
    def bound(self) -> str:
        """What takes longest alone: the arithmetic (compute), the traffic (HBM), or the kernels' own start (launch)."""
        alone = {"compute": self.flops / self.peak_flops, "HBM": self.bytes / self.bandwidth, "launch": self.kernels * self.latency}
        return max(alone, key=lambda name: alone[name])

    @property
    def reached(self) -> float:
        """Share of the roofline that it reaches."""
        return self.least / self.seconds


def operators_of(of: PricedTrial) -> list[Operator]:
    """The operators of a training step: a layer's products, attention and small kernels, then the head and its loss."""
    scenario, layout = of.scenario, of.layout
    ready = prepare(scenario, layout)
    shape, _ = distinct_shapes(layout, scenario.workload.seq_len)
    return [*_products(of, shape, ready.alone), *_others(of, shape, ready)]


def _products(of: PricedTrial, shape: MicroBatch, alone: Operators) -> Iterator[Operator]:
    scenario, width = of.scenario, compute_bytes(of.scenario)
    for at, matmul in enumerate([*layer_matmuls(scenario.model, shape), head_matmul(scenario.model, shape)]):
        precision = scenario.workload.precision
        used = "bf16" if matmul.sixteen_bit and precision == "fp8" else precision
        held = 1 if used == "fp8" else width
        seconds = float(alone.matmul_seconds[:, at].sum())
        yield _operator(of, matmul.name, (seconds, 3 * float(matmul.flops[0]), 3 * held * _operands(matmul)), used, 3)


def _others(of: PricedTrial, shape: MicroBatch, ready: Prepared) -> Iterator[Operator]:
    scenario, model, alone = of.scenario, of.scenario.model, ready.alone
    attention = float(alone.attention_forward[0] + alone.attention_backward[0])
    products = sum(float(each.flops[0]) for each in layer_matmuls(model, shape))
    flops = 3.5 * (float(alone.layer_flops[0]) - products)  # backward runs five products where forward runs two
    heads = (2 * model.num_attention_heads + 2 * model.num_key_value_heads) * model.attention_head_dim / float(shape.tp[0])
    yield _operator(of, "attention", (attention, flops, 3 * compute_bytes(scenario) * float(shape.tokens[0]) * heads), "bf16", 2)
    moved = float(alone.glue_forward_bytes[0] + alone.glue_backward_bytes[0])
    for name, size, times in (
        ("small kernels", moved, scenario.software.kernels.elementwise_traffic),
        ("loss", float(alone.loss_bytes[0]), 1.0),
    ):
        seconds = float(np.asarray(ready.device.elementwise(size * times)))
        yield _operator(of, name, (seconds, 0.0, size), "bf16", 2)


def _operator(of: PricedTrial, name: str, work: tuple[float, float, float], precision: str, kernels: int) -> Operator:
    hw = of.scenario.hw
    known = precision if precision in hw.precisions else "fp32"
    return Operator(name, *work, hw.peak_flops(known), hw.memory.bandwidth, kernels, hw.kernel_latency)


def _operands(matmul: MatMul) -> float:
    each = matmul.batch * (matmul.m * matmul.k + matmul.k * matmul.n + matmul.m * matmul.n)
    return float(np.asarray(each).ravel()[0])
