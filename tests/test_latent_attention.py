"""Latent attention trained, and the published models that have it or experts: parameters, FLOP and bytes by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from trials import layouts, priced, scenario

from rapid_dse.config.run import RECOMPUTE, Workload
from rapid_dse.device import operator_model
from rapid_dse.model.architecture import LayerKind, architecture
from rapid_dse.model.layers.latent_attention import LatentAttention
from rapid_dse.model.parameters import count
from rapid_dse.model.shapes import ONE, MicroBatch
from rapid_dse.parallel.enumeration import Space, enumerate_layouts
from rapid_dse.simulate.attention_times import attention_flops
from rapid_dse.simulate.held_weights import layer_weights
from rapid_dse.simulate.operator_times import counted_seconds
from rapid_dse.simulate.training import prepare


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        # as their reports have them, in 1e9; what their tables count as active leaves out the look-up, or look-up and head
        ("deepseek_v3", 671.0, 37.0),
        ("deepseek_v2", 236.0, 21.0),
        ("moonlight_16b_a3b", 15.96, 2.24),
        ("gpt_oss_120b", 116.83, 5.13),
        ("gpt_oss_20b", 20.91, 3.61),
        ("qwen3_235b_a22b", 235.09, 22.0),
        ("qwen3_30b_a3b", 30.53, 3.3),
        ("mixtral_8x22b", 141.0, 39.0),
        ("minimax_m2_5", 229.0, 10.0),
    ],
)
def test_parameters_are_the_published_ones(name: str, total: float, active: float) -> None:
    found = count(scenario(model=name).model)
    assert found.total == pytest.approx(total * 1e9, rel=0.005)
    counted = (found.active, found.active - found.embedding, found.active - found.embedding - found.head)
    assert min(abs(each / (active * 1e9) - 1) for each in counted) < 0.02


def test_models_whose_reports_count_otherwise() -> None:
    """GLM-4.5-Air's 106 B leave out embedding and head (its report, table 1). Kimi K2's weights are 1.0264 T by the shapes of its
    checkpoint, of which the report writes 1.04 T; 32.6 B of them are active with one table. Scout's 109 B have a vision encoder of
    0.9 B."""
    glm, kimi, scout = (count(scenario(model=name).model) for name in ("glm4_5_air", "kimi_k2", "llama4_scout"))
    assert glm.total - glm.embedding - glm.head == pytest.approx(106e9, rel=0.005)
    assert glm.active - glm.embedding - glm.head == pytest.approx(12e9, rel=0.02)
    # config.json by hand: 61 layers of latent attention, 60 of 384 experts and a shared one, a dense one; the weights that are published
    # have 1,026,470,731,056 numbers with their scales; the report's 1.04 T is another count
    attention = 7168 * 1536 + 1536 + 1536 * 64 * 192 + 7168 * 576 + 512 + 512 * 64 * 256 + 64 * 128 * 7168
    layers = 61 * (attention + 2 * 7168) + 3 * 7168 * 18432 + 60 * (385 * 3 * 7168 * 2048 + 384 * 7168)
    assert kimi.total == layers + 2 * 163840 * 7168 + 7168
    assert kimi.total == pytest.approx(1_026_470_731_056, rel=1e-4)
    assert kimi.active == pytest.approx(32.6e9, rel=0.01)
    assert scout.total == pytest.approx(109e9 - 0.9e9, rel=0.005)
    assert scout.active == pytest.approx(17e9, rel=0.02)


def test_layers_alternate_where_the_model_says_so() -> None:
    oss = architecture(scenario(model="gpt_oss_120b").model)
    assert [core.window for kind in oss.kinds if (core := kind.attention(ONE))] == [128, None]
    assert oss.order == (0, 1) * 18
    scout = architecture(scenario(model="llama4_scout").model)
    assert scout.order == (0, 0, 0, 1) * 12
    deepseek = architecture(scenario(model="deepseek_v3").model)
    assert deepseek.counts == (3, 58)


def test_a_layer_by_hand() -> None:
    """DeepSeek-V3, 4,096 tokens on one GPU: 187 million weights of attention, each of which a token passes once; scores of 128 heads, 192
    wide, half of them masked, and what comes of them with values of 128."""
    of = scenario(model="deepseek_v3", workload__seq_len=4096)
    kind = architecture(of.model).kinds[0]
    shape = MicroBatch.of(layouts({"num_gpus": 1}), Workload(seq_len=4096))
    weights = 7168 * 1536 + 1536 * 128 * 192 + 7168 * (512 + 64) + 512 * 128 * (128 + 128) + 128 * 128 * 7168
    assert weights == 187_105_280
    products = sum(float(product.flops[0]) for product in kind.parts[0].products(shape))
    assert products == 2 * 4096 * weights
    assert float(attention_flops(kind.attention(shape), shape)[0]) == 4096 * 2048 * 128 * 2 * (192 + 128)
    assert float(np.ravel(layer_weights(of, layouts({"num_gpus": 1}))[0].dense)[0]) == weights + 3 * 7168 * 18432 + 2 * 7168 + 1536 + 512


def test_complex_numbers_turn_the_rotary_part_alone() -> None:
    """DeepSeek-V3, 4,096 tokens: 64 of the numbers of each of 128 heads' queries, and of the key that they share, 20 bytes each."""
    of = scenario(model="deepseek_v3", software="torchtitan", workload__seq_len=4096)
    shape, device = MicroBatch.of(layouts({"num_gpus": 1}), of.workload), operator_model(of.hw)
    turned = counted_seconds(of, LayerKind("", architecture(of.model).kinds[0].parts[:1]), shape, device, 0)
    expected = float(device.elementwise(20 * 4096 * 64 * (128 + 1))) + 6 * of.hw.kernel_latency
    assert turned == pytest.approx(expected)


def test_tensor_parallel_ranks_share_heads_and_not_latents() -> None:
    part = LatentAttention(scenario(model="deepseek_v3").model)
    one, four = (MicroBatch.of(layouts({"num_gpus": 4, "tp": tp, "sequence_parallel": True}), Workload(seq_len=4096)) for tp in (1, 4))
    down = 7168 * 1536 + 7168 * 576
    whole, shared = (float(np.ravel(part.parameters(shape).products)[0]) for shape in (one, four))
    assert shared - down == (whole - down) / 4
    assert (part.token_state(one) == part.token_state(four)).all()
    assert float(part.ring(one)[0]) == 4096 * 128 * (192 + 128)


def test_what_autograd_keeps_by_hand() -> None:
    """A token of attention, nothing recomputed: two streams (input of the norm, of the products), both latents before and after their
    norms, queries and keys (192 a head), values and the kernel's output (128), a log-sum-exp; dropout off."""
    of = scenario(model="deepseek_v3", software="nemo")
    shape = MicroBatch.of(layouts({"num_gpus": 1}), Workload(seq_len=1))
    kept = sum(
        float(each.elements[0]) * {"fp32": 4}.get(each.width, 2)
        for each in architecture(of.model).kinds[0].parts[0].tensors(shape, of.software)
        if each.kept and not each.core
    )
    assert kept == 2 * (2 * 7168 + 2 * 1536 + 576 + 512 + 128 * (192 + 192 + 128 + 128)) + 4 * 128


def test_kernels_that_pad_values_take_longer() -> None:
    row = layouts({"num_gpus": 8})
    base = {"model": "deepseek_v3", "workload__seq_len": 8192}
    found = {kernel: prepare(scenario(**base, software__flash_kernel=kernel), row).alone.layers[0] for kernel in ("flash2", "cudnn")}
    times = {kernel: float(layer.attention_forward[0]) for kernel, layer in found.items()}
    assert times["flash2"] > 1.2 * times["cudnn"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__v_head_dim": None}, "v_head_dim is missing: latent attention"),
        ({"model__qk_rope_head_dim": 0}, "qk_rope_head_dim is missing: latent attention"),
        ({"model__layer_types": ["full_attention"]}, "all layers have latent attention"),
    ],
)
def test_fields_that_are_missing(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scenario(model="deepseek_v3", **changes)


@pytest.mark.parametrize(
    ("types", "window", "message"),
    [
        ("linear_attention,full_attention", None, "linear attention .gated delta networks., which is not modelled"),
        ("mamba", None, "state-space layers, which is not modelled"),
        ("sliding_attention,full_attention", None, "needs sliding_window"),
        ("full_attention", 128, "sliding_window=128 has no effect with layer_types=full_attention"),
        ("ring", None, "layer_types"),
    ],
)
def test_kinds_that_are_not_modelled(types: str, window: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scenario(model="llama", model__layer_types=types, model__sliding_window=window)


def test_a_window_on_every_second_layer_saves_half_of_what_one_on_all_saves() -> None:
    base = {"model": "gpt_oss_20b", "workload__seq_len": 32768, "software__host_layer": 0.0}
    row = {"num_gpus": 8, "ep": 8, "global_batch_size": 8}
    alternating = float(priced(scenario(**base), row).time_compute_s[0])
    none, every = (
        float(priced(scenario(**base, model__layer_types=None, model__sliding_window=window), row).time_compute_s[0])
        for window in (None, 128)
    )
    assert alternating == pytest.approx((none + every) / 2, rel=1e-9)


def test_deepseek_v3_as_it_was_trained() -> None:
    """14.8 T tokens in 2.664 million hours of H800 (arXiv 2412.19437, table 1) are 1,543 tokens/s a GPU: 2,048 of them, pp 16 by DualPipe,
    whose bubble DualPipeV has, ep 64, 15,360 sequences of 4,096 tokens, fp8. The layer that predicts a second token, about 4 % of the
    work, is not priced."""
    row = {"num_gpus": 2048, "pp": 16, "ep": 64, "schedule": "dualpipe_v", "global_batch_size": 15360}
    base = {"workload__seq_len": 4096, "workload__precision": "fp8"}
    nccl, deepep = (
        float(priced(scenario("h800", "deepseek_v3", "nemo", **base, software__dispatcher=name), row).tokens_per_s_per_gpu[0])
        for name in ("alltoall", "deepep")
    )
    assert nccl == pytest.approx(1543, rel=0.10)
    assert nccl < deepep < 1.35 * 1543


def test_modules_to_recompute_leave_a_whole_space_its_layouts() -> None:
    """Enumeration screens degrees before it knows of recomputation: selective layouts stay, the others are counted."""
    of = scenario(model="llama3_1_8b", parallel__recompute="selective", parallel__recompute_modules="layernorm")
    open_: dict[str, Any] = {"num_gpus": [8], "global_batch_size": [8], "tp": [1], "cp": [1], "pp": [1], "ep": [1], "vpp": [1], "zero": [1]}
    found, counts = enumerate_layouts(Space(open_ | {"recompute": None}), of)
    assert set(found.recompute.tolist()) == {RECOMPUTE.index("selective")}
    assert counts["parallel.recompute_modules goes with recompute=selective alone"] > 0


@pytest.mark.parametrize(
    ("name", "missing"),
    [("qwen3_next_80b_a3b", "linear attention"), ("glm5", "sparse attention"), ("nemotron_3_nano", "state-space layers")],
)
def test_families_that_are_not_modelled_are_refused_by_name(name: str, missing: str) -> None:
    with pytest.raises(ValueError, match=rf"model={name}: needs {missing}.*which is not modelled"):
        scenario(model=name)
