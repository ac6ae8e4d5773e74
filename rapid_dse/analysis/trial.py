"""The report of one trial: step time by term, memory by term, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from rapid_dse.config.hardware import Hardware
from rapid_dse.parallel.layouts import BEHIND_NULL, CODES, KEYS
from rapid_dse.simulate.results import MEMORY_TERMS, TIME_TERMS, Priced
from rapid_dse.sweep import figures, listing, ranked
from rapid_dse.sweep import show as show_rows
from rapid_dse.sweep.outside import judged
from rapid_dse.sweep.portion import Portion, Priceable
from rapid_dse.sweep.standing import Aim

if TYPE_CHECKING:
    from rich.console import Console

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


def show(out: Console, portion: Portion, priced: Priced) -> None:
    """Prints a report of the portion's only layout, and what would make it fit where it does not.

    Args:
        priced: results of the same layout, ``(1,)`` each.
    """
    if portion.scenario.workload.kind == "inference":
        from rapid_dse.analysis import request  # with what prices requests: where there are any

        request.show(out, portion, priced)
        return
    row = {f.name: getattr(priced, f.name)[0] for f in fields(priced)}
    usable = portion.scenario.hw.memory.usable
    times = [(f"{term}: {TERM_MEANING[term]}", float(row[f"time_{term}_s"])) for term in TIME_TERMS]
    memory = [(term, float(row[f"memory_{term}_bytes"])) for term in MEMORY_TERMS]
    for line in headline(portion):
        listing.say(out, line)
    for title, name, terms in (("step time", "step_time_s", times), ("peak memory of a GPU", "peak_memory_bytes", memory)):
        out.print()
        for line in listing.sum_lines(title, name, float(row[name]), terms):
            out.print(line, highlight=False, markup=False, soft_wrap=True)
    trust = judged(portion.scenario, portion.layouts, vars(priced))
    known = float(trust.expected_error[0])
    error = "(error not known: nothing alike was measured)" if math.isnan(known) else show_rows.expected_text(known)
    out.print()
    listing.say(
        out,
        f"{figures.seconds(float(row['step_time_s']))} {error} a step: {figures.rate(float(row['tokens_per_s']))}, "
        f"{figures.rate(float(row['tokens_per_s_per_gpu']))} each GPU; {figures.percent(float(row['mfu']))} MFU",
    )
    listing.say(out, energy_line(portion.scenario.hw, known, row))
    if portion.scenario.workload.train_tokens is not None:
        listing.say(out, run_line(portion.scenario.workload.train_tokens, row))
    verdict = "fits" if row["fits"] else "does not fit (oom)"
    listing.say(out, f"{verdict}: {figures.size(float(row['peak_memory_bytes']))} of {figures.size(usable)} usable")
    if trust.outside[0] >= 0:
        listing.say(out, f"outside: {trust.texts[trust.outside[0]]}")
    if not row["fits"]:
        ranked.show_changes(out, Priceable(portion.scenario, portion.layouts), Aim("step_time_s", 1))


def energy_line(hw: Hardware, expected_error: float, row: Mapping[str, Any]) -> str:
    """Energy, power and cost of a step in a sentence."""
    energy, watts, cost = (figures.result(name, float(row[name])) for name in ("energy_j", "power_w_per_gpu", "cost_usd"))
    error = show_rows.energy_text(hw, expected_error, float(row["power_w_per_gpu"]))
    return f"energy {energy} {error} a step, {watts} each GPU; cost {cost} a step"


def run_line(tokens: float, row: Mapping[str, Any]) -> str:
    """The whole run in a sentence."""
    cost, energy = (figures.result(name, float(row[name])) for name in ("train_cost_usd", "train_energy_j"))
    days = figures.result("train_time_s", float(row["train_time_s"]))
    return f"{figures.amount(tokens)} tokens: {days}, {cost}, {energy}; goodput {figures.percent(float(row['goodput']))}"


def headline(portion: Portion) -> list[str]:
    """Chip, model with its size, work and layout."""
    scenario = portion.scenario
    choices = ", ".join(f"{group}={option}" for group, option in portion.choices.items())
    work = scenario.workload
    split, keys = scenario.parallel.stage_layers, [key for key in KEYS.items() if key[0] != "etp" or scenario.model.num_experts]
    own = [] if split is None else [f"stage_layers={','.join(map(str, split))}"]
    own += [f"cp_kind={scenario.cp_kind}"] if portion.layouts.cp[0] > 1 else []
    packed = "" if work.packing == 1 else f" (packing {work.packing:g})"
    return [
        f"{choices}; {ranked.model_size(scenario)}; {ranked.sample_size(scenario)}{packed}, {work.precision}",
        " ".join([f"{key.split('.')[1]}={_setting_text(portion, name)}" for name, key in keys] + own),
    ]


def _setting_text(portion: Portion, name: str) -> str:
    value = getattr(portion.layouts, BEHIND_NULL.get(name, name))[0]
    if name in CODES:
        return CODES[name][int(value)]
    return str(bool(value)).lower() if name == "sequence_parallel" else str(int(value))
