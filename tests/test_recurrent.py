"""Stacks of long short-term memory: parameters as PyTorch counts them, one step by hand, wavefronts, launches, and what ranks exchange."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import program
import pytest
from trials import layouts, legal, memory_terms, priced, scenario, time_terms

from rapid_dse.analysis.measured_tables import predict_table
from rapid_dse.config.run import Workload
from rapid_dse.device import operator_model
from rapid_dse.model.architecture import architecture_of, model_flops_per_token
from rapid_dse.model.parameters import count
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.parallel.layouts import broken_rules
from rapid_dse.simulate.arrangement import arrangement
from rapid_dse.simulate.training import prepare

H, B, T, LAYERS = 1024, 64, 256, 2
MEASURED = Path(__file__).parent / "data/h200_vit_lstm.csv"


def lstm(software: str = "pytorch", **changes: Any) -> Any:
    usual = {"model__hidden_size": H, "model__num_hidden_layers": LAYERS, "workload__seq_len": T}
    return scenario(hw="h200", model="lstm", software=software, **(usual | changes))


ONE = {"num_gpus": 1, "global_batch_size": B, "micro_batch_size": B, "zero": 0, "recompute": "none", "sequence_parallel": False}


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({}, 16_793_600),  # torch.nn.LSTM(1024, 1024, 2)
        ({"model__hidden_size": 2048, "model__num_hidden_layers": 4}, 134_283_264),
        ({"model__input_size": 512}, 4 * H * (512 + H) + 8 * H + 4 * H * 2 * H + 8 * H),
        ({"model__vocab_size": 32000}, 16_793_600 + 2 * 32000 * H),
    ],
)
def test_parameters_are_pytorchs(changes: dict[str, Any], parameters: int) -> None:
    assert count(lstm(**changes).model).total == parameters


def test_one_step_by_hand() -> None:
    """Inputs of all steps are one product of B · T rows, the state of a step one of B rows with all four gates."""
    one = lstm()
    shape = MicroBatch.of(layouts(ONE), one.workload)
    kind = architecture_of(one).kinds[0]
    inputs, states = kind.products(shape)
    assert (inputs.m[0], inputs.n[0], inputs.k[0]) == (B * T, 4 * H, H)
    assert (states.m[0], states.n[0], states.k[0]) == (B, 4 * H, H)
    assert inputs.flops[0] == 2 * B * T * 4 * H * H
    assert states.flops[0] == pytest.approx(2 * B * T * 4 * H * H)  # T steps of each layer, whatever runs side by side
    assert model_flops_per_token(one.model, Workload(seq_len=T)) == pytest.approx(6 * LAYERS * 8 * H * H)
    assert states.in_turn == (T + LAYERS - 1) / LAYERS  # 257 rounds for both layers
    assert states.in_turn * states.batch == T
    assert kind.parameters(shape)[0].dense == 4 * H * 2 * H + 8 * H


def test_a_step_takes_its_products_in_turn_and_a_weight_gradient_at_once() -> None:
    one = lstm(model__num_hidden_layers=1, software__host_library_launch=0, software__host_layer=0)
    device, share = operator_model(one.hw), one.hw.efficiency.sustained

    def gemm(m: float, n: float, k: float, accumulate: bool = False) -> float:
        return float(device.gemm([m], [n], [k], precision="bf16", accumulate=accumulate)[0]) / share

    products = gemm(B * T, 4 * H, H) + gemm(B * T, H, 4 * H) + 2 * gemm(4 * H, H, B * T)
    steps = T * (gemm(B, 4 * H, H) + gemm(B, H, 4 * H))
    moved = 2 * B * T * H * ((2 * 4 + 1 + 2 + 4) + (4 + 2 + 3 + 4 + 1))
    cells = 2 * T * one.hw.kernel_latency + moved / 2 / one.hw.memory.bandwidth
    found = float(priced(one, ONE).time_compute_s[0])
    assert products + steps < found < 1.1 * (products + steps + cells)


def test_weights_come_from_cache_for_each_step() -> None:
    """The first step's come from HBM with the other operands; the others read 4 · H · H weights from L2 at 56 pJ a byte, forward and for
    the gradient of the state before. The weight gradient is one product."""
    one = lstm(model__num_hidden_layers=1)
    (layer,) = prepare(one, layouts(ONE)).alone.layers
    cached = (T - 1) * 4 * H * H * 2 * one.hw.energy.l2
    arithmetic = 2 * 2 * B * T * 4 * H * H * one.hw.energy.flop["bf16"]
    assert one.hw.energy.l2 == pytest.approx(56e-12)
    assert layer.product_joules[0] == pytest.approx(arithmetic + cached)
    assert layer.backward_joules[0] == pytest.approx(2 * arithmetic + cached)


def test_weights_that_l2_does_not_hold_come_from_hbm_for_each_round() -> None:
    """Four layers of 2,048 have 134 MB of recurrent weights under way at once, of which an H200's L2 holds 50 MiB."""
    one = lstm(model__hidden_size=2048, model__num_hidden_layers=4)
    (layer,) = prepare(one, layouts(ONE)).alone.layers
    rounds, cells = (T + 3) / 4, 4 * T / (T + 3)
    under_way = cells * 4 * 2048 * 2048 * 2
    missing = 1 - 50 * 2**20 / under_way
    assert missing == pytest.approx(0.6, abs=0.01)
    cached = (rounds - 1) * under_way * (one.hw.energy.l2 + missing * one.hw.energy.hbm)
    arithmetic = 2 * 2 * B * T * 4 * 2048 * 2048 * one.hw.energy.flop["bf16"]
    assert layer.product_joules[0] == pytest.approx(arithmetic + cached)


def test_launches_set_the_pace_of_small_steps() -> None:
    """15 launches a step of a layer, 5 forward and 10 backward, of 3.4 us each: 26 ms for 256 steps of two layers."""
    one = lstm()
    host = T * LAYERS * 15 * one.software.host.host_library_launch + LAYERS * one.software.host.host_layer / 12
    found = priced(one, ONE)
    assert host < float(found.step_time_s[0]) - float(found.time_optimizer_s[0]) < 1.1 * host
    wide = priced(one, ONE | {"global_batch_size": 4 * B, "micro_batch_size": 4 * B})
    assert float(wide.step_time_s[0]) < 1.15 * float(found.step_time_s[0])
    graphs = lstm(software__cuda_graphs="full_iteration")
    assert float(priced(graphs, ONE).step_time_s[0]) < float(found.step_time_s[0]) / 2


def test_ranks_gather_the_state_after_each_step() -> None:
    one, row = lstm(), ONE | {"num_gpus": 4, "tp": 4}
    table = legal(one, layouts(row))
    moved = arrangement(one, table).transfers.layers[0]
    gathered = 3 / 4 * B * H * 2 * T  # bytes that a rank sends for a layer's steps
    assert moved.tp_forward.sent[:, 0].sum() == pytest.approx(gathered)
    assert moved.tp_backward.sent[:, 0].sum() == pytest.approx(2 * gathered)  # the states' gradient, and the input's, which is as wide
    assert moved.tp_forward.seconds[0] > T / 2 * one.hw.network.dimensions[0].latency  # a round each
    product = architecture_of(one).kinds[0].products(MicroBatch.of(table, one.workload))[1]
    assert product.n[0] == H


@pytest.mark.parametrize("backend", ["hybrid", "full_astrasim_hierarchical", "full_astrasim_flattened"])
@pytest.mark.parametrize("row", [{"tp": 8}, {"tp": 1, "zero": 1}], ids=str)
@pytest.mark.parametrize("vocabulary", [0, 32000])
def test_backends_agree(backend: str, row: dict[str, Any], vocabulary: int) -> None:
    row = ONE | {"num_gpus": 8, "micro_batch_size": 8} | row
    closed = priced(lstm(model__vocab_size=vocabulary), row)
    found = priced(lstm(model__vocab_size=vocabulary, backend__name=backend, backend__network="ideal"), row)
    assert float(found.step_time_s[0]) == pytest.approx(float(closed.step_time_s[0]), rel=0.02)


def test_results_hold_what_every_result_holds() -> None:
    rows = [
        ONE | {"num_gpus": 8, "micro_batch_size": 4, "tp": tp, "zero": zero, "recompute": mode}
        for tp in (1, 4)
        for zero in (0, 2)
        for mode in ("none", "full")
    ]
    found = priced(lstm(model__vocab_size=1000), *rows)
    assert all((column >= 0).all() and np.isfinite(column).all() for column in (time_terms(found) | memory_terms(found)).values())
    assert np.sum(list(time_terms(found).values()), axis=0) == pytest.approx(found.step_time_s)


WRONG = [
    ({"tp": 3, "num_gpus": 3}, "tp must divide hidden_size"),
    ({"pp": 2, "num_gpus": 2}, "pp must be 1: a model of the kind lstm is divided over tp, dp alone"),
    ({"cp": 2, "num_gpus": 2}, "cp must be 1"),
    ({"tp": 2, "num_gpus": 2, "sequence_parallel": True}, "has nothing for sequence_parallel to share"),
]


@pytest.mark.parametrize(("row", "text"), WRONG, ids=[text for _, text in WRONG])
def test_what_divides_no_recurrence(row: dict[str, Any], text: str) -> None:
    one = lstm()
    rule, texts = broken_rules(layouts(ONE | row), one)
    assert rule[0] >= 0
    assert text in texts[rule[0]]


NAMES = "model,workload,software,hw,hw.num_gpus,parallel.tp,workload.seq_len,workload.batch_size,model.hidden_size"
CASES = """,model.num_attention_heads
lstm,inference,vllm,h200,1,,256,64,1024,
lstm,inference,vllm,h200,1,,512,64,1024,
lstm,inference,vllm,h200,4,4,256,64,2048,
lstm,inference,vllm,h200,4,3,256,64,1024,
lstm,inference,vllm,h200,1,,256,64,1024,8
"""


def test_a_table_of_sequences_that_run_forward(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text(NAMES + CASES)
    program.done(tmp_path, "cases.csv", "--out", "out.parquet", "--keep-going", module="rapid_dse.evaluate")
    out = pd.read_parquet(tmp_path / "out.parquet")
    assert out["status"].tolist() == ["ok"] * 3 + ["invalid"] * 2
    assert out.loc[1, "step_time_s"] == pytest.approx(2 * out.loc[0, "step_time_s"], rel=0.05)
    assert out.loc[0, "memory_kv_cache_bytes"] == 2 * 2 * 2 * 64 * 1024  # two layers' state and cell, 16 bits
    assert (out.loc[:2, "tokens_per_s"] * out.loc[:2, "step_time_s"]).round(3).tolist() == [64 * 256, 64 * 512, 64 * 256]
    assert "num_attention_heads=8 has no effect with model.kind=lstm" in out.loc[4, "reason"]


def test_measured_steps() -> None:
    """Steps of ViT base and of torch.nn.LSTM that were timed for this project on one H200 (PyTorch 2.11, cuDNN 9.19, November 2026); those
    of LSTMs repeat within 20 %."""
    table = pd.read_csv(MEASURED)
    found = predict_table(table, {}, "vit_lstm").table
    error = (found["predicted.time_s"] / found["time_s"] - 1).abs()
    energy = (found["predicted.energy_j"] / found["energy_j"] - 1).abs()
    for kind, most, mean, joules in (("vit", 0.08, 0.04, 0.05), ("lstm", 0.20, 0.12, 0.08)):
        of_kind = found["kind"].eq(kind)
        assert error[of_kind].notna().all()
        assert error[of_kind].max() < most
        assert error[of_kind].mean() < mean
        assert energy[of_kind].mean() < joules
    phases = [(found[f"predicted.{way}_time_s"] / found[f"{way}_time_s"] - 1).abs()[found["kind"].eq("vit")] for way in ("fwd", "bwd")]
    assert max(phase.max() for phase in phases) < 0.08
