"""Biases of routed experts and limits of their activation, as PyTorch's kernels one by one."""

from __future__ import annotations

from rapid_dse.config.model import Model
from rapid_dse.config.software import Software
from rapid_dse.model.layers.part import Counted, SmallKernel
from rapid_dse.model.shapes import FloatColumn

# Passes of 16 bits over what the experts give, whose bias the router's weight multiplies in 32 bits (Megatron Core, moe/experts.py,
# _apply_bias). Forward: the product is written, added to the rows, joined over experts, cast; backward: the gradient cast to 32 bits and
# back, multiplied with weights and summed over rows, multiplied with biases and summed along them, the parts of the rows joined.
BIAS = 14.0, 20.0
# The same over both projections of a gate, each half limited, then joined (fusions/fused_bias_geglu.py, weighted_bias_quick_geglu_impl);
# backward masked, and joined again. Of the activation's width.
LIMIT = 8.0, 10.0
KERNELS = 4.0, 8.0  # of each, forward and backward


def bias_kernels(model: Model, software: Software, rows: FloatColumn, wide: FloatColumn) -> list[SmallKernel]:
    """Those of the rank's experts, of so many ``rows`` and ``wide`` elements of a projection, ``(n_shapes,)`` each; none where a kernel of
    products and activation does it all, as under a graph of the whole step (Transformer Engine's operation fuser)."""
    if software.experts.expert_bias == "fused":
        return []
    apart = software.host.cuda_graphs != "full_iteration"
    kernels = []
    for name, has, size, (forward, backward) in (
        ("expert_bias", model.linear_bias, rows * model.hidden_size, BIAS),
        ("expert_limit", model.swiglu_limit is not None, wide, LIMIT),
    ):
        if has:
            counted = Counted((0.0, 0.0), (KERNELS[0] * apart, KERNELS[1] * apart))
            kernels.append(SmallKernel(name, forward * apart * size, backward * apart * size, counted=counted))
    return kernels
