"""Tables of cases in, tables with predictions out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rapid_dse.evaluate import run
from rapid_dse.simulate import price
from rapid_dse.sweep.cases import group_cases, read_cases
from rapid_dse.sweep.overrides import read
from rapid_dse.sweep.space import single

CASES = """\
case_id,hw,hw.num_gpus,software,model,model.hidden_size,parallel.tp,parallel.pp,parallel.dp,parallel.recompute,software.async_tp,measured.status,note
a,h100,8.0,nanotron,llama,4096,2,1,,none,,ok,None
b,h100,8.0,nanotron,llama,4096,2,2,2,full,,ok,
c,a100,8,,llama3_1_8b,,,,auto,,True,oom,x
d,h100,8,nanotron,llama,4096,3,1,,none,,ok,
"""


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    path = tmp_path / "cases.csv"
    path.write_text(CASES)
    return path


def test_rows_that_share_a_scenario_are_one_group(cases: Path) -> None:
    frame, groups = read_cases(cases)
    assert [group.rows.tolist() for group in groups] == [[0, 1, 3], [2]]
    first, second = groups
    assert first.portion.layouts.dp.tolist() == [4, 2, 0]
    assert first.portion.scenario.software.name == "nanotron"
    assert (first.portion.rule >= 0).tolist() == [False, False, True]
    assert second.pinned == {"software.async_tp": True}
    assert second.portion.choices["software"] == "megatron_lm"
    assert frame["note"].tolist()[0] == "None"


def test_a_case_is_priced_as_the_same_trial(cases: Path) -> None:
    portion = single(
        read(["hw=h100", "hw.num_gpus=8", "software=nanotron", "model=llama", "parallel.tp=2", "parallel.pp=2", "parallel.recompute=full"])
    )
    expected = price(portion.scenario, portion.layouts).step_time_s[0]
    group = read_cases(cases)[1][0].portion
    assert price(group.scenario, group.layouts.take(np.array([1]))).step_time_s[0] == expected


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("source", [".csv", ".parquet"])
def test_all_columns_come_out_with_the_results(cases: Path, suffix: str, source: str) -> None:
    if source == ".parquet":
        pd.read_csv(cases).to_parquet(cases.with_suffix(source))
    out = cases.with_name(f"out{suffix}")
    assert run([str(cases.with_suffix(source)), "--out", str(out)]) == 0
    table = pd.read_parquet(out) if suffix == ".parquet" else pd.read_csv(out)
    assert table["case_id"].tolist() == list("abcd")
    assert set(table["status"]) <= {"ok", "oom", "invalid"}
    assert table["status"].tolist()[3] == "invalid"
    assert "num_attention_heads" in table["reason"].tolist()[3]
    assert table["step_time_s"].notna().tolist() == [True, True, True, False]
    assert table["measured.status"].tolist() == ["ok", "ok", "oom", "ok"]
    assert {path.name for path in cases.parent.iterdir()} == {out.name, cases.name, cases.with_suffix(source).name}


def test_results_can_be_evaluated_again(cases: Path) -> None:
    first, second = cases.with_name("one.parquet"), cases.with_name("two.parquet")
    run([str(cases), "--out", str(first)])
    run([str(first), "--out", str(second)])
    one, two = pd.read_parquet(first), pd.read_parquet(second)
    assert one["step_time_s"].equals(two["step_time_s"])
    assert sorted(one.columns) == sorted(two.columns)


def test_an_inference_case_is_an_error_row_with_its_reason(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    (tmp_path / "in.csv").write_text("workload.kind,parallel.tp\ninference,8\ntraining,8\n")
    assert run([str(tmp_path / "in.csv"), "--out", str(out)]) == 0
    table = pd.read_csv(out)
    assert table["status"].tolist()[0] == "error"
    assert "inference" in table["reason"].tolist()[0]
    assert table["status"].tolist()[1] in ("ok", "oom")


WRONG: dict[str, tuple[dict[str, list[Any]], str]] = {
    "type": ({"parallel.tp": [1, "x"]}, "row 2: parallel.tp='x'"),
    "fraction": ({"parallel.tp": [1.5, 1]}, "row 1: parallel.tp=1.5"),
    "bound": ({"parallel.tp": [1, 0]}, "row 2: parallel.tp=0"),
    "scenario's type": ({"workload.seq_len": [8192, "long"]}, "row 2: workload.seq_len='long'"),
    "unknown column": ({"parallel.tpp": [1]}, "parallel.tpp: no such key"),
    "unknown option": ({"hw": ["h100", "h101"]}, "row 2: hw=h101"),
}


@pytest.mark.parametrize(("columns", "part"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_cell_is_named_by_row_key_and_value(columns: dict[str, list[Any]], part: str) -> None:
    with pytest.raises(ValueError, match=re.escape(part)):
        group_cases(pd.DataFrame(columns))


def test_files_that_cannot_be_read_or_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rapid_dse.command import guarded

    (tmp_path / "broken.parquet").write_text("nothing")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "good.csv").write_text("parallel.tp\n8\n")
    missing, out = str(tmp_path / "missing.csv"), str(tmp_path / "out.csv")
    for arguments in (
        [missing, "--out", out],
        [str(tmp_path / "broken.parquet"), "--out", out],
        [str(tmp_path / "empty.csv"), "--out", out],
        [str(tmp_path / "good.csv"), "--out", "/proc/nowhere/out.csv"],
        [str(tmp_path / "good.csv"), "--out", str(tmp_path / "out.xlsx")],
        [str(tmp_path / "good.csv")],
    ):
        assert guarded(run, arguments) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
