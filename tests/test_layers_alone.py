"""Grouped products and eager permutation: by hand, and against layers measured on an H200."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
from test_device_models import chip
from trials import layouts, scenario

from rapid_dse import validate
from rapid_dse.analysis.layers_alone import layer_errors, predict_layers, unpriced_layers
from rapid_dse.device import operator_model
from rapid_dse.device.contract import GroupedCall
from rapid_dse.device.grouped import grouped_work
from rapid_dse.model.architecture import architecture
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.simulate.host_launches import layer_launches
from rapid_dse.simulate.operator_times import counted_seconds, operators

# Measured on one H200 for this project (PyTorch 2.11): torch._grouped_mm, layers of experts and of latent attention, medians.
WIDTHS = {"mixtral_8x7b": (4096, 14336, 8, 2), "qwen3_30b_a3b": (2048, 768, 128, 8)}
GROUPED = [  # model, tokens, routing, part, layout, seconds
    ("mixtral_8x7b", 4096, "balanced", "up", "forward", 2.490e-3),
    ("mixtral_8x7b", 4096, "balanced", "up", "wgrad", 3.321e-3),
    ("mixtral_8x7b", 512, "balanced", "down", "forward", 0.329e-3),
    ("mixtral_8x7b", 4096, "uniform", "down", "dgrad", 1.679e-3),
    ("qwen3_30b_a3b", 4096, "uniform", "up", "forward", 0.512e-3),
    ("qwen3_30b_a3b", 4096, "balanced", "down", "dgrad", 0.176e-3),
    ("qwen3_30b_a3b", 512, "balanced", "up", "wgrad", 0.353e-3),
    ("qwen3_30b_a3b", 16384, "balanced", "down", "forward", 0.772e-3),
]
TRAINED = [  # model, tokens, forward, backward, bytes at the peak
    ("mixtral_8x7b", 4096, 5.949e-3, 11.13e-3, 6.48e9),
    ("mixtral_8x7b", 16384, 22.61e-3, 40.49e-3, 10.45e9),
    ("qwen3_30b_a3b", 8192, 3.370e-3, 5.374e-3, 3.41e9),
    ("qwen3_30b_a3b", 16384, 6.366e-3, 9.056e-3, 5.16e9),
]
SERVED = [("mixtral_8x7b", 64, 1.106e-3), ("qwen3_30b_a3b", 1, 0.142e-3), ("qwen3_30b_a3b", 512, 0.661e-3)]
LATENT = {
    "hidden": 7168,
    "heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}


def measured() -> pd.DataFrame:
    rows: list[dict[str, object]] = []
    for name, tokens, routing, part, way, seconds in GROUPED:
        hidden, ffn, experts, chosen = WIDTHS[name]
        n, k = (2 * ffn, hidden) if part == "up" else (hidden, ffn)
        each = {"kind": "grouped_gemm", "name": name, "num_groups": experts, "rows": tokens * chosen, "n": n, "k": k}
        rows.append(each | {"layout": way, "routing": routing, "time_s": seconds})
    for name, tokens, forward, backward, peak in TRAINED:
        each = {"kind": "moe_layer_train", "name": name, "tokens": tokens, "fwd_time_s": forward, "bwd_time_s": backward}
        rows.append(each | {"time_s": forward + backward, "peak_allocated_bytes": peak})
    rows += [{"kind": "moe_layer_infer", "name": name, "tokens": tokens, "time_s": seconds} for name, tokens, seconds in SERVED]
    for attn, seq, forward, backward in (("cudnn", 4096, 5.046e-3, 10.83e-3), ("flash_padded", 2048, 2.751e-3, 6.038e-3)):
        rows.append(LATENT | {"kind": "mla_train", "attn": attn, "seq": seq, "mb": 1, "fwd_time_s": forward, "bwd_time_s": backward})
    for kind, seconds in (("mla_decode_layer", 1.188e-3), ("mla_decode_attention", 0.970e-3)):
        rows.append(LATENT | {"kind": kind, "batch": 128, "context": 4096, "time_s": seconds})
    return pd.DataFrame(rows).assign(hw="h200")


def test_measured_layers_of_an_h200() -> None:
    table = measured()
    errors = layer_errors(table, predict_layers(table))["mape"]
    within = {"grouped_gemm": 0.1, "moe_layer_train": 0.12, "moe_layer_infer": 0.12, "mla_train": 0.12, "mla_decode_layer": 0.14}
    for kind, most in within.items():
        assert errors[kind].drop("peak_allocated_bytes", errors="ignore").max() < most, kind
    assert errors["moe_layer_train", "peak_allocated_bytes"] < 0.12


def test_a_groups_rows_fill_pairs_of_tiles_by_hand() -> None:
    """66 pairs of SMs, each block with a tile of 128 × 256 and 1,024 clocks for 64 of the depth at 4,096 FLOP a clock."""
    hw = chip("h200")
    deep = 1000  # 16 steps of 64

    def clocks(rows: float, groups: float, ragged: Literal["m", "k"] = "m", even: bool = True) -> float:
        shape = np.array([[rows], [256.0], [deep], [groups]])
        return float(grouped_work(hw, shape, GroupedCall(ragged, even, "bf16", False), (128.0, 256.0)).clocks[0])

    tile = 1024 / 0.95
    store = 0.02 * 128 * 256
    assert clocks(1, 66) == clocks(256, 66) == pytest.approx(16 * tile + store)
    assert clocks(256, 67) == clocks(257, 66) == 2 * clocks(256, 66)
    assert clocks(512, 66, even=False) == 3 * clocks(256, 66)  # of uneven groups every second has a pair more than its rows need
    assert clocks(256, 66, "k", even=False) == pytest.approx((deep / 64 + 0.5) * tile + store)


def test_outputs_are_stored_before_the_next_tile() -> None:
    hw = chip("h200")
    flat = float(operator_model(hw).grouped(4096, 4096, 64, 64, GroupedCall("k", even=True)))
    assert flat >= 64 * 4096 * 4096 * 2 * 2 / (hw.memory.bandwidth * hw.efficiency.memory)  # while nothing multiplies


def test_chips_without_such_kernels_run_a_batch() -> None:
    device = operator_model(chip("a100"))
    assert float(device.grouped(300, 512, 1024, 8)) == float(device.gemm(300, 512, 1024, batch=8))


def test_how_experts_products_run() -> None:
    """A loop pays each product's own last wave and ramp; one kernel of many pays its padding."""

    def products(form: str, tokens: int) -> float:
        of = scenario("h200", "qwen3_30b_a3b", "pytorch", software__expert_products=form, workload__seq_len=tokens)
        shape = MicroBatch.of(layouts({"num_gpus": 1}), of.workload)
        device = operator_model(of.hw)
        found = operators(of, shape, device).layers[0].matmul_seconds[:, -2:]
        up = device.gemm(tokens * 8 / 128, 1536, 2048) / of.hw.efficiency.sustained
        assert form != "looped" or float(found[0, 0, 0]) == pytest.approx(128 * float(up))
        return float(found.sum())

    assert products("looped", 1024) > 1.5 * products("grouped", 1024)
    assert products("looped", 65536) > products("streams", 65536)
    assert products("grouped", 65536) > products("streams", 65536)


def test_eager_permutation_by_hand() -> None:
    tokens, hidden, chosen, experts = 8192, 2048, 8, 128
    fused, eager = (
        scenario("h200", "qwen3_30b_a3b", "pytorch", software__permutation=name, workload__seq_len=tokens) for name in ("fused", "eager")
    )
    row = layouts({"num_gpus": 1})
    shape, kind = MicroBatch.of(row, eager.workload), architecture(eager.model).kinds[0]
    device, rows = operator_model(eager.hw), tokens * hidden * chosen
    added = rows * 3.0 / (132 * 1.83e9)  # an atomic an element, 12.4 ps
    stream = [2 * rows * passes / (4.8e12 * 0.81 * 0.92) for passes in (2 + 3, 1 + 6)]  # gathered, weighted and read; and back
    logits = tokens * experts * 4 * 4 / (4.8e12 * 0.81 * 0.92)
    for way, kernels in ((0, 40), (1, 20)):
        seconds = float(counted_seconds(eager, kind, shape, device, way)[0])
        assert seconds == pytest.approx(added + stream[way] + logits + kernels * 2.75e-6, rel=0.03)
        assert float(counted_seconds(fused, kind, shape, device, way)[0]) == 0
    assert float((layer_launches(eager, row) - layer_launches(fused, row))[0]) == pytest.approx(7 / 12)


@pytest.mark.parametrize(
    ("dispatcher", "ep", "there", "back"),
    [
        # a token read, two rows made; what has come read and written once more to stand by expert, where a rank has two
        ("alltoall", 8, 1 + 2, 2 + 1),
        ("alltoall", 4, 1 + 2 + 2 * 2, 2 * 2 + 2 + 1),
        # of eight experts two a rank, a token's second is with its first in one of seven: 13 / 7 ranks have it, and two rows come of it
        ("deepep", 4, 13 / 7 + 2, 2 + 13 / 7),
        ("hybridep", 8, 2 + 2, 2 + 2),
        # all four ranks' tokens are here, of which 13 / 7 are read, and sums are written for all
        ("allgather", 4, 13 / 7 + 2, 2 + 4),
    ],
)
def test_transformer_engines_permutation_by_hand(dispatcher: str, ep: int, there: float, back: float) -> None:
    """Passes over a rank's tokens, forward and backward alike, whatever the framework's other small kernels move."""
    of = scenario("h200", "mixtral_8x7b", "megatron_lm", software__dispatcher=dispatcher, software__elementwise_traffic=4.0)
    row = layouts({"num_gpus": 8, "ep": ep})
    shape, kind = MicroBatch.of(row, of.workload), architecture(of.model).kinds[0]
    stream = float(shape.tokens[0]) * 4096
    found = {each.name: each for each in kind.small_kernels(shape, of.software)}
    for name, passes in (("spread", there), ("weighted_sum", back)):
        assert float(found[name].forward[0]) == pytest.approx(passes * stream)
        assert float(found[name].backward[0]) == pytest.approx(passes * stream)
    device = operator_model(of.hw)
    routed = float(device.elementwise(4 * 4 * 8 * shape.tokens)[0]), 40 * of.hw.kernel_latency  # four passes over its logits, in 40 kernels
    seconds = sum(routed) + sum(float(device.elementwise(2 * stream * passes)) for passes in (there, back))
    assert float(counted_seconds(of, kind, shape, device, 0)[0]) == pytest.approx(seconds)


def test_biases_of_experts_by_hand() -> None:
    """GPT-OSS 120B under Megatron Core, 4,096 tokens of four experts each: the bias of what experts give in 32 bits, 28 bytes an element
    forward (written, added, joined, cast) and 40 backward; both halves of the gate cut and joined, 16 and 20. One graph has none of it."""
    rows, hidden, wide = 4096 * 4, 2880, 2880
    plain, eager, graph = (
        scenario("gb200", "gpt_oss_120b", "nemo", workload__seq_len=4096, **changes)
        for changes in ({"software__expert_bias": "fused"}, {}, {"software__cuda_graphs": "full_iteration"})
    )
    row = layouts({"num_gpus": 64, "ep": 64})
    shape, kind = MicroBatch.of(row, eager.workload), architecture(eager.model).kinds[0]
    device = operator_model(eager.hw)
    for way, (bias, limit), kernels in ((0, (28, 16), 4), (1, (40, 20), 8)):
        more = counted_seconds(eager, kind, shape, device, way) - counted_seconds(plain, kind, shape, device, way)
        moved = sum(float(device.elementwise(each)) for each in (bias * rows * hidden, limit * rows * wide))
        assert float(more[0]) == pytest.approx(moved + 2 * kernels * eager.hw.kernel_latency)
        assert float(counted_seconds(graph, kind, shape, device, way)[0]) == pytest.approx(
            float(counted_seconds(plain, kind, shape, device, way)[0])
        )


def test_padding_of_rows_by_hand() -> None:
    """Mixtral 8x7B in fp8 on 8 H100, 4,096 tokens of two experts each: rows are read and written around the products, there and back, 8
    bytes an element each pass. HybridEP fills up as it sends; rows of a capacity, and products of 16 bits, have nothing filled up."""
    copied, fused, hybrid, sized, wide = (
        scenario("h100", "mixtral_8x7b", "nemo", workload__seq_len=4096, **{"workload__precision": "fp8"} | changes)
        for changes in (
            {},
            {"software__expert_padding": "fused"},
            {"software__dispatcher": "hybridep"},
            {"workload__expert_capacity": 1.0},
            {"workload__precision": "bf16"},
        )
    )
    row = layouts({"num_gpus": 8, "ep": 8})
    kind, device = architecture(copied.model).kinds[0], operator_model(copied.hw)
    filled = [MicroBatch.of(row, of.workload) for of in (copied, sized, wide)]
    moved = float(device.elementwise(8 * 4096 * 2 * 4096))
    for way in (0, 1):
        more = counted_seconds(copied, kind, filled[0], device, way) - counted_seconds(fused, kind, filled[0], device, way)
        assert float(more[0]) == pytest.approx(moved)
        for of, shape in ((hybrid, filled[0]), (sized, filled[1]), (wide, filled[2])):
            plain = of.model_copy(update={"software": of.software.model_copy(update={"expert_padding": "fused"})})
            assert float(counted_seconds(of, kind, shape, device, way)[0]) == float(counted_seconds(plain, kind, shape, device, way)[0])


def test_the_command_writes_predictions_beside_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = measured().iloc[[0, 8]].assign(energy_j=1.0)
    other = table.iloc[:1].assign(kind="vit")
    pd.concat([table, other]).to_csv(tmp_path / "layers.csv", index=False)
    assert validate.main([str(tmp_path / "layers.csv"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "grouped_gemm" in said
    assert "1 vit rows: no kind that is predicted here" in said
    found = pd.read_csv(tmp_path / "out/layers.csv")
    at = list(found.columns)
    assert at.index("predicted.time_s") == at.index("time_s") + 1
    assert found["predicted.time_s"].notna().tolist() == [True, True, False]
    assert unpriced_layers(table).eq("").all()
    np.testing.assert_allclose(found["predicted.time_s"][0], float(predict_layers(table)["predicted.time_s"].iloc[0]), rtol=1e-8)
