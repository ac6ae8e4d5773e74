"""How the error of predictions of requests grows with the distance from measured loads. Written by ``benchmarks/fit_serving.py``.

It leaves out each kind of load (a chip, a precision, experts, latent attention, pools) and the ends of each number, one at a time, fits
again, predicts what was left out, and finds the steps that make two thirds of those loads lie within their expected errors.
"""

# What is added to the expected error, in quadrature, where a setting is none of those measured; of numbers for each doubling outside.
SERVED_STEPS: dict[str, float] = {
    "architecture": 0,
    "chip": 0.0979,
    "concurrency": 0.0263,
    "experts": 0.0739,
    "generated": 0,
    "gpus": 0,
    "latent": 0,
    "parameters": 0,
    "pools": 0,
    "precision": 0,
    "prompt": 0,
    "small_models": 0.0182,
}
# Generations of chips and precisions that some measured load had: of others no step is known.
SERVED_ARCHITECTURES: tuple[str, ...] = ("ampere", "blackwell", "hopper")
SERVED_PRECISIONS: tuple[str, ...] = ("bf16", "fp4", "fp8")
