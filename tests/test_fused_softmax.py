"""Megatron's fused softmax takes blocks of four rows of scores; elsewhere PyTorch's kernels run in its place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from trials import layouts, scenario

from rapid_dse.device import AttentionCall, AttentionSizes, operator_model
from rapid_dse.device.contract import score_passes
from rapid_dse.model.architecture import architecture
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.simulate.attention_times import attention_bytes
from rapid_dse.simulate.fused_softmax import by_torch
from rapid_dse.simulate.slots import host_layer_seconds

GPT: dict[str, Any] = {"hw": "a100", "model": "gpt", "software": "megatron_deepspeed", "software__attention": "unfused"}
SIXTEEN_HEADS = {"model__num_attention_heads": 16, "model__num_key_value_heads": 16, "workload__seq_len": 1024}


def where(changes: dict[str, Any], *rows: dict[str, int]) -> list[bool]:
    of, table = scenario(**GPT | changes), layouts(*rows)
    shape = MicroBatch.of(table, of.workload)
    core = architecture(of.model).kinds[0].attention(shape)
    assert core is not None
    return by_torch(of, core, shape).tolist()


def test_a_rank_has_a_multiple_of_four_matrices_of_scores() -> None:
    """Of 16 heads over tp 8 two are a rank's: with one sequence two matrices, with two four."""
    rows = [{"tp": tp, "micro_batch_size": micro} for tp, micro in ((8, 1), (8, 2), (8, 3), (4, 1), (2, 1), (1, 1), (16, 4), (16, 2))]
    assert where(SIXTEEN_HEADS, *rows) == [True, False, True, False, False, False, False, True]


@pytest.mark.parametrize(("seq_len", "by_kernels"), [(16, True), (20, False), (1022, True), (16_384, False), (16_388, True)])
def test_its_rows_are_of_16_to_16384_scores(seq_len: int, by_kernels: bool) -> None:
    assert where(SIXTEEN_HEADS | {"workload__seq_len": seq_len}, {"tp": 1}) == [by_kernels]


@pytest.mark.parametrize("changes", [{"software__attention": "flash"}, {"software__fused_softmax": False}, {"workload__precision": "fp32"}])
def test_where_there_is_no_such_kernel_nothing_runs_in_its_place(changes: dict[str, Any]) -> None:
    assert where(SIXTEEN_HEADS | changes, {"tp": 8}) == [False]


def test_passes_over_the_scores_by_hand() -> None:
    """Bytes of a 16-bit score: forward read 2 and written 4, scaled 8, masked 8 and a byte of mask, softmax 12, read 4 and written 2;
    backward the same but for the softmax's 20."""
    assert 2 * sum(score_passes("forward", "torch_softmax", causal=True, dropout=False)) == 6 + 8 + 9 + 12 + 6
    assert 2 * sum(score_passes("backward", "torch_softmax", causal=True, dropout=False)) == 6 + 8 + 9 + 20 + 6
    assert 2 * sum(score_passes("forward", "torch_softmax", causal=False, dropout=True)) == 6 + 8 + 12 + 6 + 5


def test_a_step_takes_what_they_move_and_what_the_host_launches() -> None:
    """Two rows of one table, of which one has two matrices of 1,024² scores a layer."""
    of, table = scenario(**GPT | SIXTEEN_HEADS), layouts({"tp": 8, "micro_batch_size": 1}, {"tp": 8, "micro_batch_size": 2})
    shape = MicroBatch.of(table, of.workload)
    core = architecture(of.model).kinds[0].attention(shape)
    moved = attention_bytes(of, core, shape, 2)
    beyond = (6 + 8 + 9 + 12 + 6) - 4 + (6 + 8 + 9 + 20 + 6) - 6
    assert moved[0] - moved[1] / 2 == pytest.approx(2 * 1024**2 * beyond)
    host = host_layer_seconds(of, table)
    again = host[1] / (of.software.host.host_layer + of.software.host.host_collective_layer)
    assert host[0] - host[1] == pytest.approx(of.software.host.host_layer * 4 / 12 * again)  # four more than a dense layer's twelve


def test_its_seconds_are_those_of_its_passes() -> None:
    device, sizes = operator_model(scenario(**GPT).hw), AttentionSizes(1, np.array([2.0]), 2, 1024, 1024, 256)
    fused, chain = (device.attention(sizes, AttentionCall(kernel=kernel)) for kernel in ("fused_softmax", "torch_softmax"))
    passes = [float(device.elementwise(2 * 1024**2 * hbm_bytes)) for hbm_bytes in (6, 8, 9, 12, 6, 4)]
    assert float(chain[0] - fused[0]) == pytest.approx(sum(passes[:-1]) - passes[-1])
