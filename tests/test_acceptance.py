"""What users were promised, typed as they would type it: commands, tables, mistakes, interruptions."""

from __future__ import annotations

import os
import signal
import time
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import yaml
from program import ROOT, check_results, done, one_line, process, rows, run, start, well


def test_one_trial_reports_and_leaves_nothing_behind(tmp_path: Path) -> None:
    ended = well(process(tmp_path, "hw=h100", "model=llama3_1_70b", "parallel.tp=8"))
    words = ("step time", "peak memory", "MFU", "tokens/s", "energy", "cost", "compute", "activations", "sequence_parallel=true", "dp=8")
    for word in words:
        assert word in ended.out
    assert list(tmp_path.iterdir()) == []


def test_the_first_sweep_of_the_issue(tmp_path: Path) -> None:
    ended = well(process(tmp_path, "-m", "hw=h100", "parallel.tp=1,8,64"))
    table = rows(tmp_path)
    check_results(table)
    assert sorted(table["parallel.tp"]) == [1, 8, 64]
    assert (table["hw.num_gpus"] == table["parallel.tp"] * table["parallel.dp"]).all()
    assert "results" in ended.out
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_the_second_sweep_of_the_issue(tmp_path: Path) -> None:
    done(tmp_path, "-m", "hw=h100,a100", "model=llama3_1_8b,llama3_1_70b", "parallel.tp=1,2,4,8", "parallel.pp=range(1,5)")
    table = rows(tmp_path)
    check_results(table)
    found = set(zip(table["hw"], table["model"], table["parallel.tp"], table["parallel.pp"], strict=True))
    assert found == set(product(["h100", "a100"], ["llama3_1_8b", "llama3_1_70b"], [1, 2, 4, 8], [1, 2, 3, 4]))
    assert len(table) == 64
    invalid = table[table["status"] == "invalid"]
    assert set(invalid["parallel.pp"]) == {3}, "64 GPUs do not come out as a multiple of 3"
    assert invalid["step_time_s"].isna().all()
    assert invalid["reason"].str.contains("num_gpus").all()


def test_a_rerun_computes_only_what_is_missing(tmp_path: Path) -> None:
    base = ("-m", "parallel.micro_batch_size=1,2", "search.study=again")
    done(tmp_path, *base, "parallel.tp=1,2")
    first = rows(tmp_path).set_index("key")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results/again").glob("*.parquet")}
    done(tmp_path, *base, "parallel.tp=1,2")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results/again").glob("*.parquet")} == before
    done(tmp_path, *base, "parallel.tp=1,2,4")
    table = rows(tmp_path)
    check_results(table)
    assert len(table) == 6
    both = table.set_index("key").loc[first.index]
    assert (both["step_time_s"] == first["step_time_s"]).all()
    assert (both["elapsed_s"] == first["elapsed_s"]).all(), "a row was computed again"


def test_order_of_keys_and_values_does_not_change_what_a_trial_is(tmp_path: Path) -> None:
    done(tmp_path, "-m", "parallel.tp=1,2", "parallel.pp=1,2", "search.study=a")
    done(tmp_path, "-m", "parallel.pp=2,1", "parallel.tp=2,1", "search.study=b")
    done(tmp_path, "-m", "parallel.tp=2", "parallel.pp=2", "search.study=c")
    keys = {study: set(pd.read_parquet(tmp_path / "results" / study)["key"]) for study in "abc"}
    assert keys["a"] == keys["b"]
    assert len(keys["c"]) == 1
    assert keys["c"] < keys["a"]


def test_a_swept_scenario_key_is_a_column(tmp_path: Path) -> None:
    done(tmp_path, "-m", "hw.memory.bandwidth=2e12,3.35 TB/s", "workload.seq_len=4096,8192", "software.async_tp=true,false")
    table = rows(tmp_path)
    check_results(table)
    assert len(table) == 8
    assert sorted(set(table["hw.memory.bandwidth"])) == [2e12, 3.35e12]
    assert sorted(set(table["workload.seq_len"])) == [4096, 8192]
    slow = table[table["hw.memory.bandwidth"] == 2e12]["step_time_s"].sum()
    assert slow > table[table["hw.memory.bandwidth"] == 3.35e12]["step_time_s"].sum()


@pytest.mark.parametrize(
    "override",
    [
        *("software.async_tp=true", "model.sliding_window=1024", "hw.network.dimensions.0.bandwidth=300 GB/s", "hw.gpus_per_node=4"),
        *("hw.network.dimensions.1.latency=1 us", "hw.memory.usable=60e9", "workload.precision=fp8", "hw.operator_model=roofline"),
        *("parallel.order=[tp,cp,ep,pp,dp]", "search.top=3", "parallel.zero=3", "parallel.recompute=none", "debug.hw_snapshots=false"),
    ],
)
def test_keys_that_the_yaml_leaves_out_are_overridable(tmp_path: Path, override: str) -> None:
    done(tmp_path, override)


def test_every_legal_value(tmp_path: Path) -> None:
    space = ("parallel.tp=all", "parallel.pp=all", "parallel.schedule=all", "parallel.vpp=all")
    ended = done(tmp_path, "-m", "model=llama3_1_8b", "hw.num_gpus=16", *space)
    table = rows(tmp_path)
    check_results(table)
    assert set(table["status"]) <= {"ok", "oom"}, "what is enumerated and illegal is counted, not stored"
    assert "interleaved_1f1b" in ended.out
    assert "megatron_lm does not offer zero_bubble" in ended.out
    assert set(table["parallel.schedule"]) == {"none", "1f1b", "interleaved_1f1b"}, "what its framework lacks is counted too"


SWEEPS = {path.stem: path.read_text() for path in sorted((ROOT / "sweeps").glob("*.yaml"))}


@pytest.mark.parametrize("name", SWEEPS)
def test_named_sweeps_compose_and_the_command_line_wins(tmp_path: Path, name: str) -> None:
    of_training = {"zero": 1, "recompute": "full", "vpp": 1, "micro_batch_size": 1}
    serves = "override /workload: inference" in SWEEPS[name]
    given = {"tp": 8, "cp": 1} | ({} if serves else of_training)
    small = {
        "chip_and_layout": ("search.n_trials=60",),
        "days_and_dollars": ("hw.num_gpus=2048,16384",),
        "llama3_1_405b_16384gpus": ("parallel.pp=8,16",),
        "which_chip_serves_cheapest": ("workload.concurrency=16,128",),
        "deepseek_v3_2048xh800": ("parallel.recompute_modules=null",),  # what its selective recomputation makes again
        "qwen3_235b_256xh100": ("software.expert_overlap=false",),  # it needs chunks, and layers that do not run again
        "fault_sensitivity": ("model.num_hidden_layers=2", "workload.global_batch_size=4", "workload.seq_len=512"),
    }
    narrow = [f"parallel.{key}={value}" for key, value in given.items()]
    done(tmp_path, "-m", f"+sweeps={name}", *narrow, "search.jobs=1", *small.get(name, ()))
    table = rows(tmp_path)
    check_results(table)
    assert set(table["workload.kind"]) == {"inference" if serves else "training"}
    for key, value in given.items():
        assert set(table[f"parallel.{key}"]) == {value}, key
    assert len(table) > 1
    assert (table["status"] == "ok").any()
    assert (tmp_path / "results" / name).is_dir()


BAD = [
    (["-m", "parallel.tp=8,16", 'search.constraints=["peak_memory<=3.5e10"]'], ["search.constraints", "peak_memory_bytes"]),
    (["parallel.pp=8", "parallel.tp=4", "parallel.schedule=none"], ["a pipeline needs a schedule"]),
    (["parallel.tpp=2"], ["parallel.tpp", "tp"]),
    (["modle=llama3_1_70b"], ["modle", "model"]),
    (["hw=h1000"], ["h1000", "h100"]),
    (["model=lama3_1_70b"], ["lama3_1_70b", "llama3_1_70b"]),
    (["parallel.tp=eight"], ["parallel.tp", "eight"]),
    (["workload.seq_len=long"], ["workload.seq_len", "long"]),
    (["parallel.tp=3", "hw.num_gpus=48"], ["num_attention_heads"]),
    (["parallel.tp=0"], ["parallel.tp", "0"]),
    (["parallel.tp=-2"], ["parallel.tp", "-2"]),
    (["parallel.pp=-1"], ["parallel.pp", "-1"]),
    (["parallel.dp=0"], ["parallel.dp", "0"]),
    (["parallel.tp=2.5"], ["parallel.tp", "2.5"]),
    (["parallel.zero=4"], ["parallel.zero", "4"]),
    (["parallel.recompute=some"], ["parallel.recompute", "some"]),
    (["parallel.schedule=fast", "parallel.pp=2"], ["parallel.schedule", "fast"]),
    (["workload.precision=int4"], ["workload.precision", "int4"]),
    (["workload.global_batch_size=1000"], ["global_batch_size"]),
    (["hw.num_gpus=7", "parallel.tp=2"], ["num_gpus"]),
    (["hw.memory.bandwidth=3 parsecs"], ["hw.memory.bandwidth", "parsecs"]),
    (["hw.memory.bandwidth=3 GB"], ["hw.memory.bandwidth"]),
    (["hw.network.dimensions.7.bandwidth=1e9"], ["hw.network.dimensions.7"]),
    (["hw.network.dimensions.0.bandwith=1e9"], ["bandwith", "bandwidth"]),
    (["hw.network.dimensions.0.topology=star"], ["topology", "star"]),
    (["backend=quantum"], ["quantum", "analytical"]),
    (["search=gird"], ["gird", "grid"]),
    (["hw=a100", "workload.precision=fp8"], ["fp8", "a100"]),
    (["model.head_dim=null", "model.hidden_size=1000"], ["hidden_size"]),
    (["parallel.order=[tp,cp]"], ["parallel.order"]),
    (["parallel.tp"], ["parallel.tp"]),
    (["parallel.tp=[1"], ["parallel.tp"]),
    (["parallel.tp="], ["parallel.tp"]),
    (["parallel.tp=1,2"], ["parallel.tp", "-m"]),
    (["--fast"], ["--fast"]),
    (["+sweeps=none_such", "-m"], ["none_such"]),
    (["-m", "parallel.tp=1,eight"], ["parallel.tp", "eight"]),
    (["-m", "parallel.tp=1,0"], ["parallel.tp", "0"]),
    (["-m", "hw=h100,h1000"], ["h1000", "h100"]),
    (["-m", "parallel.tpp=1,2"], ["parallel.tpp", "tp"]),
    (["-m", "workload.seq_len=1024,long"], ["workload.seq_len", "long"]),
    (["-m", "parallel.tp=range(5,1)"], ["parallel.tp"]),
    (["-m", "hw.memory.bandwidth=interval(2e12,6e12)"], ["hw.memory.bandwidth"]),
    (["-m", "parallel.tp=all,1"], ["parallel.tp", "all"]),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=lambda value: " ".join(value))
def test_a_mistake_is_one_clear_line(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    message = one_line(run(tmp_path, *arguments))
    for word in words:
        assert word in message, message
    assert list(tmp_path.iterdir()) == []


def test_an_illegal_layout_is_a_row_of_a_sweep(tmp_path: Path) -> None:
    done(tmp_path, "-m", "parallel.tp=3,8")
    table = rows(tmp_path).set_index("parallel.tp")
    assert table["status"][3] == "invalid"
    assert table["status"][8] in ("ok", "oom")
    assert table["reason"][3]


def test_a_results_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    assert "taken" in one_line(run(tmp_path, "-m", "parallel.tp=1,2", "search.results_dir=taken"))
    one_line(run(tmp_path, "-m", "parallel.tp=1,2", "search.results_dir=/proc/results"))
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    started = start(tmp_path, "-m", "parallel.tp=1,2,4,8")
    assert started.stdout is not None
    assert started.stderr is not None
    started.stdout.close()
    assert "Traceback" not in started.stderr.read()
    started.wait(timeout=60)
    check_results(rows(tmp_path))


LARGE = ("-m", "+sweeps=llama3_1_405b_16384gpus", "search.study=large")


def finished_files(folder: Path) -> list[Path]:
    return sorted((folder / "results").glob("large/*.parquet"))


def after_the_first_file(folder: Path, number: signal.Signals) -> tuple[int, str]:
    """Starts the large sweep, sends ``number`` once something is stored; exit code and stderr."""
    before = set(finished_files(folder))
    started = start(folder, *LARGE, start_new_session=True)
    deadline = time.monotonic() + 60
    while set(finished_files(folder)) == before and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert started.poll() is None, "the sweep ended before the signal"
    os.killpg(started.pid, number)  # a terminal's Ctrl-C reaches the workers too
    _, err = started.communicate(timeout=60)
    return started.returncode, err


@pytest.mark.slow
def test_interrupted_and_killed_sweeps_go_on_where_they_were(tmp_path: Path) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    undisturbed.mkdir()
    disturbed.mkdir()
    code, err = after_the_first_file(disturbed, signal.SIGINT)
    assert code == 130
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert "kept" in err
    assert "the same command goes on" in err
    kept = rows(disturbed)
    check_results(kept)
    code, _ = after_the_first_file(disturbed, signal.SIGKILL)
    assert code == -signal.SIGKILL
    for path in finished_files(disturbed):
        pd.read_parquet(path)  # no file is cut short
    done(disturbed, *LARGE)
    done(undisturbed, *LARGE)
    all_rows, wanted = rows(disturbed), rows(undisturbed)
    check_results(all_rows)
    assert set(all_rows["key"]) == set(wanted["key"])
    again = all_rows.set_index("key").loc[kept["key"]]
    assert (again["elapsed_s"].to_numpy() == kept["elapsed_s"].to_numpy()).all(), "a finished row was computed again"
    columns = ["step_time_s", "peak_memory_bytes", "cost_usd"]
    assert (all_rows.set_index("key")[columns].sort_index() == wanted.set_index("key")[columns].sort_index()).all().all()


def test_snapshots_of_hardware_read_back(tmp_path: Path) -> None:
    space = ("parallel.tp=2,4,8", "hw.memory.bandwidth=2e12,3e12", "hw.num_gpus=64")
    done(tmp_path, "-m", *space, "debug.hw_snapshots=true", "search.study=a")
    files = sorted((tmp_path / "dbg_hw_conf").glob("*/baseline_*_tp*_cp*_dp*_lp*.yaml"))
    assert files
    assert {yaml.safe_load(path.read_text())["memory"]["bandwidth"] for path in files} == {2e12, 3e12}
    (tmp_path / "conf/hw").mkdir(parents=True)
    (tmp_path / "conf/hw/snapshot.yaml").write_text(
        next(p for p in files if yaml.safe_load(p.read_text())["memory"]["bandwidth"] == 2e12).read_text()
    )
    done(tmp_path, "-m", "hw=snapshot", "parallel.tp=2,4,8", "search.study=b")
    original, again = (pd.read_parquet(tmp_path / "results" / study) for study in "ab")
    original = original[original["hw.memory.bandwidth"] == 2e12]
    columns = ["parallel.tp", "step_time_s", "peak_memory_bytes", "energy_j", "cost_usd"]
    assert original[columns].sort_values("parallel.tp").to_numpy().tolist() == again[columns].sort_values("parallel.tp").to_numpy().tolist()


def cases(folder: Path, text: str, name: str = "cases.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def evaluate(folder: Path, text: str, out: str = "out.csv") -> pd.DataFrame:
    done(folder, str(cases(folder, text)), "--out", out, module="rapid_dse.evaluate")
    return pd.read_csv(folder / out) if out.endswith("csv") else pd.read_parquet(folder / out)


def test_evaluate_carries_columns_and_fills_blanks_with_defaults(tmp_path: Path) -> None:
    table = evaluate(
        tmp_path,
        "case_id,hw,model,hw.num_gpus,parallel.tp,parallel.dp,parallel.sequence_parallel,measured.step_time_s,note\n"
        "a,h100,llama3_1_8b,8.0,2.0,,False,1.5,first\n"
        "b,,llama3_1_8b,8,2,4,True,,\n"
        "c,a100,llama3_1_8b,8,3,,,2.5,'third'\n",
    )
    assert table["case_id"].tolist() == ["a", "b", "c"]
    assert table["measured.step_time_s"].tolist()[::2] == [1.5, 2.5]
    assert table["status"].tolist()[2] == "invalid"
    assert "num_attention_heads" in table["reason"][2]
    assert table["step_time_s"].notna().tolist() == [True, True, False]
    assert table["step_time_s"][0] != table["step_time_s"][1]


def test_evaluate_prices_as_single_sweeps_do(tmp_path: Path) -> None:
    table = evaluate(tmp_path, "model,parallel.tp,software.attention\nllama3_1_8b,4,unfused\nllama3_1_8b,8,\n", "out.parquet")
    done(tmp_path, "-m", "model=llama3_1_8b", "parallel.tp=4", "software.attention=unfused", "search.study=a")
    done(tmp_path, "-m", "model=llama3_1_8b", "parallel.tp=8", "search.study=b")
    swept = [pd.read_parquet(tmp_path / "results" / study)["step_time_s"].item() for study in "ab"]
    assert table["step_time_s"].tolist() == swept


BAD_TABLES = [
    ("parallel.tp,parallel.tpp\n1,2\n", ["parallel.tpp"]),
    ("model.hidden_sise\n4096\n", ["model.hidden_sise", "hidden_size"]),
    ("parallel.tp\n1\neight\n", ["parallel.tp", "eight"]),
    ("parallel.tp\n1\n0\n", ["parallel.tp", "0"]),
    ("hw\nh100\nh1000\n", ["h1000"]),
    ("parallel.tp,parallel.tp\n1,2\n", ["parallel.tp"]),
    ("", []),
    ("parallel.tp\n", []),
]


@pytest.mark.parametrize(("text", "words"), BAD_TABLES, ids=lambda value: repr(value)[:40])
def test_a_bad_table_is_one_clear_line(tmp_path: Path, text: str, words: list[str]) -> None:
    message = one_line(run(tmp_path, str(cases(tmp_path, text)), "--out", "out.csv", module="rapid_dse.evaluate"))
    for word in words:
        assert word in message, message
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        *(["none_such.csv", "--out", "o.csv"], [".", "--out", "o.csv"], ["cases.csv", "--out", "o.txt"], ["cases.csv"], []),
        *(["cases.csv", "--out", "none/such/o.csv"], ["binary.parquet", "--out", "o.csv"], ["latin.csv", "--out", "o.csv"]),
    ],
    ids=" ".join,
)
def test_evaluate_with_files_that_are_none(tmp_path: Path, arguments: list[str]) -> None:
    cases(tmp_path, "parallel.tp\n1\n")
    (tmp_path / "binary.parquet").write_bytes(b"PAR1 but not really")
    (tmp_path / "latin.csv").write_bytes(b"parallel.tp,note\n1,caf\xe9\n")
    ended = run(tmp_path, *arguments, module="rapid_dse.evaluate")
    assert ended.code == 2
    assert "Traceback" not in ended.err
    assert ended.err.strip()


@pytest.mark.parametrize("where", ["results", "results/a"])
def test_rank(tmp_path: Path, where: str) -> None:
    done(tmp_path, "-m", "model=llama3_1_8b", "parallel.tp=1,2,3,4,8", "parallel.zero=0,1,3", "search.study=a")
    table = rows(tmp_path)
    ended = done(tmp_path, where, "--top", "2", "--by", "cost_usd", module="rapid_dse.rank")
    assert (table["status"] == "ok").sum() > 2
    assert "num_attention_heads" in ended.out
    best = table[table["status"] == "ok"].sort_values("cost_usd").iloc[0]
    assert f"tp{best['parallel.tp']} " in ended.out or f"dp{best['parallel.dp']:.0f} " in ended.out
    assert len(one_line(run(tmp_path, where, "--by", "beauty", module="rapid_dse.rank"))) > 0


def test_a_named_sweep_takes_an_override_within_a_list(tmp_path: Path) -> None:
    done(tmp_path, "-m", "+sweeps=llama3_1_70b_512xh100", "hw.network.dimensions.0.bandwidth='900 GB/s'", "parallel.tp=8", "parallel.pp=1")
    table = rows(tmp_path)
    check_results(table)
    assert set(table["hw.network.dimensions.0.bandwidth"]) == {9e11}


def test_a_table_says_which_columns_override_nothing(tmp_path: Path) -> None:
    path = cases(tmp_path, "hw,model,paralel.tp\nh100,llama3_1_8b,8\n")
    printed = done(tmp_path, str(path), "--out", "out.csv", module="rapid_dse.evaluate").out
    assert "override nothing, carried along: paralel.tp" in printed
    path = cases(tmp_path, "a;b\n1;2\n")
    assert "no column is an override key" in one_line(run(tmp_path, str(path), "--out", "out.csv", module="rapid_dse.evaluate"))


def test_ranking_files_that_are_no_results_is_one_line(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "x.parquet")
    line = one_line(run(tmp_path, ".", module="rapid_dse.rank"))
    assert line.startswith("rapid_dse: x.parquet: no results of rapid_dse (it has no column key); allowed: ")
    pd.DataFrame({"a": ["text"]}).to_parquet(tmp_path / "y.parquet")
    line = one_line(run(tmp_path, ".", module="rapid_dse.rank"))
    assert ".: none of its 2 files holds results that can be read; the first: x.parquet: no results of rapid_dse" in line


def test_results_that_lie_deeper_than_a_folder_of_studies_are_not_looked_for(tmp_path: Path) -> None:
    place = tmp_path / "home/results/s"
    place.mkdir(parents=True)
    done(place, "-m", "parallel.tp=1,2", "search.study=s", "search.results_dir=../")
    assert "2 trials" in done(tmp_path, "home/results", module="rapid_dse.rank").out
    for command in ("rank", "explain", "report"):
        line = one_line(run(tmp_path, ".", module=f"rapid_dse.{command}"))
        assert line == "rapid_dse: .: no results in this folder; allowed: a results file, results/<study>, or a folder of studies"


def test_ranking_results_whose_columns_do_not_go_together_is_one_line(tmp_path: Path) -> None:
    for number, step in enumerate((1.0, "a second")):
        found = {"key": [f"{number:032x}"], "status": ["ok"], "reason": [None], "fits": [True], "step_time_s": [step]}
        pd.DataFrame(found).to_parquet(tmp_path / f"{number}.parquet")
    assert "no results of one kind" in one_line(run(tmp_path, ".", module="rapid_dse.rank"))


@pytest.mark.parametrize("name", ["a/b", "../x", ".hidden"])
def test_a_profile_is_written_under_a_plain_name(tmp_path: Path, name: str) -> None:
    path = cases(tmp_path, "hw,measured.step_time_s\nh100,1\n")
    ended = run(tmp_path, str(path), "--software", "nemo", "--out", name, module="rapid_dse.calibrate")
    assert "allowed: the name of a profile" in one_line(ended)
