"""How far to trust a row of requests: the error to expect of its time between tokens, and what of it lies outside measured loads.

A profile's measured loads are summed up in boxes (``ServedRuns``). A row inside one has the error of the loads whose requests came as its
own do; each setting outside widens it by a step that was learned by leaving such loads out (``served_growth.SERVED_STEPS``), in quadrature,
and the nearest box counts. In an open loop an error of the engine's steps is larger in tokens (``inference.amplified``). Where a step was
never learned (a generation of chips or a precision that no load had, drafted tokens), there is no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import distinct, numbered
from rapid_dse.common.remembered import remembered
from rapid_dse.config.hardware import Hardware
from rapid_dse.config.measured_boxes import ROUNDED, Sent, ServedRuns, alike
from rapid_dse.config.model import Model
from rapid_dse.config.scenario import Scenario
from rapid_dse.model.parameters import count
from rapid_dse.parallel.engines import Engines
from rapid_dse.simulate.served_growth import SERVED_ARCHITECTURES, SERVED_ERRORS, SERVED_PRECISIONS, SERVED_STEPS

FloatColumn = NDArray[np.float64]
Tables: TypeAlias = Sequence[tuple[Scenario, Engines]]
Expected: TypeAlias = tuple[FloatColumn, NDArray[np.int64], tuple[str, ...]]

LEAST = 0.1  # share of the error inside that a setting outside adds at least
FAR = 1e3  # doublings beyond any number's
SPANS = ("prompt", "generated", "parameters", "gpus", "concurrency")  # of a box; the first three are numbers of a scenario
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
    "drafts": "draft_tokens",
}
SENT: tuple[Sent, ...] = get_args(Sent)
KINDS = {
    "experts": ("dense models", "with experts"),
    "latent": ("without latents", "with latents"),
    "pools": ("one kind of engine", "pools"),
}


@dataclass(frozen=True)
class AskedLoads:
    """Rows of tables whose scenarios have the same measured loads behind their profile: the ``scenarios``, the tables' ``engines`` one
    behind the other, and of which scenario each row is (``of``)."""

    scenarios: Sequence[Scenario]
    engines: Engines
    of: NDArray[np.intp]

    @classmethod
    def from_tables(cls, tables: Tables) -> Self:
        """All rows of the tables."""
        engines = [engines for _, engines in tables]
        whole = engines[0] if len(engines) == 1 else Engines.concatenate(engines)
        return cls([scenario for scenario, _ in tables], whole, np.repeat(np.arange(len(tables)), [len(table) for table in engines]))

    @property
    def boxes(self) -> Sequence[ServedRuns]:
        """The measured loads."""
        return self.scenarios[0].software.served


def loads_expected(tables: Tables) -> list[Expected]:
    """The error to expect of each row of each table, NaN where no measured load says anything of it; what lies outside, as
    ``simulate.trust.Trust``."""
    of_tables, by_boxes = dict[int, Expected](), dict[int, list[int]]()
    for at, (scenario, engines) in enumerate(tables):
        if text := _unmeasured(scenario, engines):
            of_tables[at] = np.full(len(engines), np.nan), np.zeros(len(engines), np.int64), (text,)
        else:
            by_boxes.setdefault(id(scenario.software.served), []).append(at)
    for places in by_boxes.values():
        several = [tables[at] for at in places]
        error, outside, texts = _expected(several)
        for at, end in zip(places, np.cumsum([len(engines) for _, engines in several]).tolist(), strict=True):
            rows = slice(end - len(tables[at][1]), end)
            of_tables[at] = error[rows], outside[rows], texts
    return [of_tables[at] for at in range(len(tables))]


def _unmeasured(scenario: Scenario, engines: Engines) -> str:
    """Why no measured load says anything of a table; empty where some may."""
    if not scenario.model.of_kind.decodes:
        return "model (none that decodes nothing was measured)"
    if not scenario.software.served or not len(engines):
        return f"software (no request served by {scenario.software.name} was measured)"
    return ""


def _expected(tables: Tables) -> Expected:
    """``loads_expected`` of all rows of tables that share measured loads."""
    asked = AskedLoads.from_tables(tables)
    of_steps, nearest, units = steps_expected(asked)
    outside, texts = np.full(len(nearest), -1, np.int64), dict[str, int]()
    for at in np.flatnonzero(np.bincount(nearest)).tolist() if units else ():  # without, all lie inside every box
        rows = np.flatnonzero(nearest == at)
        marks = [column[at, rows] > 0 for column in units.values()]
        first, kind = distinct([numbered(mark) for mark in marks])
        for number, row in enumerate(first.tolist()):
            names = [name for name, mark in zip(units, marks, strict=True) if mark[row]]
            told = dict.fromkeys(f"{TITLES.get(name, name)} (measured: {_measured(asked.boxes[at], name)})" for name in names)
            if told:
                outside[rows[kind == number]] = texts.setdefault("; ".join(told), len(texts))
    if (asked.engines.request_rate > 0).any():
        from rapid_dse.simulate.inference.amplified import amplifications  # with what prices requests: where any come at a rate

        of_steps = of_steps * np.concatenate(amplifications(tables))
    return of_steps, outside, tuple(texts)


def steps_expected(
    asked: AskedLoads, steps: Mapping[str, float] = SERVED_STEPS
) -> tuple[FloatColumn, NDArray[np.int64], Mapping[str, FloatColumn]]:
    """The error to expect of the engine's steps in each row, NaN where nothing tells; the nearest box, and ``units_outside``.

    ``steps``: what settings outside add. The profile must have measured loads behind it.
    """
    inside, units = inside_of(asked), units_outside(asked)
    # the nearest box by settings and doublings, as the steps were learned: the one that widens least would be the kindest; what no load
    # had is far, and no farther, so that of boxes that all lack it the one that is nearest in the rest is named
    reached = {name: np.minimum(column, FAR) for name, column in units.items()}
    nearest = widened(reached, inside, dict.fromkeys(units, 1.0)).argmin(axis=0)
    error = np.sqrt(inside**2 + widened(units, inside, steps)[nearest, np.arange(len(inside))])
    error[np.isinf(error)] = np.nan
    return error, nearest, units


def widened(units: Mapping[str, FloatColumn], inside: FloatColumn, steps: Mapping[str, float]) -> FloatColumn:
    """The squares that settings outside add, as ``units_outside`` has them: ``(n_boxes, n_rows)``."""
    least, total = (LEAST * inside) ** 2, np.zeros((1, len(inside)))
    for name, column in units.items():
        total = total + (steps.get(name, 0.0) ** 2 + least) * column**2
    return total


def units_outside(asked: AskedLoads) -> dict[str, FloatColumn]:
    """How far each setting lies outside each box, ``(n_boxes, n_rows)``: 1 where it is none of those measured, of numbers the doublings.

    Infinite where no load of any profile had it. Settings that lie inside every box in every row are left out.
    """
    boxes, engines, scenarios = asked.boxes, asked.engines, asked.scenarios
    least, largest = _spans(boxes)
    numbers = [(*scenario.workload.lengths, float(count(scenario.model).total)) for scenario in scenarios]
    of_scenarios = np.array(numbers, np.float64).T[:, None]
    prompt, generated, parameters = _doublings(least[:3], largest[:3], of_scenarios)
    larger = of_scenarios[2] > least[2]
    settings = [_settings_outside(boxes, scenario.hw, scenario.model, scenario.workload.precision) for scenario in scenarios]
    # of a scenario each, (n_boxes or 1, n_scenarios)
    shared = {name: np.concatenate([setting[name] for setting in settings], axis=1) for name in settings[0]} | {
        "drafts": np.array([[np.inf if scenario.workload.draft_tokens else 0.0 for scenario in scenarios]]),
        "prompt": prompt,
        "generated": generated,
        "parameters": np.where(larger, parameters, 0.0),
        "small_models": np.where(larger, 0.0, parameters),
    }
    load = np.maximum(engines.concurrency, engines.batch_size)
    own = np.stack([engine_gpus(engines), np.maximum(1.0, load / engine_count(engines))])[:, None]
    gpus, concurrency = _doublings(least[3:], largest[3:], own)
    units = {name: column[:, asked.of] for name, column in shared.items() if column.any()} | {
        "pools": (engines.pooled != np.array([box.pools for box in boxes])[:, None]).astype(np.float64),
        "gpus": gpus,
        "concurrency": np.where(load > 0, concurrency, 0.0),
    }
    return {name: np.broadcast_to(column, (len(boxes), len(engines))) for name, column in units.items() if column.any()}


@remembered(64)
def _settings_outside(boxes: Sequence[ServedRuns], hw: Hardware, model: Model, precision: str) -> dict[str, FloatColumn]:
    """``units_outside`` of settings that all rows of a scenario share, ``(n_boxes, 1)`` each."""
    chips = [_chip_outside(box, hw) for box in boxes]
    settings = {
        "chip": [chip.get("chip", 0.0) for chip in chips],
        "architecture": [chip.get("architecture", 0.0) for chip in chips],
        "precision": [_unlike(box.precision, alike(precision), SERVED_PRECISIONS) for box in boxes],
        "experts": [float(box.experts != bool(model.num_experts)) for box in boxes],
        "latent": [float(box.latent != bool(model.kv_lora_rank)) for box in boxes],
    }
    return {name: np.array(values)[:, None] for name, values in settings.items()}


@remembered(16)
def _spans(boxes: Sequence[ServedRuns]) -> tuple[FloatColumn, FloatColumn]:
    """The least and the largest that each box has of ``SPANS``, ``(n_spans, n_boxes, 1)`` each."""
    least, largest = np.array([[getattr(box, name) for box in boxes] for name in SPANS]).transpose(2, 0, 1)[..., None]
    return least, largest


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


def sent(asked: AskedLoads) -> NDArray[np.int64]:
    """How requests come in each row, as places in ``SENT``, ``(n_rows,)``."""
    engines, same = asked.engines, np.array([scenario.workload.length_spread == 0 for scenario in asked.scenarios])[asked.of]
    loop = engines.concurrency > 0
    told = [engines.batch_size > 0, loop & same, loop | (engines.request_rate > 0)]
    codes: NDArray[np.int64] = np.select(told, [SENT.index("batch"), SENT.index("one_length"), SENT.index("mixed")], SENT.index("at_once"))
    return codes


def inside_of(asked: AskedLoads) -> FloatColumn:
    """The error of the boxes that are most like each row; of those that nothing tells apart the geometric mean, a model counting alike."""
    kinds = 2 * len(SENT)
    codes = asked.of * kinds + sent(asked) + len(SENT) * asked.engines.pooled
    errors = np.full(len(asked.scenarios) * kinds, np.nan)
    for code in np.flatnonzero(np.bincount(codes)).tolist():
        at, kind = divmod(code, kinds)
        scenario = asked.scenarios[at]
        of = asked.boxes, scenario.hw, scenario.model, scenario.workload.precision
        errors[code] = _error_inside(*of, kind >= len(SENT), SENT[kind % len(SENT)])
    return errors[codes]


@remembered(256)
def _error_inside(boxes: Sequence[ServedRuns], hw: Hardware, model: Model, precision: str, pools: bool, came: Sent) -> float:
    """The error of the boxes that are most like rows with pools or without, for requests that come so."""
    wanted: tuple[Callable[[ServedRuns], bool], ...] = (
        lambda box: box.pools == pools,
        lambda box: box.experts == bool(model.num_experts),
        lambda box: box.latent == bool(model.kv_lora_rank),
        lambda box: box.precision == alike(precision),
        lambda box: box.chip == hw.name,
    )
    for has in wanted:
        boxes = [box for box in boxes if has(box)] or boxes
    logs, weights = [_log_error(box, came) for box in boxes], [box.models for box in boxes]
    return float(np.exp(np.average(logs, weights=weights)))


def _log_error(box: ServedRuns, came: Sent) -> float:
    """The log of a box's error for requests that come so; where it has none that did, what is typical of them, times how much larger its
    own errors are than is typical."""
    if came in box.errors or not box.errors:
        return float(np.log(box.errors.get(came, box.error)))
    larger = [np.log(error / SERVED_ERRORS[kind]) for kind, error in box.errors.items()]
    return float(np.log(SERVED_ERRORS[came]) + np.mean(larger))


def engine_gpus(engines: Engines) -> FloatColumn:
    """GPUs of an engine; of pools, of a decode engine."""
    own = engines.tp * engines.attention_dp * engines.cp * engines.pp
    pooled = engines.decode_tp * engines.decode_attention_dp * engines.decode_pp
    return np.where(engines.pooled, pooled, own).astype(np.float64)


def engine_count(engines: Engines) -> FloatColumn:
    """Engines that generate tokens."""
    return np.maximum(1.0, np.where(engines.pooled, engines.decode_workers, engines.dp).astype(np.float64))


def _doublings(least: FloatColumn, largest: FloatColumn, values: FloatColumn) -> FloatColumn:
    """By how many doublings values lie outside of what was measured, of one shape."""
    beyond = np.maximum(values / largest, least / np.maximum(values, 1e-9))
    return np.asarray(np.log2(np.where(beyond > 1.0 + ROUNDED, beyond, 1.0)))


def _measured(box: ServedRuns, name: str) -> str:
    """What a box has of a setting, in words."""
    if name in ("architecture", "chip"):
        return box.chip
    if name == "drafts":
        return "without"
    if name in KINDS:
        return KINDS[name][getattr(box, name)]
    if name == "precision":
        return box.precision
    billions = name in ("parameters", "small_models")
    span = box.parameters if billions else getattr(box, name)
    least, largest = (f"{bound / 1e9:.3g}" if billions else f"{bound:,.0f}" for bound in span)
    text = least if least == largest else f"{least} to {largest}"
    return f"{text} billion parameters" if billions else text
