"""Tables of cases in, tables with predictions out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rapid_dse.evaluate import run
from rapid_dse.events.backends import price
from rapid_dse.sweep import store
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
    table, groups = read_cases(cases)
    assert [group.rows.tolist() for group in groups] == [[0, 1, 3], [2]]
    first, second = groups
    assert first.portion.layouts.dp.tolist() == [4, 2, 0]
    assert first.portion.scenario.software.name == "nanotron"
    assert (first.portion.rule >= 0).tolist() == [False, False, True]
    assert second.pinned == {"software.async_tp": True}
    assert second.portion.choices["software"] == "megatron_lm"
    assert table.values["note"][0] == "None"


def test_a_case_is_priced_as_the_same_trial(cases: Path) -> None:
    portion = single(
        read(["hw=h100", "hw.num_gpus=8", "software=nanotron", "model=llama", "parallel.tp=2", "parallel.pp=2", "parallel.recompute=full"])
    )
    expected = price(portion.scenario, portion.layouts).step_time_s[0]
    group = read_cases(cases)[1][0].portion
    assert price(group.scenario, group.layouts.take(np.array([1]))).step_time_s[0] == expected


def test_a_table_of_rates_that_no_row_keeps_up_with_says_so_of_each(tmp_path: Path) -> None:
    cases, out = tmp_path / "cases.csv", tmp_path / "out.csv"
    cases.write_text(
        "workload,model,hw.num_gpus,workload.request_rate\n" + "".join(f"inference,llama3_1_8b,1,{rate}\n" for rate in (500, 1000))
    )
    assert run([str(cases), "--out", str(out)]) == 0
    found = pd.read_csv(out)
    assert found["status"].tolist() == ["invalid"] * 2
    assert found["reason"].str.match(r"cannot keep up: at most \d\.\d+ requests/s").all()


def test_cases_that_cannot_be_priced_together_are_priced_alone_and_a_defect_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases, out = tmp_path / "cases.csv", tmp_path / "out.csv"
    cases.write_text("workload,model,hw.num_gpus,workload.prompt_len\n" + "".join(f"inference,llama3_1_8b,1,{n}\n" for n in (100, 200)))
    command = [str(cases), "--out", str(out)]
    assert run(command) == 0
    together = pd.read_csv(out)["ttft_s"].tolist()
    for error in (ValueError, KeyError):

        def raises(tables: Sequence[Any], error: type[Exception] = error) -> Sequence[Any]:
            raise error(f"{len(tables)} tables")

        monkeypatch.setattr("rapid_dse.simulate.inference.pricing.price_together", raises)
        if error is ValueError:
            assert run(command) == 0
            assert pd.read_csv(out)["ttft_s"].tolist() == pytest.approx(together, rel=1e-12)
        else:
            with pytest.raises(KeyError, match="2 tables"):
                run(command)


def test_a_list_in_a_cell_is_one_and_an_empty_one_is_no_blank(tmp_path: Path) -> None:
    """On an H100 sums are the framework's own by default, and NCCL's where hopper is in no list."""
    cases, out = tmp_path / "cases.csv", tmp_path / "out.csv"
    rows = ["", "[hopper]", '"[""hopper""]"', '"[ampere, hopper]"', "[]", "[ampere]", "hopper"]
    names = "workload,model,hw.num_gpus,parallel.tp,workload.batch_size,software.fused_all_reduce\n"
    cases.write_text(names + "".join(f"inference,llama3_1_8b,4,4,8,{row}\n" for row in rows))
    assert run([str(cases), "--out", str(out), "--keep-going"]) == 0
    found = pd.read_csv(out)
    default, *own, none, other, _ = found["tpot_s"]
    assert own == [default] * 3
    assert none == other > default
    assert found["reason"][6] == "software.fused_all_reduce='hopper': expected a list, such as [a,b]"


def test_a_users_own_split_goes_in_and_comes_out_as_text(tmp_path: Path) -> None:
    """Each row its own split; what comes out goes in again. 32 layers over 2 stages: the step waits for the fuller one."""
    cases, out, again = (tmp_path / name for name in ("cases.csv", "out.csv", "again.csv"))
    rows = ["", '"16,16"', '"20,12"', "32", '"[20,12]"']
    cases.write_text("model,hw.num_gpus,parallel.pp,parallel.stage_layers\n" + "".join(f"llama3_1_8b,2,2,{row}\n" for row in rows))
    assert run([str(cases), "--out", str(out)]) == run([str(out), "--out", str(again)]) == 0
    found, second = pd.read_csv(out), pd.read_csv(again)
    assert found["status"].tolist() == ["oom", "oom", "oom", "invalid", "oom"]
    assert found["reason"][3] == "parallel.stage_layers=32 must have an entry for each of pp stages"
    framework, even, front, _, listed = found["step_time_s"]
    assert framework == even < front == listed
    # The last of even stages has the head too: 128,256 · 4,096 = 525 million weights, where a layer has 218 million and attention over half
    # of 8,192 tokens, 2 · 8,192 · 4,096 / 2 = 34 million more multiplications a token: 2.1 layers' work.
    assert front / even == pytest.approx(20 / 18.1, rel=0.03)
    assert len(set(found["key"])) == 4  # the last two splits are one
    own = ["key", "elapsed_s"]  # a column that is given is part of a key
    pd.testing.assert_frame_equal(found.drop(columns=own), second.drop(columns=own))


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


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_of_mappings_comes_out_as_it_went_in(tmp_path: Path, suffix: str) -> None:
    """A mapping's items are a list of pairs in pandas, which Arrow does not take."""
    items = pa.array([[("a", 1), ("b", 2)], None, []], pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table({"parallel.tp": [8, 4, 2], "items": items}), tmp_path / "in.parquet")
    out = tmp_path / f"out{suffix}"
    assert run([str(tmp_path / "in.parquet"), "--out", str(out)]) == 0
    if suffix == ".parquet":
        found = pq.read_table(out)
        assert found["items"].type == items.type
        assert found["items"].to_pylist() == items.to_pylist()
    else:
        found = pd.read_csv(out, keep_default_na=False)
        assert found["items"].tolist() == ["[('a', 1), ('b', 2)]", "", "[]"]
    assert list(found["parallel.tp"].to_numpy()) == [8, 4, 2]


def test_a_third_mark_of_the_order_of_bytes_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("\ufeff" * 3 + "parallel.tp,parallel.pp\n8,1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="more than two byte order marks"):
        run([str(tmp_path / "in.csv"), "--out", str(tmp_path / "out.csv"), "--keep-going"])


def test_results_can_be_evaluated_again(cases: Path) -> None:
    first, second = cases.with_name("one.parquet"), cases.with_name("two.parquet")
    run([str(cases), "--out", str(first)])
    run([str(first), "--out", str(second)])
    one, two = pd.read_parquet(first), pd.read_parquet(second)
    assert one["step_time_s"].equals(two["step_time_s"])
    assert sorted(one.columns) == sorted(two.columns)


def evaluate(frame: pd.DataFrame, folder: Path, *options: str) -> pd.DataFrame:
    """What the command makes of a table that is handed over as Parquet, its index as it is."""
    frame.to_parquet(folder / "in.parquet")
    assert run([str(folder / "in.parquet"), "--out", str(folder / "out.parquet"), *options]) == 0
    return pd.read_parquet(folder / "out.parquet")


def test_rows_keep_their_results_and_their_order_whatever_the_index(tmp_path: Path) -> None:
    part = pd.DataFrame({"parallel.tp": [8, 4, 2], "parallel.pp": [1, 2, 4], "model.hidden_size": [8192, 4096, 8192], "who": list("abc")})
    expected = [evaluate(part.iloc[[row]], tmp_path)["step_time_s"].iloc[0] for row in (0, 1, 2, 2, 1, 0)]
    assert len(set(expected)) == 3
    frames = {
        "two frames, one below the other": pd.concat([part, part[::-1]]),
        "an index of words": pd.concat([part, part[::-1]]).set_axis(list("xxyxyy")),
        "a column as index": pd.concat([part, part[::-1]]).set_index("who"),
        "a key as index": pd.concat([part, part[::-1]]).set_index(["parallel.tp", "parallel.pp"]),
    }
    for what, frame in frames.items():
        found = evaluate(frame, tmp_path)
        assert found["step_time_s"].tolist() == expected, what
        assert found["who"].tolist() == list("abccba"), what
        assert found["parallel.tp"].tolist() == [8, 4, 2, 2, 4, 8], what


def test_a_users_own_columns_are_kept_beside_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = pd.DataFrame({"parallel.tp": [8, 3], "step_time_s": [1.25, 2.5], "status": ["done", "lost"], "input.status": ["x", "y"]})
    found = evaluate(own, tmp_path)
    assert found["input.step_time_s"].tolist() == [1.25, 2.5]
    assert found["input.input.status"].tolist() == ["done", "lost"]
    assert found["input.status"].tolist() == ["x", "y"]
    assert found["status"].tolist() == ["oom", "invalid"]
    assert found["step_time_s"].notna().tolist() == [True, False]
    assert "step_time_s as input.step_time_s, status as input.input.status" in capsys.readouterr().out
    assert len(evaluate(found, tmp_path).columns) == len(found.columns), "results of an earlier run are no user's own"
    assert "of an earlier run, are replaced" in capsys.readouterr().out


def test_with_keep_going_a_wrong_value_costs_its_row_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["name,hw,parallel.tp,hw.sms,workload.seq_len", *(f"c{row},h100,{2 ** (row % 4)},,4096" for row in range(12))]
    wrong = {2: "b,h1000,8,,4096", 5: "b,h100,x,,4096", 7: "b,h100,8,true,4096", 8: "b,h100,8,1,4096", 11: "b,h100,8,132,1e40"}
    for row, line in wrong.items():
        lines[row + 1] = line
    (tmp_path / "in.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=re.escape("row 6: parallel.tp='x'")):
        run([str(tmp_path / "in.csv"), "--out", str(tmp_path / "out.csv")])
    assert not (tmp_path / "out.csv").exists()
    assert run([str(tmp_path / "in.csv"), "--out", str(tmp_path / "out.csv"), "--keep-going"]) == 0
    found = pd.read_csv(tmp_path / "out.csv")
    assert found["status"].eq("invalid").tolist() == [row in (2, 5, 7, 11) for row in range(12)]
    for row, part in {
        2: "hw=h1000: no such option",
        5: "parallel.tp='x'",
        7: "hw.sms=true",
        11: "workload.seq_len=1e+40: too large",
    }.items():
        assert part in found["reason"][row]
        assert found["name"][row] == "b"
        assert found.loc[row, ["key", "step_time_s", "peak_memory_bytes", "fits", "elapsed_s"]].isna().all()
    assert found["parallel.tp"].tolist()[:6] == ["1", "2", "8", "8", "1", "x"]
    whole = found[found["status"] != "invalid"]
    assert whole["step_time_s"].notna().all()
    assert "4 invalid" in capsys.readouterr().out
    assert len(store.read(tmp_path / "out.csv", print)) == found["key"].nunique() + 4, "rows without a key are not one row"
    only = pd.DataFrame({"hw": ["nothing", "none"]})
    assert evaluate(only, tmp_path, "--keep-going")["status"].tolist() == ["invalid", "invalid"]


def test_true_is_not_one_and_one_is_not_true(tmp_path: Path) -> None:
    for first, second in (("1", "true"), ("true", "1")):
        (tmp_path / "in.csv").write_text(f"hw.network.dimensions.0.utilization,parallel.tp\n{first},8\n{second},8\n")
        with pytest.raises(ValueError, match=r"utilization=true"):
            run([str(tmp_path / "in.csv"), "--out", str(tmp_path / "out.csv")])


SHIFTED = {
    "a cell too many": ("parallel.tp,parallel.pp\n8,1\n8,2,4\n", "row 2 has 3 cells, the header has 2"),
    "a cell too many in every row": ("parallel.tp,parallel.pp\nx,8,1\nx,8,2\n", "row 1 has 3 cells, the header has 2"),
    "a decimal comma": ("hw.clock,parallel.pp\n1,83e9,1\n", "row 1 has 3 cells, the header has 2"),
    "a cell too few": ("parallel.tp,parallel.pp\n8,1\n\n8\n", "row 2 has 1 cell, the header has 2"),
    "a quote without its end": ('parallel.tp,note\n8,"a\n4,b\n', "cannot be read"),
    "one name twice": ("parallel.tp,parallel.pp,parallel.tp\n8,1,4\n", "2 columns have the name parallel.tp"),
    "blanks around a name": ("parallel.tp, parallel.pp\n8,1\n", "' parallel.pp' has blanks around the name; expected parallel.pp"),
    "no names": ("\n8,1\n", "its first line has no names"),
}


@pytest.mark.parametrize(("text", "part"), SHIFTED.values(), ids=SHIFTED.keys())
def test_a_table_whose_cells_would_land_elsewhere_is_refused(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "in.csv").write_text(text)
    with pytest.raises(ValueError, match=re.escape(part)):
        run([str(tmp_path / "in.csv"), "--out", str(tmp_path / "out.csv"), "--keep-going"])


def test_a_spreadsheets_mark_and_lists_and_mappings_in_cells_are_read(tmp_path: Path) -> None:
    flop = '"{""bf16"": 6e-13, ""fp32"": 2e-12}"'
    text = f'\ufeffparallel.tp,parallel.order,hw.energy.flop,note\n8,"tp,cp,ep,dp,pp",{flop},"a, b"\n'
    (tmp_path / "in.csv").write_text(text, encoding="utf-8")
    assert run([str(tmp_path / "in.csv"), "--out", str(tmp_path / "out.csv")]) == 0
    found = pd.read_csv(tmp_path / "out.csv")
    assert found["parallel.tp"].tolist() == [8]
    assert found["note"].tolist() == ["a, b"]


def test_a_table_may_hold_training_and_inference(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    (tmp_path / "in.csv").write_text("workload.kind,parallel.tp,workload.concurrency\ninference,8,4\ntraining,8,\ntraining,8,4\n")
    assert run([str(tmp_path / "in.csv"), "--out", str(out)]) == 0
    table = pd.read_csv(out)
    assert table["status"].tolist() == ["ok", "oom", "invalid"]
    assert table["software"].tolist() == ["vllm", "megatron_lm", "megatron_lm"]
    assert table["tpot_s"].notna().tolist() == [True, False, False]
    assert "workload.concurrency has no effect with workload.kind=training" in table["reason"].tolist()[2]


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
        [str(tmp_path / "good.csv"), "--out"],
        ["--out", out],
        [str(tmp_path / "good.csv"), "--out", out, "--fast"],
    ):
        assert guarded(run, arguments) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert guarded(run, [str(tmp_path / "good.csv")]) == 2
    usage = "python -m rapid_dse.evaluate [-h] [--version] --out RESULTS [--keep-going] [--trust] [--json] CASES"
    assert f"--out; allowed: {usage}" in capsys.readouterr().err


def test_drafts_that_nobody_told_of_are_said_to_lie_outside_and_leave_no_error_to_expect(tmp_path: Path) -> None:
    cases, out = tmp_path / "cases.csv", tmp_path / "out.parquet"
    rows = [("none", ""), ("mtp", ""), ("", ""), ("mtp", "1")]
    text = "workload,software,model,hw.num_gpus,parallel.tp,workload.concurrency,spec,workload.draft_tokens,workload.draft_acceptance\n"
    cases.write_text(text + "".join(f"inference,sglang,deepseek_v3,8,8,16,{spec},{drafts},{drafts and 0.8}\n" for spec, drafts in rows))
    run([str(cases), "--out", str(out)])
    found = pd.read_parquet(out)
    assert found["expected_error"].notna().tolist() == [True, False, True, False]
    without, drafted, blank, told = found["outside"].astype(object).where(found["outside"].notna(), "")
    assert drafted.startswith("spec (mtp: priced without drafts, workload.draft_tokens is blank)")
    assert "draft" not in without + blank
    assert "draft_tokens (measured: without)" in told
    assert found["tpot_s"][1] == found["tpot_s"][0] > found["tpot_s"][3]
