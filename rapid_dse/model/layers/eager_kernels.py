"""Small kernels of eager PyTorch where each operation is one: layer norms, an activation without a gate, sums, joins.

What they move is counted in passes over a tensor at the speed of streaming kernels, so that a kernel that is slower has more of them. All
are measured alone on an H200 (PyTorch 2.11), from 16 million elements on. ``software.elementwise_traffic`` of an eager profile is told of
layers of the other kind (RMS norms, rotation, gates), whose chains of kernels it counts together.
"""

from __future__ import annotations

from rapid_dse.config.model import Model
from rapid_dse.config.software import Software
from rapid_dse.model.layers.part import Counted, Number, SmallKernel, residual
from rapid_dse.model.shapes import FloatColumn, MicroBatch

# Layer norm. Forward it reduces a row before it writes: 2.8 TB/s, where streaming reaches 3.6. Backward two kernels, of the gradient of its
# input and of its weights, read and write five times at 2.6 TB/s.
NORM = 2.5, 7.0
SUM = 2.5  # of two tensors: two read, one written, at 4.3 TB/s
ACTIVATION = 2.0, 2.7  # GELU: 3.7 TB/s forward; backward two read, one written, at 4.0
# Rotation as complex numbers, in passes of 16 bits: a cast to 32 bits (2 bytes read, 4 written), a complex product (4 read, 4 written), a
# cast back (4 read, 2 written), 20 bytes an element in each direction, of queries and of keys.
COMPLEX_ROTARY, COMPLEX_KERNELS = 10.0, 6.0
# Joining tensors of which neighbours are no neighbours (CatArrayBatchedCopy): read and written at 0.9 TB/s. Reordering one's axes: 2.0.
JOIN, REORDER = 8.0, 3.6


def kernel_by_kernel(model: Model, software: Software) -> bool:
    """Whether the small kernels of a model's layers are counted one by one."""
    return software.kernels.eager and model.norm == "layernorm"


def layer_norm(model: Model, software: Software, name: str, elements: Number) -> SmallKernel:
    """A norm of so many elements."""
    if not kernel_by_kernel(model, software):
        return SmallKernel(name, 2 * elements, 3 * elements)
    return SmallKernel(name, NORM[0] * elements, NORM[1] * elements, counted=Counted((0.0, 0.0), (1.0, 2.0)))


def residual_sum(model: Model, software: Software, name: str, stream: FloatColumn) -> SmallKernel:
    """A part's output added to the stream; backward the gradients of both ways are summed."""
    forward, backward = residual(model, stream, 0.5 * model.drops_out(software.kernels.dropout))
    if not kernel_by_kernel(model, software):
        return SmallKernel(name, forward, backward)
    faster = (3.0 - SUM) * stream
    return SmallKernel(name, forward - faster, backward + (SUM - 2.0) * stream, counted=Counted((0.0, 0.0), (1.0, 1.0)))


def complex_rotary(model: Model, software: Software) -> bool:
    """Whether rotation is in complex numbers."""
    return software.kernels.complex_rotary and model.position_embedding == "rope" and not model.qk_norm


def complex_rotation(name: str, elements: Number) -> SmallKernel:
    """Rotation of so many elements as complex numbers."""
    return SmallKernel(
        name, COMPLEX_ROTARY * elements, COMPLEX_ROTARY * elements, counted=Counted((0.0, 0.0), (COMPLEX_KERNELS, COMPLEX_KERNELS))
    )


# Passes over a gradient that is summed into another: compiled, it is read by the kernel that copies the sum; eager, both are read, and
# the sum is written.
SUMMED = {"none": 0.0, "copied": 1.0, "added": 3.0}


def summed_gradients(software: Software, name: str, shape: MicroBatch, width: int, further: float) -> list[SmallKernel]:
    """What sums the gradients that separate products give of one input, ``width`` numbers a token, where there are ``further`` ones
    beside the first: of the tokens that other tensor-parallel ranks hold. A rank's own are among what a layer alone moves."""
    passes = SUMMED[software.kernels.separate_projections] * further
    if not passes:
        return []
    return [SmallKernel(name, 0.0, passes * (shape.tokens - shape.norm_tokens) * width, counted=Counted((0.0, 0.0), (0.0, 0.0)))]


def joined_gradients(software: Software, name: str, elements: Number) -> list[SmallKernel]:
    """Where one product gives what is then split and reordered: its gradient is joined, and brought into the product's order, by one
    kernel where they are compiled."""
    if not software.kernels.gradient_sums:
        return []
    passes, kernels = (JOIN + REORDER, 2.0) if software.kernels.eager else (2.0, 1.0)
    return [SmallKernel(name, 0.0, passes * elements, counted=Counted((0.0, 0.0), (0.0, kernels)))]
