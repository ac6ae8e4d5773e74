"""ZeRO++: what crosses nodes by the paper's count, what a second copy takes, and that simulations send the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from layout_spread import BLOCKING
from trials import layouts, legal, priced, scenario, time_terms

from rapid_dse.config.scenario import Scenario
from rapid_dse.events.backends import price
from rapid_dse.parallel.layouts import broken_rules
from rapid_dse.simulate.arrangement import arrangement
from rapid_dse.simulate.held_weights import layer_weights

ROW = {"num_gpus": 32, "zero": 3, "global_batch_size": 32, "recompute": "none"}  # four nodes of 8
SECOND = {"parallel__zero_hpz_partition_size": 8}
WEIGHTS, GRADIENTS = {"software__zero_quantized_weights": True}, {"software__zero_quantized_gradients": True}
EXPERTS = {"model__num_experts": 8, "model__num_experts_per_tok": 2, "model__moe_intermediate_size": 3584}
SIXTEEN_BITS = {"software__gradient_dtype": "bf16"}  # as the paper counts


def sharded(model: str = "llama3_1_8b", **changes: Any) -> Scenario:
    return scenario("h100", model, "deepspeed", **(SIXTEEN_BITS | changes))


@pytest.mark.parametrize(
    ("changes", "gathers", "left"),
    [
        ({}, 1.0, 3.0),
        (WEIGHTS, 0.5, 2.0),
        (SECOND, 1.0, 2.0),
        (GRADIENTS, 1.0, 2.25),
        (SECOND | WEIGHTS | GRADIENTS, 0.5, 0.75),
    ],
)
@pytest.mark.parametrize("model", ["llama3_1_8b", "mixtral_8x7b"])
def test_what_crosses_nodes_is_the_papers_count(model: str, changes: dict[str, Any], gathers: float, left: float) -> None:
    """Section 3.4, table 1: 3 M without, 0.75 M with all three; M are the 16-bit weights of a layer, of which each node sends the part
    that it has to 3 of 4 nodes. Experts on every rank are weights like others."""
    of = sharded(model, **changes)
    (moved,) = arrangement(of, legal(of, layouts(ROW))).sharded
    m = 2 * float(layer_weights(of, layouts(ROW))[0].total[0])
    across = 8 * (moved.forward.sent[1:].sum() + moved.backward.sent[1:].sum())  # of a node's GPUs
    # a ring crosses from node to node 31 times of 32; all-to-alls send to 3 of 4 nodes
    ring, pairs = 31 / 32, 3 / 4
    by_rings = left - (0.25 if "software__zero_quantized_gradients" in changes else 0.0)
    assert across == pytest.approx(m * (by_rings * ring + (left - by_rings) * pairs), rel=1e-9)
    assert 8 * moved.forward.sent[1:].sum() == pytest.approx(gathers * m * ring)


def test_a_second_copy_takes_its_share_of_all_weights() -> None:
    plain, more = priced(sharded(), ROW), priced(sharded(**SECOND), ROW)
    parameters = plain.memory_parameters_bytes * 32 / 2
    assert (more.memory_parameters_bytes - plain.memory_parameters_bytes)[0] == pytest.approx(2 * parameters[0] / 8, rel=1e-6)
    assert more.peak_memory_bytes[0] > plain.peak_memory_bytes[0]


def test_casts_move_bytes_of_their_own() -> None:
    """A gathered weight is read in 8 bits and written in 16 twice a micro-batch; a gradient is read, written in 4 bits and read again."""
    of = BLOCKING | {"software__host_layer": 0.0, "software__copies_gathered": False, "software__copies_gradients": False}
    plain, more = (priced(sharded(**of, **each), ROW) for each in ({}, WEIGHTS | GRADIENTS))
    assert more.time_compute_s[0] > plain.time_compute_s[0]
    bandwidth = sharded().hw.memory.bandwidth * sharded().hw.efficiency.memory
    weights = plain.memory_parameters_bytes[0] * 32 / 2  # each GPU has a 32nd of them, in 16 bits
    assert (more.time_compute_s - plain.time_compute_s)[0] == pytest.approx(weights * (2 * 3 + 3) / bandwidth, rel=0.05)


@pytest.mark.parametrize("changes", [SECOND, WEIGHTS | GRADIENTS, SECOND | WEIGHTS | GRADIENTS], ids=["second", "narrow", "all"])
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("experts", [False, True])
def test_backends_agree(tp: int, experts: bool, changes: dict[str, Any]) -> None:
    row = {"num_gpus": 16, "tp": tp, "sequence_parallel": tp > 1, "zero": 3, "global_batch_size": 16, "recompute": "full"}
    of = BLOCKING | {"model__num_hidden_layers": 2, **(EXPERTS if experts else {})} | changes
    if tp > 1 and "parallel__zero_hpz_partition_size" in of:
        of |= {"parallel__zero_hpz_partition_size": 4}
    table = layouts(row)
    closed = price(sharded(**of), legal(sharded(**of), table))
    assert np.allclose(sum(time_terms(closed).values()), closed.step_time_s, rtol=1e-12)
    for backend in ("hybrid", "full_astrasim_flattened"):
        run = price(sharded(backend__name=backend, backend__network="ideal", **of), table)
        assert run.step_time_s[0] == pytest.approx(closed.step_time_s[0], rel=0.02), backend
        assert run.time_dp_s[0] == pytest.approx(closed.time_dp_s[0], rel=0.02), backend


def test_on_slow_links_each_of_them_is_faster() -> None:
    slow = BLOCKING | {"hw__network__dimensions__1__bandwidth": "2 GB/s"}
    steps = [priced(sharded(**slow, **each), ROW).time_dp_s[0] for each in ({}, WEIGHTS, SECOND, GRADIENTS, SECOND | WEIGHTS | GRADIENTS)]
    assert max(steps[1:]) < steps[0]
    assert min(steps) == steps[-1] < steps[0] / 3


@pytest.mark.parametrize(
    ("row", "changes", "text"),
    [
        ({"zero": 2}, WEIGHTS, "zero_quantized_weights needs zero 3"),
        ({"zero": 1}, SECOND, "zero_hpz_partition_size needs zero 3"),
        ({"shard_group": 8}, GRADIENTS, "zero_quantized_gradients goes with shard_group=null alone"),
        ({}, {"parallel__zero_hpz_partition_size": 5}, "zero_hpz_partition_size must divide dp · cp"),
        ({}, SECOND | {"software__enforce": True}, ""),
        ({}, SECOND | EXPERTS | {"software__enforce": True}, ""),
        (
            {"ep": 8},
            WEIGHTS | EXPERTS,
            "zero_quantized_weights needs ep 1 and etp = tp: DeepSpeed has no ZeRO 3 with expert parallelism",
        ),
    ],
)
def test_rules(row: dict[str, Any], changes: dict[str, Any], text: str) -> None:
    rule, texts = broken_rules(layouts(ROW | row), sharded(**changes))
    assert (texts[rule[0]] if rule[0] >= 0 else "") == text


def test_megatron_has_none_of_it() -> None:
    rule, texts = broken_rules(layouts(ROW), scenario(software="megatron_lm", software__enforce=True, **SECOND))
    assert "megatron_lm does not offer zero_hpz_partition_size" in texts[rule[0]]
