"""Prompts on attention's ranks against counts by hand and draws of requests that end at random."""

from __future__ import annotations

import numpy as np
import pytest

from rapid_dse.simulate.inference.rank_prompts import fullest_rank, gathered, spread_of, until_each_has_one


def test_of_many_requests_it_is_the_collectors_number() -> None:
    ranks = np.array([2.0, 8.0, 32.0])
    found = until_each_has_one(ranks, ranks * 1000)
    assert found == pytest.approx([n * sum(1 / number for number in range(1, n + 1)) for n in (2, 8, 32)], rel=0.01)


@pytest.mark.parametrize(("ranks", "requests"), [(4, 24), (8, 32), (8, 64), (16, 64)])
def test_prompts_until_each_rank_has_one_or_one_of_them_nothing_else(ranks: int, requests: int) -> None:
    """Requests end one after the other in an order drawn at random: those of each rank are alike."""
    rng, ends = np.random.default_rng(0), []
    for _ in range(2000):
        waiting = np.zeros(ranks, int)
        for number, rank in enumerate(rng.permutation(np.arange(requests) % ranks), 1):
            waiting[rank] += 1
            if waiting.min() > 0 or waiting.max() == requests // ranks:
                ends.append(number)
                break
    assert until_each_has_one(np.array([float(ranks)]), np.array([float(requests)]))[0] == pytest.approx(np.mean(ends), rel=0.15)


def test_more_requests_have_no_fewer_passes_in_a_life() -> None:
    requests = np.arange(16.0, 2000.0)
    passes = requests / until_each_has_one(np.full_like(requests, 8.0), requests)
    assert (np.diff(passes) >= -1e-3 * passes[1:]).all()


@pytest.mark.parametrize(("ranks", "prompts"), [(8, 4), (8, 8), (8, 20), (16, 40), (64, 64)])
def test_the_fullest_rank_has_as_many_as_of_prompts_drawn_at_random(ranks: int, prompts: int) -> None:
    drawn = np.random.default_rng(0).multinomial(prompts, np.full(ranks, 1 / ranks), size=5000).max(axis=1)
    spread, mean = spread_of(np.array([float(ranks)])), np.array([prompts / ranks])
    assert fullest_rank(mean, np.array([100.0]), spread)[0] == pytest.approx(drawn.mean(), rel=0.2)
    assert fullest_rank(mean, np.array([1.0]), spread)[0] == max(1.0, prompts / ranks)


def test_one_prompt_is_on_one_rank_and_one_rank_has_all() -> None:
    ranks = np.array([8.0, 1.0])
    found = fullest_rank(np.array([1.0, 3.0]) / ranks, np.array([9.0, 9.0]), spread_of(ranks))
    assert found == pytest.approx([1.0, 3.0])


@pytest.mark.parametrize(("ranks", "fullest"), [(4, 3.0), (8, 3.0), (16, 3.2), (16, 6.4)])
def test_prompts_of_which_the_fullest_rank_has_so_many_are_those_of_random_draws(ranks: int, fullest: float) -> None:
    """So many prompts, each on any rank: the mean of the most on one over 20,000 draws."""
    prompts = ranks * float(gathered(np.array([fullest]), spread_of(np.array([ranks])))[0])
    draws, rng = [], np.random.default_rng(1)
    for number, share in ((int(prompts), 1 - prompts % 1), (int(prompts) + 1, prompts % 1)):  # of a fraction the draws between both
        draws.append(share * rng.multinomial(number, np.full(ranks, 1 / ranks), size=20_000).max(axis=1).mean())
    assert sum(draws) == pytest.approx(fullest, rel=0.12)
    assert float(gathered(np.array([fullest]), spread_of(np.array([1])))[0]) == pytest.approx(fullest)
