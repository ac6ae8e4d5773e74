"""How many parts of a group hold some of a token's experts: what a token has to be sent to where it is sent to each part once."""

from __future__ import annotations

from functools import lru_cache
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=4096)
def distinct_parts(experts: int, chosen: int, parts: int) -> float:
    """The mean number of ``parts`` that hold some of a token's ``chosen`` experts, where routing prefers none.

    Each part holds experts / parts of them (rounded down where that does not divide, at least 1), and a token's experts are distinct: a
    part has none of them with probability C(E − E/p, k) / C(E, k).
    """
    experts_a_part = max(1, experts // parts)
    missed = comb(experts - experts_a_part, chosen) / comb(experts, chosen) if experts - experts_a_part >= chosen else 0.0
    return min(parts, experts) * (1.0 - missed)


@lru_cache(maxsize=4096)
def distinct_parts_of_groups(routing: tuple[int, int, int, int], parts: int) -> float:
    """The same where a token's experts lie in a few groups of experts alone.

    Args:
        routing: experts, experts a token; groups of experts, and how many of them a token may have experts of (DeepSeek-V3, arXiv
            2412.19437, section 2.1.2).
    """
    experts, chosen, groups, allowed = routing
    if parts <= 1:
        return 1.0
    if groups <= 1 or allowed >= groups:
        return distinct_parts(experts, chosen, parts)
    inside = experts * allowed // groups  # those that may be chosen
    if parts >= groups:
        return distinct_parts(inside, chosen, max(1, parts * allowed // groups))
    groups_a_part, missed = groups // parts, 0.0  # groups that a part holds
    for mine in range(min(groups_a_part, allowed) + 1):
        ways = comb(groups_a_part, mine) * comb(groups - groups_a_part, allowed - mine) / comb(groups, allowed)
        groups_outside = inside - mine * (experts // groups)
        missed += ways * (comb(groups_outside, chosen) / comb(inside, chosen) if groups_outside >= chosen else 0.0)
    return parts * (1.0 - missed)


def parts_of_groups(routing: tuple[int, int, int, int], parts: NDArray[Any]) -> NDArray[np.float64]:
    """``distinct_parts_of_groups`` of each entry of a column, ``(n,)``, rounded to whole parts."""
    values, where = np.unique(np.atleast_1d(parts), return_inverse=True)
    return np.array([distinct_parts_of_groups(routing, max(1, round(float(value)))) for value in values])[where]
