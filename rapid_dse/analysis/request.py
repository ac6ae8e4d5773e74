"""The report of one inference trial: a token's time by term, what its compute is made of, how requests fare, memory, and what it costs."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING

from rapid_dse.interconnect.closed_form import with_closed_form
from rapid_dse.parallel.engines import Engines
from rapid_dse.simulate.inference.passes import EnginePass
from rapid_dse.simulate.inference.pricing import prepare, system
from rapid_dse.simulate.results import MEMORY_TERMS, TIME_TERMS, Priced
from rapid_dse.simulate.trust import Trust
from rapid_dse.sweep import figures, listing, ranked
from rapid_dse.sweep import show as show_rows
from rapid_dse.sweep.outside import judged
from rapid_dse.sweep.portion import Portion, Priceable
from rapid_dse.sweep.standing import Aim

if TYPE_CHECKING:
    from rich.console import Console

TERM_MEANING = {
    "compute": "kernels",
    "tp": "tensor parallel",
    "cp": "context parallel",
    "ep": "expert parallel",
    "pp": "sends between stages",
    "bubble": "waiting for the slowest stage",
    "host": "waiting for the host",
    "prefill": "waiting for others' prompts",
}
PARTS = {
    "products": "products: weights read, tensor cores",
    "attention": "attention: the KV cache",
    "small": "small kernels, gaps and casts",
    "experts": "routing and grouping for experts",
}


def show(out: Console, portion: Portion, priced: Priced) -> None:
    """Prints a report of the portion's only system of engines, and what would make it fit where it does not.

    Args:
        priced: results of the same system, ``(1,)`` each.
    """
    row = {f.name: float(getattr(priced, f.name)[0]) for f in fields(priced)}
    for line in headline(portion):
        listing.say(out, line)
    token, decodes = not math.isnan(row["tpot_s"]), portion.scenario.model.of_kind.decodes
    times = [(f"{term}: {TERM_MEANING[term]}", row[f"time_{term}_s"]) for term in (*TIME_TERMS, "prefill") if term in TERM_MEANING]
    memory = [(term, row[f"memory_{term}_bytes"]) for term in MEMORY_TERMS]
    assert isinstance(portion.layouts, Engines)
    sums = [("time of a token" if token else f"time of a {'request' if decodes else 'batch'}", "step_time_s", row["step_time_s"], times)]
    if decodes:
        closed = with_closed_form(portion.scenario)  # all backends price kernels alike
        served = system(closed, portion.layouts, prepare(closed, portion.layouts)[0])
        parts = _parts(served.step if token else served.prefill, row["time_compute_s"])
        sums.append(("of which kernels", "step_time_s", row["time_compute_s"], parts))
    for title, name, total, terms in (*sums, ("peak memory of a GPU", "peak_memory_bytes", row["peak_memory_bytes"], memory)):
        out.print()
        for line in listing.sum_lines(title, name, total, terms):
            out.print(line, highlight=False, markup=False, soft_wrap=True)
    out.print()
    for line in _summary(portion, row, judged(portion.scenario, portion.layouts, vars(priced))):
        listing.say(out, line)
    if not row["fits"]:
        ranked.show_changes(out, Priceable(portion.scenario, portion.layouts), Aim("step_time_s", 1))


def _parts(work: EnginePass, whole: float) -> list[tuple[str, float]]:
    """What kernels of a step or of a prompt's pass are, ``whole`` seconds of them."""
    return [(text, float(getattr(work, name)[0] / work.compute[0]) * whole) for name, text in PARTS.items()]


def _summary(portion: Portion, row: dict[str, float], trust: Trust) -> list[str]:
    known = float(trust.expected_error[0])
    error = "(error not known)" if math.isnan(known) else show_rows.expected_text(known)
    token = "no further tokens" if math.isnan(row["tpot_s"]) else f"{figures.seconds(row['tpot_s'])} {error} a token"
    usable, told = portion.scenario.hw.memory.usable, show_rows.energy_text(portion.scenario.hw, known, row["power_w_per_gpu"])
    one = "request" if portion.scenario.model.of_kind.decodes else portion.scenario.model.of_kind.sample
    judged_row = {**row, **given(portion.layouts), "expected_error": None if math.isnan(known) else known}
    first = show_rows.first_token_text(judged_row)
    ran = f"first token after {first}, {token}, request after {figures.seconds(row['request_latency_s'])}"
    article = "an" if one[0] in "aeiou" else "a"
    at_once = "running" if portion.scenario.model.of_kind.decodes else "at a time"
    lines = [
        *([ran] if portion.scenario.model.of_kind.decodes else []),
        f"{figures.digits(row['requests_per_s'], 4)} {one}s/s, {figures.digits(row['running_requests'], 4)} {at_once}: "
        f"{figures.rate(row['tokens_per_s'])}, {figures.rate(row['tokens_per_s_per_gpu'])} each GPU; {figures.percent(row['mfu'])} MFU",
        f"energy {figures.result('energy_j', row['energy_j'])} {told} {article} {one}, "
        f"{figures.result('power_w_per_gpu', row['power_w_per_gpu'])} each GPU; cost {figures.dollars(row['cost_usd'])} {article} {one}, "
        f"{figures.dollars(row['usd_per_million_tokens'])} a million tokens",
        f"{'fits' if row['fits'] else 'does not fit (oom)'}: {figures.size(row['peak_memory_bytes'])} of {figures.size(usable)} usable",
    ]
    return lines + ([f"outside: {trust.texts[trust.outside[0]]}"] if trust.outside[0] >= 0 else [])


def headline(portion: Portion) -> list[str]:
    """Chip, model with its size, what is asked for and the layout."""
    scenario, layouts = portion.scenario, portion.layouts
    choices = ", ".join(f"{group}={option}" for group, option in portion.choices.items())
    prompt, generated = scenario.workload.lengths
    of_experts = () if scenario.model.num_experts else ("ep", "etp")
    set_keys = {key: value for key, value in given(layouts).items() if key.rsplit(".", 1)[1] not in of_experts}
    settings = [f"{key.split('.', 1)[1]}={figures.setting(key, value)}" for key, value in set_keys.items()]
    asked = f"prompts of {prompt:,} tokens, {generated:,} generated" if scenario.model.of_kind.decodes else ranked.sample_size(scenario)
    return [
        f"{choices}; {ranked.model_size(scenario)}; {asked}, {scenario.workload.precision}",
        " ".join(settings),
    ]


def given(layouts: object) -> dict[str, float]:
    """The keys of the first layout that are not null."""
    assert isinstance(layouts, Engines)
    values = {key: getattr(layouts, name)[0].item() for name, key in layouts.keys.items()}
    return {key: value for key, value in values.items() if value}
