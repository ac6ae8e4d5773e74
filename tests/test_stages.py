"""How layers are split over pipeline stages, and that the candidate stages stand for all."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import trials

from rapid_dse.config import Model
from rapid_dse.model.architecture import split_by_rule
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.parallel.stages import stages


def model(layers: int, hidden: int = 4096, intermediate: int = 16384, vocab: int = 131072, kv_heads: int = 32) -> Model:
    return Model(
        name="test",
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        vocab_size=vocab,
    )


def piped(pp: Any, vpp: Any) -> Layouts:
    """Layouts of so many stages and chunks a stage, under the schedule that these have by default."""
    return trials.layouts(
        *({"num_gpus": int(stages), "pp": int(stages), "vpp": int(chunks)} for stages, chunks in zip(pp, vpp, strict=True))
    )


def test_megatron_counts_embedding_and_loss_as_layers_where_that_divides() -> None:
    # 126 + 2 = 128 = 8 stages × 8 chunks × 2 layers: the first and the last stage have one layer less.
    assert split_by_rule(model(126), "megatron").layers(8, 8) == [15, 16, 16, 16, 16, 16, 16, 15]
    assert split_by_rule(model(126), "megatron").layers(16, 1) == [7, *[8] * 14, 7]
    assert split_by_rule(model(30), "megatron").layers(2, 1) == [15, 15]  # divides as it is
    assert split_by_rule(model(32), "megatron").layers(4, 8) == [8] * 4


def test_what_does_not_divide_gives_the_first_chunks_one_more() -> None:
    assert split_by_rule(model(10), "even").layers(4, 1) == [3, 3, 2, 2]
    assert split_by_rule(model(11), "megatron").layers(4, 1) == [3, 3, 3, 2]
    # 21 layers in 4 × 2 chunks: chunks 0 to 4 have 3, the others 2; stage s has chunks s and s + 4.
    assert split_by_rule(model(21), "even").layers(4, 2) == [6, 5, 5, 5]
    assert split_by_rule(model(126), "even").layers(8, 8) == [16, 16, 16, 16, 16, 16, 15, 15]


def test_nanotron_balances_the_head_as_layers() -> None:
    """32 layers of 4·4096² + 3·4096·16384 = 2.68e8 parameters and a head of 131072 × 4096 = 5.37e8, two layers' worth: 34 in all.

    A stage closes with the block that brings the sum to its share, which is 34 / pp layers a stage (nanotron, build_model; measured
    peaks and step times of runs whose share comes out even follow the split that closes there).
    """
    assert split_by_rule(model(32), "balanced").layers(2, 1) == [17, 15]
    # A stage's share is 2.125: sums close at 3, 5, 7, 9, 11, 13, 15, 17, 20, …, 32.
    assert split_by_rule(model(32), "balanced").layers(16, 1) == [3, 2, 2, 2, 2, 2, 2, 2, 3, 2, 2, 2, 2, 2, 2, 0]
    # 1.0625: sums close at 2, 3, …, 17, 19, …, 32; the last but one has nothing, the last the head.
    assert split_by_rule(model(32), "balanced").layers(32, 1) == [2, *[1] * 15, 2, *[1] * 13, 0, 0]


def test_a_small_head_moves_no_layers() -> None:
    small = model(32, vocab=512)
    assert split_by_rule(small, "balanced").layers(1, 1) == [32]
    assert split_by_rule(small, "balanced").layers(4, 1) == [9, 8, 8, 7]  # the first closes when past its share, at the ninth


def test_a_users_own_split() -> None:
    """Chunks share a stage's layers as evenly as they go; embedding and loss stand in the chunks that get one less."""
    own = split_by_rule(model(44), "megatron", (10, 12, 12, 10))
    assert own.layers(4, 1) == [10, 12, 12, 10]
    assert own.chunks(4, 2) == [[5, 5], [6, 6], [6, 6], [5, 5]]
    assert own.chunks(4, 3) == [[3, 3, 4], [4, 4, 4], [4, 4, 4], [4, 3, 3]]
    # what Megatron-LM does with 126 layers over 16 stages of 8 chunks, written out
    assert split_by_rule(model(126), "even", (7, *[8] * 14, 7)).chunks(16, 8) == split_by_rule(model(126), "megatron").chunks(16, 8)
    assert split_by_rule(model(126), "megatron").chunks(16, 8)[0] == [0, *[1] * 7]


def test_candidates_of_a_users_split_count_the_stages_around_them() -> None:
    """Stages of 4, 7, 5, 7, 0, 6: first and last, and of inner ones with 7, 5 and 0 layers the earliest, for which the latest waits."""
    found = stages(split_by_rule(model(29), "megatron", (4, 7, 5, 7, 0, 6)), piped([6, 6], [1, 1]))
    assert found.layers[:, 1].tolist() == [4, 7, 5, 0, 6]
    assert found.position[:, 1].tolist() == [0, 1, 2, 4, 5]
    assert found.latest[:, 1].tolist() == [0, 3, 2, 4, 5]
    assert found.before[:, 1].tolist() == [0, 16, 11, 23, 23]
    assert found.ahead[:, :, 1].tolist() == [[0, 0, 0], [1, 1, 0], [1, 0, 0], [2, 1, 0], [2, 1, 1]]  # of 7, of 5, of 0 layers
    assert found.behind[:, :, 1].tolist() == [[2, 1, 1], [0, 0, 1], [1, 0, 1], [0, 0, 0], [0, 0, 0]]


CASES = list(product(("megatron", "even", "balanced"), (1, 2, 3, 5, 8, 16, 31, 32), (1, 2, 3, 4), (32, 80, 96, 126)))


def test_every_split_has_all_layers_and_differs_little() -> None:
    for rule, pp, vpp, layers in CASES:
        if pp * vpp > layers:
            continue
        counts = split_by_rule(model(layers), rule).layers(pp, vpp)
        assert len(counts) == pp
        assert sum(counts) == layers, (rule, pp, vpp, layers)
        inner = counts[1:-1]
        if rule != "balanced":
            assert max(counts) - min(counts) <= 1 + (rule == "megatron")
        elif inner:
            assert max(inner) - min(inner) <= max(2, -(-2 * pp // layers))


def test_candidates_stand_for_all_stages() -> None:
    """First and last are there, and the earliest stage of each layer count among the others."""
    for rule, pp, vpp, layers in CASES:
        if pp * vpp > layers:
            continue
        counts = split_by_rule(model(layers), rule).layers(pp, vpp)
        found = stages(split_by_rule(model(layers), rule), piped([pp], [vpp]))
        place, held = found.position[:, 0], found.layers[:, 0]
        assert [counts[stage] for stage in place] == held.tolist()
        assert (place[0], place[-1]) == (0, pp - 1)
        assert found.has_embedding[:, 0].tolist() == [stage == 0 for stage in place]
        assert found.has_head[:, 0].tolist() == [stage == pp - 1 for stage in place]
        for count in {each for each in counts[1:-1] if each}:
            earliest = next(stage for stage in range(1, pp - 1) if counts[stage] == count)
            dominated = any(held[i] >= count and place[i] <= earliest for i in range(4))
            assert dominated, (rule, pp, vpp, layers, counts)


def test_a_table_of_splits_is_that_of_each_row() -> None:
    pp, vpp = np.array([1, 8, 2, 8, 16]), np.array([1, 2, 1, 1, 1])
    together = stages(split_by_rule(model(32), "balanced"), piped(pp, vpp))
    for row in range(len(pp)):
        alone = stages(split_by_rule(model(32), "balanced"), piped(pp[[row]], vpp[[row]]))
        np.testing.assert_array_equal(together.layers[:, [row]], alone.layers)
        np.testing.assert_array_equal(together.position[:, [row]], alone.position)


@pytest.mark.parametrize("rule", ["megatron", "even", "balanced"])
def test_one_stage_has_everything(rule: str) -> None:
    found = stages(split_by_rule(model(126), rule), piped([1], [1]))
    assert (found.layers == 126).all()
    assert found.has_embedding.all()
    assert found.has_head.all()
