"""What tensor parallelism sends of a layer under fp8."""

from __future__ import annotations

import numpy as np
import pytest
from layout_spread import BLOCKING
from trials import layouts, priced, scenario

from rapid_dse.simulate.communication import micro_batch_transfers, placement_of

TP, TOKENS, HIDDEN = 4, 8192, 8192
ROW = {"num_gpus": 8, "tp": TP, "global_batch_size": 8}


@pytest.mark.parametrize(("recipe", "gathered"), [("delayed", 1), ("tensorwise", 1), ("rowwise", 2)])
def test_inputs_are_gathered_in_8_bits_where_they_are_cast_before(recipe: str, gathered: int) -> None:
    """A layer gathers twice and scatters twice in each direction, and gathers its two inputs again: a collective over 4 ranks sends 3/4
    of the buffer from each. What is scattered is summed, in 16 bits; so is the head's input, whose product is in 16 bits."""
    of, rows = scenario(model="llama3_1_70b", workload__precision="fp8", software__fp8_recipe=recipe), layouts(ROW)
    every = micro_batch_transfers(of, rows, placement_of(of, rows), of.hw.network)
    (moved,) = every.layers
    elements = TOKENS * HIDDEN * 3 / 4
    np.testing.assert_allclose(moved.tp_forward.sent.sum(axis=0), elements * 2 * (gathered + 2))
    np.testing.assert_allclose(moved.tp_backward.sent.sum(axis=0), elements * 2 * (gathered + 2))
    np.testing.assert_allclose(moved.tp_gather_again.sent.sum(axis=0), elements * 2 * gathered)
    np.testing.assert_allclose(every.stream.gather.sent.sum(axis=0), elements * 2)


def test_without_sequence_parallelism_partial_sums_travel_in_16_bits() -> None:
    row = ROW | {"sequence_parallel": False}
    narrow, wide = (scenario(model="llama3_1_70b", workload__precision=word) for word in ("fp8", "bf16"))
    sent = [
        micro_batch_transfers(of, layouts(row), placement_of(of, layouts(row)), of.hw.network).layers[0].tp_forward.sent
        for of in (narrow, wide)
    ]
    np.testing.assert_array_equal(*sent)


def test_the_event_engine_sends_as_much() -> None:
    changes = BLOCKING | {"model": "llama3_1_8b", "workload__precision": "fp8", "workload__seq_len": 2048, "backend__network": "ideal"}
    row = {"num_gpus": 4, "tp": 4, "global_batch_size": 1, "recompute": "none"}
    closed, event = (priced(scenario(**changes, backend__name=name), row) for name in ("analytical", "full_astrasim_flattened"))
    assert event.time_tp_s[0] == pytest.approx(closed.time_tp_s[0], rel=0.05)
