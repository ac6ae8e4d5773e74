"""``import rapid_dse as rd``: quick to import, the command line's figures and messages, nothing printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import program
import pytest
from machine import slowness

import rapid_dse as rd

SMALL: dict[str, Any] = {"model": "llama3_1_8b", "num_gpus": 16, "global_batch_size": 64}
FILES = Path(__file__).parent / "data" / "hugging_face"


@pytest.fixture(scope="module")
def study() -> rd.Results:
    return rd.sweep(SMALL, tp="all", pp=[1, 2, 4], hw=["h100", "h200"])


def test_the_import_is_quick_and_loads_nothing() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import rapid_dse as rd; seconds = time.perf_counter() - start; "
        "print(seconds, *({'numpy', 'pandas', 'pyarrow', 'hydra', 'pydantic', 'numba'} & set(sys.modules)))"
    )
    seconds, *loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not loaded
    assert float(seconds) < 0.2 * slowness()


def test_functions_that_are_modules_too_can_be_called_before_and_after_their_import() -> None:
    code = (
        "import rapid_dse as rd; from rapid_dse import calibrate; assert callable(rd.model) and callable(calibrate) and calibrate.main; "
        "import rapid_dse.model.parameters, rapid_dse.sweep.space; assert rd.model('llama3_1_8b').parameters == 8030261248; "
        "assert rapid_dse.model.parameters.count and 'sweep' in dir(rd)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rd.nothing  # type: ignore[attr-defined]


def test_a_trial_is_the_command_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trial = rd.simulate(hw="h100", tp=8, pp=2, **SMALL)
    assert capsys.readouterr() == ("", "")
    said = program.done(tmp_path, "hw=h100", "model=llama3_1_8b", "hw.num_gpus=16", "workload.global_batch_size=64", "parallel.tp=8",
                        "parallel.pp=2", "--json")  # fmt: skip
    found = json.loads(said.out)
    assert found["step_time_s"] == trial.step_time_s
    assert found["peak_memory_bytes"] == trial.peak_memory_bytes
    assert sum(trial.times.values()) == pytest.approx(trial.step_time_s, rel=1e-9)
    assert sum(trial.memory.values()) == pytest.approx(trial["peak_memory_bytes"], rel=1e-9)
    assert trial.status == "ok"
    assert trial.fits
    assert trial.to_dict()["parallel.tp"] == 8
    assert json.loads(json.dumps(trial.to_dict())) == trial.to_dict()
    assert "tp8" in repr(trial)
    for part in ("<table>", "compute", "activations", "llama3_1_8b on 16 × h100"):
        assert part in trial._repr_html_()


def test_short_keys_full_keys_and_quantities_are_the_same() -> None:
    full = rd.simulate({"hw.num_gpus": 16, "workload.global_batch_size": 64, "parallel.tp": np.int64(2)}, model="llama3_1_8b")
    assert full["key"] == rd.simulate(SMALL, tp=2)["key"]
    faster = rd.simulate({"hw.memory.bandwidth": "6.7 TB/s"}, tp=2, **SMALL)
    assert faster.step_time_s < full.step_time_s


def test_a_file_is_a_model(tmp_path: Path) -> None:
    path = FILES / "llama3_1_8b.json"
    assert rd.simulate(SMALL | {"model": path}, tp=2).step_time_s == rd.simulate(SMALL, tp=2).step_time_s
    card = rd.model(path)
    assert (card.parameters, card.kv_bytes_per_token) == (8_030_261_248, 131_072)
    assert rd.model("llama3_1_8b", num_hidden_layers=2).to_dict()["kv_bytes_per_token"] == 131_072 // 16


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"tp": 3}, "tp must divide num_attention_heads"),
    ({"tq": 3}, "tq: no such key; did you mean 'tp'?"),
    ({"network": "fair"}, "allowed: hw.network or backend.network"),
    ({"hw": "h101"}, "did you mean 'h100'"),
    ({"hw": 3}, "allowed: the name of an option"),
    ({"seq_len": "long"}, "workload.seq_len='long'"),
    ({"tp": [1, 2]}, "several values are a sweep"),
    ({"precision": "fp8", "hw": "a100"}, "workload.precision=fp8"),
    ({"model": "./no/config.json"}, "no such file"),
    ({"model": FILES / "deepseek_v3.json", "kv_lora_rank": -1}, "model.kv_lora_rank=-1"),
]


@pytest.mark.parametrize(("settings", "part"), WRONG, ids=[str(next(iter(each[0].items()))) for each in WRONG])
def test_wrong_settings_are_value_errors_with_the_command_lines_text(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=r".*") as raised:
        rd.simulate(SMALL | settings)
    assert part in str(raised.value)


def test_one_key_twice_and_an_empty_list() -> None:
    with pytest.raises(ValueError, match=r"parallel\.tp: is set twice"):
        rd.simulate({"parallel.tp": 2}, tp=4)
    with pytest.raises(ValueError, match=r"parallel\.tp=\[\]"):
        rd.sweep(tp=[])


def test_lists_that_are_values_are_no_sweep() -> None:
    assert rd.simulate(SMALL, pp=4, stage_layers=[9, 8, 8, 7])["parallel.stage_layers"] == "9,8,8,7"
    assert len(rd.sweep(SMALL, pp=4, stage_layers=[[9, 8, 8, 7], [8, 8, 8, 8]])) == 2


def test_what_is_set_in_vain_is_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"search\.top has no effect here"):
        rd.simulate(SMALL, top=3)


def test_a_sweep_is_the_command_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    found = rd.sweep(SMALL, tp=[1, 2, 3], study="mine")
    assert capsys.readouterr() == ("", "")
    assert found.folder == Path("results/mine")
    kept = rd.load("results/mine")
    assert kept.frame().equals(found.frame())
    arguments = ["model=llama3_1_8b", "hw.num_gpus=16", "workload.global_batch_size=64", "parallel.tp=1,2,3", "search.study=mine"]
    assert "all read from there" in program.done(tmp_path, "-m", *arguments).out
    assert found.counts == {"ok": 1, "oom": 1, "invalid": 1} or sum(found.counts.values()) == 3
    assert "tp must divide num_attention_heads" in found.reasons
    rd.sweep(SMALL, tp=[1, 2])
    assert [path.name for path in tmp_path.iterdir()] == ["results"]  # without a name nothing is kept


def test_best_and_front(study: rd.Results) -> None:
    frame = study.frame()
    fits = frame[frame["fits"].astype(bool)]
    best = study.best(3)
    assert [trial["key"] for trial in best] == fits.nsmallest(3, "step_time_s")["key"].tolist()
    assert study.best(by="mfu")[0]["mfu"] == fits["mfu"].max()
    assert study.best(by="-cost_usd")[0]["cost_usd"] == fits["cost_usd"].max()
    inside = study.best(100, inside=True).frame()
    assert inside["outside"].isna().all()
    front = study.front("step_time_s", "peak_memory_bytes").frame()
    for _, row in fits.iterrows():  # whatever is not on the front is beaten by, or equal to, a row that is
        beaten = (front["step_time_s"] <= row["step_time_s"]) & (front["peak_memory_bytes"] <= row["peak_memory_bytes"])
        assert beaten.any()
    assert front["step_time_s"].is_monotonic_increasing
    assert front["peak_memory_bytes"].is_monotonic_decreasing
    for wrong in (lambda: study.best(by="speed"), lambda: study.front("speed"), lambda: study.front(), lambda: study.best(0)):
        with pytest.raises(ValueError, match=r"allowed|did you mean"):
            wrong()


def test_results_are_a_sequence(study: rd.Results) -> None:
    assert len(study) == len(list(study)) == len(study.to_dict())
    assert study[-1].to_dict() == study[len(study) - 1].to_dict()
    assert [trial["key"] for trial in study[2:6:2]] == [study[2]["key"], study[4]["key"]]
    with pytest.raises(IndexError):
        _ = study[len(study)]
    eights = study.where("fits and `parallel.tp` == 8")
    assert {trial["parallel.tp"] for trial in eights} == {8}
    with pytest.raises(ValueError, match="where="):
        study.where("no such column == 3")
    assert study._repr_html_().count("<tr>") == 11  # a head and ten rows
    assert "trials" in repr(study)


def test_a_search_by_optuna() -> None:
    found = rd.sweep(SMALL, search="optuna", n_trials=6, sampler="random", tp="all", pp="all")
    assert len(found) == 6
    assert found.best()[0].fits


def test_loading_unites_schemas_and_keeps_the_newest_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = rd.sweep(SMALL, tp=[1, 2], study="plain")
    rd.sweep(SMALL | {"hw.memory.bandwidth": "3 TB/s"}, tp=[2, 4], study="slower")
    rd.sweep(SMALL, tp=2, study="again")
    found = rd.load("results/*")
    frame = found.frame()
    assert len(frame) == 4  # tp 1 and 2 of one chip, tp 2 and 4 of the other: the same question once
    assert frame["hw.memory.bandwidth"].notna().sum() == 2  # a column that some studies lack
    assert set(first.frame()["key"]) < set(frame["key"])
    (tmp_path / "results" / "plain" / "broken.parquet").write_bytes(b"PAR1")
    with pytest.warns(RuntimeWarning, match="broken"):
        assert len(rd.load("results")) == 4
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(ValueError, match=r"nowhere: no such file or folder; allowed: files that rapid_dse wrote"):
        rd.load("nowhere")
    with pytest.raises(ValueError, match=r"notes\.txt: no results file; allowed"):
        rd.load("notes.txt")
    with pytest.raises(ValueError, match="no such file or folder"):
        rd.load("results/x*")


def test_two_trials_differ_by_their_terms() -> None:
    a, b = rd.simulate(SMALL, tp=2), rd.simulate(SMALL | {"hw.memory.bandwidth": "2 TB/s"}, tp=4)
    found = rd.diff(a, b)
    assert found.loc[("setting", "parallel.tp"), ["a", "b"]].tolist() == [2, 4]
    assert found.loc[("setting", "hw.memory.bandwidth"), "a"] == 3.35e12  # what was not given is what the chip has
    times = found.loc["time_s"]
    assert times.loc["total", "difference"] == pytest.approx(times.drop("total")["difference"].sum())
    assert times.loc["total", "a"] == a.step_time_s
    with pytest.raises(TypeError):
        rd.diff(a, rd.sweep(SMALL, tp=2))  # type: ignore[arg-type]


def test_two_studies_differ_row_by_row() -> None:
    a, b = (rd.sweep({"hw.memory.bandwidth": speed, **SMALL}, tp=[2, 4, 8]) for speed in ("3.35 TB/s", "2 TB/s"))
    found = rd.diff(a, b)
    assert isinstance(found, pd.DataFrame)
    assert sorted(found["parallel.tp"].astype(int)) == [2, 4, 8]
    assert (found["ratio"] < 1).all()


def test_an_explanation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rapid_dse.analysis.reasons.explanation.turning_points", lambda *_: [])  # which take seconds to solve
    a, b = rd.simulate(SMALL, tp=4), rd.simulate(SMALL, tp=8)
    found = a.explain(b)
    assert found.to_dict()["of"]["step_time_s"] == a.step_time_s
    assert found.to_dict()["against"]["step_time_s"] == b.step_time_s
    assert "tensor parallel" in str(found)
    assert found._repr_html_().startswith("<pre>")


def test_calibrating_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = rd.sweep(SMALL, tp=[1, 2, 4, 8], pp=[1, 2], micro_batch_size=[1, 2], recompute=["none", "full"]).where("status != 'invalid'")
    keys = [name for name in runs.table.column_names if name.split(".")[0] in ("hw", "model", "workload", "parallel")]
    frame = runs.frame()[keys].assign(**{"measured.step_time_s": 1.1 * runs.frame()["step_time_s"]})
    found = rd.calibrate(frame, "megatron_lm", parameters=["matmul_efficiency"], out="mine")
    assert found.fitted.values["matmul_efficiency"] < 0.95  # runs that are a tenth slower
    assert (tmp_path / "conf/software/mine.yaml").is_file()
    with pytest.raises(ValueError, match="out='a b'"):
        rd.calibrate(frame, "megatron_lm", out="a b")
    with pytest.raises(ValueError, match="no row has software=nemo"):
        rd.calibrate(frame.assign(software="megatron_lm"), "nemo")


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((program.ROOT / "docs" / "analysis.ipynb").read_text())
    names: dict[str, Any] = {}
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in cells:
            exec(compile(source, "analysis.ipynb", "exec"), names)


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (program.ROOT / "README.md").read_text(), re.DOTALL)
    own = [block for block in blocks if "import rapid_dse as rd" in block]
    assert own
    for block in own:
        exec(compile(block, "README.md", "exec"), {})
