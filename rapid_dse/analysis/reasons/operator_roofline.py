"""The operators of a layout on the roofline of its chip: what each takes, what its arithmetic and its traffic alone would take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rapid_dse.analysis.reasons.chosen import PricedTrial
from rapid_dse.config.hardware import NARROW_BYTES
from rapid_dse.device import OperatorModel, operator_model
from rapid_dse.model.architecture import LayerKind, architecture_of
from rapid_dse.model.shapes import MatMul, MicroBatch
from rapid_dse.parallel.engines import Engines
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.inference.passes import all_products
from rapid_dse.simulate.inference.served_kernels import decode_attention, price_products
from rapid_dse.simulate.inference.widths import product_precision
from rapid_dse.simulate.layer_work import distinct_shapes
from rapid_dse.simulate.matmul_precision import matmul_precision
from rapid_dse.simulate.operator_times import LayerOperators, compute_bytes, directions
from rapid_dse.simulate.training import prepare


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
    """The operators of a training step: the products, attention and small kernels of a layer of each kind, then the head and its loss.

    Of inference: the products and attention of a layer's decode step; of a model that decodes nothing those of its pass forward.
    """
    scenario, layout = of.scenario, of.layout
    if isinstance(layout, Engines):
        return list(_decoding(of, layout) if scenario.model.of_kind.decodes else _forward(of, layout.batches(scenario)))
    ready, model = prepare(scenario, layout), architecture_of(scenario)
    shape, _ = distinct_shapes(layout, scenario.workload)
    operators: list[Operator] = []
    for kind, alone in zip(model.kinds, ready.alone.layers, strict=True):
        layer = [*_products(of, kind.products(shape), alone.matmul_seconds), *_others(of, kind, shape, (ready.device, alone))]
        label = f" of {kind.name}" if len(model.kinds) > 1 else ""
        operators += [replace(operator, name=operator.name + label) for operator in layer]
    for end, priced in ((model.embedding, ready.alone.embedding), (model.head, ready.alone.head)):
        operators += _products(of, end.products(shape), priced.seconds[:, None])
    read = ready.alone.loss_bytes
    return [*operators, *([_streamed(of, "loss", ready.device, read, 1.0)] if read.any() else [])]


def _products(of: PricedTrial, matmuls: Sequence[MatMul], times: NDArray[np.float64]) -> Iterator[Operator]:
    width = compute_bytes(of.scenario)
    for at, matmul in enumerate(matmuls):
        used = matmul_precision(of.scenario, matmul)
        width_held = NARROW_BYTES.get(used, width)
        seconds = float(times[:, at].sum())
        runs = directions(matmul)
        yield _operator(of, matmul.name, (seconds, runs * float(matmul.flops[0]), runs * width_held * _operands(matmul)), used, runs)


def _others(of: PricedTrial, kind: LayerKind, shape: MicroBatch, priced: tuple[OperatorModel, LayerOperators]) -> Iterator[Operator]:
    device, alone = priced
    attention = float(alone.attention_forward[0] + alone.attention_backward[0])
    products = sum(float(product.flops[0]) for product in kind.products(shape))
    flops = 3.5 * (float(alone.flops[0]) - products)  # backward runs five products where forward runs two
    core, model = kind.attention(shape), of.scenario.model
    if core is not None:
        heads = (2 * model.num_attention_heads + 2 * model.num_key_value_heads) * core.head_dim / float(shape.tp[0])
        hbm_bytes = 3 * compute_bytes(of.scenario) * float(shape.tokens[0]) * heads
        yield _operator(of, "attention", (attention, flops, hbm_bytes), "bf16", 2)
    streamed = alone.glue_forward_bytes + alone.glue_backward_bytes
    yield _streamed(of, "small kernels", device, streamed, of.scenario.software.kernels.elementwise_traffic)
    yield from _counted(of, alone, kind, shape)


def _counted(of: PricedTrial, alone: LayerOperators, kind: LayerKind, shape: MicroBatch) -> Iterator[Operator]:
    """Eager kernels that are counted one by one, where the framework has some."""
    seconds = float(alone.counted_forward[0] + alone.counted_backward[0])
    if seconds > 0:
        counted = [kernel for kernel in kind.small_kernels(shape, of.scenario.software) if kernel.counted is not None]
        hbm_bytes = sum(compute_bytes(of.scenario) * (kernel.forward + kernel.backward) + 2 * kernel.fp32 for kernel in counted)
        yield _operator(of, "eager kernels", (seconds, 0.0, float(np.ravel(hbm_bytes)[0])), "bf16", 2)


def _streamed(of: PricedTrial, name: str, device: OperatorModel, size: NDArray[np.float64], times: float) -> Operator:
    """Kernels that do little but move bytes."""
    seconds = float(np.ravel(device.elementwise(size * times))[0])
    return _operator(of, name, (seconds, 0.0, float(size[0])), "bf16", 2)


def _forward(of: PricedTrial, layout: Layouts) -> Iterator[Operator]:
    """The products, attention and small kernels of a layer of each kind in one pass forward of a batch."""
    scenario, shape = of.scenario, distinct_shapes(layout, of.scenario.workload)[0]
    ready, model, width = prepare(scenario, layout), architecture_of(scenario), compute_bytes(of.scenario)
    for kind, alone in zip(model.kinds, ready.alone.layers, strict=True):
        products = kind.products(shape)
        for at, matmul in enumerate(products):
            used = matmul_precision(scenario, matmul)
            work = (float(alone.matmul_seconds[0, at].sum()), float(matmul.flops[0]), NARROW_BYTES.get(used, width) * _operands(matmul))
            yield _operator(of, matmul.name, work, used, 1)
        if (core := kind.attention(shape)) is not None:
            heads = (2 * scenario.model.num_attention_heads + 2 * scenario.model.num_key_value_heads) * core.head_dim / float(shape.tp[0])
            flops = float(alone.flops[0]) - sum(float(product.flops[0]) for product in products)
            yield _operator(of, "attention", (float(alone.attention_forward[0]), flops, width * float(shape.tokens[0]) * heads), "bf16", 1)
        if alone.glue_forward_bytes.any():
            traffic = scenario.software.kernels.elementwise_traffic
            yield _streamed(of, "small kernels", ready.device, alone.glue_forward_bytes, traffic)
        counted = [kernel for kernel in kind.small_kernels(shape, scenario.software) if kernel.counted is not None]
        if counted:
            hbm_bytes = sum(width * kernel.forward + kernel.fp32 for kernel in counted)
            seconds = float(np.ravel(alone.counted_forward)[0])
            yield _operator(of, "eager kernels", (seconds, 0.0, float(np.ravel(hbm_bytes)[0])), "bf16", len(counted))


def _decoding(of: PricedTrial, layout: Engines) -> Iterator[Operator]:
    """The products of a decode step on one GPU, and attention at the context of a request that is half done."""
    scenario, cut = of.scenario, layout.degrees("decode" if layout.pooled[0] else None)
    copies = layout.decode_workers * layout.dp if layout.pooled[0] else layout.dp
    rows = np.maximum(1.0, np.array([of.figures["running_requests"]]) / (copies * cut.attention_dp * cut.pp))
    prompt, generated = scenario.workload.lengths
    device = operator_model(scenario.hw)
    attention = decode_attention(scenario, cut, rows, prompt + max(1.0, generated / 2), 1.0, device)
    named = [
        (product.matmul.name, price_products(scenario, [product], device, decoding=True), product)
        for product in all_products(scenario, cut, rows, decoding=True)
    ]
    for name, operators, product in named:
        precision = scenario.hw.arithmetic(product_precision(scenario, product))
        yield _operator(of, name, (float(operators.seconds[0]), float(operators.flops[0]), float(operators.hbm_bytes[0])), precision, 1)
    yield _operator(of, "attention", (float(attention.seconds[0]), float(attention.flops[0]), float(attention.hbm_bytes[0])), "bf16", 1)


def _operator(of: PricedTrial, name: str, work: tuple[float, float, float], precision: str, kernels: int) -> Operator:
    hw = of.scenario.hw
    known = precision if precision in hw.precisions else "fp32"
    return Operator(name, *work, hw.peak_flops(known), hw.memory.bandwidth, kernels, hw.kernel_latency)


def _operands(matmul: MatMul) -> float:
    values = matmul.batch * (matmul.m * matmul.k + matmul.k * matmul.n + matmul.m * matmul.n)
    return float(np.asarray(values).ravel()[0])
