"""What would turn the order of two layouts round: for each number of their scenario the nearest value at which the other one is ahead.

Found by pricing both again: values on a grid, from the present one outward until the order changes, then halving. So the order at the
value that is named and at the one before it have both been priced.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rapid_dse.analysis.reasons.chosen import PricedTrial
from rapid_dse.analysis.reasons.levers import EvenSteps, Lever, ValueGrid, levers, turned
from rapid_dse.config.scenario import Scenario
from rapid_dse.events.backends import price
from rapid_dse.parallel.layouts import Layouts, broken_rules
from rapid_dse.parallel.schedules import INTERLEAVES
from rapid_dse.simulate.results import Priced
from rapid_dse.sweep.advice import with_columns
from rapid_dse.sweep.compose import value_at
from rapid_dse.sweep.ranking import descending

BATCH, LENGTH = "workload.global_batch_size", "workload.seq_len"
_Rank = tuple[bool, float]  # whether it does not fit, and what ranks it: less is ahead
_LEVEL = 1e-9  # a share: what is nearer to another than that differs by rounding alone
_STEPS = 6  # values that are looked at on the way to a lever's end


@dataclass(frozen=True)
class TurningPoint:
    """A value at which the order of two trials is the other one.

    Attributes:
        key: the setting.
        of: "both", "first" or "second": whose setting it is, where they have parts of their own.
        now: its present value.
        value: the nearest on its side at which the order has turned; ``before``: the grid's last one at which it has not.
        effort: how far away it is: of factors the logarithm, of shares the difference.
    """

    key: str
    of: str
    now: float
    value: float
    before: float
    effort: float


def turning_points(first: PricedTrial, second: PricedTrial, by: str = "step_time_s") -> list[TurningPoint]:
    """The turning points of the order of two trials, the nearest first.

    What fits is ahead of what does not; of two that fit, or that do not, the one with the better ``by``.
    """
    points = []
    if first.scenario == second.scenario:  # then it is turned once for both
        second = replace(second, scenario=first.scenario)
    ranks = _ranks([(trial.scenario, trial.layout) for trial in (first, second)], by)
    for lever, of in _levers(first, second):
        order = _Order(lever, of, (first, second), ranks, by)
        now = _now(lever, first if of != "second" else second)
        points += [
            TurningPoint(lever.key, of, now, value, before, _effort(lever, now, value)) for value, before in _solved(lever, now, order)
        ]
    return sorted(points, key=lambda point: (point.effort, point.key))


def _levers(first: PricedTrial, second: PricedTrial) -> Iterator[tuple[Lever, str]]:
    """Levers, and whose they are."""
    for lever in levers(first.scenario):
        yield lever, "both" if _shared(first, second, lever.section) else "first"
    for lever in levers(second.scenario):
        if not _shared(first, second, lever.section):
            yield lever, "second"
    if _shared(first, second, "workload"):
        training = first.scenario.workload.kind == "training"
        yield from ((lever, "both") for lever in (_counts if training else _lengths)(first, second))


def _shared(first: PricedTrial, second: PricedTrial, section: str) -> bool:
    """Whether both have the same part; how many GPUs there are is the layout's."""
    aside = {"num_gpus": 1, "global_batch_size": 1}
    one, other = (getattr(trial.scenario, section) for trial in (first, second))
    update = {name: value for name, value in aside.items() if name in type(one).model_fields}
    return bool(one.model_copy(update=update) == other.model_copy(update=update))


def _counts(first: PricedTrial, second: PricedTrial) -> Iterator[Lever]:
    """The batch in steps that both layouts can split, and the length of sequences in steps that both can."""
    batch, length, batches = 1, 1, set()
    for trial in (first, second):
        layout = trial.layout
        rounds = int(layout.pp[0]) if INTERLEAVES[layout.schedule[0]] else 1
        batch = math.lcm(batch, int(layout.dp[0] * layout.micro_batch_size[0]) * rounds)
        length = math.lcm(length, 128, 2 * int(layout.cp[0]) * int(layout.tp[0]))
        batches.add(int(layout.global_batch_size[0]))
    now, tokens = max(batches), first.scenario.workload.seq_len
    if len(batches) == 1:
        yield Lever(BATCH, EvenSteps(batch), batch, now * 16)
    yield Lever(LENGTH, EvenSteps(length), length, tokens * 16)


def _lengths(first: PricedTrial, _: PricedTrial) -> Iterator[Lever]:
    """Tokens of prompts, and of what is generated."""
    for key, tokens in zip(("workload.prompt_len", "workload.decode_len"), first.scenario.workload.lengths, strict=True):
        yield Lever(key, EvenSteps(16), 16, tokens * 16)


def _now(lever: Lever, trial: PricedTrial) -> float:
    return float(trial.layout.global_batch_size[0]) if lever.key == BATCH else float(value_at(trial.scenario, lever.key))


def _effort(lever: Lever, now: float, value: float) -> float:
    if isinstance(lever.grid, EvenSteps) and lever.high == 1.0:
        return abs(value - now)
    return abs(math.log(value / now)) if value > 0 and now > 0 else math.inf


def _solved(lever: Lever, now: float, order: _Order) -> Iterator[tuple[float, float]]:
    """Pairs of a value with the other order and the one before it, at most one on each side of ``now``."""
    below, above = _sides(lever, now)
    for (near, far), ahead in ((below, below[0] >= below[1]), (above, above[0] <= above[1])):
        if not ahead or order.unmoved(lever.grid.value(far)):
            continue
        last = None
        for at in _path(near, far):
            has_turned = order.turned(lever.grid.value(at))
            if has_turned is None:
                break
            if has_turned:
                # ``now`` itself lies between the grid's values: its order is the present one
                solution = _halved(lever.grid, at, last, order) if last is not None else (lever.grid.value(at), now)
                if solution is not None:
                    yield solution
                break
            last = at


def _sides(lever: Lever, now: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """From the grid's value next to ``now`` to the last one within the lever's bounds, downward and upward."""
    grid = lever.grid
    if now > 0 or isinstance(grid, EvenSteps):
        below, above = grid.around(now)
    else:
        below = above = grid.around(lever.low)[1]
    return (below, _last_within(grid, lever.low, True)), (above, _last_within(grid, lever.high, False))


def _last_within(grid: ValueGrid, bound: float, least: bool) -> int:
    """The number of the least value that is not below ``bound``, or of the largest that is not above it."""
    down, up = grid.around(bound)
    middle = up - 1 if up - down == 2 else None  # the bound itself is a value of the grid
    return middle if middle is not None else up if least else down


def _path(near: int, far: int) -> Sequence[int]:
    """Numbers from ``near`` to ``far``, wider and wider apart."""
    return [int(value) for value in dict.fromkeys((near + (far - near) * np.linspace(0, 1, _STEPS) ** 2).round().tolist())]


def _halved(grid: ValueGrid, turned_at: int, not_at: int, order: _Order) -> tuple[float, float] | None:
    """The grid's neighbouring values between which the order turns; None where one between the two cannot be priced."""
    while abs(turned_at - not_at) > 1:
        middle = (turned_at + not_at) // 2
        has_turned = order.turned(grid.value(middle))
        if has_turned is None:
            return None
        turned_at, not_at = (middle, not_at) if has_turned else (turned_at, middle)
    return grid.value(turned_at), grid.value(not_at)


class _Order:
    """The order of two trials, with a lever turned on one of them or on both."""

    def __init__(self, lever: Lever, of: str, trials: tuple[PricedTrial, PricedTrial], ranks: tuple[_Rank, ...], by: str) -> None:
        self._lever, self._of, self._trials, self._by = lever, of, trials, by
        self._known: dict[float, tuple[_Rank, _Rank] | None] = {}
        self._now = ranks

    def turned(self, value: float) -> bool | None:
        """Whether the one is ahead at this value that is not ahead now; None where it cannot be priced there."""
        trial = self._at(value)
        return None if trial is None else _ahead(trial) not in (None, _ahead(self._now))

    def unmoved(self, value: float) -> bool:
        """Whether neither trial is another at this value than it is now."""
        return self._at(value) == self._now

    def _at(self, value: float) -> tuple[_Rank, _Rank] | None:
        if value not in self._known:
            self._known[value] = self._priced(value)
        return self._known[value]

    def _priced(self, value: float) -> tuple[_Rank, _Rank] | None:
        changed = [at for at, name in enumerate(("first", "second")) if self._of in ("both", name)]
        try:
            sides = [_at(self._lever, self._trials[at], value) for at in changed]
        except ValueError:
            return None
        if any(broken_rules(layout, scenario)[0][0] >= 0 for scenario, layout in sides):
            return None
        ranks = dict(enumerate(self._now)) | dict(zip(changed, _ranks(sides, self._by), strict=True))
        return ranks[0], ranks[1]


def _ahead(ranks: tuple[_Rank, ...]) -> int | None:
    """Which of two is ahead; None where they are level, which is no other order."""
    (one_fails, one), (other_fails, other) = ranks
    if one_fails == other_fails and math.isclose(one, other, rel_tol=_LEVEL):
        return None
    return 0 if ranks[0] < ranks[1] else 1


def _ranks(sides: Sequence[tuple[Scenario, Layouts]], by: str) -> tuple[_Rank, ...]:
    """Where each side ranks."""
    if len(sides) == 2 and (sides[0][0] is sides[1][0] or sides[0][0] == sides[1][0]):
        priced = price(sides[0][0], type(sides[0][1]).concatenate([layout for _, layout in sides]))
        return _rank(priced, 0, by), _rank(priced, 1, by)
    return tuple(_rank(price(scenario, layout), 0, by) for scenario, layout in sides)


def _rank(priced: Priced, row: int, by: str) -> _Rank:
    sign = -1.0 if descending(by) else 1.0
    return not priced.fits[row], sign * float(getattr(priced, by.removeprefix("-"))[row])


def _at(lever: Lever, trial: PricedTrial, value: float) -> tuple[Scenario, Layouts]:
    if lever.key == BATCH:
        return trial.scenario, with_columns(trial.layout, global_batch_size=int(value))
    given = int(value) if lever.section == "workload" else value
    return turned(trial.scenario, lever.key, given, lever.follows), trial.layout
