"""One matrix product divided over GPUs: its blocks, bytes and collectives by hand, and the laws that hold whatever divides it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import program
import pytest
from trials import layouts, priced, scenario, time_terms

from rapid_dse.device import operator_model
from rapid_dse.events.backends import price
from rapid_dse.model.architecture import architecture_of
from rapid_dse.model.parameters import count
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.parallel.enumeration import Space as LayoutSpace
from rapid_dse.parallel.enumeration import enumerate_layouts
from rapid_dse.parallel.kind_rules import of_rows
from rapid_dse.parallel.layouts import KEYS, Layouts, broken_rules
from rapid_dse.parallel.product_grid import product_grid
from rapid_dse.simulate.arrangement import arrangement

M, N, K = 4096, 8192, 2048
SIZES = {"model__m": M, "model__n": N, "model__k": K}


def of(sharding: str, tp: int = 8, gpus: int = 8, **changes: Any) -> tuple[Any, Layouts]:
    """A product of M × N × K on an H100, and its layout."""
    one = scenario(model="gemm", parallel__gemm_sharding=sharding, **(SIZES | changes))
    row = {"num_gpus": gpus, "tp": tp, "global_batch_size": one.model.m, "sequence_parallel": False, "zero": 0, "recompute": "none"}
    return one, of_rows(layouts(row), one)


def test_a_product_alone_has_no_loss_whatever_the_frameworks_is() -> None:
    chunked, whole = (price(*of("row", software__loss=loss)) for loss in ("chunked", "whole"))
    assert np.isfinite(chunked.peak_memory_bytes).all()
    assert (chunked.step_time_s, chunked.peak_memory_bytes) == (whole.step_time_s, whole.peak_memory_bytes)


@pytest.mark.parametrize(
    ("sharding", "tp", "grid"),
    [
        ("row", 8, (1, 1, 8)),
        ("column", 8, (1, 8, 1)),
        ("2d", 8, (2, 4, 1)),
        ("2d", 16, (4, 4, 1)),
        ("2d", 7, (1, 7, 1)),
        ("2.5d", 8, (2, 2, 2)),
        ("2.5d", 32, (4, 4, 2)),
        ("2.5d", 64, (4, 4, 4)),
        ("2.5d", 16, (0, 0, 0)),
        ("2.5d", 1, (1, 1, 1)),
    ],
)
def test_grids(sharding: Any, tp: int, grid: tuple[int, int, int]) -> None:
    found = product_grid(sharding, np.array([tp]))
    assert (found.rows[0], found.columns[0], found.depth[0]) == grid


def test_a_product_on_two_by_four_by_hand() -> None:
    """SUMMA in its gathering form (Xu et al., arXiv 2104.05343, section 3.1): a rank of 2 × 4 multiplies M/2 × K with K × N/4. It gathers A
    from the 3 others of its row and B from the other one of its column; backward it scatters the sums of both gradients."""
    one, layout = of("2d")
    shape = MicroBatch.of(layout, one.workload)
    kind = architecture_of(one).kinds[0]
    product = kind.products(shape)[0]
    assert (product.m[0], product.n[0], product.k[0]) == (M / 2, N / 4, K)
    assert 8 * product.flops[0] == 2 * M * N * K
    assert kind.parameters(shape)[0].products == N * K / 8
    moved = arrangement(one, layout).transfers.layers[0]
    gathered = 3 / 4 * (M / 2 * K) * 2 + 1 / 2 * (K * N / 4) * 2  # bytes that a rank sends in a ring, 16 bits an element
    assert moved.tp_forward.sent[:, 0] == pytest.approx([gathered, 0])
    assert moved.tp_backward.sent[:, 0] == pytest.approx([gathered, 0])
    large, layout = of("2d", model__m=16 * M, model__k=8 * K, model__n=8 * N)
    link, moved = large.hw.network.dimensions[0], arrangement(large, layout).transfers.layers[0]
    seconds = (3 / 4 * (8 * M * 8 * K) + 1 / 2 * (8 * K * 2 * N)) * 2 / (link.bandwidth * link.utilization)
    assert seconds < moved.tp_forward.seconds[0] < 1.2 * seconds


@pytest.mark.parametrize(
    ("sharding", "blocks", "forward", "backward"),
    [
        ("row", (M, N, K / 8), 2 * 7 / 8 * M * N, 0),  # an all-reduce of C: its buffer twice
        ("column", (M, N / 8, K), 0, 2 * 7 / 8 * M * K),  # one of A's gradient
        # A and B are gathered from the other one of a row and of a column, C's halves are summed over the depth, and back
        ("2.5d", (M / 2, N / 2, K / 2), 1 / 2 * (M * K + K * N + M * N) / 4, 1 / 2 * (M * K + K * N + M * N) / 4),
    ],
)
def test_what_each_sharding_sends(sharding: str, blocks: tuple[float, ...], forward: float, backward: float) -> None:
    one, layout = of(sharding)
    product = architecture_of(one).kinds[0].products(MicroBatch.of(layout, one.workload))[0]
    assert (product.m[0], float(np.ravel(product.n)[0]), float(np.ravel(product.k)[0])) == blocks
    moved = arrangement(one, layout).transfers.layers[0]
    # where switches sum in the network, a rank sends its buffer once, and an eighth of the sum
    reduction = 9 / 14 if one.hw.network.dimensions[0].in_network_reduction and sharding != "2.5d" else 1.0
    assert moved.tp_forward.sent[:, 0].sum() == pytest.approx(2 * forward * reduction)
    assert moved.tp_backward.sent[:, 0].sum() == pytest.approx(2 * backward * reduction)


def test_one_gpu_takes_what_the_products_take_alone() -> None:
    one, layout = of("row", tp=1, gpus=1)
    device = operator_model(one.hw)
    alone = [
        float(device.gemm([a], [b], [c], precision="bf16", accumulate=add)[0])
        for a, b, c, add in ((M, N, K, False), (M, K, N, False), (N, K, M, True))
    ]
    found = priced(one, {"num_gpus": 1, "global_batch_size": M, "micro_batch_size": M, "zero": 0})
    assert float(found.step_time_s[0]) == pytest.approx(sum(alone), rel=1e-9)
    assert count(one.model).total == N * K
    for term, seconds in time_terms(found).items():
        assert (float(seconds[0]) > 0) == (term == "compute")
    assert float(found.memory_optimizer_bytes[0]) == 0
    assert float(found.mfu[0]) == pytest.approx(6 * M * N * K / sum(alone) / one.hw.peak_flops("bf16"))
    assert len(layout) == 1


@pytest.mark.parametrize("backend", ["hybrid", "full_astrasim_hierarchical", "full_astrasim_flattened"])
@pytest.mark.parametrize("sharding", ["row", "column", "2d", "2.5d"])
def test_backends_agree(backend: str, sharding: str) -> None:
    row = {
        "num_gpus": 8,
        "tp": 8,
        "global_batch_size": M,
        "micro_batch_size": M,
        "sequence_parallel": False,
        "zero": 0,
        "recompute": "none",
    }
    closed = priced(of(sharding)[0], row)
    found = priced(of(sharding, backend__name=backend, backend__network="ideal")[0], row)
    for name in ("step_time_s", "time_tp_s", "time_compute_s"):
        assert float(getattr(found, name)[0]) == pytest.approx(float(getattr(closed, name)[0]), rel=0.02), name


WRONG = [
    ({"pp": 2, "tp": 4}, {}, "pp must be 1: a model of the kind gemm is divided over tp, dp alone"),
    ({"cp": 2, "tp": 4}, {}, "cp must be 1"),
    ({"tp": 8, "sequence_parallel": True}, {}, "has nothing for sequence_parallel to share"),
    ({"tp": 8, "zero": 1}, {}, "zero must be 0"),
    ({"tp": 8}, {"model__k": 2047}, "gemm_sharding=row: its tp must divide k"),
    ({"tp": 8}, {"model__n": 8191, "parallel__gemm_sharding": "column"}, "gemm_sharding=column: its tp must divide n"),
    ({"tp": 4, "num_gpus": 12}, {}, "dp must divide m"),
    ({"tp": 16, "num_gpus": 16}, {"parallel__gemm_sharding": "2.5d"}, "needs tp that is a number of square grids"),
    ({"tp": 8, "micro_batch_size": 7}, {}, "a product takes all its rows at once"),
]


@pytest.mark.parametrize(("row", "changes", "text"), WRONG, ids=[text for _, _, text in WRONG])
def test_what_a_product_cannot_be_divided_by(row: dict[str, Any], changes: dict[str, Any], text: str) -> None:
    one = scenario(model="gemm", **(SIZES | changes))
    usual = {"num_gpus": 8, "global_batch_size": M, "sequence_parallel": False, "zero": 0, "recompute": "none"}
    rule, texts = broken_rules(of_rows(layouts(usual | row), one), one)
    assert rule[0] >= 0
    assert text in texts[rule[0]]


def test_a_space_of_layouts_is_what_divides_a_product() -> None:
    one = scenario(model="gemm", parallel__gemm_sharding="2d", **SIZES)
    values: dict[str, Any] = dict.fromkeys(KEYS) | {"num_gpus": [16], "global_batch_size": [M], "dp": [0]}
    found, rejected = enumerate_layouts(LayoutSpace(values), one)
    assert sorted(set(zip(found.tp.tolist(), found.dp.tolist(), strict=True))) == [(1, 16), (2, 8), (4, 4), (8, 2), (16, 1)]
    assert (found.micro_batch_size * found.dp == M).all()
    assert (broken_rules(found, one)[0] < 0).all()
    assert any("pp must be 1" in text for text in rejected)


CASES = """model,workload,hw,hw.num_gpus,parallel.tp,parallel.gemm_sharding,model.m,model.n,model.k,workload.seq_len,model.hidden_size
gemm,,h200,8,8,2d,8192,8192,8192,,
gemm,inference,h200,8,8,2d,8192,8192,8192,,
gemm,inference,h200,1,,,8192,8192,8192,,
gemm,,h200,64,8,2d,8192,8192,8192,,
gemm,,h200,8,8,2d,8192,8192,8192,2048,
gemm,,h200,8,8,2d,8192,8192,8192,,4096
llama,,h200,8,8,2d,,,,,
"""


def test_a_table_of_products(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text(CASES)
    program.done(tmp_path, "cases.csv", "--out", "out.parquet", "--keep-going", module="rapid_dse.evaluate")
    import pandas as pd

    out = pd.read_parquet(tmp_path / "out.parquet")
    assert out["status"].tolist() == ["ok"] * 4 + ["invalid"] * 3
    assert 1 / 3.5 < out.loc[1, "step_time_s"] / out.loc[0, "step_time_s"] < 1 / 2  # forward alone against forward and backward
    assert 1 / 8 < out.loc[1, "step_time_s"] / out.loc[2, "step_time_s"] < 1 / 2
    assert out.loc[3, "time_dp_s"] > 0  # the sum of B's gradient over the replicas
    assert (out.loc[:3, "tokens_per_s"] * out.loc[:3, "step_time_s"]).round(3).tolist() == [8192] * 4
    said = out["reason"].tolist()
    assert "workload.seq_len=2048: model.m=8192 says how many rows there are" in said[4]
    assert "model.hidden_size=4096 has no effect with model.kind=gemm" in said[5]
    assert "parallel.gemm_sharding=2d has no effect with model.kind=transformer" in said[6]
