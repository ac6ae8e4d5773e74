"""The jobs of a study, each with the rows that its pictures show: the winner, what stands beside it, and where all rows lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.sweep import figures, ranking, restored, show, standing
from rapid_dse.sweep.choosing import Line, chosen, like_the_best, ordered
from rapid_dse.sweep.standing import FITS, Aim, Standing

if TYPE_CHECKING:
    import pyarrow as pa

    from rapid_dse.sweep.portion import Portion

Row = Mapping[str, Any]
TOP = 10  # lines of the ranked table


@dataclass(frozen=True)
class Shown:
    """A row that pictures compare, what it stands for, and its scenario; None where that cannot be composed here."""

    role: str
    row: Row
    portion: Portion | None

    @property
    def usable(self) -> float | None:
        """Bytes of a GPU that the job may use; None where the scenario is not known."""
        return None if self.portion is None else self.portion.scenario.hw.memory.usable

    @property
    def serving(self) -> bool:
        """Whether a step is a token of requests."""
        return self.row.get("ttft_s") is not None


@dataclass(frozen=True)
class ReportJob:
    """Rows that have a common ranking: one model, and one work of a step.

    Attributes:
        name: what tells the job from the study's others; empty where there is one.
        table: all its rows.
        by: the column that ranks.
        varying: keys outside the layout that differ within the job.
        pictured: the winner first, then what is compared with it; of a job of which nothing fits the row nearest to fitting.
        ranked: rows of the ranked table, with their lines.
        alike: rows that no prediction tells from the winner, itself included, best first; at most one where its error is not known.
    """

    name: str
    table: pa.Table
    by: str
    varying: tuple[str, ...]
    pictured: tuple[Shown, ...]
    ranked: tuple[tuple[Line, Row], ...]
    alike: tuple[int, tuple[Row, ...]]

    @property
    def fits(self) -> bool:
        """Whether anything fits."""
        return bool(self.pictured) and bool(self.pictured[0].row["fits"])

    @property
    def serving(self) -> bool:
        """Whether its steps are tokens of requests."""
        return bool(self.pictured) and self.pictured[0].serving

    def column(self, name: str) -> NDArray[np.float64]:
        """A column of its rows, NaN where there is nothing, ``(n_rows,)``."""
        return standing.numbers(self.table, name)

    @property
    def fitting(self) -> NDArray[np.bool_]:
        """Which of its rows fit, ``(n_rows,)``."""
        fit: NDArray[np.bool_] = self.column("fits") == 1
        return fit


def jobs_of(table: pa.Table, by: str) -> list[ReportJob]:
    """The jobs of a study, in the order in which its rows come.

    Raises:
        ValueError: where no row was priced, or no column of numbers has the name ``by``.
    """
    ranking.require_name(by, ranking.numbers(table.schema), "--by")
    varying = tuple(standing.differing(table, show.SECTIONS))
    aim = Aim(by, TOP, varying=varying)
    group, labels = standing.combinations_of(table, aim.grouped)
    usable = None if (standing.numbers(table, "fits") == 1).any() else restored.usable_of(table)
    stood = standing.standing_of(table, aim, usable, standing.place_lanes(len(table)))
    jobs = [_job(table, aim, stood, at, group) for at in range(len(labels)) if (stood.group == at).any()]
    if not jobs:
        raise ValueError(f"no row of the results was priced and has {by}; allowed: results with rows that are ok or oom")
    return jobs


def _job(table: pa.Table, aim: Aim, stood: Standing, at: int, group: NDArray[np.int64]) -> ReportJob:
    from rapid_dse.sweep import arrow

    label = stood.labels[at]
    lines = chosen(stood, at, aim)
    rows = standing.rows_at(table, stood.lanes[[line.at for line in lines]])
    counting, count = ordered(stood, at)
    alike = counting[:count][like_the_best(stood, counting[:count])]
    return ReportJob(
        ", ".join(f"{key}={figures.setting(key, value)}" for key, value in label),
        table.take(arrow.numbers(np.flatnonzero(group == at))),
        aim.by,
        tuple(key for key in aim.varying if key not in dict(label)),
        _compared(stood, lines, rows),
        tuple(zip(lines, rows, strict=True)),
        (len(alike), tuple(standing.rows_at(table, stood.lanes[alike[: 2 * TOP]]))),
    )


def _compared(stood: Standing, lines: list[Line], rows: list[dict[str, Any]]) -> tuple[Shown, ...]:
    """The winner, the best row inside what was measured, and the simplest that no prediction tells from the winner."""
    if stood.verdict[lines[0].at] != FITS:
        return (shown_row("nearest to fitting", rows[0]),)
    roles: dict[int, list[str]] = {0: ["winner"]}
    for at, line in enumerate(lines):
        if line.inside:
            roles.setdefault(at, []).append("best inside what was measured")
        if line.simplest:
            roles.setdefault(at, []).append("simplest within the winner's error")
    return tuple(shown_row(", ".join(names), rows[at]) for at, names in roles.items())


def shown_row(role: str, row: Row) -> Shown:
    """A row with its scenario."""
    return Shown(role, row, restored.portion_of(row))


def best_of_each(job: ReportJob, keys: tuple[str, ...]) -> list[Row]:
    """The best row that fits for each combination of values of these keys, in the order of the values."""
    from rapid_dse.sweep import arrow

    codes, _ = standing.combinations_of(job.table, keys)
    value = job.column(job.by.removeprefix("-"))
    loss = -value if ranking.descending(job.by) else value
    rows = np.flatnonzero(job.fitting & np.isfinite(loss))
    rows = rows[np.argsort(loss[rows], kind="stable")]
    _, first = np.unique(codes[rows], return_index=True)
    rows_of_group: list[Row] = job.table.take(arrow.numbers(rows[np.sort(first)])).to_pylist()
    return sorted(rows_of_group, key=lambda row: tuple((isinstance(row.get(key), str), row.get(key) or 0) for key in keys))


def front_of_job(job: ReportJob, first: str, second: str) -> NDArray[np.int64]:
    """Rows that fit and that no other row is better than in both columns, best of the ``first`` first; rates are best large."""
    x, y = (-job.column(name) if ranking.descending(name) else job.column(name) for name in (first, second))
    rows = np.flatnonzero(job.fitting & np.isfinite(x) & np.isfinite(y))
    rows = rows[np.lexsort((y[rows], x[rows]))]
    if not len(rows):
        return rows
    least = np.concatenate([[np.inf], np.minimum.accumulate(y[rows])[:-1]])
    return rows[y[rows] < least]
