"""The result table of a portion: every layout a row, in order, with DESIGN's fixed columns."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import together
from rapid_dse.config.scenario import Scenario
from rapid_dse.events.backends import price
from rapid_dse.parallel.layouts import BEHIND_NULL, CODES, COLUMN_OF, Layouts
from rapid_dse.simulate.results import ABSENT, Priced, refused, unlawful
from rapid_dse.simulate.trust import Trust
from rapid_dse.sweep import arrow, identity
from rapid_dse.sweep.outside import judged_together
from rapid_dse.sweep.portion import Portion
from rapid_dse.sweep.portion_lots import priced_in_lots

if TYPE_CHECKING:
    import pyarrow as pa

STATUS = ("ok", "oom", "invalid", "error")
OK, OOM, INVALID, ERROR = range(len(STATUS))
CHOICES = ("hw", "cluster", "model", "software", "backend")
_WORKLOAD = ("kind", "seq_len", "precision")
_INFERENCE = (
    "kind", "precision", "prompt_len", "decode_len", "length_spread", "kv_precision", "draft_tokens", "draft_acceptance", "prefix_hit"
)  # fmt: skip
FEW = 16  # rows at most of which a column of one value is kept
_FEW = 32  # so many layouts that fail are tried one by one; of more the ends speak for all
STAGE_LAYERS = "parallel.stage_layers"
_LAYOUT_KEYS = frozenset(COLUMN_OF)


@dataclass(frozen=True)
class Outcome:
    """What became of a portion's layouts.

    Attributes:
        priced: results of the layouts at ``rows``; None where there are none.
        rows: indices of the layouts that could be priced, ascending, ``(n_priced,)``.
        status: code of ``STATUS``, ``(n_layouts,)``.
        reason: index into ``reasons``, -1 where the status is ok, ``(n_layouts,)``.
        reasons: texts.
        seconds: what it took, each layout's share, ``(n_layouts,)``.
    """

    priced: Priced | None
    rows: NDArray[np.int64]
    status: NDArray[np.int8]
    reason: NDArray[np.int32]
    reasons: tuple[str, ...]
    seconds: NDArray[np.float64]


def priced_table(portion: Portion) -> pa.Table:
    """Prices every legal layout of a portion.

    Returns:
        one row a layout, in order: all override keys, key, status, reason, the columns of ``Priced`` (null where a layout is illegal
        or failed), elapsed_s (its share of the portion's time).

    Raises:
        Exception: whatever pricing raised, where search.fail_fast is set; else such rows have status=error.
    """
    return _table([portion], [price_portion(portion)])


def priced_tables(portions: Sequence[Portion], report: Callable[[int], object] = lambda n_rows: None) -> pa.Table:
    """``priced_table`` of several portions, one behind the other; null where a key is one of other portions alone.

    Columns are made once for all portions of one workload, which costs as much as for a single row.

    Args:
        report: is told how many layouts each portion had, as soon as it is priced.
    """
    import pyarrow as pa

    by_kind: dict[type[Layouts], list[int]] = {}
    for at, portion in enumerate(portions):
        by_kind.setdefault(type(portion.layouts), []).append(at)
    outcomes = _outcomes(portions, report)
    tables = [_table([portions[at] for at in places], [outcomes[at] for at in places]) for places in by_kind.values()]
    if len(tables) == 1:
        return tables[0]
    sizes = np.array([len(portion.layouts) for portion in portions])
    starts = np.cumsum(sizes) - sizes
    rows = [np.arange(starts[at], starts[at] + sizes[at]) for places in by_kind.values() for at in places]
    return pa.concat_tables(tables, promote_options="permissive").take(arrow.numbers(np.argsort(np.concatenate(rows))))


def _outcomes(portions: Sequence[Portion], report: Callable[[int], object]) -> list[Outcome]:
    """``price_portion`` of each; what was priced for several of them took each layout an equal share."""
    if all(portion.scenario.workload.kind == "training" for portion in portions):
        return [_reported(portion, report) for portion in portions]
    outcomes: dict[int, Outcome] = {}
    for at, ahead, seconds in priced_in_lots(portions):
        outcome = _reported(portions[at], report, ahead)
        outcomes[at] = replace(outcome, seconds=outcome.seconds + seconds)
    return [outcomes[at] for at in range(len(portions))]


def _reported(portion: Portion, report: Callable[[int], object], ahead: Priced | None = None) -> Outcome:
    outcome = price_portion(portion, ahead)
    report(len(portion.layouts))
    return outcome


def failed_table(portion: Portion, reason: str) -> pa.Table:
    """As ``priced_table``, where no layout could be priced for one reason."""
    n_rows = len(portion.layouts)
    rows, status, at = np.zeros(0, np.int64), np.full(n_rows, ERROR, np.int8), np.zeros(n_rows, np.int32)
    return _table([portion], [Outcome(None, rows, status, at, (reason,), np.zeros(n_rows))])


def _table(portions: Sequence[Portion], outcomes: Sequence[Outcome]) -> pa.Table:
    """The rows of portions of one workload, at least one, with what became of them."""
    import pyarrow as pa

    scenarios, layouts, outcome = [p.scenario for p in portions], [p.layouts for p in portions], _joined(outcomes)
    columns = override_columns(portions)
    columns["key"] = arrow.fixed_texts(identity.hex_bytes(identity.keys_of(scenarios, layouts)))
    columns["status"] = arrow.coded(outcome.status, STATUS)
    columns["reason"] = arrow.coded(outcome.reason, outcome.reasons)
    columns |= _result_columns(outcome) | _trust_columns(portions, outcomes)
    columns["elapsed_s"] = arrow.numbers(outcome.seconds)
    return pa.table(columns)


def _joined(outcomes: Sequence[Outcome]) -> Outcome:
    """What became of the layouts of several portions, one behind the other."""
    if len(outcomes) == 1:
        return outcomes[0]
    sizes = [len(outcome.status) for outcome in outcomes]
    starts = np.cumsum(sizes) - sizes
    parts = [outcome.priced for outcome in outcomes if outcome.priced is not None]
    reason, reasons = in_one_list([outcome.reason for outcome in outcomes], [outcome.reasons for outcome in outcomes])
    return Outcome(
        Priced.concatenate(parts) if parts else None,
        np.concatenate([outcome.rows + start for outcome, start in zip(outcomes, starts, strict=True)]),
        np.concatenate([outcome.status for outcome in outcomes]),
        reason.astype(np.int32),
        tuple(reasons),
        np.concatenate([outcome.seconds for outcome in outcomes]),
    )


def in_one_list(codes: Sequence[NDArray[Any]], texts: Sequence[Sequence[str]]) -> tuple[NDArray[Any], Sequence[str]]:
    """Columns of codes, of texts of their own each, as one column of codes of one list of texts without repetition; a negative code, of no
    text, stays one."""
    if len(codes) == 1:
        return codes[0], texts[0]
    places: dict[str, int] = {}
    told = []
    for column, own in zip(codes, texts, strict=True):
        place = np.array([*(places.setdefault(text, len(places)) for text in own), -1])
        told.append(place[np.maximum(column, -1)])
    return np.concatenate(told), list(places)


def price_portion(portion: Portion, ahead: Priced | None = None) -> Outcome:
    """Prices the legal layouts, unless their results are there (``ahead``), and says what became of each."""
    start = time.perf_counter()
    legal = np.flatnonzero(portion.rule < 0)
    status = np.full(len(portion.layouts), INVALID, np.int8)
    reason = portion.rule.astype(np.int32)
    reasons = [*portion.reasons, "needs more memory than hw.memory.usable"]
    out_of_memory = len(portion.reasons)
    parts: list[tuple[NDArray[np.int64], Priced]] = []
    for rows, priced_rows in _attempts(portion.scenario, portion.layouts, legal) if ahead is None else [(legal, ahead)]:
        if isinstance(priced_rows, Priced):
            status[rows] = np.where(priced_rows.fits, OK, OOM)
            reason[rows] = np.where(priced_rows.fits, -1, out_of_memory)
            rows, priced_rows = _served(portion.scenario, portion.layouts, (rows, priced_rows), status, reason, reasons)
            parts.append(_lawful(rows, priced_rows, status, reason, reasons))
            if portion.scenario.search.fail_fast and len(parts[-1][0]) < len(rows):
                raise ValueError(reasons[-1])
        else:
            status[rows], reason[rows] = ERROR, len(reasons)
            reasons.append(priced_rows)
    rows = np.concatenate([rows for rows, _ in parts]) if parts else np.zeros(0, np.int64)
    priced = Priced.concatenate([priced for _, priced in parts]) if len(parts) > 1 else parts[0][1] if parts else None
    n_rows = len(portion.layouts)
    return Outcome(priced, rows, status, reason, tuple(reasons), np.full(n_rows, (time.perf_counter() - start) / max(1, n_rows)))


def _served(
    scenario: Scenario,
    layouts: Layouts,
    priced: tuple[NDArray[np.int64], Priced],
    status: NDArray[np.int8],
    reason: NDArray[np.int32],
    reasons: list[str],
) -> tuple[NDArray[np.int64], Priced]:
    """The rows that a system can serve for as long as it is asked to; the others are invalid, with the most that it can."""
    rows, priced_rows = priced
    if scenario.workload.kind == "training":
        return rows, priced_rows
    for text, where in refused(scenario, layouts.take(rows), priced_rows):
        status[rows[where]], reason[rows[where]] = INVALID, len(reasons)
        reasons.append(text)
    kept = np.flatnonzero(status[rows] != INVALID)
    return rows[kept], priced_rows.take(kept)


def _lawful(
    rows: NDArray[np.int64], priced: Priced, status: NDArray[np.int8], reason: NDArray[np.int32], reasons: list[str]
) -> tuple[NDArray[np.int64], Priced]:
    """The rows that hold what every result must, and their results; the others become errors, each with the first law that it breaks."""
    broken = unlawful(priced)
    if not broken:
        return rows, priced
    for text, where in reversed(broken):
        status[rows[where]], reason[rows[where]] = ERROR, len(reasons)
        reasons.append(text)
    kept = np.flatnonzero(status[rows] != ERROR)
    return rows[kept], priced.take(kept)


def _attempts(scenario: Scenario, layouts: Layouts, rows: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], Priced | str]]:
    """Prices ``rows``; where that raises, halves them until what raises stands alone."""
    if not len(rows):
        return []
    try:
        chosen = layouts if len(rows) == len(layouts) else layouts.take(rows)
        return [(rows, price(scenario, chosen, names=_folders(scenario, chosen)))]
    except Exception as error:  # whatever a layout raises is a row of the results, not the end of the study
        if scenario.search.fail_fast:
            raise
        text = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
        if len(rows) == 1 or (len(rows) > _FEW and _fails_alike(scenario, layouts.take(rows[[0, -1]]), text)):
            return [(rows, text)]
        middle = len(rows) // 2
        return _attempts(scenario, layouts, rows[:middle]) + _attempts(scenario, layouts, rows[middle:])


def _folders(scenario: Scenario, layouts: Layouts) -> list[str] | None:
    """Where runs leave anything, folders for it: the rows' keys, so that no trial overwrites another's."""
    return identity.texts(scenario, layouts) if scenario.backend.artifacts.wanted else None


def _fails_alike(scenario: Scenario, ends: Layouts, text: str) -> bool:
    """Whether the first and the last layout fail with the same text each: then it is the scenario that cannot be priced."""
    for row in range(len(ends)):
        end = ends.take(slice(row, row + 1))
        try:
            price(scenario, end, names=_folders(scenario, end))
        except Exception as error:  # the same ones as above
            if str(error) and str(error) not in text:
                return False
        else:
            return False
    return True


def override_columns(portions: Sequence[Portion]) -> dict[str, pa.Array]:
    """A column for every override key of the trials of portions of one workload: choices, workload, layout, all that was given."""
    sizes, tables = [len(portion.layouts) for portion in portions], [portion.layouts for portion in portions]
    shared = [{name: p.choices[name] for name in CHOICES if name in p.choices} | _constants(p) for p in portions]
    columns = {name: _shared([own.get(name) for own in shared], sizes) for name in dict.fromkeys(name for own in shared for name in own)}
    training = portions[0].scenario.workload.kind == "training"
    if training:
        splits = [portion.scenario.parallel.stage_layers for portion in portions]
        texts = list(dict.fromkeys(",".join(map(str, split)) for split in splits if split is not None))
        codes = [-1 if split is None else texts.index(",".join(map(str, split))) for split in splits]
        columns[STAGE_LAYERS] = arrow.coded(np.repeat(codes, sizes), texts or [""])
    for name, key in tables[0].keys.items():
        behind = training and name in BEHIND_NULL
        values = together([getattr(table, BEHIND_NULL[name] if behind else name) for table in tables])
        values = np.maximum(1, values) if behind else values
        # an automatic dp that comes out at no number of copies; what is null of an engine
        absent = values == 0 if name == "dp" or not training else None
        if name == "etp":
            dense = np.repeat([not portion.scenario.model.num_experts for portion in portions], sizes)
            absent = dense if absent is None else absent | dense
        columns[key] = arrow.coded(values, CODES[name]) if name in CODES else arrow.numbers(values, absent)
    return columns


def _shared(values: Sequence[Any], sizes: Sequence[int]) -> pa.Array:
    """A column of a value a portion, which its layouts share; null where that is None.

    Raises:
        pa.ArrowException: where some are numbers and others text.
    """
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if len(values) == 1 or not kinds:
        return constant(values[0], sum(sizes))
    if kinds <= {str, list, tuple, dict}:
        told = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        texts = {text: at for at, text in enumerate(dict.fromkeys(text for text in told if text is not None))}
        return arrow.coded(np.repeat([-1 if text is None else texts[text] for text in told], sizes), list(texts))
    if kinds in ({int}, {float}, {int, float}, {bool}):
        number = np.float64 if float in kinds else np.bool_ if bool in kinds else np.int64
        filled: NDArray[Any] = np.array([0 if value is None else value for value in values], number)
        return arrow.numbers(filled.repeat(sizes), np.repeat([value is None for value in values], sizes))
    tables = [pa.table({"": constant(value, size)}) for value, size in zip(values, sizes, strict=True)]
    return pa.concat_tables(tables, promote_options="permissive").column("").combine_chunks()


def _constants(portion: Portion) -> dict[str, Any]:
    """Keys that the portion's layouts share, with their values."""
    workload = portion.scenario.workload
    names = _WORKLOAD if workload.kind == "training" else _INFERENCE
    constants: dict[str, Any] = {f"workload.{name}": getattr(workload, name) for name in names}
    constants["parallel.order"] = ",".join(portion.scenario.parallel.order)
    varying = {*_LAYOUT_KEYS, *CHOICES, *constants, STAGE_LAYERS}
    given = {key: value for key, value in portion.keys.items() if key not in varying}
    return constants | given


def constant(value: Any, n_rows: int) -> pa.Array:
    """A column of one value: text and lists (as JSON) dictionary-encoded, numbers as they are, None as nulls."""
    if isinstance(value, Mapping | list | tuple):
        value = json.dumps(value)
    if isinstance(value, str | int) and n_rows <= FEW:
        return _of_few(value, n_rows)
    return _constant(value, n_rows)


@lru_cache(maxsize=1024, typed=True)
def _of_few(value: str | int, n_rows: int) -> pa.Array:
    """``constant`` of a few rows, table after table."""
    return _constant(value, n_rows)


def _constant(value: str | float | None, n_rows: int) -> pa.Array:
    import pyarrow as pa

    if isinstance(value, str):
        return arrow.repeated(value, n_rows)
    return pa.nulls(n_rows) if value is None else arrow.numbers(np.full(n_rows, value))


def _result_columns(outcome: Outcome) -> dict[str, pa.Array]:
    """The columns of ``Priced``, null where nothing was priced or the quantity does not exist (NaN)."""
    import pyarrow as pa

    n_rows = len(outcome.status)
    if outcome.priced is None:
        return {f.name: pa.nulls(n_rows, pa.bool_() if f.name == "fits" else pa.float64()) for f in fields(Priced)}
    made: dict[int, pa.Array] = {}  # by the array of numbers, which several columns share where no row has the quantity
    columns: dict[str, pa.Array] = {}
    for f in fields(Priced):
        values = getattr(outcome.priced, f.name)
        if id(values) not in made:
            made[id(values)] = _result_column(outcome, values, f.name in ABSENT)
        columns[f.name] = made[id(values)]
    return columns


def _result_column(outcome: Outcome, values: NDArray[Any], may_be_absent: bool) -> pa.Array:
    """One of them, from a value for each row that was priced."""
    absent, n_rows = np.isnan(values) if may_be_absent else None, len(outcome.status)
    if len(outcome.rows) < n_rows:
        filled, missing = np.zeros(n_rows, values.dtype), np.ones(n_rows, bool)
        filled[outcome.rows], missing[outcome.rows] = values, False if absent is None else absent
        values, absent = filled, missing
    return arrow.numbers(values, absent)


def _trust_columns(portions: Sequence[Portion], outcomes: Sequence[Outcome]) -> dict[str, pa.Array]:
    """The error to expect of each row that was priced, and what lies outside; null where there is nothing to say."""
    judgements = _judged(portions, outcomes)
    error = together([judgement.expected_error for judgement in judgements])
    outside, texts = in_one_list([judgement.outside for judgement in judgements], [judgement.texts for judgement in judgements])
    return {"expected_error": arrow.numbers(error, np.isnan(error)), "outside": arrow.coded(outside, texts)}


def _judged(portions: Sequence[Portion], outcomes: Sequence[Outcome]) -> list[Trust]:
    """How far to trust each row of each portion; nothing is said of rows that were not priced."""
    tables = []
    for portion, outcome in zip(portions, outcomes, strict=True):
        every, results = len(outcome.rows) == len(outcome.status), {} if outcome.priced is None else vars(outcome.priced)
        tables.append((portion.scenario, portion.layouts if every else portion.layouts.take(outcome.rows), results))
    judgements = judged_together(tables)
    for at, outcome in enumerate(outcomes):
        rows, n_rows = outcome.rows, len(outcome.status)
        if len(rows) < n_rows:
            error, outside = np.full(n_rows, np.nan), np.full(n_rows, -1, np.int64)
            error[rows], outside[rows] = judgements[at].expected_error, judgements[at].outside
            judgements[at] = Trust(error, outside, judgements[at].texts)
    return judgements
