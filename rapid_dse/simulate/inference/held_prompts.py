"""Prompts that are held back until each of attention's ranks has one, and what a row's tokens may take longer where they are not.

Prompts are let go before that where a rank has nothing to decode. With fewer than two requests on each rank many that end leave theirs so,
and the fewer there are the more often decoding is interrupted. Prices leave that out, so that fewer requests never decode later than more
of them; what it would add belongs to the error to expect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel.engines import Engines
from rapid_dse.simulate.inference.rank_prompts import until_each_has_one
from rapid_dse.simulate.inference.request_lives import accepted

FloatColumn = NDArray[np.float64]

TOLD = 0.01  # share of a token's time from which it is said that prompts are let go sooner than is priced
LET_GO = "concurrency (fewer than two requests on an attention rank: prompts are let go sooner than priced)"


def let_go_together(ranks: FloatColumn, requests: FloatColumn) -> FloatColumn:
    """Prompts that are let go together where up to two requests are on each of ``ranks``, on average.

    Of N ranks x have two requests that decode, and all others one. Of those that decode one after the other ends at random: at the k-th
    end N + x - k + 1 decode, of which N - x are the only ones of their rank, and k - 1 the last ones of a rank that had two. Either leaves
    its rank with nothing to decode, and lets the prompts go that wait. That of the former itself is not among these: it comes while its
    rank has nothing to decode still, and is let go alone.
    """
    spare = np.clip(requests - ranks, 0.0, ranks)
    waiting, ends, passes = np.ones_like(spare), np.zeros_like(spare), np.ones_like(spare)
    for before in range(int(np.ceil(spare.max(initial=0.0))) + 1):
        decoding = ranks + spare - before
        ends = ends + waiting
        only, last = (ranks - spare) / np.maximum(decoding, 1.0), before / np.maximum(decoding, 1.0)
        passes = passes + waiting * only * (before > 0)
        waiting = waiting * np.maximum(0.0, 1.0 - only - last)
    return np.asarray(ends / passes)


def error_let_go(scenario: Scenario, engines: Engines, results: Mapping[str, Any]) -> FloatColumn:
    """By which share of the time between tokens each row may be priced too short, ``(n_rows,)``, since prompts are priced as held back
    that are let go.

    Args:
        results: columns of the rows by name, those of ``Priced``, or the numbers of one row.
    """
    none, most = np.zeros(len(engines)), float(scenario.software.serving.attention_dp_wait)
    later = scenario.workload.lengths[1] - 1.0
    if not most or later <= 0 or not (engines.attention_dp > 1).any():
        return none
    ranks = engines.attention_dp.astype(np.float64)
    requests = results["running_requests"] / (engines.dp * engines.pp)
    few = (engines.attention_dp > 1) & (requests < 2.0 * ranks) & (engines.batch_size == 0) & ~engines.pooled
    tokens = min(accepted(scenario.workload.draft_tokens or 0, scenario.workload.draft_acceptance or 0.0), max(1.0, later))
    of_two = 2.0 * ranks * tokens / later  # that end in a step with two on each rank
    ended = np.minimum(of_two, requests * results["tpot_s"] * tokens / results["request_latency_s"])
    until = until_each_has_one(ranks, 2.0 * ranks)
    priced_prompts = np.minimum((1.0 + np.minimum(until - 1.0, most * of_two)) * ended / of_two, requests)
    group = 1.0 if scenario.workload.length_spread else scenario.software.serving.prompts_together
    let_go = np.maximum(let_go_together(ranks, requests), group)
    # passes of others in a request's life, whose own pass takes those that come with it, over those that are priced
    passes = (requests / let_go - 1.0) / np.maximum(requests / np.maximum(priced_prompts, 1.0) - 1.0, 1e-9)
    longer = results["time_prefill_s"] * np.maximum(0.0, passes - 1.0)
    return np.where(few, longer / (results["tpot_s"] + longer), none)
