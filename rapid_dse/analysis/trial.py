"""The report of one trial: step time by term, memory by term, and what it costs."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table

from rapid_dse.layouts import CODES, KEYS
from rapid_dse.simulate.results import MEMORY_TERMS, TIME_TERMS, Priced
from rapid_dse.sweep.outside import outside
from rapid_dse.sweep.portion import Portion

GIB = 2**30
TERM_MEANING = {
    "compute": "kernels",
    "tp": "tensor parallel, exposed",
    "cp": "context parallel, exposed",
    "ep": "expert parallel, exposed",
    "pp": "sends between stages",
    "dp": "gradients and weights, exposed",
    "bubble": "pipeline bubble",
    "optimizer": "optimizer step",
    "host": "waiting for the host",
}


def render(portion: Portion, priced: Priced) -> Group:
    """A report of the portion's only layout, for rich's console.

    Args:
        priced: results of the same layout, ``(1,)`` each.
    """
    result: dict[str, Any] = {name: getattr(priced, name)[0] for name in ("step_time_s", "peak_memory_bytes", "fits", "mfu")}
    usable = portion.scenario.hw.memory.usable
    time = _table("step time", "s", float(result["step_time_s"]))
    for term in TIME_TERMS:
        seconds = float(getattr(priced, f"time_{term}_s")[0])
        if seconds > 0:
            time.add_row(f"{term}: {TERM_MEANING[term]}", f"{seconds:.4g}", _share(seconds, float(result["step_time_s"])))
    memory = _table("peak memory of a GPU", "GiB", float(result["peak_memory_bytes"]) / GIB)
    for term in MEMORY_TERMS:
        size = float(getattr(priced, f"memory_{term}_bytes")[0])
        if size > 0:
            memory.add_row(term, f"{size / GIB:.2f}", _share(size, float(result["peak_memory_bytes"])))
    verdict = "fits" if result["fits"] else "does not fit (oom)"
    summary = (
        f"{verdict}: {float(result['peak_memory_bytes']) / GIB:.1f} of {usable / GIB:.1f} GiB usable\n"
        f"{float(priced.tokens_per_s[0]):,.0f} tokens/s, {float(priced.tokens_per_s_per_gpu[0]):,.1f} a GPU; "
        f"MFU {100 * float(result['mfu']):.1f} %\n"
        f"energy {float(priced.energy_j[0]) / 1e6:.4g} MJ a step; cost {float(priced.cost_usd[0]):.4g} USD a step"
    )
    return Group(headline(portion), "", time, "", memory, "", summary + _outside(portion))


def _outside(portion: Portion) -> str:
    """A line for what lies outside what is offered, where something does."""
    codes, texts = outside(portion.scenario, portion.layouts)
    return "" if codes[0] < 0 else f"\noutside: {texts[codes[0]]}"


def headline(portion: Portion) -> str:
    """Chip, model and layout in two lines."""
    scenario = portion.scenario
    choices = ", ".join(f"{group}={option}" for group, option in portion.choices.items())
    work = scenario.workload
    first = f"{choices}; {work.seq_len} tokens a sequence, {work.precision}"
    split = scenario.parallel.stage_layers
    own = [] if split is None else [f"stage_layers={','.join(map(str, split))}"]
    return f"{first}\n" + " ".join([f"{key.split('.')[1]}={_shown(portion, name)}" for name, key in KEYS.items()] + own)


def _shown(portion: Portion, name: str) -> str:
    value = (portion.layouts.shards if name == "shard_group" else getattr(portion.layouts, name))[0]
    if name in CODES:
        return CODES[name][int(value)]
    return str(bool(value)).lower() if name == "sequence_parallel" else str(int(value))


def _table(what: str, unit: str, total: float) -> Table:
    table = Table(box=None, pad_edge=False, show_footer=False)
    table.add_column(what)
    table.add_column(f"{total:.4g} {unit}", justify="right")
    table.add_column("", justify="right")
    return table


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %"
