"""The columns ``expected_error`` and ``outside``: how far to trust a row, and which of its settings its framework does not offer or no run
that was measured had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import distinct, numbered
from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel import engines, offered
from rapid_dse.parallel.layouts import BoolColumn, Layouts
from rapid_dse.simulate.trust import Trust, trust_together
from rapid_dse.sweep import arrow
from rapid_dse.sweep.case_tables import is_blank

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SPEC, DRAFTS = "spec", "workload.draft_tokens"


@dataclass(frozen=True)
class Remark:
    """A text about one setting, and the layouts that it holds for, ``(n_layouts,)``."""

    text: str
    where: BoolColumn


def remarks(scenario: Scenario, layouts: Layouts) -> list[Remark]:
    """Everything that is said of some of the layouts; the kinds of remarks are collected here.

    While ``software.enforce`` is on, what is not offered is a broken rule of a row that is not priced, and no remark.
    """
    software = scenario.software
    remarked: list[Remark] = []
    if not software.enforce:
        lacking = engines.unoffered(layouts, scenario) if isinstance(layouts, engines.Engines) else offered.unoffered(layouts, scenario)
        remarked += [Remark(name.remark(software.name), name.where) for name in lacking]
    if scenario.hw.like is not None:
        text = f"hw ({scenario.hw.name}: a data sheet, the rest as {scenario.hw.like})"
        remarked.append(Remark(text, np.ones(len(layouts), bool)))
    return [remark for remark in remarked if remark.where.any()]


def outside(scenario: Scenario, layouts: Layouts) -> tuple[NDArray[np.int32], list[str]]:
    """What a framework does not offer, as codes and texts.

    Returns:
        ``(n_layouts,)`` indices into the list of texts that comes with it, each a layout's remarks joined by "; "; -1 where there is
        nothing to say.
    """
    remarked, n_layouts = remarks(scenario, layouts), len(layouts)
    if not remarked:
        return np.full(n_layouts, -1, np.int32), []
    first, kind = distinct([numbered(remark.where) for remark in remarked])
    texts = ["; ".join(remark.text for remark in remarked if remark.where[row]) for row in first]
    codes = np.array([at if text else -1 for at, text in enumerate(texts)], np.int32)
    return codes[kind], texts


def judged(scenario: Scenario, layouts: Layouts, results: Mapping[str, Any]) -> Trust:
    """Both columns: what is not offered stands before what was not measured, and that before what is not priced.

    Args:
        results: columns of the layouts by name, those of ``Priced``, or the numbers of one; of training none is looked at.
    """
    (of_table,) = judged_together([(scenario, layouts, results)])
    return of_table


def judged_together(tables: Sequence[tuple[Scenario, Layouts, Mapping[str, Any]]]) -> list[Trust]:
    """``judged`` of each table."""
    judgements = []
    for (scenario, layouts, results), trusted in zip(tables, trust_together([table[:2] for table in tables]), strict=True):
        told = _joined(*outside(scenario, layouts), trusted)
        judgements.append(_let_go(scenario, layouts, told, results) if isinstance(layouts, engines.Engines) else told)
    return judgements


def _let_go(scenario: Scenario, layouts: engines.Engines, trusted_rows: Trust, results: Mapping[str, Any]) -> Trust:
    """The same, with the error of prompts that are priced as held back and are let go sooner, in quadrature."""
    if not scenario.software.serving.attention_dp_wait or not (layouts.attention_dp > 1).any():
        return trusted_rows
    from rapid_dse.simulate.inference.held_prompts import LET_GO, TOLD, error_let_go  # with what prices requests: where there are any

    more = error_let_go(scenario, layouts, results)
    if not (told := more > TOLD).any():
        return trusted_rows
    error = np.where(told, np.hypot(trusted_rows.expected_error, more), trusted_rows.expected_error)
    widened = Trust(error, np.where(told, 0, -1), (LET_GO,))
    return _joined(trusted_rows.outside, trusted_rows.texts, widened)


def _joined(codes: NDArray[Any], texts: Sequence[str], trusted_rows: Trust) -> Trust:
    """Rows of which more is said: texts, and an index into them for each row (-1: none), before what lies outside."""
    if not texts:
        return trusted_rows
    pairs = (codes + 1) * (len(trusted_rows.texts) + 1) + trusted_rows.outside + 1
    place, joined = np.full((len(texts) + 1) * (len(trusted_rows.texts) + 1), -1), list[str]()
    for pair in np.flatnonzero(np.bincount(pairs)).tolist():
        offered, measured = divmod(pair, len(trusted_rows.texts) + 1)
        said = ((texts, offered), (trusted_rows.texts, measured))
        parts = [told[number - 1] for told, number in said if number > 0]
        if parts:
            place[pair] = len(joined)
            joined.append("; ".join(parts))
    return Trust(trusted_rows.expected_error, place[pairs], tuple(joined))


def untold_drafts(columns: pd.DataFrame | Mapping[str, Sequence[Any]], n_rows: int) -> BoolColumn:
    """Which rows of a table of cases drafted tokens whose number and acceptance nobody told, ``(n_rows,)``: their column ``spec``, which
    overrides nothing, names a way of speculative decoding (mtp), and ``workload.draft_tokens`` is blank."""
    if SPEC not in columns:
        return np.zeros(n_rows, np.bool_)
    named = np.array([not is_blank(way) and str(way).lower() != "none" for way in columns[SPEC]], np.bool_)
    if DRAFTS in columns:
        named &= np.array([is_blank(drafts) for drafts in columns[DRAFTS]], np.bool_)
    return named


def with_untold_drafts(results: pa.Table, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Results of a table of cases where rows with drafts that nobody told of say so, and have no error to expect: they are priced as if
    each step gave one token. ``columns``: the values of the table's, in the order of the results' rows."""
    priced = ~arrow.absent(results.column("step_time_s")) & arrow.are(results.column("workload.kind"), "inference")
    untold = untold_drafts(columns, len(results)) & priced
    if not untold.any():
        return results
    codes, names = arrow.encoded(results.column("outside"))
    remarks = {}
    for row in np.flatnonzero(untold).tolist():
        remark, said = f"{SPEC} ({columns[SPEC][row]}: priced without drafts, {DRAFTS} is blank)", names[codes[row]]
        remarks[row] = remark if said is None else f"{remark}; {said}"
    error = arrow.floats(results.column("expected_error"))
    without = arrow.numbers(error, untold | np.isnan(error))
    for name, column in (("outside", arrow.with_texts(results.column("outside"), remarks)), ("expected_error", without)):
        results = results.set_column(results.column_names.index(name), name, column)
    return results
