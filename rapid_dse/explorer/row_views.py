"""Parts of a page about one row, and about two: figures by term, why it stands where it does, how it is launched."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from rapid_dse.analysis.launch_files.exported import exported
from rapid_dse.analysis.launch_files.frameworks import FRAMEWORKS, framework, of_profile
from rapid_dse.analysis.reasons import told
from rapid_dse.analysis.reasons.chosen import PricedTrial, restored, row_of
from rapid_dse.analysis.reasons.differences import difference
from rapid_dse.analysis.reasons.explanation import Explanation, explained
from rapid_dse.analysis.report.study_jobs import Shown, shown_row
from rapid_dse.analysis.report.study_page import card_of
from rapid_dse.analysis.report.study_sections import ReportSection, terms_of
from rapid_dse.explorer.study_shelf import LoadedStudy, Shelf
from rapid_dse.explorer.study_views import nearest_part, opened
from rapid_dse.explorer.web_answers import Asking, NotListed, WebAnswer
from rapid_dse.explorer.what_if import composing, overrides_of_row
from rapid_dse.sweep import figures, show

_KEY = re.compile("[0-9a-f]{1,32}")


def _row(study: LoadedStudy, key: str) -> dict[str, Any]:
    if not _KEY.fullmatch(key) or "key" not in study.table.column_names:
        raise NotListed(f"key={key[:40]!r}: is no key; allowed: up to 32 hex digits, as the table's rows have them")
    return row_of(study.table, key)


def row_part(shelf: Shelf, asking: Asking) -> WebAnswer:
    """One row: its card, its time and memory by term."""
    study = opened(shelf, asking.text("study"))
    return _row_page(study, _row(study, asking.text("key")))


def row_at_place(shelf: Shelf, asking: Asking) -> WebAnswer:
    """The row that lies nearest to a place of the picture."""
    study, key = nearest_part(shelf, asking)
    return _row_page(study, _row(study, key))


def _row_page(study: LoadedStudy, row: dict[str, Any]) -> WebAnswer:
    priced = row["step_time_s"] is not None
    with composing():
        compared = shown_row("this row" if row["status"] == "ok" else show.status_text(row), row)
    name = (
        f"{row['hw']} × {row['hw.num_gpus']}: {show.layout_text(row)}" if "hw.num_gpus" in row and row.get("hw") else show.layout_text(row)
    )
    of = {"study": study.name, "key": row["key"]}
    return WebAnswer("row", {
        "title": name, "row": row, "study": study, "card": card_of(compared) if priced else [("status", show.status_text(row))],
        "sections": list(terms_of([compared], "row")) if priced else [], "of": urlencode(of), "priced": priced,
        "what_if": urlencode({"overrides": shlex.join(overrides_of_row(row))}),
    })  # fmt: skip


def explain_part(shelf: Shelf, asking: Asking) -> WebAnswer:
    """Why a row stands where it does; beside another one where ``against`` names it."""
    study = opened(shelf, asking.text("study"))
    rows = [_row(study, asking.text("key"))]
    if asking.values.get("against"):
        rows.append(_row(study, asking.values["against"]))
    with composing():
        trials = [restored(row) for row in rows]
        explanation = explained(trials[0], trials[1] if len(trials) > 1 else None)
    sections = list(_reasons(explanation)) if len(rows) == 1 else []
    return WebAnswer(
        "explain", {"title": "Why", "study": study, "sections": sections, "points": _points(explanation), "beside": len(rows) > 1}
    )


def _points(explanation: Explanation) -> list[str]:
    return [told.point_text(point) for point in explanation.turning_points[: told.MOST_POINTS]]


def _reasons(explanation: Explanation) -> Iterator[ReportSection]:
    near = sorted(explanation.neighbours, key=lambda neighbour: (not neighbour.fits, neighbour.step_time_s))
    rows = [
        [
            told.change_text(neighbour),
            told.more_text(neighbour.step_time_s, figures.seconds),
            told.more_text(neighbour.peak_memory_bytes, figures.size),
            "" if neighbour.fits else "does not fit",
        ]
        for neighbour in near
    ]  # fmt: skip
    yield ReportSection(
        "One change", "Every layout that differs in one setting.", None, ["one change", "step time", "memory", "fits"], rows
    )
    of_training = explanation.of.scenario.workload.kind == "training"
    title = f"Operators of a layer, a {'micro-batch, both ways' if of_training else 'decode step'}"
    rows = [
        [operator.name, figures.seconds(operator.seconds, 3), figures.digits(operator.intensity, 3) if operator.flops else figures.NOTHING,
         figures.percent(operator.reached), operator.bound]
        for operator in explanation.operators
    ]  # fmt: skip
    yield ReportSection(title, "", None, ["operator", "time alone", "FLOP/byte", "of the roofline", "bound by"], rows)


def difference_page(shelf: Shelf, asking: Asking) -> WebAnswer:
    """Two rows: what differs, term by term."""
    study = opened(shelf, asking.text("study"))
    rows = [_row(study, asking.text(name)) for name in ("a", "b")]
    if rows[0]["key"] == rows[1]["key"]:
        raise ValueError("a and b are one row; allowed: two different rows")
    with composing():
        trials: list[PricedTrial] = [restored(row) for row in rows]
        compared: list[Shown] = [shown_row(f"{name}: {show.layout_text(row)}", row) for name, row in zip("AB", rows, strict=True)]
        difference_of_two = difference(trials[0], trials[1])
    settings = [
        [key, figures.setting(key, first), figures.setting(key, second)] for key, (first, second) in difference_of_two.settings.items()
    ]
    first = ReportSection("What differs", "", None, ["setting", "A", "B"], settings)
    named = [(name, row["key"], show.layout_text(row)) for name, row in zip("AB", rows, strict=True)]
    sections = [first, *terms_of(compared, "two")]
    lines = list(told.difference_lines(difference_of_two))[1:]  # the first lists the settings, which have a table
    of = urlencode({"study": study.name, "key": rows[0]["key"], "against": rows[1]["key"]})
    context = {"title": "A beside B", "of": of, "study": study, "rows": named, "lines": lines, "sections": sections}
    return WebAnswer("difference", context)


def launch_part(shelf: Shelf, asking: Asking) -> WebAnswer:
    """A row as what a framework is launched with."""
    study = opened(shelf, asking.text("study"))
    row = _row(study, asking.text("key"))
    if row["status"] not in ("ok", "oom"):
        raise ValueError(f"key={row['key']}: this row has status={row['status']} ({row['reason']}); allowed: a row that was priced")
    with composing():
        portion = shown_row("", row).portion
        if portion is None:
            raise ValueError(
                f"key={row['key']}: cannot be composed here; allowed: a row whose hw, model, software and cluster are in conf/"
            )
        given = asking.values.get("to")
        chosen = framework(given, "to") if given else of_profile(portion.choices["software"])
        if chosen is None:
            chosen = next(framework for framework in FRAMEWORKS.values() if framework.kind == portion.scenario.workload.kind)
        launch_file = exported(portion, chosen)
    names = [(framework.name, framework.title) for framework in FRAMEWORKS.values() if framework.kind == portion.scenario.workload.kind]
    command = f"python -m rapid_dse.export {shlex.join([str(study.source), '--key', row['key'][:12], '--to', chosen.name])}"
    of = urlencode({"study": study.name, "key": row["key"]})
    return WebAnswer("launch", {"title": chosen.title, "study": study, "found": launch_file, "names": names, "to": chosen.name, "of": of,
                            "key": row["key"], "command": command})  # fmt: skip
