"""Trials and results as a notebook shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from rapid_dse.sweep import figures, show

if TYPE_CHECKING:
    from rapid_dse.api.trials import TrialRow


def table_html(titles: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table of texts, which are escaped."""
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def trial_html(trial: TrialRow) -> str:
    """A trial with the terms of its step time and of its peak."""
    row = trial.row
    title = f"{row['model']} on {row['hw.num_gpus']} × {row['hw']}, {row['software']}: {show.layout_text(row)}"
    if row["step_time_s"] is None:
        return f"<p>{escape(title)}: {escape(show.status_text(row))}</p>"
    error = show.expected_text(trial.expected_error)
    verdict, served = "fits" if trial.fits else "does not fit", row.get("ttft_s") is not None
    cost_of, time = "a request" if served else "a step", f"{figures.seconds(trial.step_time_s)} {error} {show.priced_unit(row)}"
    lines = [
        f"{time}; {figures.rate(trial.tokens_per_s)}; {figures.percent(trial.mfu)} MFU",
        f"{figures.size(trial.peak_memory_bytes)} a GPU, {verdict}; {figures.dollars(trial.cost_usd)} {cost_of}",
    ]
    lines += [f"first token after {show.first_token_text(row)}"] if served else []
    lines += [f"outside: {trial.outside}"] if trial.outside else []
    times = _terms("step time", trial.times, trial.step_time_s, figures.seconds)
    memory = _terms("peak memory", trial.memory, trial.peak_memory_bytes, figures.size)
    said = "<br>".join(escape(line) for line in lines)
    return f"<p><b>{escape(title)}</b><br>{said}</p>{times}{memory}"


def _terms(name: str, terms: Mapping[str, float], total: float, worded: Any) -> str:
    rows = [[term, worded(value), figures.percent(value / total)] for term, value in terms.items() if value > 0]
    return table_html([name, worded(total), "share"], rows)


def rows_html(rows: Sequence[Mapping[str, Any]], varying: Sequence[str], caption: str) -> str:
    """Rows of results: what differs, the layout, and the main figures."""
    titles = ["#", *varying, "layout", "step time", "expected", "tokens/s", "MFU", "memory", "cost", "status"]
    cells = [
        [
            str(at + 1),
            *(figures.setting(key, row.get(key)) for key in varying),
            show.layout_text(row),
            figures.seconds(row["step_time_s"]),
            show.expected_text(show.error_of(row)) if row["step_time_s"] is not None else figures.NOTHING,
            figures.result("tokens_per_s", row["tokens_per_s"]),
            figures.percent(row["mfu"]) if row["mfu"] is not None else figures.NOTHING,
            figures.size(row["peak_memory_bytes"]),
            figures.dollars(row["cost_usd"]),
            show.status_text(row),
        ]
        for at, row in enumerate(rows)
    ]
    return table_html(titles, cells, caption)
