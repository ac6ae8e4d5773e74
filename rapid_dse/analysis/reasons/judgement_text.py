"""The judgement of a run in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rapid_dse.analysis.launch_files.frameworks import FRAMEWORKS
from rapid_dse.analysis.reasons.differences import times_of
from rapid_dse.analysis.reasons.hidden_causes import Cause
from rapid_dse.analysis.reasons.run_judgement import RunJudgement
from rapid_dse.analysis.reasons.suspects import Suspect
from rapid_dse.analysis.reasons.told import WORDS, change_text, more_text, short, tell_trial
from rapid_dse.sweep import figures, listing, show
from rapid_dse.sweep.listing import Column

if TYPE_CHECKING:
    from rich.console import Console

MOST = 5  # causes, suspects and neighbours that are listed


def tell_judgement(out: Console, found: RunJudgement) -> None:
    """Prints a judgement."""
    _tell_file(out, found)
    out.print()
    tell_trial(out, found.predicted, "")
    error = (
        "the error is not known: nothing alike was measured" if found.expected_error is None else show.expected_text(found.expected_error)
    )
    listing.say(
        out, f"  expected error of the step time: {error}" + (f"; outside what was measured: {found.outside}" if found.outside else "")
    )
    if found.measured is not None:
        out.print()
        _tell_measured(out, found, found.measured)
    out.print()
    _tell_suspects(out, found)
    _tell_better(out, found)


def _tell_file(out: Console, found: RunJudgement) -> None:
    reading = found.reading
    title = FRAMEWORKS[reading.framework].title
    idle = f", {reading.idle} that change no step time" if reading.idle else ""
    listing.say(out, f"{title}: {reading.used} fields read{idle}")
    for what, lines in (
        ("not read", reading.unread),
        ("note", reading.notes),
        ("in neither file nor command line, and taken as", found.assumed),
    ):
        if lines:
            listing.say(out, f"  {what}: {'; '.join(lines)}", indent=4)


def _tell_measured(out: Console, found: RunJudgement, measured: float) -> None:
    predicted, share = found.predicted.figures["step_time_s"], measured / found.predicted.figures["step_time_s"] - 1
    gap = figures.seconds(abs(measured - predicted))
    side = "slower" if share > 0 else "faster"
    near = ", which one run in three is: it may be the prediction's" if abs(share) <= 2 * found.error else ""
    verdict = ": within the error to expect" if found.as_predicted else f": beyond the error to expect{near}"
    listing.say(out, f"measured {figures.seconds(measured)}, {gap} ({100 * abs(share):.0f} %) {side} than predicted{verdict}")
    if found.causes:
        listing.say(out, "what would explain it alone, the likeliest first:")
    for cause in found.causes[:MOST]:
        listing.say(out, f"  {cause_text(cause)}", indent=4)
    if not found.as_predicted and share > 0 and not found.causes:
        listing.say(
            out, "  no single figure of machine or framework explains it: several things are off, or the file is another run's", indent=4
        )
    if not found.as_predicted and share < 0:
        terms = ", ".join(
            f"{WORDS.get(term, term)} {figures.seconds(value)}" for term, value in _largest(times_of(found.predicted.figures))
        )
        listing.say(out, f"  it may be one of the terms that are predicted to show: {terms}", indent=4)


def _largest(terms: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(((term, value) for term, value in terms.items() if value > 0), key=lambda item: -item[1])[:3]


def cause_text(of: Cause) -> str:
    """A cause in words: what it would be, the setting with both values, and the terms that grow."""
    more = ", ".join(f"{WORDS.get(term, term)} {more_text(value, figures.seconds)}" for term, value in list(of.more_s.items())[:3])
    return f"{of.why} ({of.key} {figures.setting(of.key, of.value)}, predicted with {figures.setting(of.key, of.now)}): {more}"


def suspect_text(of: Suspect) -> str:
    """A suspect in words."""
    now, usual = figures.setting(of.key, of.value), figures.setting(of.key, of.usual)
    saved = f"{usual} in its place saves {figures.seconds(of.gain_s)}"
    return f"{of.key}={now}: {of.why}; {saved} a step" + ("" if of.fits else ", and does not fit")


def _tell_suspects(out: Console, found: RunJudgement) -> None:
    if not found.suspects:
        listing.say(out, "no setting of the file costs time for nothing")
        return
    first, *others = found.suspects[:MOST]
    listing.say(out, f"most likely spoilt: {suspect_text(first)}")
    for each in others:
        listing.say(out, f"  then {suspect_text(each)}", indent=4)


def _tell_better(out: Console, found: RunJudgement) -> None:
    chosen = found.neighbours[:MOST]
    if chosen:
        out.print()
        columns = [
            Column("one change", [change_text(each) for each in chosen], figure=False),
            Column("step time", [more_text(each.step_time_s, figures.seconds) for each in chosen]),
            Column("memory", [more_text(each.peak_memory_bytes, figures.size) for each in chosen]),
        ]
        listing.show(out, columns)
    else:
        listing.say(
            out, "no single change of the layout is faster and fits" if found.predicted.fits else "no single change of the layout fits"
        )
    if found.best is not None and found.predicted.fits and found.best.figures["step_time_s"] >= found.predicted.figures["step_time_s"]:
        listing.say(out, f"none of {found.legal:,} legal layouts is faster and fits")
    elif found.best is not None:
        time = figures.seconds(found.best.figures["step_time_s"])
        size = figures.size(found.best.figures["peak_memory_bytes"])
        listing.say(out, f"best of all {found.legal:,} legal layouts: {time}, {size}: {short(found.best)}", indent=2)
    else:
        listing.say(out, f"none of {found.legal:,} legal layouts fits")
