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


def tell(out: Console, found: Explanation, most: int = MOST_POINTS) -> None:
    """Prints an explanation."""
    tell_trial(out, found.of, "")
    _tell_trust(out, found)
    if found.against is not None and found.difference is not None:
        out.print()
        tell_trial(out, found.against, "against ")
        for line in difference_lines(found.difference):
            listing.say(out, line)
        _tell_points(out, found.turning_points, most)
    _tell_neighbours(out, found.neighbours)
    of_training = found.of.scenario.workload.kind == "training"
    _tell_operators(out, found.operators, "a micro-batch, both ways" if of_training else "a decode step")
    if found.sensitivity is not None:
        _tell_sensitivity(out, found.sensitivity)


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


def _listed(terms: Mapping[str, float], shown: Any, words: Mapping[str, str]) -> str:
    ordered = sorted(((value, name) for name, value in terms.items() if value > 0), reverse=True)
    return ", ".join(f"{words.get(name, name)} {shown(value)}" for value, name in ordered)


def _tell_trust(out: Console, found: Explanation) -> None:
    error = (
        "the error is not known: nothing alike was measured" if found.expected_error is None else show.expected_text(found.expected_error)
    )
    listing.say(
        out, f"  expected error of the step time: {error}" + (f"; outside what was measured: {found.outside}" if found.outside else "")
    )


def difference_lines(of: Difference) -> Iterator[str]:
    """The difference in sentences: settings, the step by term, the peak by term."""
    changed = ", ".join(f"{key} {_value(key, second)} → {_value(key, first)}" for key, (first, second) in of.settings.items())
    yield f"from that one to the first: {changed}" if changed else "they differ in nothing"
    yield _summed(of.time, "slower", "faster", figures.seconds, WORDS)
    yield _summed(of.memory, "more", "less", figures.size, {})


def _value(key: str, value: Any) -> str:
    return figures.setting(key, value)


def _summed(of: Sum, more: str, less: str, shown: Any, words: Mapping[str, str]) -> str:
    whole = of.difference
    if not whole:
        return f"{'step time' if of.name == 'step_time_s' else 'memory'}: the same"
    sign = 1 if whole > 0 else -1
    terms = [each for each in of.terms if abs(each.difference) >= _LEAST * abs(whole)]
    parts = [f"{words.get(each.name, each.name)} {_signed(each.difference * sign, shown)}" for each in terms]
    line = f"{shown(abs(whole))} {more if whole > 0 else less}: {', '.join(parts)}"
    top = of.terms[0]
    share = f"; {100 * top.share:.0f} % of it is {words.get(top.name, top.name)}" if 0 < top.share <= 1 and len(terms) > 1 else ""
    return line + share


def _signed(value: float, shown: Any) -> str:
    return shown(value) if value >= 0 else f"−{shown(-value)}"


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


def _tell_neighbours(out: Console, found: Sequence[Neighbour]) -> None:
    if not found:
        return
    out.print()
    ordered = sorted(found, key=lambda each: (not each.fits, each.step_time_s))
    columns = [
        Column("one change", [change_text(each) for each in ordered], figure=False),
        Column("step time", [more_text(each.step_time_s, figures.seconds) for each in ordered]),
        Column("memory", [more_text(each.peak_memory_bytes, figures.size) for each in ordered]),
        Column("", ["" if each.fits else "does not fit" for each in ordered], figure=False),
    ]
    listing.show(out, columns)


def change_text(of: Neighbour) -> str:
    """What a neighbour has in place of what."""
    name = of.key.removeprefix("parallel.")
    return f"{name} {_value(of.key, of.before)} → {_value(of.key, of.value)}"


def more_text(value: float, shown: Any) -> str:
    """A difference with its sign."""
    return f"{'+' if value >= 0 else '−'}{shown(abs(value))}"


def _tell_operators(out: Console, found: Sequence[Operator], spent_on: str) -> None:
    out.print()
    listing.say(out, f"operators of a layer, {spent_on}:")
    columns = [
        Column("operator", [each.name for each in found], figure=False),
        Column("time alone", [figures.seconds(each.seconds, 3) for each in found]),
        Column("FLOP/byte", [figures.digits(each.intensity, 3) if each.flops else figures.NOTHING for each in found]),
        Column("of the roofline", [figures.percent(each.reached) for each in found]),
        Column("bound by", [each.bound for each in found], figure=False),
    ]
    listing.show(out, columns)


def _tell_sensitivity(out: Console, found: Sensitivity) -> None:
    out.print()
    if found.rows < found.of:
        listing.say(out, f"on another machine, of the best {found.rows:,} of {found.of:,} rows:")
    listing.show(out, machine_columns(found))


def machine_columns(found: Sensitivity) -> list[Column]:
    """The table of other machines: what is changed, the best value then, what it gains on the present winner, and who wins."""
    return [
        Column("on another machine", [f"{each.what} × {each.factor:g}" for each in found.shifts], figure=False),
        Column("best", [figures.result(each.by.removeprefix("-"), each.value) for each in found.shifts]),
        Column("gain", [_gain(each) for each in found.shifts]),
        Column("winner", ["the same" if each.same else _winner(each.winner) for each in found.shifts], figure=False),
    ]


def _gain(of: Shift) -> str:
    """What the winner is better by than today's; where that does not fit then, nothing can be said."""
    return figures.NOTHING if of.same else "other no longer fits" if of.gain is None else figures.percent(of.gain)


def _winner(of: PricedTrial) -> str:
    options = [of.choices["hw"]] if "hw" in of.choices else []
    return " ".join([*options, short(of)])
