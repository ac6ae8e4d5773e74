"""How the error of predictions of requests grows with the distance from measured loads. Written by ``benchmarks/fit_serving.py``.

It leaves out each kind of load (a chip, a precision, experts, latent attention, pools) and the ends of each number, one at a time,
and with it one model after the other, fits again, predicts what was left out, and finds the steps under which those errors are
most likely.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rapid_dse.config.measured_boxes import Sent

# The error to expect of a model that no fit has seen, over all frameworks, by how requests come (``ServedRuns.errors``).
SERVED_ERRORS: dict[Sent, float] = {
    "at_once": 0.103,
    "batch": 0.0941,
    "mixed": 0.106,
    "one_length": 0.146,
}
# The error to expect of such a model's first tokens, over all frameworks: of engines that do both, and of pools.
SERVED_FIRST: dict[str, float] = {
    "engines": 0.333,
    "pools": 0.578,
}
# What is added to the expected error, in quadrature, where a setting is none of those measured; of numbers for each doubling outside.
SERVED_STEPS: dict[str, float] = {
    "architecture": 0,
    "chip": 0.0194,
    "concurrency": 0,
    "experts": 0,
    "generated": 0,
    "gpus": 0,
    "latent": 0,
    "parameters": 0,
    "pools": 0,
    "precision": 0,
    "prompt": 0,
    "small_models": 0.0287,
}
# Generations of chips and precisions that some measured load had: of others no step is known.
SERVED_ARCHITECTURES: tuple[str, ...] = ("ampere", "blackwell", "hopper")
SERVED_PRECISIONS: tuple[str, ...] = ("bf16", "fp4", "fp8")
