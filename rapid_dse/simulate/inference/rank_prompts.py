"""Prompts on attention's ranks in a closed loop: each that ends is followed by another on its own rank, which has the fewest then.

So prompts come to ranks at random, and those that share a pass are not spread evenly: some ranks have several before each has one.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rapid_dse.simulate.inference.products import LARGEST

FloatColumn = NDArray[np.float64]
IntColumn = NDArray[np.int64]

REQUESTS = 2.0 ** np.append(
    np.arange(1.0, 4.0, 0.25), np.arange(4.0, 13.0, 0.5)
)  # of a rank, at which prompts until each has one are counted
NODES = 24
LASTS = 6.0  # of exp(-this) ranks less than one is still without a prompt, on average


def until_each_has_one(ranks: FloatColumn, requests: FloatColumn) -> FloatColumn:
    """Prompts that have come when each of ``ranks`` has one, or one of them nothing but prompts, on average; at least two requests are on
    each. More requests have no fewer passes in a life of theirs: with two or three on a rank, of which few end before one of the ranks has
    nothing but prompts, as many prompts count as passes are as frequent as with four.

    Of very many requests it is the collector's n (1 + 1/2 + … + 1/n): 22 of eight ranks.
    """
    passes, of_rank = np.empty_like(requests), np.maximum(requests / ranks, REQUESTS[0])
    for number in sorted(set(ranks.tolist())):
        rows = ranks == number
        passes[rows] = np.interp(np.log2(of_rank[rows]), np.log2(REQUESTS), _passes(int(number)))
    return np.asarray(ranks * of_rank / passes)


@lru_cache(maxsize=64)
def _passes(ranks: int) -> FloatColumn:
    """Passes that come while each request ends once, at ``REQUESTS``."""
    points, weights = np.polynomial.legendre.leggauss(NODES)
    ends = np.array([_until(float(ranks), ranks * of_rank, points, weights) for of_rank in REQUESTS])
    return np.minimum.accumulate((ranks * REQUESTS / ends)[::-1])[::-1]


def _until(ranks: float, requests: float, points: FloatColumn, weights: FloatColumn) -> float:
    """The first of ``requests`` that ends, and the integral over time of those of the others that end while neither has happened.

    Each request has ended by t with the chance u = 1 - exp(-t), in decoding lives from the first one's end, so that of c on a rank all have
    with u^c, and none with (1 - u)^c; whose successor waits does not decode. ``points`` from -1 to 1 at which it is taken, and their
    ``weights``.
    """
    least = np.floor(requests / ranks)
    more = requests - least * ranks  # ranks that have one more
    longest = (np.log(ranks) + LASTS) / least
    ended = -np.expm1(-longest * (1.0 + points) / 2.0)
    going = np.zeros(NODES)
    for count, number, others in ((least, ranks - more, (ranks - more - 1.0, more)), (least + 1.0, more, (ranks - more, more - 1.0))):
        if number > 0:
            decoding = [1.0 - ended**on_rank for on_rank in (least, least + 1.0)]
            waiting = [chance - (1.0 - ended) ** on_rank for chance, on_rank in zip(decoding, (least, least + 1.0), strict=True)]
            some, every = (np.prod([chance**power for chance, power in zip(of, others, strict=True)], axis=0) for of in (decoding, waiting))
            going = going + count * number / requests * (1.0 - ended ** (count - 1.0)) * (some - every)
    return float(1.0 + (requests - 1.0) * (weights * going * (1.0 - ended)).sum() * longest / 2.0)


def spread_of(ranks: FloatColumn | IntColumn) -> FloatColumn:
    """How far the largest of as many counts as there are ranks lies above their mean, over the root of that: so many deviations as the
    largest of as many normal deviates, of a binomial count."""
    return np.interp(np.log2(ranks), np.arange(len(LARGEST)), LARGEST) * np.sqrt(1.0 - 1.0 / ranks)


def fullest_rank(mean: FloatColumn, most: FloatColumn, spread: FloatColumn) -> FloatColumn:
    """Prompts of the rank that has the most at random, at least 1, where ranks have so many in the mean.

    Args:
        most: whole prompts of a rank that a pass takes.
        spread: that of ``spread_of``.
    """
    return np.maximum(mean, np.minimum(np.maximum(1.0, mean + spread * np.sqrt(mean)), most))


def gathered(fullest: FloatColumn, spread: FloatColumn) -> FloatColumn:
    """Prompts of a rank in the mean where the one that has the most at random has so many, as ``fullest_rank`` counts them."""
    return np.asarray((0.5 * (np.sqrt(spread * spread + 4.0 * fullest) - spread)) ** 2)
