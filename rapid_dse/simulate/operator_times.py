"""What the operators of a layer cost alone, before a framework's factors: seconds of products and attention, bytes of the rest.

Nothing here depends on what ``calibrate`` fits to a framework, so that a fit prices it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import FIRST, added, distinct, numbered
from rapid_dse.config.hardware import PRECISION_BYTES
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software.expert_settings import ExpertProducts
from rapid_dse.cost.energy import attention_energy, product_energy
from rapid_dse.device import GroupedCall, OperatorModel
from rapid_dse.device.contract import UNFUSED
from rapid_dse.model.architecture import LayerKind, architecture_of
from rapid_dse.model.layers.end import End
from rapid_dse.model.recompute import Recomputation, recomputation, selective
from rapid_dse.model.shapes import MatMul, MicroBatch
from rapid_dse.simulate.attention_times import all_scores, attention_bytes, attention_flops, attention_kernels
from rapid_dse.simulate.casts import cast_bytes
from rapid_dse.simulate.loss import loss_traffic
from rapid_dse.simulate.matmul_precision import CONVOLUTION, matmul_precision, wide_precision

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class LayerOperators:
    """A layer of one kind for each micro-batch shape.

    Attributes:
        matmul_seconds, cast_bytes: ``(3, n_matmuls, n_shapes)``: forward, input gradient, weight gradient of each product; the first
            ``mixing`` products are attention's and what stands before it. ``again``: the share of each that selective recomputation
            repeats, ``(n_matmuls, n_shapes)``.
        attention_forward, attention_backward: seconds of the attention kernel, ``(n_shapes,)``.
        counted_forward, counted_backward, counted_again: seconds of eager kernels that are counted one by one (``Counted``), and the
            ``counted_bytes`` of HBM that they move forward and backward.
        glue_forward_bytes, glue_backward_bytes: HBM bytes of fully fused elementwise kernels; ``glue_again_bytes``: of those that selective
            recomputation repeats; ``operand_bytes``: of the products' operands, in all directions; ``attention_bytes``: of the attention
            kernels, forward and backward.
        flops: FLOP of the forward pass.
        product_joules, backward_joules, attention_joules: energy of the arithmetic of the products forward and backward, and of the
            attention kernel forward; ``again_joules``: of the products that selective recomputation repeats.
    """

    matmul_seconds: NDArray[np.float64]
    cast_bytes: NDArray[np.float64]
    again: NDArray[np.float64]
    mixing: int
    attention_forward: FloatColumn
    attention_backward: FloatColumn
    counted_forward: FloatColumn
    counted_backward: FloatColumn
    counted_again: FloatColumn
    counted_bytes: FloatColumn
    glue_forward_bytes: FloatColumn
    glue_backward_bytes: FloatColumn
    glue_again_bytes: FloatColumn
    operand_bytes: FloatColumn
    flops: FloatColumn
    product_joules: FloatColumn
    backward_joules: FloatColumn
    attention_joules: FloatColumn
    again_joules: FloatColumn
    attention_bytes: FloatColumn


@dataclass(frozen=True)
class Operators:
    """The layers of each kind and what stands around them, for each micro-batch shape.

    Attributes:
        layers: one of each kind; ``embedding``, ``head``: the ends.
        loss_bytes: HBM bytes of the loss, ``(n_shapes,)``.
    """

    layers: tuple[LayerOperators, ...]
    embedding: EndOperators
    head: EndOperators
    loss_bytes: FloatColumn


@dataclass(frozen=True)
class EndOperators:
    """What stands before or behind the layers, for each micro-batch shape.

    Attributes:
        seconds, cast_bytes: of its products, ``(3, n_shapes)``: forward, input gradient, weight gradient.
        operand_bytes: HBM bytes of the products' operands; ``glue_forward_bytes``, ``glue_backward_bytes`` of its small kernels, fully
            fused; ``joules`` of the arithmetic of all that runs, of which ``forward_joules`` forward; ``(n_shapes,)`` each.
    """

    seconds: NDArray[np.float64]
    cast_bytes: NDArray[np.float64]
    operand_bytes: FloatColumn
    glue_forward_bytes: FloatColumn
    glue_backward_bytes: FloatColumn
    joules: FloatColumn
    forward_joules: FloatColumn


def compute_bytes(scenario: Scenario) -> int:
    """Bytes of an activation, and of the weight that computes: 16 bits, under fp8 too, 32 under fp32 and TF32."""
    return int(max(2, PRECISION_BYTES[scenario.workload.precision]))


def operators(scenario: Scenario, shape: MicroBatch, device: OperatorModel, slowest: FloatColumn | float = 1.0) -> Operators:
    """Prices the operators of a layer of each kind and the head's for each shape; products and attention run ``slowest`` times as long on
    the GPU that all others wait for, ``(n_shapes,)``."""
    model = architecture_of(scenario)
    ends = [model.embedding, model.head]
    every = [*(kind.products(shape) for kind in model.kinds), *(end.products(shape) for end in ends)]
    matmuls = [matmul for part in every for matmul in part]
    shapes = _three_directions(matmuls)
    places = np.cumsum([len(part) for part in every])[:-1]
    runs = np.array([[True, True, not matmul.frozen] for matmul in matmuls]).T[..., None]  # frozen weights have no gradient
    seconds = np.split(runs * _matmul_seconds(scenario, matmuls, shapes, device) * slowest, places, axis=1)
    casts = np.split(runs * cast_bytes(scenario, matmuls, shapes, shape), places, axis=1)
    kernels = [(forward * slowest, backward * slowest) for forward, backward in attention_kernels(scenario, model.kinds, shape, device)]
    return Operators(
        layers=tuple(
            _layer_operators(scenario, kind, shape, (seconds[number], casts[number], *kernels[number]), some, device)
            for number, (kind, some) in enumerate(zip(model.kinds, selective(scenario), strict=True))
        ),
        embedding=_end_operators(scenario, model.embedding, shape, (seconds[-2], casts[-2]), needed=False),
        head=_end_operators(scenario, model.head, shape, (seconds[-1], casts[-1]), needed=True),
        loss_bytes=loss_traffic(scenario, shape, compute_bytes(scenario)),
    )


def layer_alone(scenario: Scenario, kind: LayerKind, shape: MicroBatch, device: OperatorModel) -> LayerOperators:
    """A layer of one kind, with nothing run again, whichever the model's layers are."""
    matmuls = kind.products(shape)
    shapes = _three_directions(matmuls)
    priced = _matmul_seconds(scenario, matmuls, shapes, device), cast_bytes(scenario, matmuls, shapes, shape)
    kernels = attention_kernels(scenario, [kind], shape, device)[0]
    return _layer_operators(scenario, kind, shape, (*priced, *kernels), recomputation(kind, scenario.software, ()), device)


def _end_operators(
    scenario: Scenario, end: End, shape: MicroBatch, products: tuple[NDArray[np.float64], NDArray[np.float64]], *, needed: bool
) -> EndOperators:
    """What stands before or behind the layers, from seconds and cast bytes of its products; ``needed``: whether something needs the
    gradient of what it reads."""
    none, (seconds, casts) = np.zeros(len(shape.tp)), (sum(product.swapaxes(0, 1), np.zeros((3, len(shape.tp)))) for product in products)
    operands = compute_bytes(scenario) * sum((_operands(product) for product in end.products(shape)), none)
    forward, backward = elementwise_bytes(scenario, LayerKind("", (end,)), shape)
    joules = [_product_joules(scenario, product) for product in end.products(shape)]
    every = sum(((directions(product) - (not needed)) * one for product, one in zip(end.products(shape), joules, strict=True)), none)
    return EndOperators(seconds, casts, operands, forward, backward, every, sum(joules, none))


def _layer_operators(
    scenario: Scenario,
    kind: LayerKind,
    shape: MicroBatch,
    priced: tuple[NDArray[np.float64], NDArray[np.float64], FloatColumn, FloatColumn],
    some: Recomputation,
    device: OperatorModel,
) -> LayerOperators:
    """A layer of one kind, from seconds and cast bytes of its products and the seconds of its attention kernel forward and backward."""
    matmuls = kind.products(shape)
    forward, backward = elementwise_bytes(scenario, kind, shape)
    counted = [counted_seconds(scenario, kind, shape, device, way) for way in (0, 1)]
    again = np.empty((len(matmuls), len(shape.tp)))
    for place, (share, matmul) in enumerate(zip(some.products, matmuls, strict=True)):
        again[place] = share + some.seconds * matmul.second
    joules = np.stack([_product_joules(scenario, matmul) for matmul in matmuls])
    core = kind.attention(shape)
    attending = attention_flops(core, shape)
    multiplied = all_scores(core, shape) if scenario.attention_kernel in UNFUSED else attending
    return LayerOperators(
        *priced[:2],
        again=again,
        mixing=sum(len(part.products(shape)) for part in kind.parts[:-1]),
        attention_forward=priced[2],
        attention_backward=priced[3],
        counted_forward=counted[0],
        counted_backward=counted[1],
        counted_again=counted_seconds(scenario, kind, shape, device, 0, some.small),
        counted_bytes=_counted_bytes(scenario, kind, shape),
        glue_forward_bytes=forward,
        glue_backward_bytes=backward,
        glue_again_bytes=_again_bytes(scenario, kind, shape, some),
        operand_bytes=compute_bytes(scenario) * added(_operands(matmul) for matmul in matmuls),
        flops=added(matmul.flops for matmul in matmuls) + attending,
        product_joules=added(joules),
        backward_joules=added(
            (directions(matmul) - 1) * one - (directions(matmul) - 2) * _cached_joules(scenario, matmul)
            for matmul, one in zip(matmuls, joules, strict=True)
        ),
        attention_joules=attention_energy(scenario.hw, wide_precision(scenario), scenario.attention_kernel, multiplied),
        again_joules=added(again * joules),
        attention_bytes=attention_bytes(scenario, core, shape, compute_bytes(scenario)),
    )


def _product_joules(scenario: Scenario, matmul: MatMul) -> FloatColumn:
    """Energy of one direction of a product, J, ``(n_shapes,)``: of its arithmetic, with what operands take on chip, and of weights that
    each of many turns reads from L2 once more."""
    return product_energy(scenario.hw, matmul_precision(scenario, matmul), matmul.flops) + _cached_joules(scenario, matmul)


def _cached_joules(scenario: Scenario, matmul: MatMul) -> FloatColumn:
    """Energy of those readings, forward or of the input's gradient, J, ``(n_shapes,)``; a weight gradient, one product, has none. What L2
    does not hold of all the weights that take turns comes from HBM each time."""
    if isinstance(matmul.in_turn, int | float) and matmul.in_turn == 1:
        return np.zeros(len(matmul.m))
    in_turn, energy = compute_bytes(scenario) * matmul.batch * matmul.k * matmul.n, scenario.hw.energy
    missing = np.maximum(0.0, 1.0 - scenario.hw.l2.size / np.maximum(in_turn, 1.0))
    return np.asarray((matmul.in_turn - 1.0) * in_turn * (energy.l2 + missing * energy.hbm), dtype=np.float64)


def _three_directions(matmuls: Sequence[MatMul]) -> NDArray[np.float64]:
    """(m, n, k, batch) of forward, input gradient and weight gradient: ``(3, n_matmuls, n_shapes, 4)``."""
    sizes = np.empty((5, len(matmuls), len(matmuls[0].m)))
    for place, matmul in enumerate(matmuls):
        for axis, size in enumerate((matmul.m, matmul.n, matmul.k, matmul.batch, matmul.in_turn)):
            sizes[axis, place] = size
    m, n, k, batch, turns = sizes
    rows, sequences = np.where(turns != 1, m * batch * turns, m), np.where(turns != 1, 1.0, batch)
    directions = ((m, n, k, batch), (m, k, n, batch), (n, k, rows, sequences))
    return np.array(directions).transpose(0, 2, 3, 1)


def _matmul_seconds(
    scenario: Scenario, matmuls: Sequence[MatMul], shapes: NDArray[np.float64], device: OperatorModel
) -> NDArray[np.float64]:
    """Seconds of each product, ``(3, n_matmuls, n_shapes)``: one for each of its modules where training has separate projections."""
    parts = [matmul.modules if len(matmul.modules) > 1 and not matmul.routed else () for matmul in matmuls]
    apart = scenario.workload.kind == "training" and scenario.software.kernels.separate_projections != "none"
    if not apart or not any(parts):
        return _kernel_seconds(scenario, matmuls, shapes, device)
    owners = np.repeat(np.arange(len(matmuls)), [max(1, len(modules)) for modules in parts])
    shares = [share for modules in parts for _, share in modules or (("", 1.0),)]
    kernels = shapes[:, owners].copy()
    for kernel, share in enumerate(shares):
        for direction, columns in enumerate((1, 2, 0)):  # of the weight, among m, n and k of each direction
            kernels[direction, kernel, :, columns] = np.rint(share * kernels[direction, kernel, :, columns])
    seconds = _kernel_seconds(scenario, [matmuls[owner] for owner in owners.tolist()], kernels, device)
    return np.add.reduceat(seconds, np.flatnonzero(np.diff(owners, prepend=-1)), axis=1)


def _kernel_seconds(
    scenario: Scenario, matmuls: Sequence[MatMul], shapes: NDArray[np.float64], device: OperatorModel
) -> NDArray[np.float64]:
    """Seconds of products that are a kernel each, ``(3, n_matmuls, n_shapes)``, a distinct shape priced once; all but ``sixteen_bit`` ones
    run in fp8 or fp4 where the scenario is narrow, those of routed experts as ``software.expert_products`` says."""
    times = np.empty(shapes.shape[:3])
    accumulates = scenario.software.kernels.fused_accumulation
    used = [(matmul_precision(scenario, matmul), _form(scenario, matmul)) for matmul in matmuls]
    for precision, form in dict.fromkeys(used):
        part = [number for number, one in enumerate(used) if one == (precision, form)]
        one = shapes.shape[2] == 1
        alike = [(FIRST, FIRST) if one else distinct([_numbered(axis) for axis in shapes[0, product].T]) for product in part]
        ends = np.cumsum([len(first) for first, _ in alike])[:-1]
        for rows, weight in ((slice(0, 2), False), (slice(2, 3), True)):
            wanted = np.concatenate([shapes[rows, product, first] for product, (first, _) in zip(part, alike, strict=True)], axis=1)
            cost = distinct_seconds(device, wanted.reshape(-1, 4), form, precision, (weight, weight and accumulates))
            cost = cost.reshape(wanted.shape[:2])
            for product, seconds, (_, kind) in zip(part, np.split(cost, ends, axis=1), alike, strict=True):
                times[rows, product] = seconds.take(kind, axis=1)
    for product, matmul in enumerate(matmuls):
        times[:2, product] *= matmul.in_turn
        times[:, product] *= CONVOLUTION if matmul.convolved else 1.0
    return times / (scenario.hw.efficiency.sustained if scenario.model.of_kind.looped else 1.0)  # one product is no sustained load


def _form(scenario: Scenario, matmul: MatMul) -> ExpertProducts:
    """How a product runs; one that is no expert's is a single stream."""
    return scenario.software.experts.expert_products if matmul.routed else "streams"


FEW = 64  # so many products are priced sooner than they are told apart


def distinct_seconds(
    device: OperatorModel, shapes: NDArray[np.float64], form: ExpertProducts, precision: str, weight: tuple[bool, bool] = (False, False)
) -> FloatColumn:
    """``product_seconds``, of which each distinct one is priced once."""
    if len(shapes) <= FEW:
        return product_seconds(device, shapes, form, precision, weight)
    first, kind = distinct([_numbered(axis) for axis in shapes.T])  # rows as a whole take several times as long to sort
    return product_seconds(device, shapes.take(first, axis=0), form, precision, weight).take(kind)


def product_seconds(
    device: OperatorModel, shapes: NDArray[np.float64], form: ExpertProducts, precision: str, weight: tuple[bool, bool] = (False, False)
) -> FloatColumn:
    """Seconds of products ``(n, 4)``: m, n, k, batch.

    Args:
        form: of ``software.expert_products``.
        weight: whether they are weight gradients, and whether those accumulate in fp32.
    """
    (m, n, k, batch), accumulate = shapes.T, weight[1]
    if form == "grouped":
        return device.grouped(m, n, k, batch, GroupedCall("k" if weight[0] else "m", precision=precision, accumulate=accumulate))
    if form == "looped":
        return np.asarray(batch * device.gemm(m, n, k, precision=precision, accumulate=accumulate), dtype=np.float64)
    return device.gemm(m, n, k, batch=batch, precision=precision, accumulate=accumulate)


def _numbered(sizes: FloatColumn) -> tuple[NDArray[np.intp], int]:
    """``numbered`` of sizes, ``(n_shapes,)``, that may be no whole numbers."""
    whole = sizes.astype(np.intp)
    if (whole == sizes).all():
        return numbered(whole)
    values, number = np.unique(sizes, return_inverse=True)
    return number, len(values)


def elementwise_bytes(scenario: Scenario, kind: LayerKind, shape: MicroBatch) -> tuple[FloatColumn, FloatColumn]:
    """HBM bytes of a layer's small kernels, forward and backward.

    The counts are passes of fully fused kernels; ``software.elementwise_traffic`` says how many times that a framework moves.
    """
    width, none = compute_bytes(scenario), np.zeros(len(shape.tp))
    kernels = [kernel for kernel in kind.small_kernels(shape, scenario.software) if kernel.counted is None]
    forward = sum((none + (width * kernel.forward + kernel.fp32) for kernel in kernels), none)
    backward = sum((none + (width * kernel.backward + kernel.fp32) for kernel in kernels), none)
    return forward, backward


def _again_bytes(scenario: Scenario, kind: LayerKind, shape: MicroBatch, some: Recomputation) -> FloatColumn:
    """HBM bytes of the small kernels that selective recomputation repeats, ``(n_shapes,)``."""
    kernels, width = kind.small_kernels(shape, scenario.software), compute_bytes(scenario)
    none = np.zeros(len(shape.tp))
    repeated = (
        none + share * (width * kernel.forward + kernel.fp32)
        for share, kernel in zip(some.small, kernels, strict=True)
        if share > 0 and kernel.counted is None
    )
    return sum(repeated, none)


def directions(matmul: MatMul) -> int:
    """How often a product runs: forward, for its input's gradient, for its weights' unless they are frozen."""
    return 2 if matmul.frozen else 3


# Clocks of an SM for an element that ``index_add`` adds by an atomic: PyTorch's kernels on 16-bit rows, 12.3 ps an element on an H200 from
# 4 million to 270 million of them.
INDEX_ADD_CLOCKS = 3.0


def counted_seconds(
    scenario: Scenario, kind: LayerKind, shape: MicroBatch, device: OperatorModel, way: int, shares: Sequence[float] | None = None
) -> FloatColumn:
    """Seconds of the small kernels of a layer that are counted one by one, forward (``way`` 0) or backward (1), ``(n_shapes,)``; of each
    the share in ``shares``, None: all of it."""
    kernels, width = kind.small_kernels(shape, scenario.software), compute_bytes(scenario)
    hw, seconds = scenario.hw, np.zeros(len(shape.tp))
    for share, kernel in zip(shares or [1.0] * len(kernels), kernels, strict=True):
        if kernel.counted is None or not share:
            continue
        hbm_bytes = seconds * 0.0 + width * (kernel.forward, kernel.backward)[way] + kernel.fp32
        added = kernel.counted.added[way] * (INDEX_ADD_CLOCKS / (hw.sms * hw.clock))
        started = kernel.counted.kernels[way] * hw.kernel_latency
        seconds = seconds + share * (np.where(hbm_bytes > 0, device.elementwise(hbm_bytes), 0.0) + added + started)
    return seconds


def _counted_bytes(scenario: Scenario, kind: LayerKind, shape: MicroBatch) -> FloatColumn:
    """HBM bytes of the same, forward and backward; what an atomic adds is read and written."""
    width, none = compute_bytes(scenario), np.zeros(len(shape.tp))
    kernels = [kernel for kernel in kind.small_kernels(shape, scenario.software) if kernel.counted is not None]
    hbm_bytes = [
        none + width * (kernel.forward + kernel.backward + 2.0 * sum(kernel.counted.added)) + 2 * kernel.fp32
        for kernel in kernels
        if kernel.counted
    ]
    return sum(hbm_bytes, none)


def _operands(matmul: MatMul) -> FloatColumn:
    """Elements of a product's operands, in all directions; weights that are used in turn stay in cache."""
    moving = matmul.in_turn * (matmul.m * matmul.k + matmul.m * matmul.n)
    return directions(matmul) * matmul.batch * (moving + matmul.k * matmul.n)
