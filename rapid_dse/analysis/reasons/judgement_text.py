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


def tell_judgement(out: Console, judgement: RunJudgement) -> None:
    """Prints a judgement."""
    _tell_file(out, judgement)
    out.print()
    tell_trial(out, judgement.predicted, "")
    error = (
        "the error is not known: nothing alike was measured"
        if judgement.expected_error is None
        else show.expected_text(judgement.expected_error)
    )
    listing.say(
        out,
        f"  expected error of the step time: {error}" + (f"; outside what was measured: {judgement.outside}" if judgement.outside else ""),
    )
    if judgement.measured is not None:
        out.print()
        _tell_measured(out, judgement, judgement.measured)
    out.print()
    _tell_suspects(out, judgement)
    _tell_better(out, judgement)


def _tell_file(out: Console, judgement: RunJudgement) -> None:
    reading = judgement.reading
    title = FRAMEWORKS[reading.framework].title
    idle = f", {reading.idle} that change no step time" if reading.idle else ""
    listing.say(out, f"{title}: {reading.used} fields read{idle}")
    for what, lines in (
        ("not read", reading.unread),
        ("note", reading.notes),
        ("in neither file nor command line, and taken as", judgement.assumed),
    ):
        if lines:
            listing.say(out, f"  {what}: {'; '.join(lines)}", indent=4)


def _tell_measured(out: Console, judgement: RunJudgement, measured: float) -> None:
    predicted, share = judgement.predicted.figures["step_time_s"], measured / judgement.predicted.figures["step_time_s"] - 1
    gap = figures.seconds(abs(measured - predicted))
    side = "slower" if share > 0 else "faster"
    near = ", which one run in three is: it may be the prediction's" if abs(share) <= 2 * judgement.error else ""
    verdict = ": within the error to expect" if judgement.as_predicted else f": beyond the error to expect{near}"
    listing.say(out, f"measured {figures.seconds(measured)}, {gap} ({100 * abs(share):.0f} %) {side} than predicted{verdict}")
    if judgement.causes:
        listing.say(out, "what would explain it alone, the likeliest first:")
    for cause in judgement.causes[:MOST]:
        listing.say(out, f"  {cause_text(cause)}", indent=4)
    if not judgement.as_predicted and share > 0 and not judgement.causes:
        listing.say(
            out, "  no single figure of machine or framework explains it: several things are off, or the file is another run's", indent=4
        )
    if not judgement.as_predicted and share < 0:
        terms = ", ".join(
            f"{WORDS.get(term, term)} {figures.seconds(value)}" for term, value in _largest(times_of(judgement.predicted.figures))
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


def _tell_suspects(out: Console, judgement: RunJudgement) -> None:
    if not judgement.suspects:
        listing.say(out, "no setting of the file costs time for nothing")
        return
    first, *others = judgement.suspects[:MOST]
    listing.say(out, f"most likely spoilt: {suspect_text(first)}")
    for suspect in others:
        listing.say(out, f"  then {suspect_text(suspect)}", indent=4)


def _tell_better(out: Console, judgement: RunJudgement) -> None:
    chosen = judgement.neighbours[:MOST]
    if chosen:
        out.print()
        columns = [
            Column("one change", [change_text(neighbour) for neighbour in chosen], figure=False),
            Column("step time", [more_text(neighbour.step_time_s, figures.seconds) for neighbour in chosen]),
            Column("memory", [more_text(neighbour.peak_memory_bytes, figures.size) for neighbour in chosen]),
        ]
        listing.show(out, columns)
    else:
        listing.say(
            out, "no single change of the layout is faster and fits" if judgement.predicted.fits else "no single change of the layout fits"
        )
    if (
        judgement.best is not None
        and judgement.predicted.fits
        and judgement.best.figures["step_time_s"] >= judgement.predicted.figures["step_time_s"]
    ):
        listing.say(out, f"none of {judgement.legal:,} legal layouts is faster and fits")
    elif judgement.best is not None:
        time = figures.seconds(judgement.best.figures["step_time_s"])
        size = figures.size(judgement.best.figures["peak_memory_bytes"])
        listing.say(out, f"best of all {judgement.legal:,} legal layouts: {time}, {size}: {short(judgement.best)}", indent=2)
    else:
        listing.say(out, f"none of {judgement.legal:,} legal layouts fits")
