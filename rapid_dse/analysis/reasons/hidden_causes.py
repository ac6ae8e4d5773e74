"""What a launch file does not show: by how much one thing would have to be off, alone, for the run to take as long as was measured.

Each cause is a number of the machine or the framework, solved so that the prediction is the measured time. Several would do; they are
ordered by how likely such a value is: a machine's cards, links, clocks and hosts are off by typical factors (``spread``, of the logarithm)
and more or less often (``odds``). These two are a judgement, and nothing is priced by them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from scipy.optimize import brentq

from rapid_dse.analysis.reasons.chosen import PricedTrial, figures_of
from rapid_dse.analysis.reasons.differences import times_of
from rapid_dse.analysis.reasons.levers import turned
from rapid_dse.config.scenario import Scenario
from rapid_dse.events.backends import price
from rapid_dse.parallel.layouts import RECOMPUTE_FULL, broken_rules
from rapid_dse.sweep.advice import with_columns
from rapid_dse.sweep.compose import value_at

_CLOSE = 0.1  # how near a switch's prediction must come to the measured time, a share


@dataclass(frozen=True)
class Cause:
    """One thing that alone would explain the measured time.

    Attributes:
        key: of the setting; ``now`` its value in the prediction, ``value`` the one that explains it.
        why: what that would be, in words.
        step_time_s: with it; ``more_s`` what that adds to each term of the step.
        likelihood: logarithm of how likely such a value is, against the other causes.
    """

    key: str
    now: float | str
    value: float | str
    why: str
    step_time_s: float
    more_s: Mapping[str, float]
    likelihood: float


@dataclass(frozen=True)
class _CauseKind:
    """A number that may be off: by a factor of ``far`` at most, typically by e^±``spread``, with so many ``odds`` (a logarithm)."""

    keys: tuple[str, ...]
    far: float
    spread: float
    odds: float
    words: Callable[[float], str]


def hidden_causes(run: PricedTrial, measured: float) -> list[Cause]:
    """What would explain that a run took longer than predicted, the likeliest first."""
    causes = [cause for kind in _kinds(run.scenario) if (cause := _solved(run, kind, measured)) is not None]
    causes += _switches(run, measured) if run.scenario.workload.kind == "training" else []
    return sorted(causes, key=lambda cause: -cause.likelihood)


def _kinds(scenario: Scenario) -> Iterator[_CauseKind]:
    inner, count = scenario.hw.node_dimensions, len(scenario.hw.network.dimensions)
    node = scenario.hw.gpus_per_node

    def links(first: int, last: int) -> tuple[str, ...]:
        return tuple(f"hw.network.dimensions.{at}.bandwidth" for at in range(first, last))

    if inner < count:
        yield _CauseKind(links(inner, count), 1 / 64, 1.5, 0.0, lambda factor: _fabric(factor, node))
    if inner:
        yield _CauseKind(links(0, inner), 1 / 64, 1.0, -2.5, lambda _: "links within a node: peer-to-peer switched off, or a link down")
    yield _CauseKind(
        ("hw.clock",), 1 / 8, 0.15, -1.0, lambda factor: f"chips held to {100 * factor:.0f} % of their clock by heat or a power limit"
    )
    yield _CauseKind(("hw.memory.bandwidth",), 1 / 16, 0.1, -3.0, lambda _: "memory slower than the data sheet")
    hosts = ("software.host_layer", "software.host_collective_layer", "software.host_micro_batch")
    yield _CauseKind(
        hosts, 64.0, 0.8, -1.5, lambda _: "a host that launches kernels more slowly: cores that others use, a debugger, profiling"
    )
    yield _CauseKind(
        ("software.host_step",), 1e5, 3.0, -3.0, lambda _: "something that happens once a step: data loading, logging, checkpoints"
    )


def _fabric(factor: float, node: int) -> str:
    cards = factor * node
    near = max(1, round(cards))
    as_if = f", as if {near} of a node's {node} network cards carried it" if near < node and abs(cards / near - 1) < 0.35 else ""
    return f"the network between nodes at {100 * factor:.0f} % of its bandwidth{as_if}"


def _solved(run: PricedTrial, kind: _CauseKind, measured: float) -> Cause | None:
    """The factor at which the prediction is the measured time; None where none within the kind's reach is."""
    keys = [key for key in kind.keys if value_at(run.scenario, key)]
    if not keys:
        return None

    def seconds(exponent: float) -> float:
        return figures_of(price(_scaled(run.scenario, keys, math.exp(exponent)), run.layout))["step_time_s"] - measured

    try:
        if seconds(math.log(kind.far)) < 0:
            return None
        exponent = float(brentq(seconds, 0.0, math.log(kind.far), xtol=1e-4))
    except ValueError:
        return None
    factor = math.exp(exponent)
    likelihood = kind.odds - 0.5 * (exponent / kind.spread) ** 2
    now = float(value_at(run.scenario, keys[0]))
    return _cause(run, (keys[0], now, now * factor), kind.words(factor), _scaled(run.scenario, keys, factor), likelihood)


def _scaled(scenario: Scenario, keys: list[str], factor: float) -> Scenario:
    for key in keys:
        scenario = turned(scenario, key, value_at(scenario, key) * factor)
    return scenario


def _cause(run: PricedTrial, setting: tuple[str, float | str, float | str], why: str, scenario: Scenario, likelihood: float) -> Cause:
    figures = figures_of(price(scenario, run.layout))
    before = times_of(run.figures)
    more = {term: value - before[term] for term, value in times_of(figures).items() if abs(value - before[term]) > 1e-9}
    return Cause(*setting, why, figures["step_time_s"], dict(sorted(more.items(), key=lambda item: -item[1])), likelihood)


def _switches(run: PricedTrial, measured: float) -> Iterator[Cause]:
    """Settings of two values whose other value comes close to the measured time."""
    scenario = run.scenario
    if value_at(scenario, "software.dp_overlap") > 0:
        other = turned(scenario, "software.dp_overlap", 0.0)
        now = float(value_at(scenario, "software.dp_overlap"))
        yield from _near(run, ("software.dp_overlap", now, 0.0), "gradients that nothing hides", other, measured)
    if int(run.layout.recompute[0]) != RECOMPUTE_FULL:
        layout = with_columns(run.layout, recompute=RECOMPUTE_FULL)
        if broken_rules(layout, scenario)[0][0] < 0:
            figures = figures_of(price(scenario, layout))
            miss = abs(figures["step_time_s"] / measured - 1)
            if miss < _CLOSE:
                before = times_of(run.figures)
                more = {term: value - before[term] for term, value in times_of(figures).items() if value - before[term] > 1e-9}
                why = "full recomputation, whatever the file says"
                yield Cause("parallel.recompute", "less", "full", why, figures["step_time_s"], more, -2.0 - 0.5 * (miss / 0.03) ** 2)


def _near(
    run: PricedTrial, setting: tuple[str, float | str, float | str], why: str, scenario: Scenario, measured: float
) -> Iterator[Cause]:
    cause = _cause(run, setting, why, scenario, 0.0)
    miss = abs(cause.step_time_s / measured - 1)
    if miss < _CLOSE:
        yield Cause(cause.key, cause.now, cause.value, cause.why, cause.step_time_s, cause.more_s, -1.0 - 0.5 * (miss / 0.03) ** 2)
