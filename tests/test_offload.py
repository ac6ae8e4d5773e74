"""What lies in the host's memory: bytes over its link, seconds that hide behind compute, and the memory that a GPU is spared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from trials import layouts, legal, memory_terms, priced, scenario, time_terms

from rapid_dse.config.scenario import Scenario
from rapid_dse.events.backends import price
from rapid_dse.parallel.layouts import broken_rules

LINK, CORES = 50e9, 70e9  # bytes/s
ROW = {"num_gpus": 64, "tp": 8, "pp": 2, "global_batch_size": 64}  # dp 4, 16 micro-batches of one sequence, 40 layers a stage
STREAM = 8192 * 8192 / 8 * 2  # bytes of the activations between layers that a rank has under sequence parallelism


def offloading(software: str = "megatron_lm", **changes: Any) -> Scenario:
    link = {"hw__host__link_bandwidth": LINK, "hw__host__memory_bandwidth": CORES}
    return scenario("h100", "llama3_1_70b", software, **link, **changes)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_activations_leave_all_but_two_layers(share: float) -> None:
    """Under full recomputation a layer keeps its input; the last of two stages, whose logits make it the fullest,
    holds one micro-batch of 40 layers."""
    row = ROW | {"recompute": "full"}
    whole, less = (priced(offloading(parallel__offload_activations=each), row) for each in (0.0, share))
    spared = whole.memory_activations_bytes - less.memory_activations_bytes
    assert spared[0] == pytest.approx(share * (40 - 2) * STREAM)


def test_copies_that_do_not_hide_wait_for_the_host() -> None:
    """Without overlap each of 40 layers sends its input and gets it back, 16 times and in the bubble of one micro-batch more."""
    row = ROW | {"recompute": "full"}
    of = {"software__offload_overlap": 0.0, "software__host_layer": 0.0, "software__host_micro_batch": 0.0}
    whole, more = (priced(offloading(parallel__offload_activations=each, **of), row) for each in (0.0, 1.0))
    a_micro_batch = 40 * 2 * STREAM / LINK
    assert (more.time_host_s - whole.time_host_s)[0] == pytest.approx(16 * a_micro_batch)
    assert (more.time_bubble_s - whole.time_bubble_s)[0] == pytest.approx(a_micro_batch)


def test_copies_hide_where_the_pass_is_longer() -> None:
    row = ROW | {"recompute": "full"}
    whole, same = (priced(offloading(parallel__offload_activations=each), row) for each in (0.0, 1.0))
    assert same.step_time_s[0] == whole.step_time_s[0]
    assert same.memory_activations_bytes[0] < whole.memory_activations_bytes[0]


def test_states_are_stepped_by_the_cores_beside_them() -> None:
    """ZeRO 1 leaves each of 4 ranks a quarter of a stage's parameters; the cores read and write 12 bytes each, and read 4 of gradient."""
    of = {"software__optimizer_bytes": 12}
    whole, less = (priced(offloading(parallel__offload_optimizer=each, **of), ROW) for each in (0.0, 1.0))
    states = whole.memory_optimizer_bytes[0]
    assert less.memory_optimizer_bytes[0] == 0
    assert less.time_optimizer_s[0] == pytest.approx(states / 12 * (2 * 12 + 4) / CORES, rel=1e-3)
    half = priced(offloading(parallel__offload_optimizer=0.5, **of), ROW)
    assert half.memory_optimizer_bytes[0] == pytest.approx(states / 2)
    assert half.time_optimizer_s[0] == pytest.approx(less.time_optimizer_s[0] / 2, rel=1e-3)


def test_streamed_states_come_and_go_over_the_link() -> None:
    of = {"software__offload_step": "streamed", "parallel__offload_optimizer": 1.0}
    less, whole = priced(offloading(**of), ROW), priced(offloading(), ROW)
    assert less.time_optimizer_s[0] == pytest.approx(whole.memory_optimizer_bytes[0] / LINK, rel=1e-3)


def test_weights_come_ahead_of_each_pass() -> None:
    """A layer of Llama 70B has 855.6 M parameters, of which tp leaves an eighth (norms whole), 2 bytes each; two layers stay."""
    a_layer = 2 * ((2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672) / 8 + 2 * 8192)
    of = {"software__offload_overlap": 0.0, "software__host_layer": 0.0, "software__host_micro_batch": 0.0}
    whole, less = (priced(offloading(parallel__offload_weights=each, **of), ROW) for each in (0.0, 1.0))
    assert (whole.memory_parameters_bytes - less.memory_parameters_bytes)[0] == pytest.approx(38 * a_layer)
    assert (less.time_host_s - whole.time_host_s)[0] == pytest.approx(16 * 40 * 2 * a_layer / LINK)


def test_a_rank_fetches_its_shard_alone_under_zero_3() -> None:
    """FSDP's shards are of fp32: 4 bytes of a 64th of the weights, forward and backward."""
    row = {"num_gpus": 64, "tp": 1, "global_batch_size": 64, "zero": 3, "micro_batch_size": 1}
    of = {"software__offload_overlap": 0.0, "software__host_layer": 0.0, "software__host_micro_batch": 0.0, "workload__seq_len": 2048}
    whole, less = (priced(offloading("torchtitan", parallel__offload_weights=each, **of), row) for each in (0.0, 1.0))
    a_layer = 4 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192) / 64
    assert (less.time_host_s - whole.time_host_s)[0] == pytest.approx(80 * 2 * a_layer / LINK, rel=1e-6)


@pytest.mark.parametrize("backend", ["hybrid", "full_astrasim_hierarchical", "full_astrasim_flattened"])
def test_backends_agree_on_copies(backend: str) -> None:
    of = {f"parallel__offload_{kind}": 1.0 for kind in ("activations", "weights", "optimizer")}
    of |= {"software__offload_overlap": 0.3, "model__num_hidden_layers": 4, "backend__network": "ideal"}
    table = layouts({"num_gpus": 16, "tp": 8, "pp": 2, "global_batch_size": 8, "recompute": "none"})
    here, there = offloading(**of), offloading(backend__name=backend, **of)
    closed, run = price(here, legal(here, table)), price(there, table)
    assert closed.time_host_s[0] > 0.05 * closed.step_time_s[0]
    assert run.step_time_s[0] == pytest.approx(closed.step_time_s[0], rel=0.02)
    assert run.peak_memory_bytes[0] == closed.peak_memory_bytes[0]


@pytest.mark.parametrize("kind", ["activations", "optimizer", "weights"])
def test_more_on_the_host_is_never_more_on_the_gpu_nor_faster(kind: str) -> None:
    rows = [ROW | {"recompute": recompute, "zero": zero} for recompute in ("none", "selective", "full") for zero in (1, 3)]
    found = [priced(offloading(**{f"parallel__offload_{kind}": share}), *rows) for share in (0.0, 0.3, 0.6, 1.0)]
    for less, more in zip(found[1:], found, strict=False):
        assert (less.peak_memory_bytes < more.peak_memory_bytes).all()
        if kind != "optimizer":  # of which the GPU and the cores step their shares at once
            assert (less.step_time_s >= more.step_time_s * (1 - 1e-12)).all()
    for each in found:
        assert np.allclose(sum(time_terms(each).values()), each.step_time_s, rtol=1e-12)
        assert np.allclose(sum(memory_terms(each).values()), each.peak_memory_bytes, rtol=1e-12)


def test_it_is_refused_where_the_framework_has_no_such_switch() -> None:
    row = layouts(ROW)
    of = offloading(parallel__offload_activations=0.5, software__enforce=True)
    rule, texts = broken_rules(row, of)
    assert "does not offer offload_activations with pipelines" in texts[rule[0]]
    assert "it offers offload of optimizer there" in texts[rule[0]]
    rule, _ = broken_rules(row, offloading(parallel__offload_optimizer=0.5, software__enforce=True))
    assert rule[0] < 0


def test_a_chip_without_a_host_is_refused() -> None:
    with pytest.raises(ValueError, match=r"parallel.offload_weights=0.5: hw.host is null; allowed: 0, or link_bandwidth"):
        scenario(hw__host=None, parallel__offload_weights=0.5)
