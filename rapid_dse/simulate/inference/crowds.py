"""Who else is under way while a request is served, and how a run begins and ends: what follows from a load and the life of a request.

A run of finitely many requests has a ramp at both ends, in which fewer are under way than in its middle. All of it is counted as a fluid:
so many requests a second begin, each lives as long, and what one of them meets is the mean over all that are sent.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

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


@dataclass(frozen=True)
class Crowd:
    """What a request meets of others, ``(n_rows,)`` each, means over a run's requests.

    Attributes:
        running: requests that are under way beside each other, itself included.
        others: whose prompts are computed in its life.
        steady: share of the requests that do not belong to the burst that opens a run.
        busy: chance to arrive while a step is under way.
        late: requests of those sent that would have to wait if prompts took no time to be computed but came one second after the other;
            times seconds of a prompt less seconds between two arrivals it is what they wait (0 in a closed loop).
        spacing: seconds between two arrivals of an open loop, infinite in a closed one.
        longest: prompts that a request waits for at most, on average, where about as many arrive as are computed.
    """

    running: FloatColumn
    others: FloatColumn
    steady: FloatColumn
    busy: FloatColumn
    late: FloatColumn
    spacing: FloatColumn
    longest: FloatColumn

    def queue(self, rate: FloatColumn, prompt: FloatColumn, alone: FloatColumn, batch: FloatColumn) -> FloatColumn:
        """Seconds that a prompt waits for those before it, which arrive at a rate in batches, keep the engine busy for ``prompt`` each and
        last ``alone``: M/D/1, or as long as a run allows; or, where they come faster than they are computed, half of the last one's.
        """
        used = np.minimum(rate * prompt, 1.0 - 1e-9)
        waits = np.minimum(used * alone * batch / (2.0 * (1.0 - used)), self.longest * alone) * self.steady
        return np.maximum(waits, self.behind(prompt))

    def waits_for_passes(self, rate: FloatColumn, whole: FloatColumn, together: FloatColumn, least: FloatColumn) -> FloatColumn:
        """Seconds that a prompt of an open loop waits until a pass takes it.

        A pass takes all that have come since the one before began: a prompt waits for half of the one that it finds, and where even full
        passes (``least`` seconds a prompt) hardly keep up, for those in front of it: together M/D/1 where a pass holds one prompt.

        Args:
            whole: seconds of a pass on its slowest stage, of so many prompts ``together``.
        """
        used = np.minimum(rate * least, 1.0 - 1e-9)
        in_front = np.minimum(used * used * least / (2.0 * (1.0 - used)), self.longest * least)
        return np.asarray(0.5 * np.minimum(1.0, rate * whole / together) * whole + in_front)

    def behind(self, prompt: FloatColumn) -> FloatColumn:
        """Seconds that a request waits on average where prompts come faster than they are computed; the last one waits twice as long."""
        return np.asarray(self.late * np.maximum(0.0, prompt - self.spacing))


def closed_crowd(running: FloatColumn, rounds: FloatColumn) -> Crowd:
    """Of a closed loop of so many requests in so many rounds (infinite: for ever).

    In the first round as many decode when a prompt is computed as have had theirs, half of them on average, in all others everyone:
    c²/2 + (N − c) c prompts are waited for by N requests, c (1 − c / 2N) by each.
    """
    others = np.maximum(0.0, running - 1.0)
    none = np.zeros_like(running)
    met = others * (1.0 - 0.5 / rounds)
    return Crowd(running, met, 1.0 - 1.0 / rounds, np.minimum(1.0, others), none, none + np.inf, met / 2.0)


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
    others = np.minimum(under_way * (1.0 - 0.5 * short), capacity)
    late = np.where(prompts > 0, prompts / 2.0, 0.0)
    return Crowd(running, others, np.ones_like(running), -np.expm1(-running), late, 1.0 / rate, CRITICAL * np.sqrt(sent))


def either_crowd(mask: NDArray[np.bool_], one: Crowd, other: Crowd) -> Crowd:
    """``one`` where ``mask`` is set, else ``other``."""
    return Crowd(*(np.where(mask, getattr(one, field.name), getattr(other, field.name)) for field in fields(Crowd)))


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


def tail_share(rounds: FloatColumn, spread: float) -> FloatColumn:
    """The mean rate of a run over that of its steady state: when no request is left to start, those that run end one by one, over as much
    of a life as lengths have drifted apart."""
    finite = np.minimum(rounds, 1e12)
    return np.asarray(1.0 / (1.0 + 0.5 * np.minimum(1.0, 2.0 * spread * np.sqrt(finite)) / finite))


def sent_rate(load: Load, last: FloatColumn, most: FloatColumn) -> FloatColumn:
    """Requests a second of an open loop: of a run of N requests until the last one has ended, which lives so long; ``most``: that places
    for them allow."""
    rate = np.minimum(np.maximum(load.rate, 1e-12), most)
    return np.asarray(np.where(load.prompts > 0, load.prompts / (load.prompts / rate + last), rate))


def place_wait(load: Load, life: FloatColumn, capacity: FloatColumn, most: FloatColumn) -> FloatColumn:
    """What a request of an open loop waits for one of ``capacity`` places.

    Below capacity M/G/c by Sakasegawa (1977), lives nearly constant: good to some 10 % where places are many. Beyond it the queue grows
    for as long as requests arrive, and the mean request waits for half of it. Where no more are sent than have a place, none waits.
    """
    used = np.minimum(load.rate / most, 0.999)
    below = 0.5 * used ** (np.sqrt(2.0 * (capacity + 1.0)) - 1.0) / (1.0 - used) * life / capacity
    beyond = np.maximum(0.0, load.prompts / 2.0 * (1.0 / most - 1.0 / np.maximum(load.rate, 1e-12)))
    wait = np.where(load.rate < most, below, beyond)
    return np.asarray(np.where((load.prompts > 0) & (load.prompts <= capacity), 0.0, wait))
