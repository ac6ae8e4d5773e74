"""What quantising the operands of fp8 and fp4 products moves through HBM, by library and recipe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.hardware import NARROW_BYTES
from rapid_dse.config.scenario import Scenario
from rapid_dse.model.shapes import MatMul, MicroBatch

FloatColumn = NDArray[np.float64]

# Passes over an operand against one fused cast: rowwise scales need a pass for the maxima and one to cast, along rows and along columns.
RECIPE_PASSES = {"delayed": 1.0, "tensorwise": 1.0, "tensorwise + fp8 all-gather": 1.0, "rowwise": 4.0, "blockwise": 1.0, "mxfp8": 1.0}
# Bytes an element that finding an operand's largest value reads ahead of its cast: a scale of one step ago (delayed) has it from the cast.
MAXIMA_BYTES = {"delayed": 0.0, "tensorwise": 2.0, "tensorwise + fp8 all-gather": 2.0, "rowwise": 0.0, "blockwise": 0.0, "mxfp8": 0.0}
# Recipes whose scale of a tensor is known before it is gathered: it is cast first and travels in 8 bits. Transformer Engine's linear
# modules; torchao's Float8ColwiseParallel and Float8RowwiseParallel take scales of whole tensors alone.
CAST_BEFORE_GATHER = {
    "transformer_engine": ("delayed", "tensorwise", "mxfp8", "tensorwise + fp8 all-gather"),
    "torchao": ("tensorwise", "tensorwise + fp8 all-gather"),
}
RELAID = 2.0  # bytes an element of an 8-bit operand that is copied into the order that the product reads


def cast_before_gather(scenario: Scenario) -> bool:
    """Whether sequence parallelism gathers what a layer's products read in fp8 or fp4."""
    precision = scenario.software.precision
    return scenario.narrow == "fp4" or (scenario.narrow == "fp8" and precision.fp8_recipe in CAST_BEFORE_GATHER[precision.fp8_library])


def narrow_products(scenario: Scenario, matmuls: Sequence[MatMul]) -> NDArray[np.bool_]:
    """Which products run in fp8 or fp4, ``(n_matmuls,)``."""
    return np.array([scenario.narrow is not None and not matmul.sixteen_bit for matmul in matmuls])


def cast_bytes(scenario: Scenario, matmuls: Sequence[MatMul], shapes: NDArray[np.float64], shape: MicroBatch) -> NDArray[np.float64]:
    """Bytes that quantising the operands of narrow products moves in a micro-batch, ``(3, n_matmuls, n_shapes)``: for the forward product,
    for the input's gradient and for the weights'.

    torchao casts both operands of each product, 2 bytes read and 1 written an element, behind a kernel that finds the largest of them (2
    more read); under sequence parallelism with scales of tensors as ``_before_gathers`` says. Transformer Engine casts a product's input
    and the gradient of its output once, with their transposes in the same kernel (2 read, 2 written), which the weight gradient takes,
    behind such a kernel too unless scaling is delayed; weights it casts once a step, at the first micro-batch (its
    ``is_first_microbatch``).

    Args:
        shapes: m, n, k, batch of each, ``(3, n_matmuls, n_shapes, 4)``.
    """
    m, n, k, batch = (shapes[..., axis] for axis in range(4))
    narrow = narrow_products(scenario, matmuls)[:, None]
    once = np.array([1.0, 1.0, 0.0])[:, None, None]  # forward casts the input, the input gradient the gradient of the output
    if scenario.narrow == "fp4":
        # the largest element is found first; both ways are written, the one for weight gradients behind a Hadamard transform
        return np.where(narrow, (2.0 + 2.0 + 2.0 * NARROW_BYTES["fp4"]) * once * batch * m * k, 0.0)
    recipe = scenario.software.precision.fp8_recipe
    passes, maxima = RECIPE_PASSES[recipe], MAXIMA_BYTES[recipe]
    if scenario.software.precision.fp8_library == "transformer_engine":
        return np.where(narrow, (passes * 4.0 + maxima) * once * batch * m * k, 0.0)
    # weights that are gathered in 8 bits are cast as shards, with scales that the step before has found
    weights = np.array([0.0, 0.0, 1.0])[:, None, None] if "all-gather" in recipe else 1.0
    first, second, an_element = batch * m * k, weights * batch * k * n, passes * 3.0 + maxima
    cast = an_element * (first + second)
    shared = shape.sequence_parallel & (shape.tp > 1)
    if cast_before_gather(scenario) and shared.any():
        dense = np.array([matmul.cut is not None and not matmul.routed for matmul in matmuls])[:, None]
        cast = np.where(dense & shared, _before_gathers(matmuls, first, second, shape.tp, an_element), cast)
    return np.where(narrow, cast, 0.0)


def _before_gathers(
    matmuls: Sequence[MatMul], first: NDArray[np.float64], second: NDArray[np.float64], tp: NDArray[np.int64], an_element: float
) -> NDArray[np.float64]:
    """Those of torchao's float8 tensor parallelism over ``tp`` ranks, of products that ranks divide.

    What is gathered is cast before, by the rank that has it: the input of products whose columns are divided, and the gradient of what
    products whose rows are divided give (torchao/float8/float8_tensor_parallel.py). Both operands of a weight gradient are in 8 bits by
    then, and are copied into the order that it reads them in (float8_ops.py, ``preprocess_addmm``).

    Args:
        first, second: elements of the operands of each product, ``(3, n_matmuls, n_shapes)``; ``an_element``: bytes that a cast moves.
    """
    gathered = np.array([[matmul.cut == cut for matmul in matmuls] for cut in ("columns", "rows")])[..., None]
    cast = an_element * (np.where(gathered, first[:2] / tp, first[:2]) + second[:2])
    return np.concatenate([cast, RELAID * (first[2:] + second[2:])])
