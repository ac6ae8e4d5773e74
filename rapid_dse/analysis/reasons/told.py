"""An explanation in sentences and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rapid_dse.analysis.reasons.chosen import PricedTrial, settings
from rapid_dse.analysis.reasons.differences import Difference, Sum, memory_of, times_of
from rapid_dse.analysis.reasons.explanation import Explanation
from rapid_dse.analysis.reasons.neighbours import Neighbour
from rapid_dse.analysis.reasons.operator_roofline import Operator
from rapid_dse.analysis.reasons.sensitivity import Sensitivity, Shift
from rapid_dse.analysis.reasons.turning_points import TurningPoint
from rapid_dse.sweep import figures, listing, show
from rapid_dse.sweep.listing import Column

if TYPE_CHECKING:
    from rich.console import Console

# The terms of a step in a reader's words.
WORDS = {
    "compute": "kernels",
    "tp": "tensor parallel",
    "cp": "context parallel",
    "ep": "expert parallel",
    "pp": "sends",
    "dp": "gradients and weights",
    "bubble": "bubble",
    "optimizer": "optimizer",
    "host": "host",
    "prefill": "others' prompts",
}
_LEAST = 0.005  # terms that make less of a difference than this share of it are left out
MOST_POINTS = 8  # turning points that are listed


def tell(out: Console, explanation: Explanation, most: int = MOST_POINTS) -> None:
    """Prints an explanation."""
    tell_trial(out, explanation.of, "")
    _tell_trust(out, explanation)
    if explanation.against is not None and explanation.difference is not None:
        out.print()
        tell_trial(out, explanation.against, "against ")
        for line in difference_lines(explanation.difference):
            listing.say(out, line)
        _tell_points(out, explanation.turning_points, most)
    _tell_neighbours(out, explanation.neighbours)
    scenario = explanation.of.scenario
    served = "a decode step" if scenario.model.of_kind.decodes else "a pass forward"
    _tell_operators(out, explanation.operators, "a micro-batch, both ways" if scenario.workload.kind == "training" else served)
    if explanation.sensitivity is not None:
        _tell_sensitivity(out, explanation.sensitivity)


def short(of: PricedTrial) -> str:
    """A layout in a few words."""
    return show.layout_text(settings(of.layout))


def tell_trial(out: Console, of: PricedTrial, before: str) -> None:
    """Prints a trial: its layout, its step and its memory by term; ``before`` stands ahead of it."""
    options = ", ".join(f"{group}={option}" for group, option in of.choices.items() if option != "analytical")
    key = f"{of.key[:12]}: " if of.key else ""
    listing.say(out, f"{before}{key}{short(of)} on {int(of.layout.num_gpus[0]):,} GPUs{f' ({options})' if options else ''}")
    verdict = "fits" if of.fits else "does not fit"
    time, peak = figures.seconds(of.figures["step_time_s"]), figures.size(of.figures["peak_memory_bytes"])
    listing.say(out, f"  {time}: {_listed(times_of(of.figures), figures.seconds, WORDS)}", indent=4)
    usable = figures.size(of.scenario.hw.memory.usable)
    listing.say(out, f"  {peak} of {usable}, {verdict}: {_listed(memory_of(of.figures), figures.size, {})}", indent=4)
    if of.stored:
        listing.say(out, "  simulated; what follows is priced by closed forms", indent=4)


def _listed(terms: Mapping[str, float], worded: Any, words: Mapping[str, str]) -> str:
    ordered = sorted(((value, name) for name, value in terms.items() if value > 0), reverse=True)
    return ", ".join(f"{words.get(name, name)} {worded(value)}" for value, name in ordered)


def _tell_trust(out: Console, explanation: Explanation) -> None:
    error = (
        "the error is not known: nothing alike was measured"
        if explanation.expected_error is None
        else show.expected_text(explanation.expected_error)
    )
    listing.say(
        out,
        f"  expected error of the step time: {error}"
        + (f"; outside what was measured: {explanation.outside}" if explanation.outside else ""),
    )


def difference_lines(of: Difference) -> Iterator[str]:
    """The difference in sentences: settings, the step by term, the peak by term."""
    changed = ", ".join(f"{key} {_value(key, second)} → {_value(key, first)}" for key, (first, second) in of.settings.items())
    yield f"from that one to the first: {changed}" if changed else "they differ in nothing"
    yield _summed(of.time, "slower", "faster", figures.seconds, WORDS)
    yield _summed(of.memory, "more", "less", figures.size, {})


def _value(key: str, value: Any) -> str:
    return figures.setting(key, value)


def _summed(of: Sum, more: str, less: str, worded: Any, words: Mapping[str, str]) -> str:
    whole = of.difference
    if not whole:
        return f"{'step time' if of.name == 'step_time_s' else 'memory'}: the same"
    sign = 1 if whole > 0 else -1
    terms = [term for term in of.terms if abs(term.difference) >= _LEAST * abs(whole)]
    parts = [f"{words.get(term.name, term.name)} {_signed(term.difference * sign, worded)}" for term in terms]
    line = f"{worded(abs(whole))} {more if whole > 0 else less}: {', '.join(parts)}"
    top = of.terms[0]
    share = f"; {100 * top.share:.0f} % of it is {words.get(top.name, top.name)}" if 0 < top.share <= 1 and len(terms) > 1 else ""
    return line + share


def _signed(value: float, worded: Any) -> str:
    return worded(value) if value >= 0 else f"−{worded(-value)}"


def _tell_points(out: Console, points: Sequence[TurningPoint], most: int) -> None:
    out.print()
    if not points:
        listing.say(
            out, "what would turn the order round: no single number of the machine or the framework, from 1/64 to 64 times its value"
        )
        return
    listing.say(out, "what would turn the order round (one of)")
    for point in points[:most]:
        listing.say(out, f"  {point_text(point)}", indent=4)
    if len(points) > most:
        listing.say(out, f"  and {len(points) - most} more, farther away (--points)", indent=4)


def point_text(point: TurningPoint) -> str:
    """A turning point in words: the key, on which side of which value, and what it is now."""
    side = "at most" if point.value < point.now else "at least"
    whose = {"both": "", "first": " (of the first alone)", "second": " (of the second alone)"}[point.of]
    return f"{point.key}{whose} {side} {_exact(point.key, point.value)} (now {_exact(point.key, point.now)})"


def _exact(key: str, value: float) -> str:
    return figures.setting(key, value)


def _tell_neighbours(out: Console, near: Sequence[Neighbour]) -> None:
    if not near:
        return
    out.print()
    ordered = sorted(near, key=lambda neighbour: (not neighbour.fits, neighbour.step_time_s))
    columns = [
        Column("one change", [change_text(neighbour) for neighbour in ordered], figure=False),
        Column("step time", [more_text(neighbour.step_time_s, figures.seconds) for neighbour in ordered]),
        Column("memory", [more_text(neighbour.peak_memory_bytes, figures.size) for neighbour in ordered]),
        Column("", ["" if neighbour.fits else "does not fit" for neighbour in ordered], figure=False),
    ]
    listing.show(out, columns)


def change_text(of: Neighbour) -> str:
    """What a neighbour has in place of what."""
    name = of.key.removeprefix("parallel.")
    return f"{name} {_value(of.key, of.before)} → {_value(of.key, of.value)}"


def more_text(value: float, worded: Any) -> str:
    """A difference with its sign."""
    return f"{'+' if value >= 0 else '−'}{worded(abs(value))}"


def _tell_operators(out: Console, listed: Sequence[Operator], spent_on: str) -> None:
    out.print()
    listing.say(out, f"operators of a layer, {spent_on}:")
    columns = [
        Column("operator", [operator.name for operator in listed], figure=False),
        Column("time alone", [figures.seconds(operator.seconds, 3) for operator in listed]),
        Column("FLOP/byte", [figures.digits(operator.intensity, 3) if operator.flops else figures.NOTHING for operator in listed]),
        Column("of the roofline", [figures.percent(operator.reached) for operator in listed]),
        Column("bound by", [operator.bound for operator in listed], figure=False),
    ]
    listing.show(out, columns)


def _tell_sensitivity(out: Console, sensitivity: Sensitivity) -> None:
    out.print()
    if sensitivity.rows < sensitivity.of:
        listing.say(out, f"on another machine, of the best {sensitivity.rows:,} of {sensitivity.of:,} rows:")
    listing.show(out, machine_columns(sensitivity))


def machine_columns(sensitivity: Sensitivity) -> list[Column]:
    """The table of other machines: what is changed, the best value then, what it gains on the present winner, and who wins."""
    return [
        Column("on another machine", [f"{shift.what} × {shift.factor:g}" for shift in sensitivity.shifts], figure=False),
        Column("best", [figures.result(shift.by.removeprefix("-"), shift.value) for shift in sensitivity.shifts]),
        Column("gain", [_gain(shift) for shift in sensitivity.shifts]),
        Column("winner", ["the same" if shift.same else _winner(shift.winner) for shift in sensitivity.shifts], figure=False),
    ]


def _gain(of: Shift) -> str:
    """What the winner is better by than today's; where that does not fit then, nothing can be said."""
    return figures.NOTHING if of.same else "other no longer fits" if of.gain is None else figures.percent(of.gain)


def _winner(of: PricedTrial) -> str:
    options = [of.choices["hw"]] if "hw" in of.choices else []
    return " ".join([*options, short(of)])
