"""Settings of a run that cost time for nothing: each with its usual value, and what the run would take with it.

A setting is suspect where going back to what is usual makes the run faster and it still fits: figures of the machine or the framework that
are not their option's own, a tensor-parallel group that leaves its node, full recomputation that memory does not need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rapid_dse.analysis.reasons.chosen import PricedTrial, figures_of
from rapid_dse.analysis.reasons.levers import turned
from rapid_dse.config.run import RECOMPUTE
from rapid_dse.config.sample_lengths import with_loop
from rapid_dse.config.scenario import Scenario
from rapid_dse.events.backends import price
from rapid_dse.parallel.layouts import RECOMPUTE_FULL, Layouts, broken_rules
from rapid_dse.sweep.advice import with_columns

LEAST, LEAST_OF_MACHINE = 0.02, 0.002  # shares of the step below which nothing is suspected; of what nobody means to have less matters
_SECTIONS = ("hw", "cluster", "software")
_ASIDE = ("name", "num_gpus", "measured", "served", "offers", "known", "enforce", "price", "energy")
# What is chosen for its numbers, and is no mistake where it is slower.
_CHOSEN = frozenset(
    f"software.{name}" for name in ("fp8_recipe", "fp8_parameters", "gradient_dtype", "reduce_dtype", "optimizer_bytes", "loss")
)
# Nobody chooses a machine that is slower than its data sheet, or a group that leaves its node: such a setting is suspected before one that
# costs up to so many times as much and may be meant.
_NEVER_MEANT = 3.0


@dataclass(frozen=True)
class Suspect:
    """A setting that costs time.

    Attributes:
        key: the setting; ``value`` what it is, ``usual`` what it would be.
        why: what is wrong with it, in words.
        step_time_s: of the run with the usual value; ``gain_s`` what that saves.
        fits: whether the run then fits.
    """

    key: str
    value: Any
    usual: Any
    why: str
    step_time_s: float
    gain_s: float
    fits: bool


def suspects(run: PricedTrial, own: Scenario) -> list[Suspect]:
    """Settings of a run that cost more than 2 % of its step, or 0.2 % by a figure of the machine, the likeliest mistake first.

    Args:
        own: a scenario of the same options whose hw, cluster and software have no value of the run's own.
    """
    causes = [*_figures(run, own)]
    if run.scenario.workload.kind == "training":
        causes += [*_outside_node(run), *_recomputation(run)]
    step = run.figures["step_time_s"]
    kept = [suspect for suspect in causes if suspect.gain_s > _least(suspect.key) * step and (suspect.fits or not run.fits)]
    return sorted(kept, key=lambda suspect: -suspect.gain_s * _weight(suspect.key))


def _of_machine(key: str) -> bool:
    return key.startswith(("hw.", "cluster."))


def _least(key: str) -> float:
    return LEAST_OF_MACHINE if _of_machine(key) else LEAST


def _weight(key: str) -> float:
    return _NEVER_MEANT if key == "parallel.tp" or _of_machine(key) else 1.0


def _figures(run: PricedTrial, own: Scenario) -> Iterator[Suspect]:
    """Figures of the machine and of the framework that are not those of their options; what the run's model settles is its own."""
    settled = own.model_copy(update={"software": with_loop(run.scenario.model, run.scenario.workload, own.software)})
    for section in _SECTIONS:
        mine, theirs = (dict(_leaves(scenario, section)) for scenario in (run.scenario, settled))
        for key, usual in theirs.items():
            if key in mine and mine[key] != usual and key not in _CHOSEN:
                try:
                    mended = turned(run.scenario, key, usual)
                except ValueError:
                    continue  # what hangs together with another key
                yield _suspect(
                    run, (key, mine[key], usual), f"not what {section}={run.choices.get(section, section)} has", mended, run.layout
                )


def _leaves(scenario: Scenario, section: str) -> Iterator[tuple[str, Any]]:
    yield from _leaves_of(getattr(scenario, section).model_dump(mode="json"), f"{section}.")


def _leaves_of(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            if name not in _ASIDE:
                yield from _leaves_of(value, f"{prefix}{name}.")
    elif isinstance(tree, list) and tree and isinstance(tree[0], Mapping):
        for at, value in enumerate(tree):
            yield from _leaves_of(value, f"{prefix}{at}.")
    else:
        yield prefix[:-1], tree


def _suspect(run: PricedTrial, setting: tuple[str, Any, Any], why: str, scenario: Scenario, layout: Layouts) -> Suspect:
    figures = figures_of(price(scenario, layout))
    seconds = figures["step_time_s"]
    return Suspect(*setting, why, seconds, run.figures["step_time_s"] - seconds, bool(figures["fits"]))


def _outside_node(run: PricedTrial) -> Iterator[Suspect]:
    """A tensor-parallel group over several nodes: with the largest one that stays inside, dp or pp takes the rest."""
    scenario, layout = run.scenario, run.layout
    node, tp, pp = scenario.hw.gpus_per_node, int(layout.tp[0]), int(layout.pp[0])
    if tp <= node:
        return
    inside = next((degree for degree in range(node, 0, -1) if tp % degree == 0 and node % degree == 0), 1)
    suspects = []
    for stages in (pp, pp * (tp // inside)):
        follow = {"vpp": 1, "schedule": -1} if pp == 1 else {}
        other = with_columns(layout, tp=inside, pp=stages, dp=0, **(follow if stages != pp else {}))
        if broken_rules(other, scenario)[0][0] < 0:
            why = f"its group is spread over {-(-tp // node)} nodes" + (f"; with pp={stages}" if stages != pp else "")
            suspects.append(_suspect(run, ("parallel.tp", tp, inside), why, scenario, other))
    fitting = [suspect for suspect in suspects if suspect.fits] or suspects
    if fitting:
        yield max(fitting, key=lambda suspect: suspect.gain_s)


def _recomputation(run: PricedTrial) -> Iterator[Suspect]:
    """Full recomputation that memory does not need: the fastest mode that does less and fits. Selective recomputation is what is usual."""
    now, suspects = int(run.layout.recompute[0]), list[Suspect]()
    if now != RECOMPUTE_FULL:
        return
    for mode in range(now):
        other = with_columns(run.layout, recompute=mode)
        if broken_rules(other, run.scenario)[0][0] < 0:
            suspects.append(
                _suspect(run, ("parallel.recompute", RECOMPUTE[now], RECOMPUTE[mode]), "memory does not need it", run.scenario, other)
            )
    fitting = [suspect for suspect in suspects if suspect.fits]
    if fitting:
        yield max(fitting, key=lambda suspect: suspect.gain_s)
