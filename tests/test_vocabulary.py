"""What embedding, head and loss send: bytes and seconds by hand, alike in every backend."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from layout_spread import EVENT_BACKENDS, TIED, case
from trials import layouts, priced, scenario

from rapid_dse.common.columns import Shared
from rapid_dse.events.backends import price
from rapid_dse.interconnect import closed_form
from rapid_dse.parallel.placement import place
from rapid_dse.parallel.span import Span, two_ends
from rapid_dse.simulate.account import sent_bytes
from rapid_dse.simulate.arrangement import arrangement
from rapid_dse.simulate.bounds import lower_bound
from rapid_dse.simulate.vocabulary import VocabularyParallel

TABLE = 128_256 * 4_096 * 4  # bytes of the 8B model's fp32 gradient of its table; the rows are a multiple of 128 · tp up to tp 2
CARD = 50e9 * 0.9  # bytes/s of what an H100 sends to another node at the reference utilization


def _tied_seconds(row: dict[str, Any], **changes: Any) -> float:
    """What a step with one table takes longer than with two, which hold the same on each stage where pp > 1."""
    both = (scenario(model__tie_word_embeddings=tied, **changes) for tied in (True, False))
    one, two = (float(priced(of, row).time_pp_s[0]) for of in both)
    return one - two


def test_the_reference_card() -> None:
    outer = scenario().hw.network.dimensions[1]
    assert outer.bandwidth * outer.utilization * scenario().cluster.fabric_efficiency == pytest.approx(CARD)


@pytest.mark.parametrize(
    ("row", "size"),
    [
        ({"pp": 4}, TABLE),
        ({"pp": 4, "tp": 2}, TABLE / 2),
        ({"pp": 2, "zero": 0}, TABLE),
        ({"pp": 8, "zero": 1, "schedule": "gpipe"}, TABLE),
        ({"pp": 4, "zero": 2}, TABLE / 16),  # 64 GPUs: 16 shards of the gradient
        ({"pp": 4, "cp": 2, "zero": 2}, TABLE / 16),
        ({"pp": 1}, 0),
    ],
)
def test_first_and_last_stage_sum_a_tied_table(row: dict[str, Any], size: float) -> None:
    """A sum of two buffers: each rank sends half of it, gets the other half of the sum back for it: one buffer through each card."""
    # NCCL starts in tens of us, and its pipeline of chunks fills: 6 % at 131 MB
    assert size / CARD <= _tied_seconds(row) <= 1.07 * size / CARD


def test_a_pipeline_within_a_node_sums_its_table_there() -> None:
    row, order = {"pp": 8}, ["pp", "tp", "cp", "ep", "dp"]
    inner = scenario().hw.network.dimensions[0]
    found = _tied_seconds(row, parallel__order=order, hw__network__dimensions__0__in_network_reduction=False)
    assert found == pytest.approx(TABLE / (inner.bandwidth * inner.utilization), rel=0.05)


def test_gradients_of_two_bytes_take_half() -> None:
    assert _tied_seconds({"pp": 4}, software__gradient_dtype="bf16") == pytest.approx(TABLE / 2 / CARD, rel=0.03)


def test_the_ends_of_a_pipeline_are_where_it_is_widest() -> None:
    """Pipelines of 4 at tp 2: two stages a node of 4 GPUs; of 2 at tp 2: both within one."""
    network = scenario(hw__gpus_per_node=4, hw__network__dimensions__0__size=4).hw.network
    degrees = {"tp": np.array([2, 2, 1]), "pp": np.array([4, 2, 1]), "cp": np.ones(3, int), "dp": np.ones(3, int), "ep": np.ones(3, int)}
    span = two_ends(place(degrees, ("tp", "pp", "cp", "ep", "dp"), network).pp)
    assert np.array(span.members).tolist() == [[1, 2, 1], [2, 1, 1]]


@pytest.mark.parametrize("backend", EVENT_BACKENDS)
def test_every_backend_ends_the_step_with_the_tied_table(backend: str) -> None:
    changes = {"num_gpus": 32, "tp": 8, "pp": 4, "global_batch_size": 8, "sequence_parallel": 1}
    steps = []
    for tied in (TIED, {}):
        one = case(settings=tied, **changes)
        steps.append(float(price(one.scenario(backend), one.layouts()).step_time_s[0]))
    # 128,256 rows are padded to 129,024, a multiple of 8 · 128; two chunks on store-and-forward links take 5 phases of a quarter for 4
    assert 1.0 < (steps[0] - steps[1]) / (129_024 * 4_096 * 4 / 8 / CARD) < 1.6


def test_no_step_with_tied_tables_is_below_its_bound() -> None:
    one = case(num_gpus=32, tp=8, pp=4, global_batch_size=8, sequence_parallel=1, settings=TIED)
    of, rows = one.scenario("analytical"), one.layouts()
    assert lower_bound(of, rows)[0] <= price(of, rows).step_time_s[0]


LLAMA = {"num_gpus": 64, "tp": 8, "pp": 4, "global_batch_size": 64}  # 32 micro-batches of a sequence of 8,192 tokens


@pytest.mark.parametrize("scattered", [True, False])
def test_look_up_head_and_loss_by_hand(scattered: bool) -> None:
    """8,192 tokens of 4,096 two-byte numbers, 8 ranks in a node; a reduction is a scatter and a gather.

    First stage: the look-up's sum, forward, and under sequence parallelism the gather of its gradient. Last stage: under sequence
    parallelism the gather of the head's input, forward and again backward, and the scatter of its gradient; else the sum of that. Three
    fp32 numbers a token for the loss.
    """
    of = scenario(software__tp_backward_overlap=0.0, cluster__node_skew=0.0)
    eight = Span((np.array([8.0]), np.ones(1)), (np.ones(1), np.ones(1)))
    network = of.hw.network
    gather, reduce, loss = (
        float(run(size, eight, network)[0])
        for run, size in (
            (closed_form.all_gather, 8192 * 4096 * 2),
            (closed_form.all_reduce, 8192 * 4096 * 2),
            (closed_form.all_reduce, 8192 * 4),
        )
    )
    row = LLAMA | {"sequence_parallel": scattered}
    layer = 5 * gather if scattered else 2 * reduce  # a half of it: forward gather and scatter, backward both and the gather again
    # 33 layers over 4 stages: 9 on the first, which is the slowest with a small vocabulary; 8 on each of 32, and the head decides
    first = priced(scenario(model__num_hidden_layers=33, model__vocab_size=1024, software__tp_backward_overlap=0.0), row).time_tp_s[0]
    last = priced(of, row).time_tp_s[0]
    looked_up = 2 * gather if scattered else reduce
    headed = (3 * gather if scattered else reduce) + 3 * loss
    # once a step the gradients of two norms of 4,096 numbers a layer of the first stage, whose tokens lie on all ranks
    norms = [float(closed_form.all_reduce(layers * 2 * 4096 * 4, eight, network)[0]) * scattered for layers in (9, 8)]
    assert first == pytest.approx(32 * (9 * 2 * layer + looked_up) + norms[0], rel=1e-9)
    assert last == pytest.approx(32 * (8 * 2 * layer + headed) + norms[1], rel=1e-9)


def test_a_rank_alone_reduces_nothing() -> None:
    assert priced(scenario(), LLAMA | {"tp": 1}).time_tp_s[0] == 0


def test_what_hides_behind_the_heads_weight_gradient_is_no_longer_than_that() -> None:
    """A share of the backward transfers; all of it shows where the product takes no time."""
    shown = []
    for overlap, vocabulary in ((0.0, 1024), (1.0, 1024), (0.0, 128_256), (1.0, 128_256)):
        of = scenario(model__vocab_size=vocabulary, model__num_hidden_layers=1, software__tp_backward_overlap=overlap)
        shown.append(float(priced(of, {"num_gpus": 8, "tp": 8, "global_batch_size": 1}).time_tp_s[0]))
    hidden_small, hidden = shown[0] - shown[1], shown[2] - shown[3]
    assert hidden > hidden_small > 0
    stream = 8192 * 4096 * 2
    eight = Span((np.array([8.0]), np.ones(1)), (np.ones(1), np.ones(1)))
    again_and_scatter = 2 * float(closed_form.all_gather(stream, eight, scenario().hw.network)[0])
    # the layer's are the same in both: what a large head hides more is at most its own two transfers
    assert hidden - hidden_small <= again_and_scatter


def test_engines_carry_them_on_the_groups_own_links() -> None:
    """Bytes on the links of a node's switch grow by what look-up, head and loss send: 8 ranks, one micro-batch, up and down."""
    carried = []
    for layers in (1, 2):
        runs: dict[str, Any] = {}
        one = case(num_gpus=8, tp=8, sequence_parallel=1, global_batch_size=1, settings={"model__num_hidden_layers": layers})
        price(one.scenario("full_astrasim_flattened"), one.layouts(), runs.update)
        carried.append(float(runs["step"].result.links.bytes.sum()))
    stream, loss = 8192 * 4096 * 2, 8192 * 4
    around = carried[0] - (carried[1] - carried[0])  # of no layers at all, and so of no norms of theirs
    assert around == pytest.approx(2 * 7 * (5 * stream + 3 * 2 * loss), rel=1e-3)


def test_their_bytes_cost_the_energy_of_the_dimension_that_they_cross() -> None:
    """A step's bytes: 2 micro-batches on each of 4 replicas of 8 ranks in a node, 7/8 of five streams and of six numbers a token."""
    of = scenario(hw__network__dimensions__0__in_network_reduction=False)
    row = layouts({"num_gpus": 32, "tp": 8, "global_batch_size": 8})
    arranged = arrangement(of, row)
    silent = replace(arranged, of_vocabulary=Shared(_silent(arranged.vocabulary), np.zeros(1, np.intp)))
    sent = [sent_bytes(of, row, each) for each in (arranged, silent)]
    (inner, outer), layers_alone = (2 * micro_batch[:, 0] + end[:, 0] for micro_batch, end in sent)
    assert inner - layers_alone[0] == pytest.approx(2 * 7 / 8 * (5 * 8192 * 4096 * 2 + 6 * 8192 * 4), rel=1e-6)
    assert outer == layers_alone[1]


def _silent(moved: VocabularyParallel) -> VocabularyParallel:
    return VocabularyParallel(*(getattr(moved, field.name).times(0) for field in fields(moved)))
