"""How the rows of a table stand: which count, in what order, and which of them no prediction can tell apart.

``Standing`` is what is kept of each priced row, a few numbers, so that chunks of a sweep can be put together; ``choosing`` says which
rows a ranked table shows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.schedule_names import SCHEDULES
from rapid_dse.parallel.layouts import COLUMN_OF
from rapid_dse.parallel.schedules import SCHEDULE_CLASSES
from rapid_dse.sweep import arrow, identity, ranking
from rapid_dse.sweep.search.aims import Constraint

if TYPE_CHECKING:
    import pyarrow as pa

FloatColumn = NDArray[np.float64]
Label = tuple[tuple[str, Any], ...]  # keys and values that rows of one group share

# Columns that are the step time in other words: the error to expect of it is theirs.
OF_TIME = frozenset(
    {
        *("step_time_s", "tokens_per_s", "tokens_per_s_per_gpu", "mfu", "cost_usd", "usd_per_million_tokens"),
        *("train_time_s", "train_cost_usd"),
    }
)
# What makes a job another one, so that rows with and without it have no common ranking: the model, and the work of a step. Precision is
# a choice of how to do the same work.
_SAME_WORK = frozenset({"workload.precision", "workload.kv_precision"})
_LOADS = {f"workload.{name}" for name in ("global_batch_size", "batch_size", "concurrency", "request_rate", "num_prompts")}
# What a chip's usable memory depends on; its bandwidth, which a search may draw anew for each trial, is none of it.
OF_USABLE = frozenset({"hw", "hw.memory", "hw.memory.usable", "hw.memory.capacity", "cluster", "cluster.memory_taken"})
FITS, OOM, NO_HEADROOM = range(3)  # verdicts; 3 and more are the constraint that is broken


@dataclass(frozen=True)
class Aim:
    """What a ranking is after.

    Attributes:
        by: the column that ranks; a leading '-' puts the largest first.
        top: rows to show.
        constraints: those beside fits.
        headroom: the share of usable memory that must stay free.
        varying: keys outside the layout that differ in the study.
        best_per: a key of whose values the best row each is shown; None: the best rows.
        each: a line a layout, also where no prediction tells layouts apart.
    """

    by: str
    top: int
    constraints: tuple[Constraint, ...] = ()
    headroom: float = 0.0
    varying: tuple[str, ...] = ()
    best_per: str | None = None
    each: bool = False

    @property
    def grouped(self) -> tuple[str, ...]:
        """Keys whose values make jobs that have no common ranking: of the model, and of the work of a step.

        Rates are comparable whatever the batch or the load: tokens a second of a larger one are tokens a second.
        """
        rates = _LOADS if self.by.removeprefix("-") in (*ranking.MORE_IS_BETTER, "usd_per_million_tokens", "energy_j_per_token") else set()
        return tuple(key for key in self.varying if key.split(".")[0] in ("model", "workload") and key not in _SAME_WORK | rates)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is said of rows that fit and do not count, by verdict from ``NO_HEADROOM``."""
        return (
            f"leaves less than {100 * self.headroom:g} % of usable memory free",
            *(f"breaks {constraint.text}" for constraint in self.constraints),
        )


@dataclass(frozen=True)
class Nearest:
    """The row of a group that is nearest to fitting, and the highest MFU of those that do not fit.

    Attributes:
        over: its peak memory over what it may have, above 1.
        row: the row.
        mfu: of the fastest row that does not fit.
    """

    over: float
    row: Mapping[str, Any]
    mfu: float


@dataclass(frozen=True)
class Standing:
    """Priced rows of one or several tables, ``(n_rows,)`` each; of those that do not count only the first ``Aim.top`` a group.

    Attributes:
        lanes: what tells a row from all others, ``(n_rows, 2)``: its key, or where it stands.
        loss: the ranking column, its negative where more is better.
        over: peak memory over what the row may have, at least 1; 1 where that is not known.
        verdict: ``FITS``, ``OOM``, ``NO_HEADROOM``, or 3 and the index of the constraint that is broken.
        error: the relative error to expect of the step time; NaN where it is not known.
        plainness: see ``plainness``.
        inside: whether all its settings lie inside what was measured and is offered.
        group: index in ``labels``.
        variant: what is equal for rows whose ``Aim.varying`` keys have the same values.
        per: index in ``values``.
        values: what ``Aim.best_per`` takes.
        nearest: by group, where rows do not fit.
        broken: how many rows fit and do not count, by what they break.
    """

    lanes: identity.Lanes
    loss: FloatColumn
    over: FloatColumn
    verdict: NDArray[np.int8]
    error: FloatColumn
    plainness: NDArray[np.int16]
    inside: NDArray[np.bool_]
    group: NDArray[np.int32]
    variant: NDArray[np.int64]
    per: NDArray[np.int32]
    labels: tuple[Label, ...]
    values: tuple[Any, ...]
    nearest: Mapping[Label, Nearest]
    broken: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.loss)

    def take(self, rows: NDArray[Any]) -> Standing:
        """The rows at these positions."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _COLUMNS})


_COLUMNS = ("lanes", "loss", "over", "verdict", "error", "plainness", "inside", "group", "variant", "per")


def standing_of(table: pa.Table, aim: Aim, usable: FloatColumn | float | None, lanes: identity.Lanes) -> Standing:
    """How the rows of a results table stand; rows without a value of the ranking column are left out.

    Args:
        usable: hw.memory.usable of each row, bytes, ``(n_rows,)``, or of all; None where it is not known: fits then tells alone.
        lanes: what tells the rows apart, ``(n_rows, 2)``.
    """
    name = ranking.require_name(aim.by, ranking.numbers(table.schema), "by")
    value = numbers(table, name)
    priced = np.isfinite(value) & ~np.isnan(numbers(table, "step_time_s"))
    fits = numbers(table, "fits") == 1
    verdict = np.where(fits, np.int8(FITS), np.int8(OOM))
    # bytes over what a row may have; without usable it is only known which rows are above it
    over = np.where(fits, 0.0, np.nan) if usable is None else numbers(table, "peak_memory_bytes") / (usable * (1 - aim.headroom))
    verdict[fits & (over > 1)] = NO_HEADROOM
    for at, constraint in enumerate(aim.constraints):
        verdict[(verdict == FITS) & constraint.broken(numbers(table, constraint.name))] = NO_HEADROOM + 1 + at
    group, labels = combinations_of(table, aim.grouped)
    per, values = combinations_of(table, () if aim.best_per is None else (aim.best_per,))
    standing = Standing(
        lanes,
        -value if ranking.descending(aim.by) else value,
        np.fmax(over, 1.0),
        verdict,
        expected_error(table) if name in OF_TIME else np.full(len(table), np.nan),
        plainness(table),
        inside(table),
        group.astype(np.int32),
        _variants(table, aim.varying),
        per.astype(np.int32),
        labels,
        tuple(label[0][1] if label else None for label in values),
        _nearest(table, np.where(priced & (verdict != FITS), over, np.nan), group, labels),
        _broken(verdict[priced], aim),
    )
    return _kept(standing.take(np.flatnonzero(priced)), aim.top)


def _variants(table: pa.Table, keys: Sequence[str]) -> NDArray[np.int64]:
    codes, labels = combinations_of(table, keys)
    hashes = [hashlib.blake2b(repr(label).encode(), digest_size=8).digest() for label in labels]
    return np.frombuffer(b"".join(hashes), np.int64)[codes]


def _broken(verdict: NDArray[np.int8], aim: Aim) -> dict[str, int]:
    counted = ((text, int((verdict == NO_HEADROOM + at).sum())) for at, text in enumerate(aim.reasons))
    return {text: count for text, count in counted if count}


def numbers(table: pa.Table, name: str) -> FloatColumn:
    """A column of numbers, NaN where it is null, auto (in a table of cases) or missing, ``(n_rows,)``.

    Raises:
        ValueError: where it holds something else.
    """
    import pyarrow as pa

    kind = arrow.kind_of(table.schema.field(name).type) if name in table.column_names else "nothing"
    if kind == "nothing":
        return np.full(len(table), np.nan)
    column = table[name]
    try:
        if kind == "texts":
            import pyarrow.compute as pc

            texts = column.cast(pa.string())
            column = pc.if_else(pc.equal(texts, arrow.scalar("auto")), pa.scalar(None, pa.string()), texts)
        return arrow.floats(column)
    except pa.ArrowException:
        raise ValueError(f"column {name} holds {_text_among(column)}; expected numbers, as a sweep or evaluate writes them") from None


def _text_among(column: pa.ChunkedArray) -> str:
    """The first value of a column that is no number, as an error shows it."""
    for value in column.to_pylist():
        try:
            float(value or 0)
        except (TypeError, ValueError):
            return repr(value)[:80]
    return str(column.type)


def expected_error(table: pa.Table) -> FloatColumn:
    """The relative error to expect of each row's step time, ``(n_rows,)``; NaN where nothing alike was measured."""
    return numbers(table, "expected_error")


def inside(table: pa.Table) -> NDArray[np.bool_]:
    """Which rows lie inside what was measured and is offered, ``(n_rows,)``: nothing is said to lie outside, and an error is known."""
    if "outside" not in table.column_names:
        return np.zeros(len(table), np.bool_)
    inside_measured: NDArray[np.bool_] = arrow.absent(table["outside"]) & ~np.isnan(expected_error(table))
    return inside_measured


def plainness(table: pa.Table) -> NDArray[np.int16]:
    """How many things a layout asks for, less is simpler, ``(n_rows,)``.

    One for each of tp, cp, pp and ep above 1; one each for interleaved stages (vpp above 1), a schedule beside 1F1B and its interleaved
    form, ZeRO 2 or 3, shards on a part of the replicas, full recomputation. Data parallelism, ZeRO 0 and 1, sequence parallelism,
    micro-batches and selective recomputation are what everyone runs. Of layouts that ask for as many things the one with fewer GPUs a
    replica is simpler.
    """
    degrees = {name: np.nan_to_num(numbers(table, f"parallel.{name}"), nan=1.0) for name in ("tp", "cp", "pp", "ep", "vpp")}
    complexity = sum(((column > 1).astype(np.int64) for column in degrees.values()), np.zeros(len(table), np.int64))
    complexity += numbers(table, "parallel.zero") > 1
    shards, replicas = numbers(table, "parallel.shard_group"), numbers(table, "parallel.dp") * degrees["cp"]
    complexity += (shards < replicas) & (numbers(table, "parallel.zero") > 0)
    complexity += ~_among(
        table, "parallel.schedule", [name for name, schedule in zip(SCHEDULES, SCHEDULE_CLASSES, strict=True) if schedule.plain]
    )
    complexity += ~_among(table, "parallel.recompute", ("none", "selective"))
    replica = np.minimum(degrees["tp"] * degrees["cp"] * degrees["pp"], 2.0**30)
    return (complexity * 64 + np.log2(replica).astype(np.int64)).astype(np.int16)


def _among(table: pa.Table, name: str, texts: Sequence[str]) -> NDArray[np.bool_]:
    """Whether a column of texts has one of these, or nothing, ``(n_rows,)``."""
    if name not in table.column_names:
        return np.ones(len(table), bool)
    codes, names = arrow.encoded(table[name])
    return np.array([text is None or text in texts for text in names])[codes]


def combinations_of(table: pa.Table, keys: Sequence[str]) -> tuple[NDArray[np.int64], tuple[Label, ...]]:
    """The combination of values of ``keys`` in each row, as an index in the combinations that there are, in the order they come in."""
    present = [key for key in keys if key in table.column_names]
    labels: list[Label] = [()]
    codes = np.zeros(len(table), np.int64)
    for key in present if len(table) else ():
        own, names = arrow.encoded(table[key])
        if (own == own[0]).all():
            labels = [(*label, (key, names[own[0]])) for label in labels]
            continue
        both = codes * len(names) + own
        distinct, first, codes = np.unique(both, return_index=True, return_inverse=True)
        order = np.argsort(first)
        labels = [(*labels[at // len(names)], (key, names[at % len(names)])) for at in distinct[order].tolist()]
        codes = np.argsort(order)[codes.ravel()]
    return codes, tuple(labels)


def _nearest(table: pa.Table, over: FloatColumn, group: NDArray[np.int64], labels: Sequence[Label]) -> dict[Label, Nearest]:
    """Of each group the row nearest to fitting, where any does not fit; ``over`` is NaN where a row does not matter."""
    nearest = {}
    mfu = numbers(table, "mfu")
    for at, label in enumerate(labels):
        rows = np.flatnonzero((group == at) & (over > 1))
        if len(rows):
            row = int(rows[np.argmin(over[rows])])
            nearest[label] = Nearest(float(over[row]), table.slice(row, 1).to_pylist()[0], float(np.nanmax(mfu[rows])))
    return nearest


def _kept(standing: Standing, top: int) -> Standing:
    """All rows that count, and of the others the first ``top`` of each group."""
    return standing.take(_kept_rows(standing.verdict, standing.loss, standing.over, standing.group, top))


def _kept_rows(verdict: NDArray[np.int8], loss: FloatColumn, over: FloatColumn, group: NDArray[np.int32], top: int) -> NDArray[np.bool_]:
    kept: NDArray[np.bool_] = verdict == FITS
    others = np.flatnonzero(~kept)
    order = others[np.lexsort((loss[others], over[others], group[others]))]
    starts = np.searchsorted(group[order], group[order])
    kept[order[np.arange(len(order)) - starts < top]] = True
    return kept


def together(parts: list[Standing], aim: Aim) -> Standing:
    """The rows of all parts.

    Args:
        parts: emptied, so that a column's parts are freed once they are put together: ten million rows twice do not fit in little memory.
    """
    if not parts:
        none, zero = np.zeros(0), np.zeros(0, np.int32)
        small = zero.astype(np.int8), zero.astype(np.int16), zero.astype(np.int64)
        return Standing(place_lanes(0), none, none, small[0], none, small[1], zero > 0, zero, small[2], zero, (), (), {}, {})
    labels = tuple(dict.fromkeys(label for part in parts for label in part.labels))
    values = tuple({repr(value): value for part in parts for value in part.values}.values())
    at, value_at = {label: i for i, label in enumerate(labels)}, {repr(value): i for i, value in enumerate(values)}
    columns: dict[str, list[NDArray[Any]]] = {name: [getattr(part, name) for part in parts] for name in _COLUMNS}
    columns["group"] = [np.array([at[label] for label in part.labels], np.int32)[part.group] for part in parts]
    columns["per"] = [np.array([value_at[repr(value)] for value in part.values], np.int32)[part.per] for part in parts]
    nearest: dict[Label, Nearest] = {}
    for part in parts:
        for label, new in part.nearest.items():
            old = nearest.get(label, new)
            nearest[label] = replace(min((old, new), key=lambda part: part.over), mfu=max(old.mfu, new.mfu))
    broken: Counter[str] = sum((Counter(part.broken) for part in parts), Counter())
    parts.clear()
    decide = {name: np.concatenate(columns.pop(name)) for name in ("verdict", "loss", "over", "group")}
    kept = _kept_rows(decide["verdict"], decide["loss"], decide["over"], decide["group"], aim.top)
    whole = {name: decide.pop(name)[kept] for name in tuple(decide)}
    whole |= {name: np.concatenate(columns.pop(name))[kept] for name in tuple(columns)}
    return Standing(**whole, labels=labels, values=values, nearest=nearest, broken=broken)


def differing(table: pa.Table, sections: Sequence[str]) -> list[str]:
    """Override keys outside the layout whose values differ between the priced rows of a table, in the order of its columns.

    Args:
        sections: first parts of keys, and groups whose option is a column.
    """
    return [key for key, values in distinct_values(table, outer_keys(table.column_names, sections)).items() if len(values) > 1]


def outer_keys(names: Sequence[str], sections: Sequence[str]) -> list[str]:
    """Those of the columns that are override keys outside the layout; ``sections`` as of ``differing``."""
    inside = {key for key in COLUMN_OF if key.startswith("parallel.")}
    return [name for name in names if name.split(".")[0] in sections and name not in inside]


def distinct_values(table: pa.Table, keys: Sequence[str]) -> dict[str, set[str]]:
    """The values that each key has among the priced rows, as text."""
    absent = np.isnan(numbers(table, "step_time_s"))
    priced = table.select(keys)
    priced = priced.filter(arrow.numbers(~absent)) if absent.any() else priced
    return {key: set(map(repr, _distinct(priced[key]))) for key in keys}


def _distinct(column: pa.ChunkedArray) -> list[Any]:
    import pyarrow.compute as pc

    values: list[Any] = pc.unique(column.cast(column.type.value_type) if hasattr(column.type, "value_type") else column).to_pylist()
    return values


def place_lanes(count: int) -> identity.Lanes:
    """Lanes that tell rows apart by where they stand, ``(count, 2)``."""
    return np.stack([np.arange(count, dtype=np.uint64), np.zeros(count, np.uint64)], axis=1)


def rows_at(table: pa.Table, lanes: identity.Lanes) -> list[dict[str, Any]]:
    """The rows of a table by ``place_lanes``."""
    rows: list[dict[str, Any]] = table.take(arrow.numbers(lanes[:, 0].astype(np.int64))).to_pylist()
    return rows
