"""In which precision a product is multiplied, and what a convolution takes over a product of as many FLOP."""

from __future__ import annotations

from rapid_dse.config.scenario import Scenario
from rapid_dse.model.shapes import MatMul

# Seconds of a convolution of few channels over those of a product of as many FLOP without tensor cores: the patches of ViT base on an H200,
# whose steps leave 17 us an image beside layers and copies, eager and compiled, of 64 images and of 256, forward and backward alike.
CONVOLUTION = 3.0


def matmul_precision(scenario: Scenario, matmul: MatMul) -> str:
    """In which a product is multiplied: narrow ones in fp8 or fp4, but for those that stay wide; convolutions without tensor cores."""
    if matmul.convolved and "fp32" in scenario.hw.precisions:
        return "fp32"
    return wide_precision(scenario) if matmul.sixteen_bit else scenario.workload.precision


def wide_precision(scenario: Scenario) -> str:
    """In which what stays in 16 bits is multiplied where products run in fp8 or fp4, and all elsewhere."""
    return "bf16" if scenario.narrow else scenario.workload.precision
