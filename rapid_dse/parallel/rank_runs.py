"""Groups of ranks as runs at a constant distance, and how experts' groups are cut out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

FACTORS = ("tp", "cp", "dp", "pp")  # their product is the number of GPUs
DATA = ("cp", "dp")  # what gradients are reduced over


@dataclass(frozen=True)
class RankRun:
    """Ranks at a constant distance: ``count`` of them, ``stride`` apart, both ``(n_layouts,)``, on one set of dimensions."""

    count: Integers
    stride: Integers
    dimensions: tuple[int, ...]

    @property
    def extent(self) -> Integers:
        """The ranks from one group of this kind to the next, ``(n_layouts,)``."""
        return self.count * self.stride


def beside_experts(
    runs: Mapping[str, RankRun], data: list[RankRun], etp: Integers, order: Sequence[str]
) -> tuple[list[RankRun], list[RankRun]]:
    """The ranks that share an expert, and those that are left of tp, cp and dp, inner to outer.

    etp takes the innermost ranks of tp, and where it is wider than tp the innermost ones of the others beside them.

    Args:
        data: the runs of cp and dp, or the one that they are together.
    """
    tp = runs["tp"]
    share = np.gcd(tp.count, etp)
    mine, rest = RankRun(share, tp.stride, tp.dimensions), RankRun(tp.count // share, tp.stride * share, tp.dimensions)
    wider = etp // share
    if (rest.count == 1).all() and (wider == 1).all():
        return [mine], data
    pool = _inside_out(rest, data, order)
    if (wider == 1).all():
        return [mine], pool
    more, pool = take_ranks(pool, wider, inner=True)
    return [mine, *more], pool


def _inside_out(tp: RankRun, data: list[RankRun], order: Sequence[str]) -> list[RankRun]:
    """What is left of tp among the runs of cp and dp, by the order; one run with the next of them where both are neighbours."""
    names = [name for name in order if name in FACTORS]
    place, follower = names.index("tp"), names[names.index("tp") + 1] if names[-1] != "tp" else ""
    before = sum(name in DATA for name in names[:place])
    at = before if len(data) > 1 else before // 2
    if follower in DATA and data[at].dimensions == tp.dimensions:
        joined = RankRun(tp.count * data[at].count, tp.stride, tp.dimensions)
        return [*data[:at], joined, *data[at + 1 :]]
    return [*data[:at], tp, *data[at:]]


def take_ranks(runs: list[RankRun], count: Integers, inner: bool) -> tuple[list[RankRun], list[RankRun]]:
    """Splits ``count`` ranks off a group, from its inner or outer end: what was taken, and what is left."""
    taken, untaken = [], []
    for run in runs if inner else reversed(runs):
        share = np.gcd(run.count, count) if len(runs) > 1 else count
        rest = np.maximum(1, run.count // share)
        count = count // share
        taken.append(RankRun(share, run.stride if inner else run.stride * rest, run.dimensions))
        untaken.append(RankRun(rest, run.stride * share if inner else run.stride, run.dimensions))
    return taken, untaken
