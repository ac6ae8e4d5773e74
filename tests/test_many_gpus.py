"""What many GPUs cost beside transfers: the slowest of them, what FSDP and sequence parallelism copy, and what is computed again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from trials import layouts, priced, scenario

from rapid_dse.device import operator_model
from rapid_dse.events.backends import price
from rapid_dse.model.architecture import architecture
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.simulate.layer_memory import layer_activations
from rapid_dse.simulate.operator_times import layer_alone
from rapid_dse.simulate.slowest import slowest_gpu

NO_COPIES = {"software__copies_gathered": False, "software__copies_gradients": False, "software__copies_sequence": False}


def test_the_slowest_of_many_gpus_is_that_of_drawn_speeds() -> None:
    draws = np.random.default_rng(0)
    cluster = scenario(cluster__gpu_spread=0.02).cluster
    counts = np.array([1.0, 2.0, 8.0, 64.0, 512.0])
    drawn = [1 + 0.02 * draws.standard_normal((20000, int(n))).max(axis=1).mean() for n in counts]
    np.testing.assert_allclose(slowest_gpu(cluster, counts), drawn, atol=1e-3)
    assert slowest_gpu(cluster, counts)[0] == 1.0


def test_a_step_waits_for_the_slowest_of_its_gpus() -> None:
    alike, spread, wide = (scenario(cluster__gpu_spread=share) for share in (0.0, 0.02, 0.04))
    rows = [{"num_gpus": n, "global_batch_size": 8 * n} for n in (8, 512)]
    first, second, third = (priced(each, *rows).time_compute_s for each in (alike, spread, wide))
    np.testing.assert_allclose(third - first, 2 * (second - first), rtol=1e-9)
    # products and attention are most of it; 1.43 and 3.03 deviations
    assert np.all(second / first - 1 < 0.02 * np.array([1.44, 3.04]))
    assert np.all(second / first - 1 > 0.8 * 0.02 * np.array([1.42, 3.02]))
    one = {"num_gpus": 1, "global_batch_size": 8, "zero": 0}
    assert priced(wide, one).step_time_s == priced(alike, one).step_time_s


def compute(row: dict[str, Any], **changes: Any) -> float:
    """Seconds of compute of a step of Llama 3.1 8B by torchtitan."""
    return float(priced(scenario(software="torchtitan", **changes), row).time_compute_s[0])


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_fsdp_copies_what_it_gathers_and_reduces(recompute: str) -> None:
    """Two gathers a layer of bf16 weights, read and written, and fp32 gradients made of bf16 ones; head and table are gathered once."""
    row = {"num_gpus": 8, "global_batch_size": 16, "zero": 3, "recompute": recompute}  # two micro-batches a GPU
    device = operator_model(scenario(software="torchtitan").hw)
    layer = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336 + 2 * 4096
    table = 128256 * 4096

    def copies(parameters: int, gathers: int) -> float:
        return gathers * float(device.elementwise(4 * parameters)) + float(device.elementwise(6 * parameters))

    expected = 2 * (32 * copies(layer, 2) + 2 * copies(table, 1))
    assert compute(row) - compute(row, **NO_COPIES) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("row", [{"zero": 1, "num_gpus": 8}, {"zero": 3, "num_gpus": 8, "tp": 8, "sequence_parallel": False}])
def test_nothing_is_copied_where_nothing_is_sharded(row: dict[str, Any]) -> None:
    assert compute(row | {"global_batch_size": 8}) == compute(row | {"global_batch_size": 8}, **NO_COPIES)


@pytest.mark.parametrize("row", [{"num_gpus": 1, "zero": 0}, {"num_gpus": 8, "zero": 1}])
def test_gradients_are_summed_by_kernels_of_their_own(row: dict[str, Any]) -> None:
    """Of each of four micro-batches 16-bit gradients are read, and sums of 32 bits read and written; head and table are not tied."""
    changes = {"software": "nanotron", "software__accumulates_apart": False}
    layer = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336 + 2 * 4096
    row = row | {"micro_batch_size": 1, "global_batch_size": 4 * row["num_gpus"], "recompute": "none"}
    apart, without = (scenario(**changes | {"software__accumulates_apart": each}) for each in (True, False))
    device = operator_model(apart.hw)
    expected = 4 * (32 * float(device.elementwise(10 * layer)) + 2 * float(device.elementwise(10 * 128256 * 4096)))
    more = priced(apart, row).time_compute_s - priced(without, row).time_compute_s
    assert float(more[0]) == pytest.approx(expected, rel=1e-6)


def test_products_that_add_in_place_leave_no_sums_to_kernels() -> None:
    row = {"num_gpus": 8, "zero": 1, "global_batch_size": 16}
    fused = (scenario(software="nanotron", software__fused_accumulation=True, software__accumulates_apart=each) for each in (True, False))
    more, less = (float(priced(each, row).time_compute_s[0]) for each in fused)
    assert more == less


@pytest.mark.parametrize(("recompute", "gathers", "scatters"), [("none", 6, 4), ("full", 6, 5)])
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_gathers_along_the_sequence_copy_the_stream(recompute: str, gathers: int, scatters: int, precision: str) -> None:
    """Two gathers and two scatters forward, as many backward, and two gathers again, which full recomputation has made where it repeats
    the forward pass but for the last scatter. 8,192 tokens of 4,096; what is gathered is cast to 8 bits before."""
    row = {"num_gpus": 8, "global_batch_size": 3, "tp": 8, "zero": 3, "recompute": recompute}
    device, elements = operator_model(scenario(software="torchtitan").hw), 8192 * 4096
    copied = gathers * device.elementwise(2 * (1 if precision == "fp8" else 2) * elements) + scatters * device.elementwise(4 * elements)
    without = compute(row, **NO_COPIES, workload__precision=precision)
    assert compute(row, workload__precision=precision) - without == pytest.approx(3 * 32 * float(copied), rel=1e-6)


@pytest.mark.parametrize(("recompute", "fewer"), [("selective", 0), ("full", 2)])
@pytest.mark.parametrize("backend", ["analytical", "full_astrasim_flattened"])
def test_what_full_recomputation_has_gathered_is_not_gathered_again(recompute: str, fewer: int, backend: str) -> None:
    """Of 14 transfers of the stream around a layer's halves: four forward, as many when it runs again and backward, and two gathers."""
    row = {"num_gpus": 4, "tp": 4, "global_batch_size": 1, "recompute": recompute}
    of = {
        "model__num_hidden_layers": 8,
        "model__vocab_size": 128,
        "backend__name": backend,
        "backend__network": "ideal",
        "software__tp_backward_overlap": 0.0,
    }
    kept, again = (
        float(priced(scenario(software="megatron_lm", software__keeps_gathered=keeps, **of), row).time_tp_s[0]) for keeps in (True, False)
    )
    assert again - kept == pytest.approx(fewer / 14 * again, rel=0.05)


@pytest.mark.parametrize(("software", "passes"), [("torchtitan", 2 + 1), ("torchtitan_eager", 3 * (2 + 1))])
@pytest.mark.parametrize(("tp", "sequence_parallel"), [(8, True), (8, False), (1, False)])
def test_gradients_of_separate_projections_are_summed_over_whole_sequences(
    software: str, passes: int, tp: int, sequence_parallel: bool
) -> None:
    """Keys, values and the gate's other half: each reads 2 bytes of each number of the stream more, or adds by 2 read and 1 written."""
    row = {"num_gpus": 8, "global_batch_size": 8 // tp, "tp": tp, "zero": 1, "sequence_parallel": sequence_parallel, "recompute": "none"}
    changed = {"software": software, "software__host_layer": 0.0, "cluster__gpu_spread": 0.0}
    apart, joint = (
        float(priced(scenario(**changed, **more), row).time_compute_s[0]) for more in ({}, {"software__separate_projections": "none"})
    )
    device, others = operator_model(scenario(software=software).hw), 8192 * 4096 * 2 * 7 / 8 * (tp > 1 and sequence_parallel)
    # two kernels a layer, of attention's three products and of the gate's two
    expected = sum(float(device.elementwise(share * passes * others)) for share in (2 / 3, 1 / 3)) if others else 0.0
    more = 32 * (_products(software, tp, apart=True) - _products(software, tp, apart=False))
    assert apart - joint == pytest.approx(32 * expected + more, rel=1e-6, abs=1e-9)


def _products(software: str, tp: int, apart: bool) -> float:
    """Seconds of the products of queries, keys, values and the gate's halves of a layer and 8,192 tokens, apart or joint, in all three
    directions."""
    of = scenario(software=software)
    device, columns = operator_model(of.hw), ((4096, 1024, 1024), (14336, 14336))
    widths = [wide / tp for joint in columns for wide in (joint if apart else (sum(joint),))]
    seconds = sum(
        float(device.gemm(m, n, k, precision="bf16"))
        for wide in widths
        for m, n, k in ((8192, wide, 4096), (8192, 4096, wide), (wide, 4096, 8192))
    )
    return seconds / of.software.kernels.matmul_efficiency / of.hw.efficiency.sustained


@pytest.mark.parametrize(("qk_norm", "turned"), [(False, 20), (True, 0)])
def test_complex_numbers_turn_queries_and_keys(qk_norm: bool, turned: int) -> None:
    """Llama 8B's 32 heads and 8 of keys, 128 wide: 2 bytes read and 4 written, 4 and 4, 4 and 2, by three kernels each, in place of one
    that reads and writes 2 bytes. Real numbers (torchtitan's Qwen3) are turned by compiled kernels like any others."""
    of = scenario(software="torchtitan", model__qk_norm=qk_norm)
    device, elements = operator_model(of.hw), 8192 * (32 + 8) * 128
    eager, fused = (
        layer_alone(each, architecture(each.model).kinds[0], MicroBatch.of(layouts({"num_gpus": 8, "zero": 3}), each.workload), device)
        for each in (of, scenario(software="torchtitan", model__qk_norm=qk_norm, software__complex_rotary=False))
    )
    expected = float(device.elementwise(turned * elements)) + 6 * of.hw.kernel_latency if turned else 0.0
    assert (float(eager.counted_forward[0]), float(eager.counted_backward[0])) == pytest.approx((expected, expected))
    assert float(fused.counted_forward[0]) == 0
    less = [float(getattr(fused, way)[0] - getattr(eager, way)[0]) for way in ("glue_forward_bytes", "glue_backward_bytes")]
    assert less == pytest.approx([4 * elements * (turned > 0)] * 2)


def test_every_other_product_is_repeated_and_kept() -> None:
    # Llama 8B's products in order, widths of outputs over a hidden size of 4,096: q 4096, k 1024, v 1024, o 4096, gate and up 14336, down
    # from 14336. Repeated are k, o and up; kept the outputs of q, v, gate and down, the layer's input, attention's output and its sums.
    of = scenario(software="torchtitan")
    table = layouts({"num_gpus": 8, "zero": 3, "recompute": "selective"})
    (kind,) = architecture(of.model).kinds
    repeated = sum(float(np.ravel(each.second * each.flops)[0]) for each in kind.products(MicroBatch.of(table, of.workload)))
    assert repeated == pytest.approx(2 * 8192 * 4096 * (1024 + 4096 + 14336))
    kept = 8192 * (2 * (4096 + 1024 + 14336 + 4096 + 4096 + 4096) + 4 * 32)
    assert float(layer_activations(of, table)[0][0]) == pytest.approx(kept * of.software.memory.activation_overhead)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("tokens", [64, 4096])
def test_events_copy_as_much(recompute: str, tokens: int) -> None:
    """A stage run as a graph, short sequences too, whose copies are longer than their layers: within 2 % of the closed form."""
    changes = {"software": "torchtitan", "workload__seq_len": tokens, "software__host_layer": 0.0, "software__host_micro_batch": 0.0}
    row = layouts({"num_gpus": 8, "global_batch_size": 16, "zero": 3, "recompute": recompute})
    closed, simulated = (price(scenario(**changes, backend__name=name), row) for name in ("analytical", "hybrid"))
    assert float(simulated.step_time_s[0]) == pytest.approx(float(closed.step_time_s[0]), rel=0.02)
    assert float(simulated.time_compute_s[0]) == pytest.approx(float(closed.time_compute_s[0]), rel=0.02)
