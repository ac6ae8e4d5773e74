"""What rows of results look like in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rapid_dse.parallel.layouts import POOL_DEGREES, POOLS
from rapid_dse.simulate.energy_trust import energy_error
from rapid_dse.simulate.first_token_trust import first_token_error
from rapid_dse.sweep import figures, listing
from rapid_dse.sweep.listing import Column
from rapid_dse.sweep.table import CHOICES

if TYPE_CHECKING:
    from rich.console import Console

    from rapid_dse.config.hardware import Hardware
    from rapid_dse.config.scenario import Scenario
    from rapid_dse.sweep.ladder import Refined


_DEGREES = ("tp", "attention_dp", "cp", "dp", "pp", "ep", "vpp")
SECTIONS = (*CHOICES, "workload", "parallel")  # first parts of override keys that a table of results may hold
_OF_RUN = {"train_time_s": "the run", "train_cost_usd": "cost of the run", "goodput": "goodput"}
_FIGURES = ("step_time_s", "tokens_per_s_per_gpu", "mfu", "peak_memory_bytes", "cost_usd")


def layout_text(row: Mapping[str, Any]) -> str:
    """A layout in a few words: degrees above 1, then what else defines it; keys that a row lacks are left out."""
    parts = [f"{name}{row[f'parallel.{name}']}" for name in _DEGREES if (row.get(f"parallel.{name}") or 1) != 1]
    if row.get("parallel.sequence_parallel"):
        parts.append("sp")
    parts += [
        f"{text}{row[key]}" for key, text in (("parallel.zero", "zero"), ("parallel.micro_batch_size", "mb")) if row.get(key) is not None
    ]
    shards = row.get("parallel.shard_group")
    if shards is not None and shards != (row.get("parallel.dp") or 1) * (row.get("parallel.cp") or 1):
        parts.append(f"shards{shards:.0f}")
    etp = row.get("parallel.etp")
    if etp is not None and etp != (row.get("parallel.tp") or 1):
        parts.append(f"etp{etp:.0f}")
    if row.get("parallel.recompute"):
        parts.append(f"recompute={row['parallel.recompute']}")
    if row.get("parallel.schedule") not in (None, "none"):
        parts.append(str(row["parallel.schedule"]))
    return " ".join(parts + [text for pool in POOLS if (text := _pool_text(row, pool))])


def _pool_text(row: Mapping[str, Any], pool: str) -> str:
    """One of the pools of a disaggregated system: how many engines, and how each is cut; nothing where there are no pools."""
    degrees = {name: row.get(f"parallel.{pool}.{name}") for name in POOL_DEGREES}
    if not degrees["workers"]:
        return ""
    plain = {"workers": degrees["workers"], "etp": degrees["tp"] or 1}  # said already
    cut = [f"{name}{value}" for name, value in degrees.items() if (value or 1) not in (1, plain.get(name))]
    return f"{pool}: {degrees['workers']}×({' '.join(cut) or 'tp1'})"


def error_of(row: Mapping[str, Any]) -> float | None:
    """The relative error to expect of a row's step time; None where it is not known."""
    error: float | None = row.get("expected_error")
    return error


def expected_text(error: float | None) -> str:
    """The accuracy to expect of a step time, ? where no such runs were measured."""
    return "?" if error is None else f"±{100 * error:.0f} %"


def energy_text(hw: Hardware, expected: float, watts: float) -> str:
    """The accuracy to expect of an energy: of the time that has the error ``expected`` (NaN: not known), at so many watts a GPU."""
    error = float(energy_error(hw, np.array(expected), np.array(watts)))
    return expected_text(None if np.isnan(error) else error)


def first_token_text(row: Mapping[str, Any]) -> str:
    """The time to a served row's first token with the accuracy to expect of it, which is less than that of the time between tokens."""
    expected, token = error_of(row), row.get("tpot_s")
    if expected is not None and token is not None and not np.isnan(token):  # else the request is its first token
        pooled = any(row.get(f"parallel.{pool}.workers") for pool in POOLS)
        expected = float(first_token_error(np.array(expected), np.array(pooled)))
    return f"{figures.seconds(row['ttft_s'])} {expected_text(expected)}"


def priced_unit(row: Mapping[str, Any]) -> str:
    """What ``step_time_s`` is the time of, and the error to expect is of."""
    if row.get("ttft_s") is None:
        return "a step"
    return "a request" if row.get("tpot_s") is None else "a token"


@dataclass(frozen=True)
class Listed:
    """Rows to show as a table.

    Attributes:
        rows: in the order in which they come.
        by: the column that ranks them.
        varying: keys outside the layout that differ in the study.
        ranks: what stands before each row; None counts them from 1.
        more_columns: further columns behind the step time, a text a row.
        after: further columns at the end.
    """

    rows: Sequence[Mapping[str, Any]]
    by: str
    varying: Sequence[str] = ()
    ranks: Sequence[str] | None = None
    more_columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    after: Mapping[str, Sequence[str]] = field(default_factory=dict)


def show_rows(console: Console, listed: Listed) -> None:
    """Prints rows: rank, what differs in the study, layout, time, rate, memory, cost; a status where some do not fit."""
    listing.show(console, columns_of(listed))


def columns_of(listed: Listed) -> list[Column]:
    """The columns of a ranked table."""
    rows, extra = listed.rows, listed.by.removeprefix("-")
    ranks = listed.ranks or [str(at + 1) for at in range(len(rows))]
    columns = [Column("#", ranks)]
    columns += [
        Column(title, [figures.setting(key, row.get(key)) for row in rows], figure=False, key=True)
        for key, title in zip(listed.varying, listing.short_titles(listed.varying), strict=True)
    ]
    columns.append(Column("layout", [layout_text(row) for row in rows], figure=False))
    errors = [expected_text(error_of(row)) for row in rows]
    wide = max((len(error) for error in errors), default=0)
    times = [figures.seconds(row["step_time_s"]) + (f" {error:>{wide}}") for row, error in zip(rows, errors, strict=True)]
    served = [row.get("ttft_s") is not None for row in rows]
    columns.append(Column("a token" if any(served) else "step time", times))
    if any(served):
        texts = [figures.NOTHING if row.get("ttft_s") is None else first_token_text(row) for row in rows]
        columns.append(Column("first token", texts))
    columns += [Column(title, cells) for title, cells in listed.more_columns.items()]
    columns.append(Column("each GPU", [figures.result("tokens_per_s", row.get("tokens_per_s_per_gpu")) for row in rows]))
    columns.append(Column("MFU", [figures.result("mfu", row.get("mfu")) for row in rows]))
    columns.append(Column("memory", [figures.result("peak_memory_bytes", row.get("peak_memory_bytes")) for row in rows]))
    columns.append(Column("a request" if any(served) else "a step", [figures.result("cost_usd", row.get("cost_usd")) for row in rows]))
    if any(row.get("train_time_s") is not None for row in rows):
        whole = [name for name in ("train_time_s", "train_cost_usd", "goodput") if name != extra]
        columns += [Column(_OF_RUN[name], [figures.result(name, row.get(name)) for row in rows]) for name in whole]
    if extra not in {*_FIGURES, *listed.varying}:
        columns.append(Column(extra, [figures.result(extra, row[extra]) for row in rows]))
    return [*columns, *(Column(title, cells) for title, cells in listed.after.items() if any(cells))]


def show_refined(console: Console, refined: Refined, varying: Sequence[str], backend: str, before: str) -> None:
    """Prints rows that two backends priced, with both step times or values and both ranks; and how often their order changed."""
    name = refined.by.removeprefix("-")
    title = f"{before} {'step time' if name == 'step_time_s' else name}"
    aside = {title: [figures.result(name, value) for value in refined.first], "its #": [str(place + 1) for place in refined.places]}
    swapped, pairs = refined.swapped
    moved_rows = sum(place != rank for rank, place in enumerate(refined.places[: len(refined.places) - refined.failed]))
    line = f"priced again by {backend}: {moved_rows} of {len(refined.places)} rows changed place, {swapped} of {pairs} pairs changed order"
    show_rows(console, Listed(refined.rows.to_pylist(), refined.by, varying, more_columns=aside))
    listing.say(console, line + (f"; {refined.failed} could not be priced" if refined.failed else ""))


def status_text(row: Mapping[str, Any]) -> str:
    """A row's status, with its reason where it could not be priced."""
    return str(row["status"]) if row["status"] in ("ok", "oom") else f"{row['status']}: {row['reason']}"


def show_counts(
    console: Console, status: Counter[str], reasons: Counter[str], rejected: Mapping[str, int], broken: Mapping[str, int] | None = None
) -> None:
    """What became of all rows, and why others are not among them.

    Args:
        rejected: layouts that were left out of the enumeration, by the rule that they break.
        broken: rows that fit and do not count, by what they break.
    """
    total = sum(status.values())
    parts = [f"{status[name]:,} {text}" for name, text in _STATUS_TEXT.items() if status[name]]
    listing.say(console, f"{total:,} trial{'s' * (total != 1)}: {', '.join(parts) or 'none'}")
    for title, counted in (
        ("rejected", reasons),
        ("fit, and are not ranked", Counter(broken or {})),
        ("left out of the enumeration", Counter(rejected)),
    ):
        if counted:
            console.print(f"{title}:", highlight=False)
            for reason, count in counted.most_common():
                listing.say(console, f"  {count:>12,}  {reason}", indent=16)


def show_artifacts(console: Console, scenarios: Iterable[Scenario]) -> None:
    """Where the runs of trials have left what ``backend.artifacts`` asks for."""
    wanted = [scenario for scenario in scenarios if scenario.backend.artifacts.wanted]
    if not wanted:
        return
    from rapid_dse.events.artifacts import folder_of  # loads numba

    for folder in dict.fromkeys(map(folder_of, wanted)):
        if folder.is_dir():  # closed forms leave a timeline of a trial that is priced alone
            console.print(f"artifacts of the trials in {folder}/<key of the row>", highlight=False, markup=False, soft_wrap=True)


_STATUS_TEXT = {"ok": "fit", "oom": "do not fit in memory", "invalid": "break a rule", "error": "failed"}
