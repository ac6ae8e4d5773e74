"""What holds for every operator model: one suite, three models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rapid_dse.config import Hardware
from rapid_dse.device import OPERATOR_MODELS, AttentionCall, AttentionSizes, GroupedCall, OperatorModel, operator_model
from rapid_dse.device.contract import AttentionShape, score_passes

ROOT = Path(__file__).parent.parent
CHIPS = sorted(path.stem for path in (ROOT / "conf/hw").glob("*.yaml"))
MODELS = sorted(OPERATOR_MODELS)
KERNELS = ("flash1", "flash2", "flash3", "cudnn", "triton", "fused_softmax", "unfused")
ROUNDING = 1 + 1e-9


def chip(name: str, **changes: Any) -> Hardware:
    tree = yaml.safe_load((ROOT / f"conf/hw/{name}.yaml").read_text())
    hw = Hardware.model_validate(tree)
    memory = changes.pop("memory_bandwidth", None)
    if memory:
        changes["memory"] = hw.memory.model_copy(update={"bandwidth": memory})
    return hw.model_copy(update=changes)


def noisy_table(path: Path) -> str:
    """A grid of "measured" products: the tile model's times with 20 % of noise, some of them missing."""
    random = np.random.default_rng(0)
    sides = [np.array([1, 16, 128, 1024, 8192, 65536]), np.array([64, 512, 4096, 16384]), np.array([64, 512, 4096, 16384])]
    m, n, k = (axis.ravel() for axis in np.meshgrid(*sides))
    seconds = operator_model(chip("h100")).gemm(m, n, k) * random.uniform(0.9, 1.1, m.size)
    table = pd.DataFrame({"m": m, "n": n, "k": k, "measured.time_s": seconds}).sample(frac=0.95, random_state=1)
    both = pd.concat([table.assign(precision="bf16"), table.assign(precision="fp8")])
    both.to_csv(path, index=False)
    return str(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, OperatorModel]:
    table = noisy_table(tmp_path_factory.mktemp("table") / "kernels.csv")
    return {name: operator_model(chip("h100", operator_model=name, measured_table=table)) for name in MODELS}


side = st.integers(1, 70_000)


@pytest.mark.parametrize("name", MODELS)
class TestEveryModel:
    @settings(max_examples=50, deadline=None)
    @given(
        shape=st.tuples(side, side, side, st.integers(1, 300)),
        grown=st.tuples(side, side, side, st.integers(1, 300)),
        ragged=st.sampled_from(["m", "k"]),
        even=st.booleans(),
    )
    def test_more_groups_or_larger_ones_never_take_less_time(
        self, models: dict[str, OperatorModel], name: str, shape: tuple[int, ...], grown: tuple[int, ...], ragged: Any, even: bool
    ) -> None:
        larger = tuple(max(a, b) for a, b in zip(shape, grown, strict=True))
        small, large = (float(models[name].grouped(*each, GroupedCall(ragged, even))) for each in (shape, larger))
        assert small <= large * ROUNDING
        assert small >= 2.0 * np.prod(np.array(shape, float)) / models[name].hw.peak_flops("bf16") / ROUNDING

    @settings(max_examples=100, deadline=None)
    @given(shape=st.tuples(side, side, side), grown=st.tuples(side, side, side), accumulate=st.booleans())
    def test_more_work_never_takes_less_time(
        self, models: dict[str, OperatorModel], name: str, shape: tuple[int, ...], grown: tuple[int, ...], accumulate: bool
    ) -> None:
        larger = np.maximum(shape, grown)
        small, large = (models[name].gemm(*sides, accumulate=accumulate) for sides in (shape, larger))
        assert small <= large * ROUNDING

    @settings(max_examples=100, deadline=None)
    @given(shape=st.tuples(side, side, side), precision=st.sampled_from(["bf16", "fp8"]))
    def test_never_above_the_peak(self, models: dict[str, OperatorModel], name: str, shape: tuple[int, ...], precision: str) -> None:
        model = models[name]
        assert 2.0 * np.prod(shape, dtype=float) / model.gemm(*shape, precision=precision) <= model.hw.peak_flops(precision) * ROUNDING

    @settings(max_examples=40, deadline=None)
    @given(
        size=st.tuples(st.integers(1, 64), st.integers(0, 4), st.integers(1, 20_000)),
        more=st.tuples(st.integers(1, 64), st.integers(0, 4), st.integers(1, 20_000)),
        kernel=st.sampled_from(KERNELS),
        direction=st.sampled_from(["forward", "backward"]),
        causal=st.booleans(),
    )
    def test_more_attention_never_takes_less_time(
        self, models: dict[str, OperatorModel], name: str, size: Any, more: Any, kernel: Any, direction: Any, causal: bool
    ) -> None:
        def seconds(batch: int, log_heads: int, seq: int) -> Any:
            heads = 8 * 2**log_heads
            return models[name].attention(
                AttentionSizes(batch, heads, 8, seq, seq, 128, causal=causal), AttentionCall(kernel=kernel, direction=direction)
            )

        assert seconds(*size) <= seconds(*np.maximum(size, more)) * ROUNDING

    @pytest.mark.parametrize("kernel", KERNELS)
    @pytest.mark.parametrize("direction", ["forward", "backward"])
    def test_attention_is_never_above_the_peak(self, models: dict[str, OperatorModel], name: str, kernel: Any, direction: Any) -> None:
        seq = np.array([1, 100, 128, 1000, 4096, 65536, 262144])
        for causal in (False, True):
            seconds = models[name].attention(
                AttentionSizes(4, 32, 8, seq, seq, 128, causal=causal), AttentionCall(kernel=kernel, direction=direction)
            )
            keys = (seq + 1) / 2 if causal else seq
            flops = (1 if direction == "forward" else 2) * 4.0 * 4 * 32 * seq * keys * 128
            assert np.all(flops / seconds <= models[name].hw.peak_flops("bf16"))

    def test_a_causal_mask_never_costs_time(self, models: dict[str, OperatorModel], name: str) -> None:
        seq = np.array([512, 2048, 8192, 131072])
        for direction in ("forward", "backward"):
            masked, full = (
                models[name].attention(AttentionSizes(2, 32, 8, seq, seq, 128, causal=causal), AttentionCall(direction=direction))  # type: ignore[arg-type]
                for causal in (True, False)
            )
            assert np.all(masked <= full * 1.02)
            assert masked[-1] < 0.6 * full[-1]

    def test_a_window_bounds_the_work(self, models: dict[str, OperatorModel], name: str) -> None:
        windowed = models[name].attention(AttentionSizes(1, 32, 8, 65536, 65536, 128, window=4096))
        whole = models[name].attention(AttentionSizes(1, 32, 8, 65536, 65536, 128))
        assert windowed < 0.2 * whole
        assert models[name].attention(AttentionSizes(1, 32, 8, 65536, 65536, 128, window=65536)) == pytest.approx(float(whole))

    def test_decoding_reads_the_keys(self, models: dict[str, OperatorModel], name: str) -> None:
        hw = models[name].hw
        seconds = models[name].attention(AttentionSizes(64, 64, 8, 1, 16384, 128), AttentionCall(kernel="flash3"))
        ideal = 64 * 8 * 16384 * 128 * 2 * 2 / (hw.memory.bandwidth * hw.efficiency.memory)
        assert ideal <= seconds <= 1.2 * ideal

    def test_columns_broadcast_and_scalars_stay_scalar(self, models: dict[str, OperatorModel], name: str) -> None:
        model = models[name]
        m, n = np.array([[1024], [2048]]), np.array([512, 1024, 4096])
        table = model.gemm(m, n, 4096, batch=2)
        assert table.shape == (2, 3)
        assert table.dtype == np.float64
        assert table[1, 2] == model.gemm(2048, 4096, 4096, batch=2)
        assert model.gemm(1024, 1024, 1024).shape == ()
        assert model.attention(AttentionSizes(1, [8, 16], 8, [[1024], [2048], [4096]], 4096, 128)).shape == (3, 2)
        assert model.elementwise([1e6, 1e9]).shape == (2,)
        assert model.gemm(np.zeros(0) + 1, 1, 1).shape == (0,)

    def test_streaming(self, models: dict[str, OperatorModel], name: str) -> None:
        model, size = models[name], np.array([0, 1e3, 1e6, 1e8, 1e9, 1e11])
        seconds = model.elementwise(size)
        assert np.all(np.diff(seconds) >= 0)
        # PyTorch's sum of 4,096 numbers takes 1.13 us on an H200, the smallest product 2.75
        assert seconds[0] == pytest.approx(model.hw.kernel_latency * (1.0 if name == "roofline" else 1.13 / 2.75), rel=0.03)
        assert np.all(size[3:] / seconds[3:] < model.hw.memory.bandwidth * 1.4)  # some of 0.1 GB is still in L2
        assert seconds[-1] == pytest.approx(1e11 / (model.hw.memory.bandwidth * 0.8), rel=0.1)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda model: model.gemm(0, 1, 1), r"m=0; allowed: at least 1"),
            (lambda model: model.gemm(1, 1, np.nan), r"k=nan; allowed: at least 1"),
            (lambda model: model.attention(AttentionSizes(1, 8, 16, 1, 1, 64)), r"kv_heads=16 is above heads"),
            (
                lambda model: model.attention(AttentionSizes(1, 8, 8, 1, 1, 64), AttentionCall(direction="sideways")),
                r"direction='sideways'; allowed: forward",
            ),
            (
                lambda model: model.attention(AttentionSizes(1, 8, 8, 1, 1, 64), AttentionCall(kernel="flash9")),
                r"kernel='flash9'; allowed: flash1, flash2",
            ),
        ],
    )
    def test_bad_shapes_are_named(self, models: dict[str, OperatorModel], name: str, call: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            call(models[name])


@pytest.mark.parametrize("chip_name", CHIPS)
@pytest.mark.parametrize("name", ["roofline", "tiled"])
def test_every_chip_can_be_priced(chip_name: str, name: str) -> None:
    model = operator_model(chip(chip_name, operator_model=name))
    size = np.array([8.0, 128, 1024, 8192])
    operators = [model.gemm(size, size, size, precision=precision) for precision in model.hw.precisions]
    for kernel in (*model.hw.attention_kernels, "unfused"):
        for direction in ("forward", "backward"):
            operators.append(
                model.attention(
                    AttentionSizes(1, 32, 8, size, size, 128), AttentionCall(precision="fp16", kernel=kernel, direction=direction)
                )
            )
    for seconds in operators:
        assert np.all(np.isfinite(seconds))
        assert np.all(np.diff(seconds) >= 0)
    rate = 2 * 8192**3 / float(model.gemm(8192, 8192, 8192, precision="fp16"))
    assert 0.4 < rate / model.hw.peak_flops("fp16") < 0.95


@pytest.mark.parametrize("chip_name", CHIPS)
def test_faster_memory_never_slows_an_operator(chip_name: str) -> None:
    slow = chip(chip_name)
    fast = chip(chip_name, memory_bandwidth=1.5 * slow.memory.bandwidth)
    before, after = operator_model(slow), operator_model(fast)
    size = np.array([8.0, 128, 1024, 8192])
    for precision in slow.precisions:
        assert np.all(after.gemm(size, 4096, size, precision=precision) <= before.gemm(size, 4096, size, precision=precision) * ROUNDING)
    for kernel in (*slow.attention_kernels, "unfused"):
        for direction in ("forward", "backward"):
            took = [
                one.attention(
                    AttentionSizes(1, 32, 8, size, size, 128), AttentionCall(precision="fp16", kernel=kernel, direction=direction)
                )
                for one in (before, after)
            ]
            assert np.all(took[1] <= took[0] * ROUNDING)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="allowed: roofline, tiled, measured"):
        operator_model(chip("h100", operator_model="magic"))
    with pytest.raises(ValueError, match="fp8"):
        operator_model(chip("a100")).gemm(64, 64, 64, precision="fp8")


@settings(max_examples=200, deadline=None)
@given(queries=st.integers(1, 40), more=st.integers(0, 40), window=st.integers(1, 90))
def test_keys_that_a_query_sees_are_counted_exactly(queries: int, more: int, window: int) -> None:
    keys = queries + more
    one = np.ones(())
    shape = AttentionShape(one, one, one, one * queries, one * keys, one, one, one * window, causal=True)
    counted = sum(min(more + row + 1, window) for row in range(queries))
    assert float(shape.keys_per_query) * queries == pytest.approx(counted)


def test_passes_over_the_scores() -> None:
    assert score_passes("forward", "fused_softmax", causal=True, dropout=True) == (2.0, 2.5)
    assert sum(score_passes("forward", "unfused", causal=True, dropout=False)) == 6.0
    assert sum(score_passes("backward", "unfused", causal=True, dropout=False)) == 5.0
