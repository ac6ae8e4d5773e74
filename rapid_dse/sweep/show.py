"""What a ranked table looks like in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rapid_dse.layouts import KEYS
from rapid_dse.sweep.table import CHOICES

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console
    from rich.table import Table

    from rapid_dse.config.scenario import Scenario
    from rapid_dse.sweep.ladder import Refined


_GIB = 1024.0**3
_SECTIONS = frozenset({*CHOICES, "workload", "parallel"})
_DEGREES = (("tp", "tp"), ("cp", "cp"), ("dp", "dp"), ("pp", "pp"), ("ep", "ep"), ("vpp", "vpp"))


def layout_text(row: Mapping[str, Any]) -> str:
    """A layout in a few words: degrees above 1, then what else defines it; keys that a row lacks are left out."""
    parts = [f"{text}{row[f'parallel.{name}']}" for name, text in _DEGREES if (row.get(f"parallel.{name}") or 1) != 1]
    if row.get("parallel.sequence_parallel"):
        parts.append("sp")
    parts += [
        f"{text}{row[key]}" for key, text in (("parallel.zero", "zero"), ("parallel.micro_batch_size", "mb")) if row.get(key) is not None
    ]
    shards = row.get("parallel.shard_group")
    if shards is not None and shards != (row.get("parallel.dp") or 1) * (row.get("parallel.cp") or 1):
        parts.append(f"shards{shards:.0f}")
    if row.get("parallel.recompute"):
        parts.append(f"recompute={row['parallel.recompute']}")
    if row.get("parallel.schedule") not in (None, "none"):
        parts.append(str(row["parallel.schedule"]))
    return " ".join(parts)


def seconds_text(seconds: float | None) -> str:
    """A time with four digits: 12.35 s, 803.1 ms."""
    if seconds is None:
        return "–"
    return f"{seconds:,.4g} s" if seconds >= 1 else f"{seconds * 1e3:.4g} ms"


def expected_text(error: float | None) -> str:
    """The accuracy to expect of a step time: the cross-validated error of its software profile, ? where no such runs were measured."""
    return "?" if error is None else f"±{100 * error:.0f} %"


def ranked_table(rows: pa.Table, by: str, beside: Mapping[str, Sequence[str]] | None = None) -> Table:
    """Rows in the order in which they come: rank, what varies, layout, time, rate, memory, cost; a status where some do not fit.

    ``beside``: further columns behind the step time, a text a row.
    """
    from rich.table import Table

    found = rows.to_pylist()
    varying = _varying(found)
    errors = [expected_text(row.get("software.expected_error")) for row in found]
    extra = by.removeprefix("-")
    show_by = extra not in {"step_time_s", "tokens_per_s_per_gpu", "mfu", "peak_memory_bytes", "cost_usd", *varying}
    show_status = any(row["status"] != "ok" for row in found)
    shared = "  ".join(f"{name}={found[0][name]}" for name in CHOICES if found and name not in varying and found[0].get(name))
    table = Table(caption=shared, caption_justify="left", caption_style="", box=None, pad_edge=False, header_style="bold")
    for name in ("#", *varying, "layout", "step time", "±", *(beside or {}), "tokens/s/GPU", "MFU", "memory", "$/step"):
        right = name not in (*varying, "layout")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "layout", overflow="fold")
    for name in [extra] * show_by + ["status"] * show_status:
        table.add_column(name, justify="left" if name == "status" else "right")
    for rank, row in enumerate(found):
        cells = [str(rank + 1), *(str(row.get(name, "")) for name in varying), layout_text(row), seconds_text(row["step_time_s"])]
        cells += [errors[rank], *(column[rank] for column in (beside or {}).values())]
        cells += _figures(row)
        cells += [f"{row[extra]:,.6g}"] * show_by + [_status(row)] * show_status
        table.add_row(*cells)
    return table


def refined_table(refined: Refined, backend: str, before: str) -> tuple[Table, str]:
    """Rows that two backends priced, with both step times or values and both ranks; and how often their order changed."""
    name = refined.by.removeprefix("-")
    texts = [seconds_text(value) if name == "step_time_s" else f"{value:,.6g}" for value in refined.first]
    beside = {f"{before} {'step time' if name == 'step_time_s' else name}": texts, "its #": [str(place + 1) for place in refined.places]}
    swapped, pairs = refined.swapped
    moved = sum(place != rank for rank, place in enumerate(refined.places[: len(refined.places) - refined.failed]))
    line = f"priced again by {backend}: {moved} of {len(refined.places)} rows changed place, {swapped} of {pairs} pairs changed order"
    return ranked_table(refined.rows, refined.by, beside), line + (f"; {refined.failed} could not be priced" if refined.failed else "")


def _figures(row: Mapping[str, Any]) -> list[str]:
    if row["step_time_s"] is None:
        return ["–"] * 4
    memory = f"{row['peak_memory_bytes'] / _GIB:,.1f} GiB"
    return [f"{row['tokens_per_s_per_gpu']:,.0f}", f"{100 * row['mfu']:.1f} %", memory, f"{row['cost_usd']:,.2f}"]


def _status(row: Mapping[str, Any]) -> str:
    return str(row["status"]) if row["status"] in ("ok", "oom") else f"{row['status']}: {row['reason']}"


def _varying(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Override keys outside the layout that differ between rows, choices first."""
    if not rows:
        return []
    shown_elsewhere = {key for key in KEYS.values() if key.startswith("parallel.")} | {"software.expected_error"}
    keys = [*CHOICES, *(key for key in rows[0] if key.split(".")[0] in _SECTIONS and key not in shown_elsewhere)]
    return [key for key in dict.fromkeys(keys) if len({str(row.get(key)) for row in rows}) > 1]


def show_counts(console: Console, status: Counter[str], reasons: Counter[str], rejected: Mapping[str, int]) -> None:
    """What became of all rows, and why others are not among them."""
    total = sum(status.values())
    parts = [f"{status[name]:,} {text}" for name, text in _STATUS_TEXT.items() if status[name]]
    console.print(f"{total:,} trial{'s' * (total != 1)}: {', '.join(parts) or 'none'}", highlight=False)
    for title, counted in (("rejected", reasons), ("left out of the enumeration", Counter(rejected))):
        if counted:
            console.print(f"{title}:", highlight=False)
            for reason, count in counted.most_common():
                console.print(f"  {count:>12,}  {reason}", highlight=False, markup=False)


def show_artifacts(console: Console, scenarios: Iterable[Scenario]) -> None:
    """Where the runs of trials have left what ``backend.artifacts`` asks for."""
    wanted = [scenario for scenario in scenarios if scenario.backend.artifacts.wanted]
    if not wanted:
        return
    from rapid_dse.simulate.artifacts import folder_of  # loads numba

    for folder in dict.fromkeys(map(folder_of, wanted)):
        if folder.is_dir():  # closed forms leave a timeline of a trial that is priced alone
            console.print(f"artifacts of the trials in {folder}/<key of the row>", highlight=False, markup=False)


_STATUS_TEXT = {"ok": "fit", "oom": "do not fit in memory", "invalid": "break a rule", "error": "failed"}
