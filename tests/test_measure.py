"""A chip of one's own: constants from recorded kernels and loads of an H200, the files, what is refused, and timers on PyTorch's CPU.

``data/h200_kernels.csv`` and ``data/h200_loads.csv`` are a sample of kernels and loads that were timed for this project on one NVIDIA H200
(PyTorch 2.11, cuDNN 9.19, November 2026).
"""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import program
import pytest
from test_device_models import chip
from test_json import check

from rapid_dse import measure
from rapid_dse.analysis.measuring import chip_option, power_meter
from rapid_dse.analysis.measuring.all_reduce_timers import reduction_times
from rapid_dse.analysis.measuring.chip_constants import SECONDS, fit_chip, halves, predict_chip
from rapid_dse.analysis.measuring.chip_joules import fit_joules
from rapid_dse.analysis.measuring.kernel_timers import KernelTimers
from rapid_dse.analysis.measuring.timed_shapes import TimedAttention, TimedProduct, attentions, products

DATA = Path(__file__).parent / "data"
KERNELS, LOADS = DATA / "h200_kernels.csv", DATA / "h200_loads.csv"
HAS_TORCH = importlib.util.find_spec("torch") is not None


def test_a_fit_finds_the_constants_that_made_the_times() -> None:
    """Times that a chip's own model gives, half as fast in HBM and with half the latency, are traced to these two figures."""
    base = chip("h100")
    made = base.model_copy(update={"kernel_latency": 1.5e-6, "memory": base.memory.model_copy(update={"bandwidth": 1.7e12})})
    table = pd.read_csv(KERNELS)
    table[SECONDS] = predict_chip(made, table)
    fit = fit_chip(base, table)
    assert fit.held_out < 0.01
    assert fit.fitted["kernel_latency"] == pytest.approx(1.5e-6, rel=0.05)
    assert fit.fitted["efficiency.memory"] == pytest.approx(base.efficiency.memory * 1.7 / 3.35, rel=0.01)
    assert fit.fitted["efficiency.clock"] == pytest.approx(base.efficiency.clock, rel=0.01)


def test_halves_share_no_shape() -> None:
    table = pd.read_csv(KERNELS)
    first, other = halves(table, 0)
    assert (first ^ other).all()
    shape = ["kind", "precision", "m", "n", "k", "batch", "seq_len", "heads", "head_dim", "causal", "impl"]
    both = [set(table.loc[part, shape].astype(object).fillna("").astype(str).agg("|".join, axis=1)) for part in (first, other)]
    assert not both[0] & both[1]
    assert 0.35 < first.mean() < 0.65


def test_joules_of_recorded_loads_by_hand() -> None:
    energy, told = fit_joules(chip("h100"), pd.read_csv(LOADS))
    assert energy.idle == pytest.approx(243.737 / 2.00289)
    # 8 GB read in 1.875 ms for 1.321 J, of which idle power takes 0.228
    assert energy.hbm + energy.l2 == pytest.approx((1.32079 - energy.idle * 0.00187525) / 8e9, rel=1e-4)
    # fp32 at 1,980 MHz: 13.98 J for 1.0995 TFLOP in 21.475 ms
    by_hand = (13.9787 - energy.idle * 0.021475 - 402.653e6 * (energy.hbm + energy.l2)) / 1.09951e12
    assert told["flop.fp32"] == pytest.approx(by_hand, rel=1e-4)
    assert told["flop.bf16"] == pytest.approx(1.02e-12, rel=0.02)


def test_half_of_recorded_kernels_predicts_the_other_half_and_the_chip_composes(tmp_path: Path) -> None:
    """From an H100's file, without a word of the H200's bandwidth, clock or latency."""
    said = program.done(
        tmp_path, "--out", "mine", "--like", "h100", "--recorded", str(KERNELS), str(LOADS), "--json", module="rapid_dse.measure"
    )
    told = check("measure", said.out)
    assert told["file"] == "conf/hw/mine.yaml"
    assert told["held_out"]["mape"] < 0.08
    assert told["held_out"]["rows"] > 50
    # what an H200 streams at: 4.2 to 4.4 TB/s, of which GELU and the like reach 3.6
    streamed = told["fitted"]["memory.bandwidth"] * told["fitted"]["efficiency.memory"]
    assert streamed == pytest.approx(4.8e12 * 0.81, rel=0.05)
    assert told["fitted"]["efficiency.memory"] <= 1
    assert told["fitted"]["efficiency.clock"] == pytest.approx(0.83, abs=0.02)
    head = (tmp_path / "conf/hw/mine.yaml").read_text().splitlines()
    assert head[0] == "# Measured: recorded in h200_kernels.csv. What is not named here is h100.yaml's."
    trial = ("model=llama3_1_8b", "hw=mine", "hw.num_gpus=8", "parallel.tp=8", "workload.global_batch_size=8")
    table = ("hw.operator_model=measured", "hw.measured_table=conf/hw/mine_kernels.csv")
    for more in ((), table):
        assert "a step" in program.done(tmp_path, *trial, *more).out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--out", "a b"), "--out a b: allowed: the name of an option"),
        (("--out", "x", "--seconds", "0"), "--seconds 0: allowed: 1 to 86400"),
        (("--out", "x", "--recorded", "none.csv"), "none.csv"),
        (("--out", "x", "--recorded", str(LOADS)), "has no kernels; allowed: a table with kind and measured.time_s"),
        (("--out", "x", "--recorded", str(KERNELS), "--like", "h101"), "--like h101: allowed: a100,"),
    ],
)
def test_what_is_refused(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert measure.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "conf").exists()


@pytest.mark.skipif(HAS_TORCH, reason="PyTorch is installed here")
def test_without_pytorch_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert measure.main(["--out", "mine"]) == 2
    assert "PyTorch is not installed: measure needs PyTorch with a GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seen", "option"), [("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA GB200", "gb200"), ("l40s", "l40s")]
)
def test_a_chip_is_like_the_one_that_its_name_holds(seen: str, option: str) -> None:
    names = ["a100", "a100_40gb", "b200", "gb200", "h100", "h200", "l40s"]
    assert chip_option.like(names, None, seen) == option
    assert chip_option.like(names, "h100", seen) == "h100"
    with pytest.raises(ValueError, match="is none of the chips that are known; give the one that it is like: --like"):
        chip_option.like(names, None, "Radeon")


class StandIn:
    """NVML and PyTorch of a machine whose second GPU is the one that PyTorch sees; the first counts no joules."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM = 1

    def __init__(self, seen: str = "b") -> None:
        self.joules = 0.0
        uuid = SimpleNamespace(uuid=seen)
        self.torch = SimpleNamespace(cuda=SimpleNamespace(get_device_properties=lambda _: uuid, synchronize=lambda: None))

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # NVML's names
        return {"GPU-a": "first", "GPU-b": "second"}[uuid]

    def nvmlDeviceGetPowerManagementDefaultLimit(self, handle: str) -> int:
        return {"first": 300_000, "second": 700_000}[handle]

    def nvmlDeviceGetClockInfo(self, handle: str, _: int) -> int:
        return {"first": 1000, "second": 1980}[handle]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> float:
        if handle == "first":
            raise self.NVMLError("Not Supported")
        return self.joules * 1e3


def test_power_is_that_of_the_gpu_that_pytorch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call takes 0.5 J, by the counter of the GPU with that UUID."""
    one, seconds = StandIn(), itertools.count(0.0, 0.01)
    monkeypatch.setattr(power_meter.time, "perf_counter", lambda: next(seconds))

    def call() -> None:
        one.joules += 0.5

    assert power_meter.own_limit(one, one.torch) == 700
    row = power_meter._run(one, one.torch, call)
    assert row["energy_j"] == pytest.approx(0.5)
    assert row["mean_power_w"] == pytest.approx(0.5 / row["time_s"])
    assert row["sm_clock_mean_mhz"] == 1980


def test_a_driver_that_counts_no_joules_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    one = StandIn("a")
    monkeypatch.setattr(power_meter, "torch_on", lambda _: one.torch)
    with pytest.raises(ValueError, match=r"^power: Not Supported; joules and watts stay those of the chip that it is like$"):
        power_meter.measured_power(one, "mine")


class Failing(KernelTimers):
    """Timers of a device that has no memory for large products, and no code for one kernel of attention."""

    def __init__(self, most: int) -> None:
        self.device, self.small, self.left_out, self.most = "cuda", False, [], most

    def _product(self, shape: TimedProduct) -> Any:
        return shape

    def _attention_kernels(self) -> list[tuple[str, Any]]:
        return [("FlashAttention-2", 0), ("cuDNN", 1)]

    def _attention(self, shape: TimedAttention, backend: Any) -> tuple[Any, Any]:
        return (backend, backend)

    def _timed(self, make: Any, size: float, graph: bool = True) -> dict[str, Any]:
        if size > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore of it")
        if make == 1:
            raise RuntimeError("No available kernel. Aborting execution.")
        return {"measured.time_s": 1e-5}


def test_what_a_device_cannot_run_is_left_out_and_said() -> None:
    timers = Failing(100_000_000)
    found = [*timers.products(), *timers.attention()]
    every = list(products())
    large = [one for one in every if (one.m * one.k + one.k * one.n) * {"fp8": 1, "tf32": 4, "fp32": 4}.get(one.precision, 2)
             + one.m * one.n * 2 > 100_000_000]  # fmt: skip
    assert 0 < len(large) < len(every)
    assert len([row for row in found if row["kind"] == "gemm"]) == len(every) - len(large)
    assert {row.get("impl") for row in found if row["kind"] != "gemm"} <= {"FlashAttention-2"}
    assert "CUDA out of memory. Tried to allocate 2.00 GiB." in timers.left_out[0]
    assert all(len(line.splitlines()) == 1 for line in timers.left_out)
    assert len(found) + len(timers.left_out) == len(every) + 4 * len(list(attentions()))


@pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed: make measure-test runs this beside it")
def test_timers_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All kinds of kernels are timed, larger ones of a kind take longer, and no chip is written of a CPU."""
    import torch

    monkeypatch.chdir(tmp_path)
    if not torch.cuda.is_available():
        assert measure.main(["--out", "gpu"]) == 2
        assert "sees no GPU" in capsys.readouterr().err
    assert measure.main(["--out", "cpu", "--device", "cpu"]) == 0
    assert "of a CPU no chip is written" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "conf/hw").iterdir()] == ["cpu_kernels.csv"]
    found = pd.read_csv(tmp_path / "conf/hw/cpu_kernels.csv")
    assert {"gemm", "attention_fwd", "attention_bwd", "add", "mul", "copy", "relu", "gelu", "host_launch:mm"} <= set(found["kind"])
    assert (found[SECONDS] > 0).all()
    products = found[found["kind"].eq("gemm") & found["precision"].eq("fp32")]
    work = products["m"] * products["n"] * products["k"]
    assert products.loc[work.idxmax(), SECONDS] > 5 * products.loc[work.idxmin(), SECONDS]
    backward, forward = (found.loc[found["kind"].eq(f"attention_{way}"), SECONDS].sum() for way in ("bwd", "fwd"))
    assert backward > forward
    assert np.isfinite(found[SECONDS]).all()


@pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed: make measure-test runs this beside it")
def test_ranks_reduce_together_and_one_that_fails_is_one_line() -> None:
    """Two processes on the CPU: larger sums take longer; a size that no memory holds fails in both."""
    found = dict(reduction_times("cpu", 2, (4096, 2**24)))
    assert found[2**24] > 5 * found[4096] > 0
    with pytest.raises(ValueError, match=r"^all-reduces over 2 GPUs are not timed: \S.*$"):
        reduction_times("cpu", 2, (2**62,))
