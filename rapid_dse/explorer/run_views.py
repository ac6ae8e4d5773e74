"""Pages of what is asked beside studies: one trial, what a sweep would take, and sweeps that were launched."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlencode

from rapid_dse.analysis.report.study_jobs import Shown
from rapid_dse.analysis.report.study_page import card_of, launch_of
from rapid_dse.analysis.report.study_sections import terms_of
from rapid_dse.explorer.launched_sweeps import Launches
from rapid_dse.explorer.study_shelf import Shelf
from rapid_dse.explorer.web_answers import Asking, NotListed, WebAnswer
from rapid_dse.explorer.what_if import command_of, composing, options_by_group, priced_what_if, prospect_of, words_of
from rapid_dse.sweep import figures, show

START = "hw=h100 model=llama3_1_8b hw.num_gpus=64 workload.global_batch_size=256 parallel.tp=2"


@dataclass(frozen=True)
class WhatIfPages:
    """The pages of trials and sweeps."""

    shelf: Shelf
    launches: Launches

    def form(self, asking: Asking) -> WebAnswer:
        """The form; with the overrides that were handed on."""
        text = asking.values.get("overrides") or START
        return WebAnswer(
            "what_if", {"title": "What if", "overrides": text, "options": options_by_group(), "allowed": self.launches.allowed}
        )

    def trial(self, asking: Asking) -> WebAnswer:
        """One trial, priced."""
        words = words_of(asking.text("overrides"))
        priced = priced_what_if(words)
        row = Shown("this trial", priced.row, priced.portion)
        with composing():
            launch = launch_of(row)
        context = {"title": show.layout_text(priced.row), "card": card_of(row), "lines": priced.lines, "launch": launch}
        sections = list(terms_of([row], "trial"))
        return WebAnswer("trial", {**context, "sections": sections, "command": command_of(words, sweep=False)})

    def count(self, asking: Asking) -> WebAnswer:
        """What a sweep would price, and how long that takes."""
        prospect = prospect_of(words_of(asking.text("overrides")))
        return WebAnswer("count", {
            "title": prospect.study, "found": prospect, "overrides": asking.text("overrides"), "allowed": self.launches.allowed,
            "seconds": _about(prospect.seconds), "there": prospect.study in self.shelf.sources(),
            "command": command_of(prospect.overrides, sweep=True, root=self.shelf.root),
        })  # fmt: skip

    def launch(self, asking: Asking) -> WebAnswer:
        """Starts a sweep."""
        sweep = self.launches.launch(prospect_of(words_of(asking.text("overrides"))))
        return WebAnswer("", {}, redirect=f"/run?{urlencode({'number': sweep.number})}")

    def runs(self, _: Asking) -> WebAnswer:
        """The sweeps of this start."""
        return WebAnswer("runs", {"title": "Runs", "sweeps": list(reversed(self.launches.sweeps)), "allowed": self.launches.allowed})

    def run(self, asking: Asking) -> WebAnswer:
        """A sweep, and how far it is."""
        number = asking.text("number")
        try:
            sweep = self.launches.of(number)
        except KeyError:
            raise NotListed(f"number={number[:20]!r}: no sweep of this start; allowed: a number that the page of runs lists") from None
        context = {"title": f"Sweep {sweep.number}", "sweep": sweep, "there": sweep.prospect.study in self.shelf.sources()}
        context |= {"seconds": _about(sweep.prospect.seconds), "took": figures.seconds(sweep.seconds, 2)}
        return WebAnswer("run", {**context, "study": urlencode({"study": sweep.prospect.study})})

    def cancel(self, asking: Asking) -> WebAnswer:
        """Ends a sweep as Ctrl-C does."""
        self.run(asking).context["sweep"].cancel()
        return WebAnswer("", {}, redirect=f"/run?{urlencode({'number': asking.text('number')})}")


def _about(seconds: float) -> str:
    """A time to expect: beside the start of a process little is said of what takes less."""
    if seconds < 1:
        return "about a second"
    return f"about {figures.seconds(seconds, 2)} on one core" if seconds < 120 else f"about {figures.days(seconds)} on one core"
