"""How the error of predictions grows with the distance from what was measured. Written by ``benchmarks/fit_envelopes.py``.

It leaves out a chip, a ZeRO stage, a precision, a kind of layout, the largest and the smallest jobs, one at a time, fits again,
predicts what was left out, and finds the steps that make two thirds of those runs lie within their expected errors.
"""

# What is added to the expected error, in quadrature, where a setting is none of those measured; of numbers for each doubling outside.
STEPS: dict[str, float] = {
    "architecture": 0.0439,
    "chip": 0,
    "cluster": 0,
    "cp": 0.0215,
    "gpus": 0.00876,
    "micro_batch": 0,
    "nodes": 0,
    "parameters": 0,
    "pp": 0,
    "precision": 0.0224,
    "recompute": 0.0371,
    "schedule": 0.0441,
    "seq_len": 0,
    "small_models": 0,
    "tp": 0,
    "tp_over_nodes": 0.32,
    "zero": 0.0158,
}
# Generations of chips and precisions that some measured run had: of others no step is known.
ARCHITECTURES: tuple[str, ...] = ("ampere", "blackwell", "hopper")
PRECISIONS: tuple[str, ...] = ("bf16", "fp8")
