"""What loads of a few seconds take on a GPU, by NVML's energy counter."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from rapid_dse.analysis.measuring.kernel_timers import Row, first_line, torch_on

SECONDS = 2.0  # of a load
SIDE = 8192  # of the products' squares
STREAMED = 4e9  # bytes of the buffer that is read
NO_METER = (
    "power: nvidia-ml-py is not installed (pip install 'rapid-dse[measure]'); joules and watts stay those of the chip that it is like"
)


def meter() -> Any | None:
    """NVML, or None where it is not installed or sees no GPU."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def measured_power(nvml: Any, name: str) -> tuple[list[Row], dict[str, float]]:
    """The loads, and the power limit as ``limit``.

    Raises:
        ValueError: one line, where the driver counts no joules of this GPU (a partition of one, some that are no data centre's), or a
            load does not fit.
    """
    torch = torch_on("cuda")
    try:
        return list(sustained_loads(nvml, torch, name)), {"limit": own_limit(nvml, torch)}
    except (nvml.NVMLError, RuntimeError) as error:
        raise ValueError(f"power: {first_line(error)}; joules and watts stay those of the chip that it is like") from error


def handle_of(nvml: Any, torch: Any) -> Any:
    """NVML's handle of the GPU that PyTorch calls 0, which is another's number where CUDA_VISIBLE_DEVICES leaves some out."""
    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")


def own_limit(nvml: Any, torch: Any) -> float:
    """The GPU's own power limit, W."""
    return float(nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle_of(nvml, torch))) * 1e-3


def sustained_loads(nvml: Any, torch: Any, name: str) -> Iterator[Row]:
    """Loads of ``SECONDS`` each, as ``energy.csv`` has them: of a call, FLOP, HBM bytes, seconds and joules; the clock in the mean."""
    common = {"hw": name, "kind": "power", "data": None, "duty": None, "impl": None, "l2_bytes": None}
    yield {**common, "op": "idle", **_run(nvml, torch, lambda: time.sleep(0.01))}
    flops, hbm_bytes = 2.0 * SIDE**3, 3 * 2.0 * SIDE**2
    for precision, call in _products(torch):
        yield {**common, "op": "gemm", "precision": precision, "flops": flops, "bytes": hbm_bytes, **_run(nvml, torch, call)}
    buffer = torch.ones(int(STREAMED / 4), device="cuda")
    yield {**common, "op": "read_sum", "flops": 0.0, "bytes": STREAMED, **_run(nvml, torch, buffer.sum)}


def _products(torch: Any) -> Iterator[tuple[str, Callable[[], object]]]:
    for precision, dtype, mode in (("bf16", "bfloat16", "high"), ("tf32", "float32", "high"), ("fp32", "float32", "highest")):
        torch.set_float32_matmul_precision(mode)
        left_factor, right = (torch.randn(SIDE, SIDE, device="cuda", dtype=getattr(torch, dtype)) for _ in range(2))
        yield precision, lambda left_factor=left_factor, right=right: torch.mm(left_factor, right)  # type: ignore[misc]  # bound now, called at once
    if torch.cuda.get_device_capability(0) >= (8, 9):
        one = torch.ones((), device="cuda")
        narrow = torch.randn(SIDE, SIDE, device="cuda").to(torch.float8_e4m3fn)
        yield "fp8", lambda: torch._scaled_mm(narrow, narrow.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def _run(nvml: Any, torch: Any, call: Callable[[], object]) -> Row:
    """Seconds and joules of a call in a loop of ``SECONDS``."""
    handle = handle_of(nvml, torch)
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    clocks, calls = [], 0
    begin, joules = time.perf_counter(), nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    while time.perf_counter() - begin < SECONDS:
        call()
        calls += 1
        if calls % 16 == 0:
            torch.cuda.synchronize()
            clocks.append(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    spent = (nvml.nvmlDeviceGetTotalEnergyConsumption(handle) - joules) * 1e-3
    clock = sum(clocks) / len(clocks) if clocks else None
    return {"time_s": seconds / calls, "energy_j": spent / calls, "mean_power_w": spent / seconds, "sm_clock_mean_mhz": clock}
