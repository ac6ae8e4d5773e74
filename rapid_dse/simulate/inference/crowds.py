"""Who else is under way while a request is served, and how a run begins and ends: what follows from a load and the life of a request.

A run of finitely many requests has a ramp at both ends, in which fewer are under way than in its middle. All of it is counted as a fluid:
so many requests a second begin, each lives as long, and what one of them meets is the mean over all that are sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatColumn = NDArray[np.float64]


# At the rate at which prompts are computed the queue before them is a random walk of Poisson's steps: the mean of |N(0, n)| over n up to N
# is 2/3 (2 N / pi)^½.
CRITICAL = 2.0 / 3.0 * np.sqrt(2.0 / np.pi)


@dataclass(frozen=True)
class Load:
    """What an engine is asked for, ``(n_rows,)`` each: requests under way at most (infinite: all at once), or requests a second (0: none
    is given); ``prompts``: how many are sent in all, 0: for ever; ``static``: requests that start and end together."""

    concurrency: FloatColumn
    rate: FloatColumn
    prompts: FloatColumn
    static: NDArray[np.bool_]

    def part(self, rows: slice) -> Load:
        """Those of some rows."""
        return Load(self.concurrency[rows], self.rate[rows], self.prompts[rows], self.static[rows])


class Passing(Protocol):
    """A pass of prompts: how many it takes, and seconds a prompt of it, and of a full one, on the slowest stage."""

    @property
    def together(self) -> FloatColumn: ...
    @property
    def alone(self) -> FloatColumn: ...
    @property
    def least(self) -> FloatColumn: ...


@dataclass(frozen=True)
class Crowd:
    """What a request meets of others, ``(n_rows,)`` each, means over a run's requests.

    Attributes:
        running: requests that are under way beside each other, itself included.
        others: whose prompts are computed in its life.
        steady: share of the requests that do not belong to the burst that opens a run.
        busy: chance to arrive while a step is under way.
        met_share: of those that arrive in an open loop's life, the share that finds it under way; a run's ramps have fewer.
        most: requests that are under way at most.
        longest: prompts that a request of an open loop waits for at most, on average, where about as many arrive as are computed.
    """

    running: FloatColumn
    others: FloatColumn
    steady: FloatColumn
    busy: FloatColumn
    met_share: FloatColumn
    most: FloatColumn
    longest: FloatColumn


def waits_for_passes(used: FloatColumn, passed: Passing, longest: FloatColumn) -> FloatColumn:
    """Seconds that a prompt that comes at random waits until a pass takes it.

    A pass takes all that have come since the one before began: a prompt waits for half of the one that it finds, and where even full passes
    hardly keep up, for those in front of it: together M/D/1 where a pass holds one prompt.

    Args:
        used: share of the time in which prompts keep the engine busy in such passes.
        longest: prompts that it waits for at most, on average.
    """
    full = np.minimum(used * np.minimum(1.0, passed.least / passed.alone), 1.0 - 1e-9)
    in_front = np.minimum(full * full * passed.least / (2.0 * (1.0 - full)), longest * passed.least)
    return np.asarray(0.5 * np.minimum(1.0, used) * passed.alone * passed.together + in_front)


def closed_crowd(running: FloatColumn, rounds: FloatColumn) -> Crowd:
    """Of a closed loop of so many requests in so many rounds (infinite: for ever).

    In the first round as many decode when a prompt is computed as have had theirs, half of them on average, in all others everyone:
    c²/2 + (N − c) c prompts are waited for by N requests, c (1 − c / 2N) by each.
    """
    others = np.maximum(0.0, running - 1.0)
    met = others * (1.0 - 0.5 / rounds)
    return Crowd(running, met, 1.0 - 1.0 / rounds, np.minimum(1.0, others), np.ones_like(running), running, np.zeros_like(running))


def open_crowd(rate: FloatColumn, prompts: FloatColumn, life: FloatColumn, capacity: FloatColumn) -> Crowd:
    """Of an open loop of N requests (0: for ever) that live so long; at most ``capacity`` run; rows without a rate are of no meaning.

    Arrivals last T = N / rate. With a life L below T as many are under way as Little's law has, n = rate · L, but for the ramps: the
    squares of the trapezoid n(t) over its area give n (1 − L / 3T) beside a request. With L above T all N are under way in the middle:
    N (1 − T / 3L). A prompt is waited for by those that are under way when it comes, n (1 − L / 2T) on average, N / 2 where L is above T.
    """
    rate = np.maximum(rate, 1e-12)
    sent = np.where(prompts > 0, prompts, np.inf)
    lasting = sent / rate
    short = np.minimum(1.0, life / lasting)
    under_way = np.minimum(rate * life, sent)
    ramps = np.where(life < lasting, 1.0 - short / 3.0, 1.0 - np.minimum(1.0, lasting / np.maximum(life, 1e-12)) / 3.0)
    running = np.clip(under_way * ramps, 1e-9, capacity)
    met_share = under_way * (1.0 - 0.5 * short) / np.maximum(rate * life, 1e-12)
    others = np.minimum(rate * life * met_share, capacity)
    return Crowd(
        running, others, np.ones_like(running), -np.expm1(-running), met_share, np.minimum(capacity, sent), CRITICAL * np.sqrt(sent)
    )


def rounds_of(prompts: FloatColumn, running: FloatColumn) -> FloatColumn:
    """Requests that each running one is followed by in the whole run, itself included; infinite: for ever."""
    return np.asarray(np.where(prompts > 0, np.maximum(1.0, prompts / running), np.inf))


def burst_wait(prompts: FloatColumn, rounds: FloatColumn) -> FloatColumn:
    """What the burst that opens a run adds to the mean time to the first token, s.

    All requests of the first round arrive at once and wait for each other's prompts, half of them on average. They start to generate one
    after the other, and so they end: what follows them arrives as slowly as prompts are taken.

    Args:
        prompts: seconds that the prompts of all running requests take.
    """
    return np.asarray(0.5 * prompts / rounds)


def sent_rate(load: Load, last: FloatColumn, most: FloatColumn) -> FloatColumn:
    """Requests a second of an open loop: of a run of N requests until the last one has ended, which lives so long; ``most``: that places
    for them and prompts allow."""
    rate = np.minimum(np.maximum(load.rate, 1e-12), most)
    return np.asarray(np.where(load.prompts > 0, load.prompts / (load.prompts / rate + last), rate))


def place_wait(load: Load, life: FloatColumn, capacity: FloatColumn, most: FloatColumn) -> FloatColumn:
    """What a request of an open loop waits for one of ``capacity`` places.

    Below capacity M/G/c by Sakasegawa (1977), lives nearly constant: good to some 10 % where places are many; where no more are sent than
    have a place, none waits. A run is too short for more than a random walk's queue where as many arrive as are served. Beyond what the
    engine keeps up with (``most``) the queue grows for as long as requests arrive, and the mean request waits for half of it.
    """
    sent = np.where(load.prompts > 0, load.prompts, np.inf)
    used = np.minimum(load.rate / most, 1.0 - 1e-9)
    below = 0.5 * used ** (np.sqrt(2.0 * (capacity + 1.0)) - 1.0) / (1.0 - used) * life / capacity
    below = np.where(sent <= capacity, 0.0, np.minimum(below, CRITICAL * np.sqrt(sent) / np.minimum(most, 1e30)))
    beyond = np.maximum(0.0, load.prompts / 2.0 * (1.0 / most - 1.0 / np.maximum(load.rate, 1e-12)))
    return np.asarray(below + beyond)
