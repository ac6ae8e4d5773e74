"""A chip's file that says what a data sheet does: what it takes from its generation, by hand and against chips that were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import program
import pytest
from test_device_models import chip
from trials import layouts, price, scenario

from rapid_dse.config.hardware import Hardware
from rapid_dse.imports.data_sheet import completed
from rapid_dse.sweep.places import home

# NVIDIA's data sheet "H100 Tensor Core GPU": H100 NVL, a card; dense peaks are half of what stands there for sparse ones.
SHEET: dict[str, Any] = {
    "name": "h100_nvl",
    "architecture": "hopper",
    "peak_flops": {"bf16": "835.5 TFLOP/s", "fp8": "1670.5 TFLOP/s"},
    "memory": {"capacity": "94 GB", "bandwidth": "3.9 TB/s"},
    "energy": {"tdp": "400 W"},
}


def test_what_a_data_sheet_leaves_open_by_hand() -> None:
    hw, base = Hardware.model_validate(completed(SHEET, home())), chip("h100")
    assert hw.like == "h100"
    assert hw.sms == round(835.5e12 / (4096 * 1.83e9)) == 111
    assert hw.peak_flops("bf16") == pytest.approx(835.5e12)
    assert hw.peak_flops("fp16") == pytest.approx(835.5e12)
    assert hw.peak_flops("fp8") == pytest.approx(1670.5e12)
    assert hw.shared_memory.size == pytest.approx(base.shared_memory.size * 111 / 132)
    assert hw.l2 == base.l2
    assert hw.memory.usable == pytest.approx(94e9 * 78.4 / 80)
    # 280 W of 580 W beside idle power, for 835.5 of 989.4 TFLOP/s: the square root, as the tile model has it
    assert hw.efficiency.clock == pytest.approx(0.82 * (280 / 580 / (835.5 / 989.4)) ** 0.5, rel=1e-3)
    assert hw.energy.flop == base.energy.flop
    assert hw.price == base.price


@pytest.mark.parametrize("name", ["a100_40gb", "a100_pcie", "h200", "h100_96gb", "b300", "mi325x"])
def test_measured_chips_from_their_data_sheets(name: str) -> None:
    """Six chips whose files rest on measured kernels: their peaks, memory, power and links alone give a step within 6 %."""
    whole = chip(name)
    peaks = {precision: whole.peak_flops(precision) for precision in whole.precisions if precision != "fp32"}
    memory = {"capacity": whole.memory.capacity, "bandwidth": whole.memory.bandwidth}
    sheet = {"name": name, "architecture": whole.architecture, "peak_flops": peaks, "memory": memory, "energy": {"tdp": whole.energy.tdp}}
    alone = Hardware.model_validate(completed({**sheet, "network": whole.network.model_dump()}, home()))
    of, row = scenario(model="llama3_1_8b"), layouts({"num_gpus": 64, "tp": 2})
    measured, predicted = (price(of.model_copy(update={"hw": hw}), row) for hw in (whole, alone))
    assert predicted.step_time_s[0] == pytest.approx(measured.step_time_s[0], rel=0.06)
    assert predicted.energy_j[0] == pytest.approx(measured.energy_j[0], rel=0.06)


def test_a_whole_file_is_left_as_it_is() -> None:
    whole = chip("h200").model_dump()
    assert completed(whole, home()) == whole
    assert Hardware.model_validate(completed(whole, home())).like is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": None}, "says nothing of sms, tensor_cores_per_sm, clock, registers and not of which generation it is"),
        ({"peak_flops": {"fp8": 1e15}}, "expected dense peaks by precision, bf16 or fp16 among them; allowed: fp32, tf32, bf16, fp16, fp8"),
        ({"peak_flops": {"bf16": "835 TB/s"}}, "835 TB/s"),
        ({"memory": {"capacity": "94 GB", "bandwidth": "3.9 TFLOP/s"}}, "3.9 TFLOP/s"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Hardware.model_validate(completed(SHEET | changes, home()))


def test_rows_of_such_a_chip_say_so_and_the_way_to_a_file_is_told(tmp_path: Path) -> None:
    lines = ["name: sheet", "architecture: hopper", "memory: {capacity: 94 GB, bandwidth: 3.9 TB/s}", "energy: {tdp: 400 W}"]
    (tmp_path / "sheet.yaml").write_text("\n".join(lines) + "\n")
    trial = ("model=llama3_1_8b", "hw.num_gpus=8", "parallel.tp=8", "workload.global_batch_size=8")
    assert "hw (sheet: a data sheet, the rest as h100)" in program.done(tmp_path, "hw=./sheet.yaml", *trial).out
    told = program.one_line(program.run(tmp_path, "hw=sheet", *trial))
    assert told.endswith("or a file: ./conf/hw/sheet.yaml, or hw=./sheet.yaml)")
    (tmp_path / "conf/hw").mkdir(parents=True)
    (tmp_path / "sheet.yaml").rename(tmp_path / "conf/hw/sheet.yaml")
    assert "the rest as h100" in program.done(tmp_path, "hw=sheet", *trial).out
