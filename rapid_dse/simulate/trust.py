"""How far to trust a row: the error to expect of its step time, and which of its settings lie outside what was measured.

A profile's measured runs are summed up in boxes (``MeasuredRuns``): settings that they have, and the error of predictions there. A row
inside a box has its error. Each setting outside widens it by a step that was learned by leaving such runs out (``growth.STEPS``); steps
and the box's error add in quadrature, and the nearest box counts. Where a step was never learned (a generation of chips that no run was
on, mixtures of experts), there is no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import Positions
from rapid_dse.common.remembered import remembered
from rapid_dse.config.host_link import OFFLOADED
from rapid_dse.config.measured_boxes import ROUNDED, MeasuredRuns, alike
from rapid_dse.config.run import RECOMPUTE
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.schedule_names import SCHEDULES
from rapid_dse.model.parameters import count
from rapid_dse.parallel.engines import Engines
from rapid_dse.parallel.layouts import IntColumn, Layouts
from rapid_dse.simulate.growth import ARCHITECTURES, PRECISIONS, STEPS
from rapid_dse.simulate.served_trust import loads_expected

FloatColumn = NDArray[np.float64]
Units = float | FloatColumn  # how far a setting lies outside: of every row, or of each

LEAST = 0.1  # share of the error inside that a setting outside adds at least
UNKNOWN = 1e6  # what a step that was never learned adds in place of a square: more than all that are known, so that the fewest count first
REFERENCE = "reference"  # the cluster of jobs whose cluster nobody named
# Settings that rows of one scenario differ in, each with its bit.
BITS = {
    name: 1 << at for at, name in enumerate(("tp", "cp", "pp", "micro_batch", "gpus", "nodes", "zero", "recompute", "schedule", "cluster"))
}
_MASKS = 1 << len(BITS)
_TABLE = 4096  # columns of numbers that are no further apart are looked up in a table
TITLES = {
    "architecture": "hw",
    "chip": "hw",
    "kind": "model kind",
    "tp_over_nodes": "tp over nodes",
    "seq_len": "sequence length",
    "parameters": "model size",
    "small_models": "model size",
    "micro_batch": "micro-batch",
    "gpus": "GPUs",
}


@dataclass(frozen=True)
class Trust:
    """``expected_error``: relative error of step time within which two thirds of such runs may be expected, NaN where nothing like them
    was measured; ``outside``: index into ``texts`` of what lies outside, -1 where nothing does; ``(n_layouts,)`` each."""

    expected_error: FloatColumn
    outside: IntColumn
    texts: tuple[str, ...]


# Columns of Layouts on which it depends how far a row of training may be trusted.
DEGREES = ("num_gpus", "tp", "cp", "pp", "micro_batch_size")
SETTINGS = (*DEGREES, "dp", "recompute", "schedule", "zero")


def trust(scenario: Scenario, layouts: Layouts) -> Trust:
    """How far each row may be trusted."""
    (of_table,) = trust_together([(scenario, layouts)])
    return of_table


def trust_together(tables: Sequence[tuple[Scenario, Layouts]]) -> list[Trust]:
    """``trust`` of each table; all rows of requests are looked at together."""
    engines = {at: (scenario, layouts) for at, (scenario, layouts) in enumerate(tables) if isinstance(layouts, Engines)}
    served = dict(zip(engines, loads_expected(list(engines.values())), strict=True))
    return [Trust(*served[at]) if at in served else _trained(*table) for at, table in enumerate(tables)]


def _trained(scenario: Scenario, layouts: Layouts) -> Trust:
    """``trust`` of layouts that train; those that are alike in their settings are judged once."""
    n_rows = len(layouts)
    if not scenario.software.measured or scenario.workload.kind != "training" or not n_rows:
        text = f"software (no {scenario.workload.kind} run of {scenario.software.name} was measured)"
        return Trust(np.full(n_rows, np.nan), np.zeros(n_rows, np.int64), (text,))
    first, kind = layouts.alike.by(*SETTINGS)
    judged = _judged(scenario, layouts.take(first))
    return Trust(judged.expected_error.take(kind), judged.outside.take(kind), judged.texts)


def _judged(scenario: Scenario, layouts: Layouts) -> Trust:
    """``trust`` of each row by itself."""
    n_rows = len(layouts)
    over, traded = layouts.tp > scenario.hw.gpus_per_node, layouts.cp > 1
    kinds = over + 2 * (traded & (scenario.cp_kind == "ulysses"))
    if (kinds == kinds[0]).all():
        return _of_kind(scenario, layouts, int(kinds[0]))
    error, outside = np.empty(n_rows), np.empty(n_rows, np.int64)
    texts = dict[str, int]()
    for kind in np.flatnonzero(np.bincount(kinds)).tolist():
        rows = np.flatnonzero(kinds == kind)
        expected = _of_kind(scenario, layouts.take(rows), kind)
        error[rows] = expected.expected_error
        places = np.array([texts.setdefault(text, len(texts)) for text in expected.texts] + [-1])
        outside[rows] = places[expected.outside]  # -1, inside, is the last of them
    return Trust(error, outside, tuple(texts))


def _of_kind(scenario: Scenario, layouts: Layouts, kind: int) -> Trust:
    """``trust`` of rows of one kind: 1 where tensor-parallel groups cross nodes, and 2 more where context parallelism trades heads."""
    unmeasured, n_rows = _unmeasured(scenario, kind >= 2), len(layouts)
    if unmeasured:
        return Trust(np.full(n_rows, np.nan), np.zeros(n_rows, np.int64), (unmeasured,))
    return _alike(scenario, layouts, bool(kind % 2))


def _unmeasured(scenario: Scenario, traded: bool) -> str:
    """Settings of rows, of those that trade heads or of others, that no measured run behind any profile has, in words; empty where there
    are none."""
    offloaded = [state for state in OFFLOADED if getattr(scenario.parallel, f"offload_{state}") > 0]
    reasons = [f"offload (no run with {' or '.join(offloaded)} was measured)"] if offloaded else []
    if not scenario.workload.trains_all:
        reasons.append(f"trainable (no run with {scenario.workload.trainable} was measured)")
    if scenario.workload.packing < 1:
        reasons.append("packing (no run of packed sequences was measured)")
    if traded:
        reasons.append("cp_kind (no run with ulysses was measured)")
    if scenario.model.num_nextn_predict_layers:
        reasons.append("num_nextn_predict_layers (no run that predicts further tokens was measured)")
    precision = scenario.software.precision
    if scenario.parallel.zero_hpz_partition_size > 1 or precision.zero_quantized_weights or precision.zero_quantized_gradients:
        reasons.append("ZeRO++ (no run with it was measured)")
    return "; ".join(reasons)


def _alike(scenario: Scenario, layouts: Layouts, over: bool) -> Trust:
    """``trust`` of rows whose tensor-parallel groups all cross nodes, or none does."""
    boxes = _in_reach(scenario, over)
    listed = {name: bit for name, bit in BITS.items() if name != "cluster" or scenario.cluster.name != REFERENCE}
    inside = error_inside(scenario, over)
    nearest: Units = np.inf
    code: int | IntColumn = -1
    shared = []
    first, kind = layouts.alike.by(*DEGREES)
    some = layouts.take(first)
    for at, box in enumerate(boxes):
        of_degrees = _of_degrees(box, scenario, some, over)
        squared, mask = (_of_rows(part, kind) for part in _summed(of_degrees, inside, listed))
        squared, mask = _summed(_of_settings(box, layouts), inside, listed, (squared, mask))
        shared.append([name for name in of_degrees if name not in BITS])
        closer = squared < nearest
        if at == 0 or np.all(closer):
            nearest, code = squared, at * _MASKS + mask
        elif np.any(closer):
            nearest, code = np.where(closer, squared, nearest), np.where(closer, at * _MASKS + mask, code)
    error = np.sqrt(inside**2 + nearest)
    outside, texts = _texts(code, boxes, shared)
    n_rows = len(layouts)
    finite = np.where(nearest < UNKNOWN, error, np.nan)
    return Trust(np.broadcast_to(finite, n_rows), np.broadcast_to(outside, n_rows), texts)


def _in_reach(scenario: Scenario, over: bool) -> list[MeasuredRuns]:
    """The boxes that may be the nearest to some row: not those within another one that is as near in all that the rows share."""
    kept: list[MeasuredRuns] = []
    inside = error_inside(scenario, over)
    here = scenario.cluster.name
    boxes = [(box, _summed(_of_scenario(box, scenario, over), inside, {})[0]) for box in scenario.software.measured]
    for box, _ in sorted(boxes, key=lambda distance: distance[1]):
        if not any(_covers(other, box) and (other.cluster == here or box.cluster != here) for other in kept):
            kept.append(box)
    return kept


@remembered(1024)
def _covers(wide: MeasuredRuns, narrow: MeasuredRuns) -> bool:
    """Whether all that rows may differ in and that one box has, another has too."""
    spans = ((getattr(wide, name), getattr(narrow, name)) for name in ("tp", "cp", "pp", "micro_batch", "gpus", "nodes"))
    kinds = ((getattr(wide, name), getattr(narrow, name)) for name in ("zero", "recompute", "schedule"))
    return all(a[0] <= b[0] and b[1] <= a[1] for a, b in spans) and all(set(b) <= set(a) for a, b in kinds)


def _any(units: Units) -> bool:
    """Whether some row lies outside."""
    return bool(units.any()) if isinstance(units, np.ndarray) else units != 0


def widening(step: float, inside: float | FloatColumn) -> float | FloatColumn:
    """The square that a setting outside adds: of its step, and of ``LEAST`` of the error inside, which lets none be promised as inside."""
    return step**2 + (LEAST * inside) ** 2


def _of_rows(part: Any, kind: Positions) -> Any:
    """What rows of each kind have, of each row; a number that all share stays one."""
    return part.take(kind) if isinstance(part, np.ndarray) else part


def _summed(
    units: Mapping[str, Units], inside: float, listed: Mapping[str, int], more: tuple[Units, int | IntColumn] = (0.0, 0)
) -> tuple[Units, int | IntColumn]:
    """The squared widening of all settings together, and the bits of those of ``listed`` that lie outside; added to ``more`` of both."""
    squared, mask = more
    for name, value in units.items():
        if name in STEPS and (isinstance(value, np.ndarray) or value < np.inf):
            squared = squared + widening(STEPS[name], inside) * (value * value)
        elif _any(value):
            squared = squared + UNKNOWN
        if name in listed:
            mask = mask + (value > 0) * listed[name]
    return squared, mask


def distances(box: MeasuredRuns, scenario: Scenario, layouts: Layouts, over: bool) -> dict[str, Units]:
    """How far each setting lies outside a box: 1 where it is none of those measured, of numbers the doublings, infinite where nothing is
    known of such a step. Settings that lie inside in every row are left out."""
    return _of_degrees(box, scenario, layouts, over) | _of_settings(box, layouts)


def _of_degrees(box: MeasuredRuns, scenario: Scenario, layouts: Layouts, over: bool) -> dict[str, Units]:
    """``distances`` of the scenario and of what depends on ``DEGREES`` alone."""
    units_by_axis: dict[str, Units] = dict(_of_scenario(box, scenario, over))
    node = scenario.hw.gpus_per_node
    if box.cluster != scenario.cluster.name:  # of jobs on one node it is no matter
        units_by_axis["cluster"] = _looked_up(layouts.num_gpus, _beyond(node, False))
    columns = {"tp": layouts.tp, "cp": layouts.cp, "pp": layouts.pp, "micro_batch": layouts.micro_batch_size, "gpus": layouts.num_gpus}
    for name, column in columns.items():
        units_by_axis[name] = _looked_up(column, _doublings(*getattr(box, name)))
    one, more = box.nodes[0] <= 1, box.nodes[1] > 1
    units_by_axis["nodes"] = 0.0 if one and more else _looked_up(layouts.num_gpus, _beyond(node, more))
    return {name: value for name, value in units_by_axis.items() if _any(value)}


def _of_settings(box: MeasuredRuns, layouts: Layouts) -> dict[str, Units]:
    """``distances`` of the other settings."""
    recomputed = tuple(RECOMPUTE.index(name) for name in box.recompute)
    known = (0, *(SCHEDULES.index(name) for name in box.schedule))  # without pipelines there is none
    sharded = _looked_up(layouts.zero, _none_of(box.zero, 4))
    if _any(sharded):
        sharded = np.where(layouts.dp * layouts.cp > 1, sharded, 0.0)
    units_by_axis = {
        "recompute": _looked_up(layouts.recompute, _none_of(recomputed, len(RECOMPUTE))),
        "schedule": _looked_up(layouts.schedule, _none_of(known, len(SCHEDULES))),
        "zero": sharded,
    }
    return {name: value for name, value in units_by_axis.items() if _any(value)}


@remembered(64)
def _of_scenario(box: MeasuredRuns, scenario: Scenario, over: bool) -> dict[str, float]:
    """Distances of what all rows of a scenario share."""
    hw, work = scenario.hw, scenario.workload
    size = count(scenario.model).total
    distances = {
        "seq_len": _of_one(_doublings(*box.seq_len), work.seq_len),
        "parameters" if size > box.parameters[0] else "small_models": _doublings_of(*box.parameters, float(size)),
        "tp_over_nodes": float(box.tp_over_nodes != over),
        "kind": 0.0 if scenario.model.kind == "transformer" else np.inf,
        "experts": 0.0 if box.experts == bool(scenario.model.num_experts) else np.inf,
    }
    if box.chip != hw.name:
        same = hw.architecture is not None and hw.architecture == box.architecture
        known = {hw.architecture, box.architecture} <= set(ARCHITECTURES)
        alone = hw.like is not None  # what a data sheet does not say is no more certain than another generation's chip
        distances["chip" if same and not alone else "architecture"] = 1.0 if same or known else np.inf
    if box.precision != (precision := alike(work.precision)):
        distances["precision"] = 1.0 if {precision, box.precision} <= set(PRECISIONS) else np.inf
    return distances


@remembered(16)
def error_inside(scenario: Scenario, over: bool) -> float:
    """The error of the boxes that are most like the scenario: the largest of those that nothing tells apart for it."""
    boxes: Sequence[MeasuredRuns] = scenario.software.measured
    wanted: tuple[Callable[[MeasuredRuns], bool], ...] = (
        lambda box: box.tp_over_nodes == over,
        lambda box: box.experts == bool(scenario.model.num_experts),
        lambda box: box.precision == alike(scenario.workload.precision),
        lambda box: box.chip == scenario.hw.name,
        lambda box: box.cluster == scenario.cluster.name,
    )
    for has in wanted:
        boxes = [box for box in boxes if has(box)] or boxes
    return max(box.error for box in boxes)


@lru_cache(maxsize=4096)
def _doublings(least: float, largest: float) -> Callable[[NDArray[Any]], FloatColumn]:
    """By how many octaves a number lies outside a span."""

    def units(value: NDArray[Any]) -> FloatColumn:
        number = np.maximum(value.astype(np.float64), 1.0)
        beyond = np.maximum(number / largest, least / number)
        octaves: FloatColumn = np.log2(np.where(beyond > 1.0 + ROUNDED, beyond, 1.0))
        return octaves

    return units


def _doublings_of(least: float, largest: float, number: float) -> float:
    """The same of one number, at least 1, of which each scenario has its own."""
    beyond = max(number / largest, least / number)
    return float(np.log2(beyond)) if beyond > 1.0 + ROUNDED else 0.0


@lru_cache(maxsize=4096)
def _beyond(node: int, more: bool) -> Callable[[NDArray[Any]], FloatColumn]:
    """1 where so many GPUs are more than a node has, or, where ``more``, are not."""
    return lambda num_gpus: ((num_gpus > node) != more).astype(np.float64)


@lru_cache(maxsize=4096)
def _none_of(known: tuple[int, ...], size: int) -> Callable[[NDArray[Any]], FloatColumn]:
    """1 where a code is none of those that are known."""
    table = np.ones(size)
    table[list(known)] = 0.0
    return lambda value: table[np.minimum(value, size - 1).astype(np.int64)]


@lru_cache(maxsize=16384)
def _of_one(units: Callable[[NDArray[Any]], FloatColumn], value: int) -> float:
    """``units`` of one number, of which tables of many scenarios have few."""
    return float(units(np.array([value]))[0])


def _looked_up(column: IntColumn, units: Callable[[NDArray[Any]], FloatColumn]) -> Units:
    """``units`` of a column; one number where all rows have the same."""
    low, high = (int(column[0]),) * 2 if len(column) == 1 else (int(column.min()), int(column.max()))
    if low == high:
        return _of_one(units, low)
    if high - low > _TABLE:
        return units(column)
    table = units(np.arange(low, high + 1))
    return table.take(column - low) if table.any() else 0.0


def _texts(
    code: int | IntColumn, boxes: Sequence[MeasuredRuns], shared: Sequence[Sequence[str]]
) -> tuple[int | IntColumn, tuple[str, ...]]:
    """What lies outside in words, by the nearest box and the bits beside it; -1 and no text where nothing does."""
    codes = np.flatnonzero(np.bincount(code)) if isinstance(code, np.ndarray) else np.array([code])
    place, texts = np.full(len(boxes) * _MASKS, -1), dict[str, int]()
    for number in codes.tolist():
        box, names = boxes[number // _MASKS], [*shared[number // _MASKS], *(name for name, bit in BITS.items() if number & bit)]
        if names:
            text = "; ".join(_remark(box, name) for name in names)
            place[number] = texts.setdefault(text, len(texts))
    return place[code], tuple(texts)


@remembered(4096)
def _remark(box: MeasuredRuns, name: str) -> str:
    """That a setting lies outside a box, in words."""
    return f"{TITLES.get(name, name)} (measured: {_measured(box, name)})"


def _measured(box: MeasuredRuns, name: str) -> str:
    """What a box has of a setting, in words."""
    if name in ("architecture", "chip"):
        return box.chip
    if name == "kind":
        return "transformers of text"
    if name == "experts":
        return "with experts" if box.experts else "dense models"
    if name == "tp_over_nodes":
        return "over nodes" if box.tp_over_nodes else "within a node"
    billions = name in ("parameters", "small_models")
    value = box.parameters if billions else getattr(box, name)
    if name in ("zero", "recompute", "schedule"):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, str):
        return value
    numbers = [item / 1e9 if billions else item for item in value]
    least, largest = (f"{item:.3g}" if billions and item < 1e3 else f"{item:,.0f}" for item in numbers)
    text = least if least == largest else f"{least} to {largest}"
    return f"{text} billion parameters" if billions else text
