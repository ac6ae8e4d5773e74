"""The answer of a sweep, of a study and of ``rank``: tables of the best rows, what they are of, and what would fit where little does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rapid_dse.config.scenario import Scenario
from rapid_dse.interconnect.closed_form import has_closed_form
from rapid_dse.model import parameters
from rapid_dse.parallel.engines import Engines
from rapid_dse.sweep import figures, listing, show
from rapid_dse.sweep.advice import changes
from rapid_dse.sweep.choosing import REACH, Line, chosen, like_the_best, ordered
from rapid_dse.sweep.identity import Lanes
from rapid_dse.sweep.portion import Priceable
from rapid_dse.sweep.show import Listed
from rapid_dse.sweep.standing import FITS, NO_HEADROOM, OOM, Aim, Label, Nearest, Standing
from rapid_dse.sweep.table import CHOICES

if TYPE_CHECKING:
    from rich.console import Console

Row = Mapping[str, Any]
MOST_TABLES = 4  # groups that have a table each; of more the best row each is shown
MOST_GROUPS = 50  # more rows than this are no table that anyone reads
POOR = 0.5  # a winner below this share of the MFU of what does not fit is no answer yet


@dataclass(frozen=True)
class Source:
    """Where rows come from.

    Attributes:
        rows: the rows that ``Standing.lanes`` tell, in their order.
        trial: what stands behind a row; None where that cannot be told (a results file whose options are gone).
        one_by_one: how a user asks for a line a layout.
    """

    rows: Callable[[Lanes], Sequence[Row]]
    trial: Callable[[Row], Priceable | None]
    one_by_one: str


def show_ranking(out: Console, standing: Standing, aim: Aim, source: Source) -> None:
    """Prints the best rows, a table for each model and workload, and what would fit where nothing or little does."""
    groups = [at for at in range(len(standing.labels)) if (standing.group == at).any()]
    if len(groups) > MOST_TABLES:
        _show_best_of_groups(out, standing, groups, aim, source)
        return
    for number, at in enumerate(groups):
        if len(groups) > 1:
            title = _title(standing.labels[at])
            out.print(title if number == 0 else f"\n{title}", style="bold", highlight=False, markup=False, soft_wrap=True)
        _show_group(out, standing, at, aim, source)


def _title(label: Label) -> str:
    return ", ".join(f"{key}={figures.setting(key, value)}" for key, value in label) + ":"


def _show_group(out: Console, standing: Standing, group: int, aim: Aim, source: Source) -> None:
    lines = chosen(standing, group, aim)
    rows = source.rows(standing.lanes[[line.at for line in lines]])
    label = standing.labels[group]
    varying = [key for key in aim.varying if key not in dict(label)]
    if aim.best_per is not None and aim.best_per not in varying and not aim.best_per.startswith("parallel."):
        varying = [*varying, aim.best_per]
    if lines:
        verdicts = [int(standing.verdict[line.at]) for line in lines]
        after = {"within ±": [_alike(line) for line in lines]}
        if any(verdict != FITS for verdict in verdicts):
            after = {"status": [_status(row, verdict, aim) for row, verdict in zip(rows, verdicts, strict=True)]}
        ranks = [str(line.rank or "–") for line in lines]
        show.show_rows(out, Listed(rows, aim.by, varying, ranks, after=after))
        listing.say(out, _shared(rows[0], varying, source.trial(rows[0])))
        for text in _indistinct(standing, group, lines, varying, aim, source.one_by_one):
            listing.say(out, text)
        if aim.best_per is None:
            for text in _unseen(standing, group, lines, varying, source.one_by_one):
                listing.say(out, text)
        if lines[0].rank == 1 and aim.best_per is None:
            for text in _beyond(rows[0], lines):
                listing.say(out, text)
    fits = bool(lines) and standing.verdict[lines[0].at] == FITS
    near = standing.nearest.get(standing.labels[group])
    if near is not None:
        _advise(out, near, rows[0]["mfu"] if fits else None, aim, source)


def _unseen(standing: Standing, group: int, lines: Sequence[Line], varying: Sequence[str], one_by_one: str) -> list[str]:
    """Where one key differs in the study and some of its values have no line: how to see the best of each."""
    if len(varying) != 1:
        return []
    seen = np.isin(standing.variant, standing.variant[[line.at for line in lines]])
    if not (~seen & (standing.group == group) & (standing.verdict == FITS)).any():
        return []
    option = f"--best-per {varying[0]}" if one_by_one.startswith("--") else f"search.best_per={varying[0]}"
    return [f"not all values of {varying[0]} have a line; {option} shows the best of each"]


def _alike(line: Line) -> str:
    more = f"{line.alike:,} more" if line.alike else ""
    text = "simplest" + (f" of {line.alike + 1:,}" if line.alike else "") if line.simplest else more
    return ", ".join([text] * bool(text) + ["best measured"] * line.inside)


def _beyond(best: Row, lines: Sequence[Line]) -> list[str]:
    """What of the best row lies outside what was measured or is offered, and which the best one is that lies inside."""
    if not best.get("outside"):
        return []
    inside = next((line for line in lines if line.inside), None)
    other = f"the best inside what was measured is #{inside.rank}" if inside else "no row lies inside what was measured"
    return [f"#1 lies outside: {best['outside']}; {other}"]


def _status(row: Row, verdict: int, aim: Aim) -> str:
    if verdict in (FITS, OOM):
        return show.status_text(row)
    return "no headroom" if verdict == NO_HEADROOM else aim.reasons[verdict - NO_HEADROOM]


def _shared(row: Row, varying: Sequence[str], trial: Priceable | None) -> str:
    """What all rows have in common: options, the model's parameters, GPUs, the work of a step or of a request."""
    parts = [f"{name}={row[name]}" + _size(name, trial) for name in CHOICES if name not in varying and row.get(name)]
    kind = None if trial is None else trial.scenario.model.of_kind
    sample = "sequence" if kind is None else kind.sample
    requests = (("workload.prompt_len", "prompts of {} tokens"), ("workload.decode_len", "{} generated"))
    for key, text in (
        ("hw.num_gpus", "{} GPUs"),
        ("workload.global_batch_size", f"{{}} {sample}s a step"),
        ("workload.seq_len", "of {} tokens"),
        *(requests if kind is None or kind.decodes else ()),
        ("workload.precision", "{}"),
    ):
        if key not in varying and row.get(key) is not None:
            parts.append(text.format(figures.count(row[key])))
    return "  ".join(parts)


def _size(name: str, trial: Priceable | None) -> str:
    return f" ({model_size(trial.scenario)})" if name == "model" and trial is not None else ""


def _parameters(trial: Priceable | None) -> str:
    return "" if trial is None else figures.parameters(parameters.count(trial.scenario.model, trial.scenario.workload.seq_len).total)


def sample_size(scenario: Scenario) -> str:
    """How large what the model works on is: tokens of a sequence or an image, or the sides of a product."""
    model = scenario.model
    if model.m is not None:
        return f"{model.m:,} × {model.n:,} × {model.k:,}"
    sample = model.of_kind.sample
    return f"{scenario.workload.seq_len:,} tokens {'an' if sample[0] in 'aeiou' else 'a'} {sample}"


def model_size(scenario: Scenario) -> str:
    """How many parameters the model has, how many of them a token passes through where those are fewer, and how many adapters have, where
    these alone are trained."""
    counts = parameters.count(scenario.model, scenario.workload.seq_len)
    adapters = parameters.adapter_parameters(scenario.model, scenario.workload)
    share = figures.digits(100 * adapters / (counts.total + adapters), 2)
    trained = f" and {figures.parameters(adapters)} of adapters that are trained ({share} %)"
    active = f", {figures.parameters(counts.active)} active" if counts.active != counts.total else ""
    ahead = parameters.prediction_parameters(scenario.model) if scenario.workload.kind == "training" else 0
    behind = f" and {figures.parameters(ahead)} that predict further tokens" if ahead else ""
    return f"{figures.parameters(counts.total)} parameters{active}{behind}{trained if adapters else ''}"


def _indistinct(standing: Standing, group: int, lines: Sequence[Line], varying: Sequence[str], aim: Aim, one_by_one: str) -> list[str]:
    """What is said of rows that no prediction can tell apart."""
    best = lines[0]
    if aim.best_per is not None or standing.verdict[best.at] != FITS or np.isnan(standing.error[best.at]):
        return []
    error = f"{100 * standing.error[best.at]:.0f} %"
    simplest = next((line for line in lines if line.simplest), None)
    of = f" with the same {varying[0] if len(varying) == 1 else 'settings'}" if varying else ""
    named = f"; the simplest of them is #{simplest.rank}" if simplest is not None else ""
    if best.alike is None:
        rows, counting = ordered(standing, group)
        more = len(like_the_best(standing, rows[:counting])) - 1
        return [f"{more:,} more{of} within {error} of #1: no prediction tells them apart{named}"] if more > 0 else []
    if not any(line.alike for line in lines):
        return []
    alike = [f"{best.alike:,} more{of} within {error} of #1: no prediction tells them apart{named}"] if best.alike else []
    return [
        *alike,
        f"each line stands for all within its ±, up to {REACH:g} times the best; {one_by_one} lists every layout",
    ]


def _show_best_of_groups(out: Console, standing: Standing, groups: Sequence[int], aim: Aim, source: Source) -> None:
    """One row for each model and workload: their steps have no common ranking."""
    lines = [chosen(standing, group, replace(aim, top=1, best_per=None))[0] for group in groups[:MOST_GROUPS]]
    rows = source.rows(standing.lanes[[line.at for line in lines]])
    after = {"status": [_status(row, int(standing.verdict[line.at]), aim) for row, line in zip(rows, lines, strict=True)]}
    if all(standing.verdict[line.at] == FITS for line in lines):
        after = {}
    keys = ", ".join(key for key, _ in standing.labels[groups[0]])
    more = f" (the first {MOST_GROUPS} of them)" if len(groups) > MOST_GROUPS else ""
    listing.say(out, f"the best layout for each of {len(groups):,} values of {keys}{more}; they are other jobs, and are not ranked:")
    if any(key.split(".")[0] == "model" for key in aim.varying):
        after = {"parameters": [_parameters(source.trial(row)) for row in rows], **after}
    show.show_rows(out, Listed(rows, aim.by, aim.varying, after=after))
    listing.say(out, _shared(rows[0], aim.varying, source.trial(rows[0]) if "model" not in aim.varying else None))


def _advise(out: Console, near: Nearest, winner: float | None, aim: Aim, source: Source) -> None:
    """Where nothing fits, or what fits is slow beside what does not: the row nearest to fitting, and what would make it fit.

    Args:
        winner: MFU of the best row that fits; None where none does.
    """
    if winner is not None and winner >= POOR * near.mfu:
        return
    if winner is None:
        also = " and meets the constraints" if aim.constraints else ""
        listing.say(out, f"nothing fits in memory{also}")
    else:
        listing.say(out, f"the best that fits has {figures.percent(winner)} MFU, what does not fit up to {figures.percent(near.mfu)}")
    trial = source.trial(near.row)
    named = " ".join([*(f"{key}={figures.setting(key, near.row.get(key))}" for key in aim.varying), show.layout_text(near.row)])
    listing.say(out, f"nearest to fitting: {named}: {_need(near, trial, aim)}")
    if trial is not None:
        show_changes(out, trial, aim)


def _need(near: Nearest, trial: Priceable | None, aim: Aim) -> str:
    need = figures.size(near.row["peak_memory_bytes"])
    if trial is None:
        return need
    free = f" less {100 * aim.headroom:g} % of headroom" if aim.headroom else ""
    return f"{need}, {near.over:.2f} times the usable {figures.size(trial.scenario.hw.memory.usable)}{free}"


def show_changes(out: Console, trial: Priceable, aim: Aim) -> None:
    """Prints the single changes that make a layout fit."""
    if not has_closed_form(trial.scenario.hw.network):
        listing.say(out, "what would make it fit is not priced: its network has no closed form")
        return
    fitting, tried = changes(trial.scenario, trial.layout, aim)
    served = isinstance(trial.layout, Engines)
    if not fitting:
        also = " and meet the constraints" if aim.constraints else ""
        kinds = "tp, pp, ep, the batch or GPUs" if served else "ZeRO, recomputation, tp, cp, pp, micro-batch or GPUs"
        listing.say(out, f"no single change of {kinds} makes it fit{also} ({tried} were priced)")
        return
    listing.say(out, f"single changes that make it fit ({tried} were priced):")
    columns = [
        listing.Column("", [f"  {change.text}" for change in fitting], figure=False),
        listing.Column("a token" if served else "step time", [figures.seconds(change.step_time_s) for change in fitting]),
        listing.Column("MFU", [figures.percent(change.mfu) for change in fitting]),
        listing.Column("memory", [figures.size(change.peak_memory_bytes) for change in fitting]),
        listing.Column("a request" if served else "a step", [figures.dollars(change.cost_usd) for change in fitting]),
    ]
    for line in listing.lines(columns, out.width):
        out.print(line, highlight=False, markup=False, soft_wrap=True)
