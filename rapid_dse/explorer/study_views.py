"""Pages of the list of studies, and of one: filters, the picture of its rows, those that are selected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray

from rapid_dse.analysis.report import study_sections
from rapid_dse.analysis.report.pipeline_section import pipeline_of
from rapid_dse.analysis.report.study_jobs import jobs_of
from rapid_dse.explorer.cloud_points import corners_of, inside_outline, nearest_row, plane_of, points_of
from rapid_dse.explorer.row_filter import matching
from rapid_dse.explorer.study_shelf import LoadedStudy, Shelf
from rapid_dse.explorer.web_answers import Asking, NotListed, WebAnswer
from rapid_dse.sweep import arrow, figures, listing, ranking, show

PAGE = 50  # rows of a table
CHOSEN = "c."  # begins the parameters that choose a value of a column
_ORDER = 10_000_000  # rows that may be paged to
_STATUS = "status"
_LAYOUT = ("tp", "attention_dp", "cp", "dp", "pp", "ep", "vpp", "zero", "micro_batch_size", "recompute", "schedule")
MOST_JOBS = 6  # of which pictures are drawn

OF_QUERY = ("study", "q", "by", "x", "y", "first", "lasso")  # parameters, beside those that choose values


@dataclass(frozen=True)
class StudyQuery:
    """What of a study is asked for.

    Attributes:
        text: terms of the filter.
        chosen: value by column.
        by: the column that ranks.
        axes: the columns across and up.
        first: where the page of the table begins.
        lasso: an outline, as text; empty: none.
    """

    study: LoadedStudy
    text: str
    chosen: Mapping[str, str]
    by: str
    axes: tuple[str, str]
    first: int
    lasso: str

    def mask(self, outlined: bool = True) -> NDArray[np.bool_]:
        """The rows that the filter leaves, and the outline where ``outlined``, ``(n_rows,)``.

        Raises:
            ValueError: where a term or the outline is none.
        """
        matching_rows = matching(self.study, self.text, {name: [value] for name, value in self.chosen.items()})
        return (
            inside_outline(plane_of(self.study, self.axes), corners_of(self.lasso), matching_rows)
            if outlined and self.lasso
            else matching_rows
        )

    def address(self, path: str, **changed: str | int) -> str:
        """A path with the parameters of this query, some of them changed."""
        words: dict[str, str | int] = {"study": self.study.name, "q": self.text, "by": self.by, "x": self.axes[0], "y": self.axes[1]}
        words |= {"lasso": self.lasso, **{f"{CHOSEN}{name}": value for name, value in self.chosen.items()}, **changed}
        return f"{path}?{urlencode({name: value for name, value in words.items() if value != ''})}"


def opened(shelf: Shelf, name: str) -> LoadedStudy:
    """A study of the list.

    Raises:
        NotListed: where there is none of the name.
    """
    try:
        return shelf.opened(name)
    except KeyError:
        raise NotListed(f"study={name!r}: is not in the list; allowed: a study that the first page lists") from None


def query_of(shelf: Shelf, asking: Asking) -> StudyQuery:
    """The query that parameters say.

    Raises:
        ValueError: where one of them is wrong.
    """
    study = opened(shelf, asking.text("study"))
    chosen = {name.removeprefix(CHOSEN): value for name, value in asking.values.items() if name.startswith(CHOSEN) and value != ""}
    for name, value in chosen.items():
        offered = study.choices(name) if name in study.table.column_names else ()
        if value not in offered:
            what = f"; allowed: {', '.join(offered)}" if offered else "; allowed: a column of which the page offers values"
            raise ValueError(f"{CHOSEN}{name}={value[:40]!r}: no value of this study{what}")
    by, x, y = (
        asking.values.get(name) or usual for name, usual in (("by", "step_time_s"), ("x", "step_time_s"), ("y", "peak_memory_bytes"))
    )
    for name, value in (("by", by), ("x", x), ("y", y)):
        ranking.require_name(value, study.numeric, name)
    if "-" in (x[0], y[0]):
        raise ValueError("x and y: allowed: a column, without a sign")
    return StudyQuery(
        study, asking.values.get("q", ""), chosen, by, (x, y), asking.number("first", 0, _ORDER), asking.values.get("lasso", "")
    )


def studies_page(shelf: Shelf, _: Asking) -> WebAnswer:
    """All studies."""
    return WebAnswer("studies", {"title": "Studies", "studies": shelf.listed(), "root": str(shelf.root)})


def study_page(shelf: Shelf, asking: Asking) -> WebAnswer:
    """A study: its filters, and what they leave."""
    query = query_of(shelf, asking)
    study = query.study
    keys = [*study.varying, *(f"parallel.{name}" for name in _LAYOUT), _STATUS]
    offered = {key: values for key in dict.fromkeys(keys) if key in study.table.column_names and (values := study.choices(key))}
    titles = dict(zip(offered, listing.short_titles(list(offered)), strict=True))
    context = {"title": study.name, "query": query, "offered": offered, "titles": titles, "chosen_prefix": CHOSEN}
    return WebAnswer("study", {**context, **_selected(query)})


def rows_part(shelf: Shelf, asking: Asking) -> WebAnswer:
    """What the filters leave, as a part of the page."""
    query = query_of(shelf, asking)
    return WebAnswer("rows", {"title": query.study.name, "query": query, **_selected(query)})


def _selected(query: StudyQuery) -> dict[str, object]:
    study, mask = query.study, query.mask()
    count, fits = int(mask.sum()), int((study.column_of_numbers("fits")[mask] == 1).sum())
    order = best_first(study, query.by, mask, query.first + PAGE)[query.first :]
    rows = study.table.take(arrow.numbers(order)).to_pylist()
    head, cells = listed_rows(study, query.by, rows, query.first)
    end = query.first + len(rows)
    return {
        "count": count, "fits": fits, "of": len(study), "head": head, "points": query.address("/points", lasso=""),
        "rows": [(row.get("key") or "", show.layout_text(row), line) for row, line in zip(rows, cells, strict=True)],
        "before": query.address("/rows", first=max(0, query.first - PAGE)) if query.first else None,
        "after": query.address("/rows", first=end) if end < count else None,
        "from_row": query.first + 1 if rows else 0, "to_row": end, "here": query.address("/study", first=query.first),
    }  # fmt: skip


def best_first(study: LoadedStudy, by: str, mask: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """The first rows of a mask: what fits, best first, then what does not, then what was not priced."""
    values = study.column_of_numbers(by.removeprefix("-"))
    loss = -values if ranking.descending(by) else values
    fits = study.column_of_numbers("fits") == 1
    first_rows = np.zeros(0, np.int64)
    for which in (fits, ~fits):
        rows = np.flatnonzero(mask & which)
        wanted = count - len(first_rows)
        order = np.nan_to_num(loss[rows], nan=np.inf, posinf=np.inf)
        if len(rows) > 4 * wanted > 0:
            near = np.argpartition(order, wanted)[: wanted + 1]
            rows, order = rows[np.sort(near)], order[np.sort(near)]
        first_rows = np.concatenate([first_rows, rows[np.argsort(order, kind="stable")][: max(wanted, 0)]])
    return first_rows


def listed_rows(study: LoadedStudy, by: str, rows: Sequence[dict[str, object]], first: int) -> tuple[list[str], list[list[str]]]:
    """The head and the cells of a table of rows."""
    if not rows:
        return [], []
    status = {"": ["" if row["status"] == "ok" else show.status_text(row) for row in rows]}
    listed = show.Listed(rows, by, study.varying, [f"{first + at + 1:,}" for at in range(len(rows))], after=status)
    columns = show.columns_of(listed)
    return [name.title for name in columns], [list(cells) for cells in zip(*(name.cells for name in columns), strict=True)]


def points_part(shelf: Shelf, asking: Asking) -> WebAnswer:
    """The rows of the filter as points, for the browser's picture; an outline leaves out none of them."""
    query = query_of(shelf, asking)
    axes = [study_sections.axis_of(name) for name in query.axes]
    return WebAnswer("", {}, points_of(query.study, plane_of(query.study, query.axes), query.mask(outlined=False), axes))


def nearest_part(shelf: Shelf, asking: Asking) -> tuple[LoadedStudy, str]:
    """The study and the key of the row that lies nearest to a place of the picture."""
    query = query_of(shelf, asking)
    at = (asking.float_of("at_x"), asking.float_of("at_y"))
    row = nearest_row(plane_of(query.study, query.axes), query.mask(outlined=False), at)
    key = None if row is None or "key" not in query.study.table.column_names else query.study.table["key"][row].as_py()
    if key is None:
        raise NotListed("no row there that has a key; allowed: a place beside a point")
    return query.study, str(key)


def pictures_page(shelf: Shelf, asking: Asking) -> WebAnswer:
    """The report's pictures of a whole study."""
    study = opened(shelf, asking.text("study"))
    jobs = jobs_of(study.table, asking.values.get("by") or "step_time_s")
    parts = [
        (job.name, [*study_sections.sections_of(job, f"job{at}"), *pipeline_of(job.pictured[0], f"job{at}")])
        for at, job in enumerate(jobs[:MOST_JOBS])
    ]
    status, reasons = ranking.counts(study.table)
    rejected = study_sections.rejected(dict(status), dict(reasons.most_common()))
    more = max(0, len(jobs) - MOST_JOBS)
    return WebAnswer("pictures", {"title": study.name, "study": study, "parts": parts, "rejected": rejected, "more": more})


def size_text(count: int) -> str:
    """Bytes of files: 4.2 MB."""
    return figures.scaled(float(count), "B", 2)
