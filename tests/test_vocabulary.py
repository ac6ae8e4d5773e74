"""What embedding, head and loss send: bytes and seconds by hand, alike in every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from layout_spread import EVENT_BACKENDS, TIED, case
from trials import priced, scenario

from rapid_dse.network.placement import place, two_ends
from rapid_dse.simulate import price
from rapid_dse.simulate.bounds import lower_bound

TABLE = 128_256 * 4_096 * 4  # bytes of the 8B model's fp32 gradient of its table; the rows are a multiple of 128 · tp up to tp 2
CARD = 50e9 * 0.9  # bytes/s of what an H100 sends to another node at the reference utilization


def _tied_seconds(row: dict[str, Any], **changes: Any) -> float:
    """What a step with one table takes longer than with two, which hold the same on each stage where pp > 1."""
    both = (scenario(model__tie_word_embeddings=tied, **changes) for tied in (True, False))
    one, two = (float(priced(of, row).time_pp_s[0]) for of in both)
    return one - two


def test_the_reference_card() -> None:
    outer = scenario().hw.network.dimensions[1]
    assert outer.bandwidth * outer.utilization * scenario().software.fabric_efficiency == pytest.approx(CARD)


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
