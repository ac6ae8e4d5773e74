"""What a report shows of a job: a picture and the table of the same figures, a section each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from markupsafe import Markup

from rapid_dse.analysis.report import svg_charts as charts
from rapid_dse.analysis.report.study_jobs import ReportJob, Row, Shown, best_of_each, front_of_job
from rapid_dse.simulate.results import MEMORY_TERMS, OF_INFERENCE, TIME_TERMS
from rapid_dse.sweep import figures, ranking, show

MOST_LINES = 40  # of a table; what it leaves out is said
_TIMES = (*TIME_TERMS, OF_INFERENCE)


@dataclass(frozen=True)
class ReportSection:
    """A section: ``legend`` names the colours of the picture's terms, by their class; figures of ``rows`` are texts; ``axes``: what a
    picture of points shows across and up."""

    title: str
    note: str
    picture: Markup | None
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    legend: Sequence[tuple[str, str]] = ()
    axes: str = ""


def sections_of(job: ReportJob, name: str) -> list[ReportSection]:
    """The sections of a job; ``name`` begins the names of its pictures."""
    sections = [*terms_of(job.pictured, name), *_clouds(job, name), *_heat(job, name), *_machines(job, name)]
    return [*sections, _ranking(job), *_ties(job)]


def terms_of(compared: Sequence[Shown], name: str) -> Iterator[ReportSection]:
    """Time and memory by term of rows that are compared; ``name`` begins the names of the pictures."""
    whole = "a token of a request" if compared[0].serving else "a step"
    yield _stacked(compared, f"{name}-time", f"Time of {whole} by term", _TIMES, "time_{}_s", figures.seconds)
    yield _stacked(compared, f"{name}-memory", "Peak memory of a GPU by term", MEMORY_TERMS, "memory_{}_bytes", figures.size)


def _stacked(
    compared: Sequence[Shown], name: str, title: str, terms: Sequence[str], column: str, worded: Callable[[float], str]
) -> ReportSection:
    of_memory = column.startswith("memory")
    parts = [{term: row.row.get(column.format(term)) or 0.0 for term in terms} for row in compared]
    marks = [(row.usable, f"usable: {figures.size(row.usable)}") if of_memory and row.usable else None for row in compared]
    bars = [charts.StackedBar(row.role, own, mark) for row, own, mark in zip(compared, parts, marks, strict=True)]
    used = [term for term in terms if any(own[term] > 0 for own in parts)]
    rows = [[term, *(worded(own[term]) for own in parts)] for term in used]
    rows.append(["all", *(worded(sum(own.values())) for own in parts)])
    if of_memory:
        rows.append(["usable", *(figures.size(row.usable) for row in compared)])
    text = "; ".join(
        f"{row.role}: {', '.join(f'{term} {worded(own[term])}' for term in used)}" for row, own in zip(compared, parts, strict=True)
    )
    picture = charts.stacked_bars(charts.Frame(name, title, text), bars, terms, worded) if used else None
    note = "The line is what a GPU may use." if any(marks) else ""
    legend = [(term, f"term{terms.index(term)}") for term in used]
    return ReportSection(title, note, picture, ["term", *(row.role for row in compared)], rows, legend)


def _clouds(job: ReportJob, name: str) -> Iterator[ReportSection]:
    if "peak_memory_bytes" in job.table.column_names:
        yield _cloud(job, f"{name}-cloud", ("step_time_s", "peak_memory_bytes"), "Time and memory of every row")
    if job.serving and "tokens_per_s_per_gpu" in job.table.column_names:
        yield _cloud(job, f"{name}-rates", ("step_time_s", "tokens_per_s_per_gpu"), "Time of a token and throughput of a GPU, every row")


def _cloud(job: ReportJob, name: str, columns: tuple[str, str], title: str) -> ReportSection:
    """All rows by two columns, with the front of those that fit."""
    x, y = (job.column(name) for name in columns)
    priced, fits = (x > 0) & (y > 0) & np.isfinite(x) & np.isfinite(y), job.fitting
    sets = [charts.Cloud(kind, x[which & priced], y[which & priced]) for kind, which in (("oom", ~fits), ("fits", fits))]
    front = front_of_job(job, *columns)
    rows: list[Row] = job.table.take(front[:MOST_LINES]).to_pylist()
    texts = [partial(figures.result, name) for name in columns]
    marked = [charts.Marked("front", x[at], y[at], f"{texts[0](x[at])}, {texts[1](y[at])}") for at in front.tolist()]
    best = job.pictured[0]
    place = tuple(float(best.row[name]) for name in columns)
    marked.append(charts.Marked("winner", place[0], place[1], f"{best.role}: {show.layout_text(best.row)}", best.role.split(",")[0]))
    one_chip = not any(key.startswith("hw") and key != "hw.num_gpus" for key in job.varying)
    limit = best.usable if one_chip and columns[1] == "peak_memory_bytes" else None
    counted = f"{int((fits & priced).sum()):,} rows fit, {int((~fits & priced).sum()):,} do not; {len(front):,} are on the front"
    axes = (axis_of(columns[0]), axis_of(columns[1]))
    picture, said = charts.scatter(charts.Frame(name, title, counted), axes, sets, marked, limit)
    more = f" The table has the first {MOST_LINES} of the front." if len(front) > MOST_LINES else " The table is the front."
    note = f"{counted}: no row that fits is better in both. Rows on one pixel are one dot.{more}"
    cells = [
        [show.layout_text(row), *_varying(job, row), *(name(row[key]) for name, key in zip(texts, columns, strict=True))] for row in rows
    ]
    legend = [("fits", "fits"), ("does not fit", "oom"), ("front", "front"), (best.role, "winner")]
    return ReportSection(title, note, picture, ["layout", *job.varying, *columns], cells, legend, said)


def axis_of(column: str) -> charts.Axis:
    """The axis of a result column."""
    units = {"_bytes": ("GiB", 2.0**30), "train_time_s": ("days", 86400.0), "_usd": ("$", 1.0), "_time_s": ("s", 1.0)}
    name, unit = next((unit for end, unit in units.items() if column.endswith(end)), ("", 1.0))
    return charts.Axis(f"{column}{name and f' in {name}'}", partial(figures.result, column), unit)


def _varying(job: ReportJob, row: Row) -> list[str]:
    return [figures.setting(key, row.get(key)) for key in job.varying]


def _heat(job: ReportJob, name: str) -> Iterator[ReportSection]:
    """The best row that fits for each tp and pp, where either differs."""
    keys = ("parallel.tp", "parallel.pp")
    if not all(key in job.table.column_names for key in keys):
        return
    best = [row for row in best_of_each(job, keys) if all(row[key] is not None for key in keys)]
    column = job.by.removeprefix("-")
    text = partial(figures.result, column)
    cells = {(int(row[keys[0]]), int(row[keys[1]])): float(row[column]) for row in best}
    if len(cells) < 2:
        return
    title = f"{column} of the best row for each tp and pp"
    frame = charts.Frame(f"{name}-heat", title, f"{len(cells)} pairs have a row that fits")
    picture = charts.heat_map(frame, ("tp", "pp"), cells, text, ranking.descending(job.by))
    rows = [[str(row[keys[0]]), str(row[keys[1]]), show.layout_text(row), text(row[column])] for row in best]
    yield ReportSection(title, "Of rows that fit; the better the darker.", picture, ["tp", "pp", "layout", column], rows)


def _machines(job: ReportJob, name: str) -> Iterator[ReportSection]:
    """The best row of each chip and number of GPUs, where there are several: dollars against days, or against the time of a step."""
    keys = ("hw", "hw.num_gpus")
    best = best_of_each(job, tuple(key for key in keys if key in job.table.column_names))
    if len(best) < 2:
        return
    whole = all(row.get("train_time_s") and row.get("train_cost_usd") for row in best)
    columns = ("train_time_s", "train_cost_usd") if whole else ("step_time_s", "cost_usd")
    marked = _marked(best, *columns)
    title = "The best by chip and number of GPUs: cost against time"
    frame = charts.Frame(f"{name}-machines", title, "; ".join(mark.text for mark in marked))
    axes = axis_of(columns[0]), axis_of(columns[1])
    picture, said = charts.scatter(frame, axes, [], marked, None) if marked else (None, "")
    head = ["chip", "GPUs", "layout", "step_time_s", "expected", "mfu", *(columns if whole else columns[1:])]
    rows = [
        [str(row.get("hw", "")), str(row.get("hw.num_gpus", "?")), show.layout_text(row), figures.seconds(row["step_time_s"]),
         show.expected_text(show.error_of(row)), figures.percent(row["mfu"]), *(figures.result(key, row[key]) for key in head[6:])]
        for row in best[:MOST_LINES]
    ]  # fmt: skip
    more = f" The table has the first {MOST_LINES} of {len(best)}." if len(best) > MOST_LINES else ""
    note = f"Named are those that no other one is both faster and cheaper than.{more}"
    yield ReportSection(title, note, picture, head, rows, [("another is faster and cheaper", "other"), ("front", "front")], said)


def _marked(rows: Sequence[Row], first: str, second: str) -> list[charts.Marked]:
    """A point a row, less is better in both columns: those on the front stand out and are named by chip and GPUs."""
    marks: list[charts.Marked] = []
    least = float("inf")
    for row in sorted(rows, key=lambda mark: (mark.get(first) or 0, mark.get(second) or 0)):
        x, y, label = row.get(first) or 0.0, row.get(second) or 0.0, f"{row.get('hw', '')} × {row.get('hw.num_gpus', '?')}"
        if x > 0 and y > 0:
            kind = "front" if y < least else "other"
            marks.append(charts.Marked(kind, x, y, f"{label}: {show.layout_text(row)}", label if kind == "front" else ""))
            least = min(least, y)
    return marks


def _ranking(job: ReportJob) -> ReportSection:
    lines, rows = [line for line, _ in job.ranked], [row for _, row in job.ranked]
    alike = {"alike behind it": [f"{line.alike:,}" if line.alike else "" for line in lines]}
    if not job.fits:
        alike = {"status": [show.status_text(row) for row in rows]}
    listed = show.Listed(rows, job.by, job.varying, [str(line.rank or figures.NOTHING) for line in lines], after=alike)
    head, cells = _listed(listed)
    note = "A line stands for all rows alike to it: within its ±, and different in the layout alone." if any(alike.values()) else ""
    return ReportSection(f"Ranking by {job.by}", note, None, head, cells)


def _listed(listed: show.Listed) -> tuple[list[str], list[list[str]]]:
    columns = show.columns_of(listed)
    return [name.title for name in columns], [list(cells) for cells in zip(*(name.cells for name in columns), strict=True)]


def _ties(job: ReportJob) -> Iterator[ReportSection]:
    """Rows that no prediction tells from the winner."""
    count, rows = job.alike
    if count < 2:
        return
    head, cells = _listed(show.Listed(rows, job.by, job.varying))
    error = show.expected_text(show.error_of(job.pictured[0].row))
    first = f" The first {len(rows)} of them:" if count > len(rows) else ""
    yield ReportSection(
        "Ties", f"No prediction tells {count:,} rows apart: they lie within {error} of the winner.{first}", None, head, cells
    )


def other_machines(job: ReportJob) -> ReportSection | None:
    """Who would win on other machines, all rows priced again by closed forms; None where they cannot be composed here."""
    from rapid_dse.analysis.reasons.sensitivity import sensitivity
    from rapid_dse.analysis.reasons.told import machine_columns

    title = "On another machine"
    try:
        shifts = sensitivity(job.table, job.by)
    except ValueError as error:
        return ReportSection(title, f"Rows cannot be priced again by closed forms: {error}", None, [], [])
    if shifts is None:
        return None
    columns = machine_columns(shifts)
    of = f"the best {shifts.rows:,} of {shifts.of:,} rows" if shifts.rows < shifts.of else "all rows"
    note = f"Which row wins where one figure of the machine is half or twice what it is: {of} priced again by closed forms."
    cells = [list(cells) for cells in zip(*(name.cells for name in columns), strict=True)]
    return ReportSection(title, note, None, [name.title for name in columns], cells)


def load_fronts(jobs: Sequence[ReportJob]) -> list[ReportSection]:
    """Throughput against time of a token over all loads, of jobs that are ranked by throughput: loads are no jobs of their own then."""
    title, columns = "Throughput of a GPU and time of a token, all loads", ("step_time_s", "tokens_per_s_per_gpu")
    sections = []
    for at, job in enumerate(jobs):
        most = dataclasses.replace(job.pictured[0], role="most throughput")
        job_of_load = dataclasses.replace(job, pictured=(most, *job.pictured[1:]))
        sections.append(_cloud(job_of_load, f"loads{at}", columns, f"{title}: {job.name}" if job.name else title))
    return sections


def overview(jobs: Sequence[ReportJob]) -> ReportSection:
    """The first row of each of several jobs."""
    rows = [[job.name, show.layout_text(job.pictured[0].row), job.pictured[0].role, *_main(job.pictured[0].row)] for job in jobs]
    head = ["job", "layout", "which row", "step_time_s", "expected", "mfu", "peak_memory_bytes"]
    return ReportSection("Jobs", "They are other work, and are not ranked against each other.", None, head, rows)


def _main(row: Row) -> list[str]:
    figure_texts = (figures.result(key, row.get(key)) for key in ("step_time_s", "mfu", "peak_memory_bytes"))
    time, *rest = figure_texts
    return [time, show.expected_text(show.error_of(row)), *rest]


def rejected(status: Mapping[str, int], reasons: Mapping[str, int]) -> ReportSection:
    """What became of all rows, and why those that are not ok are not."""
    total = ", ".join(f"{count:,} {name}" for name, count in status.items())
    first = dict(list(reasons.items())[:MOST_LINES])
    more = f" The first {MOST_LINES} of {len(reasons):,} reasons:" if len(reasons) > MOST_LINES else ""
    picture = charts.counted_bars(charts.Frame("rejected", "Rows that are not ok, by reason", total), first) if first else None
    cells = [[name, f"{count:,}"] for name, count in first.items()]
    return ReportSection("Rejected", f"{sum(status.values()):,} rows: {total}.{more}", picture, ["reason", "rows"], cells)
