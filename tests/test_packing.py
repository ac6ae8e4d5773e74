"""Packed sequences: attention goes over each document by itself, everything else over the whole sequence."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from layout_spread import BLOCKING
from trials import layouts, legal, priced, scenario

from rapid_dse.config.run import Workload
from rapid_dse.events.backends import price
from rapid_dse.model.architecture import matrix_parameters, model_flops_per_token
from rapid_dse.parallel.layouts import broken_rules
from rapid_dse.simulate.training import prepare

SEQ = 8192
ROUNDING = 1 + 1e-12
ROW = {"num_gpus": 8, "tp": 2, "global_batch_size": 8, "recompute": "none"}


def test_scores_are_counted_document_by_document() -> None:
    """Of lengths that add up to a sequence every query sees the keys of its own document up to its own: counted one by one."""
    lengths, model = (4096, 2048, 1024, 1024), scenario().model
    packing = sum(each**2 for each in lengths) / SEQ**2
    flops = model_flops_per_token(model, Workload(packing=packing)) - 6 * matrix_parameters(model)
    keys = sum(query + 1 for each in lengths for query in range(each)) / SEQ
    # a score takes two products of 128 numbers forward, twice that backward, in each of 32 heads of 32 layers
    assert flops == pytest.approx(32 * 32 * 12 * 128 * keys, rel=1e-3)


@pytest.mark.parametrize("cp", [1, 4])
@pytest.mark.parametrize("software", ["megatron_lm", "torchtitan"])
def test_equal_documents_take_what_shorter_sequences_do(software: str, cp: int) -> None:
    """Of four documents a sequence attention's kernels are those of four times as many sequences of a quarter's length."""
    row = ROW | {"cp": cp, "num_gpus": 2 * cp, "global_batch_size": 1}
    packed, short = scenario(software=software, workload__packing=0.25), scenario(software=software, workload__seq_len=SEQ // 4)
    one, four = prepare(packed, legal(packed, layouts(row))), prepare(short, layouts(row | {"micro_batch_size": 4, "global_batch_size": 4}))
    (mine,), (others,) = one.alone.layers, four.alone.layers
    for name in ("attention_forward", "attention_backward", "flops", "backward_joules"):
        assert getattr(mine, name)[0] == pytest.approx(getattr(others, name)[0], rel=1e-12), name
    assert np.allclose(mine.matmul_seconds, others.matmul_seconds)
    # as many bytes go round the ring, whatever documents they are of
    found, whole = priced(packed, row), priced(scenario(software=software), row)
    assert found.time_tp_s[0] == whole.time_tp_s[0]
    assert found.time_compute_s[0] < whole.time_compute_s[0]
    assert found.step_time_s[0] <= whole.step_time_s[0] * ROUNDING  # as long where the host sets the pace
    assert found.peak_memory_bytes[0] == whole.peak_memory_bytes[0]


def test_mfu_counts_what_documents_need() -> None:
    for packing in (1.0, 0.3):
        of = scenario(workload__packing=packing)
        found = priced(of, ROW)
        needed = 8 * SEQ * model_flops_per_token(of.model, of.workload)
        assert found.mfu[0] == pytest.approx(needed / found.step_time_s[0] / (8 * of.hw.peak_flops("bf16")))


def test_unfused_scores_are_masked_not_spared() -> None:
    full, packed = (priced(scenario(software__attention="unfused", workload__packing=each), ROW) for each in (1.0, 0.25))
    assert packed.step_time_s[0] == full.step_time_s[0]
    assert packed.mfu[0] < full.mfu[0]


def test_a_window_wider_than_documents_does_nothing() -> None:
    wide, none = (scenario(workload__packing=0.25, model__sliding_window=each) for each in (SEQ // 4, None))
    assert priced(wide, ROW).step_time_s[0] == pytest.approx(priced(none, ROW).step_time_s[0], rel=1e-12)


def test_shorter_documents_are_never_slower() -> None:
    rows = [ROW | {"recompute": recompute, "cp": cp} for recompute in ("none", "selective", "full") for cp in (1, 2, 4)]
    found = [priced(scenario(workload__packing=each), *rows) for each in (1.0, 0.5, 0.25, 0.1)]
    for longer, shorter in pairwise(found):
        assert (shorter.step_time_s <= longer.step_time_s * ROUNDING).all()  # as long where the host sets the pace
        assert (shorter.time_compute_s < longer.time_compute_s).all()
        assert (shorter.energy_j < longer.energy_j).all()


@pytest.mark.parametrize("backend", ["hybrid", "full_astrasim_flattened"])
def test_backends_agree_on_packed_sequences(backend: str) -> None:
    of = BLOCKING | {"workload__packing": 0.2, "model__num_hidden_layers": 4}
    table = layouts({"num_gpus": 8, "cp": 4, "pp": 2, "global_batch_size": 4, "recompute": "full"})
    closed = price(scenario(**of), legal(scenario(**of), table))
    run = price(scenario(backend__name=backend, backend__network="ideal", **of), table)
    assert run.step_time_s[0] == pytest.approx(closed.step_time_s[0], rel=0.02)


@pytest.mark.parametrize(("packing", "message"), [(0, "expected at least 1e-06"), (1.5, "expected at most 1"), ("half", "not a valid")])
def test_what_is_no_share_is_refused(packing: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"workload.packing={packing!r}: .*{message}"):
        scenario(workload__packing=packing)


def test_documents_of_less_than_a_token_are_no_layout() -> None:
    rows = layouts(ROW, ROW | {"cp": 4})
    rule, texts = broken_rules(rows, scenario(workload__packing=4 / SEQ))
    assert rule[0] < 0
    assert texts[rule[1]] == "packing must leave documents of 2 · cp tokens or more"
