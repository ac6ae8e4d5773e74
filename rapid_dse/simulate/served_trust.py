"""How far to trust a row of requests: the error to expect of its time between tokens, and what of it lies outside measured loads.

A profile's measured loads are summed up in boxes (``ServedRuns``). A row inside one has its error; each setting outside widens it by a step
that was learned by leaving such loads out (``served_growth.SERVED_STEPS``), in quadrature, and the nearest box counts. Where a step was
never learned (a generation of chips or a precision that no load had), there is no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.remembered import remembered
from rapid_dse.config.hardware import Hardware
from rapid_dse.config.measured_boxes import ROUNDED, ServedRuns, alike
from rapid_dse.config.scenario import Scenario
from rapid_dse.model.parameters import count
from rapid_dse.parallel.engines import Engines
from rapid_dse.simulate.served_growth import SERVED_ARCHITECTURES, SERVED_PRECISIONS, SERVED_STEPS

FloatColumn = NDArray[np.float64]

LEAST = 0.1  # share of the error inside that a setting outside adds at least
TITLES = {
    "architecture": "hw",
    "chip": "hw",
    "experts": "model",
    "latent": "attention",
    "gpus": "GPUs of an engine",
    "prompt": "prompt length",
    "generated": "decode length",
    "parameters": "model size",
    "small_models": "model size",
}
KINDS = {
    "experts": ("dense models", "with experts"),
    "latent": ("without latents", "with latents"),
    "pools": ("one kind of engine", "pools"),
}


def loads_expected(scenario: Scenario, engines: Engines) -> tuple[FloatColumn, NDArray[np.int64], tuple[str, ...]]:
    """The error to expect of each row, NaN where no measured load says anything of it; what lies outside, as ``simulate.trust.Trust``."""
    boxes, n_rows = scenario.software.served, len(engines)
    if not scenario.model.of_kind.decodes:
        return np.full(n_rows, np.nan), np.zeros(n_rows, np.int64), ("model (none that decodes nothing was measured)",)
    if not boxes or not n_rows:
        text = f"software (no request served by {scenario.software.name} was measured)"
        return np.full(n_rows, np.nan), np.zeros(n_rows, np.int64), (text,)
    inside, size = inside_of(scenario, engines), float(count(scenario.model).total)
    distances = [units_outside(box, scenario, engines, size) for box in boxes]
    squared = np.stack([widened(units, inside, SERVED_STEPS) for units in distances])
    # the nearest box by settings and doublings, as the steps were learned: the one that widens least would be the kindest
    nearest = np.stack([widened(units, inside, dict.fromkeys(units, 1.0)) for units in distances]).argmin(axis=0)
    error = np.sqrt(inside**2 + squared[nearest, np.arange(n_rows)])
    error[np.isinf(error)] = np.nan
    outside, texts = np.full(n_rows, -1, np.int64), dict[str, int]()
    for at in np.unique(nearest).tolist():
        rows = np.flatnonzero(nearest == at)
        names = list(distances[at])
        marks = np.stack([distances[at][name][rows] > 0 for name in names], axis=1) if names else np.zeros((len(rows), 0), bool)
        kinds, which = np.unique(marks, axis=0, return_inverse=True)
        for kind, mask in enumerate(kinds):
            told = [
                f"{TITLES.get(name, name)} (measured: {_measured(boxes[at], name)})" for name, out in zip(names, mask, strict=True) if out
            ]
            if told:
                outside[rows[which.ravel() == kind]] = texts.setdefault("; ".join(dict.fromkeys(told)), len(texts))
    return error, outside, tuple(texts)


def widened(units: Mapping[str, FloatColumn], inside: FloatColumn, steps: Mapping[str, float]) -> FloatColumn:
    """The squares that settings outside add."""
    total = np.zeros_like(inside)
    for name, column in units.items():
        total = total + (steps[name] ** 2 + (LEAST * inside) ** 2) * column**2
    return total


def units_outside(box: ServedRuns, scenario: Scenario, engines: Engines, size: float) -> dict[str, FloatColumn]:
    """How far each setting lies outside a box, ``(n_rows,)`` each: 1 where it is none of those measured, of numbers the doublings.

    Infinite where no load of any profile had it. ``size``: the model's parameters.
    """
    hw, work, model, n_rows = scenario.hw, scenario.workload, scenario.model, len(engines)
    prompt, generated = work.lengths
    units = {
        **_chip_outside(box, hw),
        "precision": _unlike(box.precision, alike(work.precision), SERVED_PRECISIONS),
        "experts": float(box.experts != bool(model.num_experts)),
        "latent": float(box.latent != bool(model.kv_lora_rank)),
        "prompt": _doublings(box.prompt, float(prompt)),
        "generated": _doublings(box.generated, float(generated)),
        "parameters" if size > box.parameters[0] else "small_models": _doublings(box.parameters, size),
    }
    columns = {name: np.full(n_rows, value) for name, value in units.items() if value}
    columns["pools"] = (engines.pooled != box.pools).astype(np.float64)
    columns["gpus"] = _doublings(box.gpus, engine_gpus(engines))
    asked = np.maximum(engines.concurrency, engines.batch_size)
    columns["concurrency"] = np.where(asked > 0, _doublings(box.concurrency, np.maximum(1.0, asked / engine_count(engines))), 0.0)
    return {name: column for name, column in columns.items() if column.any()}


def _chip_outside(box: ServedRuns, hw: Hardware) -> dict[str, float]:
    """As ``units_outside``: a chip of the same generation whose figures are its own is nearer than another generation's."""
    if box.chip == hw.name:
        return {}
    if hw.architecture is not None and hw.architecture == box.architecture and hw.like is None:
        return {"chip": 1.0}
    return {"architecture": max(1.0, _unlike(box.architecture, hw.architecture, SERVED_ARCHITECTURES))}


def _unlike(measured: str | None, wanted: str | None, known: Sequence[str]) -> float:
    """0 where both are one, 1 where both were measured, infinite otherwise."""
    if measured == wanted and wanted is not None:
        return 0.0
    return 1.0 if {measured, wanted} <= set(known) else np.inf


def inside_of(scenario: Scenario, engines: Engines) -> FloatColumn:
    """The error of the boxes that are most like each row: the largest of those that nothing tells apart."""
    inside = np.empty(len(engines))
    for pools in (False, True):
        rows = engines.pooled == pools
        if rows.any():
            inside[rows] = _error_inside(scenario, pools)
    return inside


@remembered(16)
def _error_inside(scenario: Scenario, pools: bool) -> float:
    """The largest error of the boxes that nothing tells apart for rows with pools, or for those without."""
    boxes: Sequence[ServedRuns] = scenario.software.served
    wanted: tuple[Callable[[ServedRuns], bool], ...] = (
        lambda box: box.pools == pools,
        lambda box: box.experts == bool(scenario.model.num_experts),
        lambda box: box.latent == bool(scenario.model.kv_lora_rank),
        lambda box: box.precision == alike(scenario.workload.precision),
        lambda box: box.chip == scenario.hw.name,
    )
    for has in wanted:
        boxes = [box for box in boxes if has(box)] or boxes
    return max(box.error for box in boxes)


def engine_gpus(engines: Engines) -> FloatColumn:
    """GPUs of an engine; of pools, of a decode engine."""
    own = engines.tp * engines.attention_dp * engines.cp * engines.pp
    pooled = engines.decode_tp * engines.decode_attention_dp * engines.decode_pp
    return np.where(engines.pooled, pooled, own).astype(np.float64)


def engine_count(engines: Engines) -> FloatColumn:
    """Engines that generate tokens."""
    return np.maximum(1.0, np.where(engines.pooled, engines.decode_workers, engines.dp).astype(np.float64))


def _doublings(span: tuple[float, float], value: FloatColumn | float) -> FloatColumn:
    least, largest = span
    if isinstance(value, float) and max(value / largest, least / max(value, 1e-9)) <= 1.0 + ROUNDED:
        return np.zeros(())
    beyond = np.maximum(np.asarray(value) / largest, least / np.maximum(np.asarray(value), 1e-9))
    return np.asarray(np.log2(np.where(beyond > 1.0 + ROUNDED, beyond, 1.0)))


def _measured(box: ServedRuns, name: str) -> str:
    """What a box has of a setting, in words."""
    if name in ("architecture", "chip"):
        return box.chip
    if name in KINDS:
        return KINDS[name][getattr(box, name)]
    if name == "precision":
        return box.precision
    billions = name in ("parameters", "small_models")
    span = box.parameters if billions else getattr(box, name)
    least, largest = (f"{bound / 1e9:.3g}" if billions else f"{bound:,.0f}" for bound in span)
    text = least if least == largest else f"{least} to {largest}"
    return f"{text} billion parameters" if billions else text
