"""The commands as users type them: in processes of their own where that is what is tested, else in this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import program
import pytest

from rapid_dse import command

ROOT = Path(__file__).parent.parent


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command in this process."""
    ended = program.run(cwd, *arguments)
    return subprocess.CompletedProcess(arguments, ended.code, ended.out, ended.err)


def run_process(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "rapid_dse", *arguments], cwd=cwd, env=environment(), text=True, capture_output=True, timeout=120
    )


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


def left_behind(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_trial_from_the_checkout_leaves_no_hydra_folders() -> None:
    before = left_behind(ROOT)
    assert run("parallel.tp=8", cwd=ROOT).returncode == 0
    assert left_behind(ROOT) - before <= {"__pycache__"}


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (["hw=h100", "parallel.tp=1,8,64"], 3),
        (["hw=h100,a100", "model=llama3_1_8b,llama3_1_70b", "parallel.tp=1,2,4,8", "parallel.pp=range(1,5)"], 64),
        (["software.async_tp=true,false", "hw.network.dimensions.0.bandwidth=100GB/s", "parallel.tp=8"], 2),
        (["parallel.tp=3,8", "workload.seq_len=4096,8192"], 4),
    ],
)
def test_a_sweep_has_a_row_for_every_combination(tmp_path: Path, arguments: list[str], rows: int) -> None:
    done = run("-m", *arguments, "search.study=s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(pd.read_parquet(tmp_path / "results" / "s")) == rows
    assert left_behind(tmp_path) == {"results"}


def test_illegal_layouts_of_a_list_are_rows_with_their_rule(tmp_path: Path) -> None:
    run("-m", "parallel.tp=3,8", "search.study=s", cwd=tmp_path)
    table = pd.read_parquet(tmp_path / "results" / "s").set_index("parallel.tp")
    assert table.loc[3, "status"] == "invalid"
    assert "num_attention_heads" in str(table.loc[3, "reason"])
    assert table.loc[8, "status"] in ("ok", "oom")


def test_all_takes_every_legal_value_and_counts_the_others(tmp_path: Path) -> None:
    done = run("-m", "parallel.tp=all", "parallel.pp=1,3", "search.study=s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tp · cp · pp · dp must equal hw.num_gpus" in done.stdout
    table = pd.read_parquet(tmp_path / "results" / "s")
    assert sorted(table["parallel.tp"]) == [1, 2, 4, 8, 16]
    assert set(table["status"]) <= {"ok", "oom"}


def test_a_named_sweep_yields_to_the_command_line(tmp_path: Path) -> None:
    fixed = ["parallel.tp=8", "parallel.recompute=full", "parallel.micro_batch_size=1", "search.study=s"]
    done = run("-m", "+sweeps=llama3_1_70b_512xh100", "hw=h200", *fixed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(tmp_path / "results" / "s")
    assert set(table["hw"]) == {"h200"}
    assert set(table["parallel.tp"]) == {8}
    assert set(table["hw.num_gpus"]) == {512}


def test_a_users_own_options_and_sweeps_are_found(tmp_path: Path) -> None:
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/mine.yaml").write_text((ROOT / "conf/model/llama3_1_8b.yaml").read_text())
    (tmp_path / "sweeps").mkdir()
    space = "search: {study: own, space: {parallel.tp: '1,2', hw: [h100, a100]}}"
    (tmp_path / "sweeps/own.yaml").write_text(f"# @package _global_\ndefaults:\n  - override /model: mine\n{space}\n")
    done = run("-m", "+sweeps=own", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(pd.read_parquet(tmp_path / "results/own")) == 4


SERVED_EXPERTS = ("workload=inference", "model=mixtral_8x7b")
BAD = {
    "unknown key": (["worklaod.seq_len=1"], "did you mean 'workload.seq_len'"),
    "key in the wrong place": (["tp=8"], "did you mean 'parallel.tp'"),
    "misspelt key": (["parallel.recompte=full"], "did you mean 'recompute'"),
    "unknown option": (["hw=h101"], "hw=h101: no such option; did you mean 'h100'"),
    "capitals": (["hw=H100"], "hw=H100: no such option; did you mean 'h100'"),
    "unknown option in a sweep": (["-m", "hw=h100,h101"], "did you mean 'h100'"),
    "unknown sweep": (["-m", "+sweeps=llama3_1_70b_512xh10"], "did you mean 'llama3_1_70b_512xh100'"),
    "string for a number": (["parallel.tp=abc"], "parallel.tp='abc'"),
    "string for a number in a sweep": (["-m", "parallel.tp=1,abc"], "parallel.tp='abc'"),
    "heads that do not divide": (
        ["parallel.tp=48", "hw.num_gpus=48", "workload.global_batch_size=1"],
        "tp must divide num_attention_heads (here tp=48, num_attention_heads=",
    ),
    "experts that do not fit a pool": (
        [*SERVED_EXPERTS, "hw.num_gpus=8", "parallel.prefill.tp=4", "parallel.prefill.ep=8", "parallel.decode.tp=4"],
        "does not fit the engine (here prefill.etp=1, prefill.ep=8, prefill.tp=4, prefill.attention_dp=1, cp=1)",
    ),
    "pools of other GPUs than there are": (
        [*SERVED_EXPERTS, "hw.num_gpus=16", "parallel.prefill.tp=4", "parallel.decode.tp=4", "parallel.decode.workers=2"],
        "must have hw.num_gpus GPUs (here prefill.workers=1, decode.workers=2, dp=1, num_gpus=16)",
    ),
    "two loads": (
        [*SERVED_EXPERTS, "hw.num_gpus=8", "parallel.tp=8", "workload.concurrency=4", "workload.request_rate=2.5"],
        "not several (here concurrency=4, request_rate=2.5)",
    ),
    "a rate beyond capacity": (
        [*SERVED_EXPERTS, "hw.num_gpus=8", "parallel.tp=8", "workload.request_rate=900"],
        "workload.num_prompts says",
    ),
    "a rate of a model beyond memory": ([*SERVED_EXPERTS, "hw.num_gpus=1", "workload.request_rate=900"], "(nor does it fit in memory)"),
    "zero": (["parallel.tp=0"], "parallel.tp=0"),
    "negative": (["-m", "parallel.pp=-1,1"], "parallel.pp=-1"),
    "batch": (
        ["workload.global_batch_size=7"],
        "dp · micro_batch_size must divide global_batch_size (here dp=64, micro_batch_size=1, global_batch_size=7)",
    ),
    "unit": (["hw.memory.bandwidth=3 lightyears"], "lightyears"),
    "index": (["hw.network.dimensions.7.bandwidth=1"], "0 to 1"),
    "precision that the chip lacks": (["hw=a100", "workload.precision=fp8"], "workload.precision=fp8"),
    "interval": (["-m", "parallel.tp=interval(1,4)"], "interval"),
    "all alone": (["parallel.tp=all"], "-m"),
    "list alone": (["parallel.tp=1,2"], "-m"),
    "no override": (["hello"], "key=value"),
    "a constraint without quotes": (["search.constraints=[step_time_s<=1]"], "needs quotes, as 'search.constraints="),
    "unknown flag": (["--fast"], "--fast"),
    "deletion": (["~hw"], "cannot be deleted"),
    "results folder": (["-m", "parallel.tp=1,8", "search.results_dir=/proc/nowhere"], "/proc/nowhere"),
}

# These ways of going wrong, one of each stage that finds them, are shown by a process too.
OF_A_PROCESS = ("key=value", "did you mean 'recompute'", "did you mean 'llama3_1_70b_512xh100'", "parallel.pp=-1", "/proc/nowhere")


@pytest.mark.parametrize(("arguments", "part"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_clear_line_and_exit_code_2(tmp_path: Path, arguments: list[str], part: str) -> None:
    command = run_process if part in OF_A_PROCESS else run
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert left_behind(tmp_path) == set()


def test_ctrl_c_ends_a_sweep_with_130_and_keeps_what_was_done(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rapid_dse", "-m", "+sweeps=llama3_1_405b_16384gpus", "hw=h100,h200,b200,gb200,a100,h800"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        folder = tmp_path / "results" / "llama3_1_405b_16384gpus"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not list(folder.glob("*.parquet")):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert len(pd.read_parquet(folder)) > 0


@pytest.mark.parametrize("module", ["rapid_dse", "rapid_dse.evaluate"])
def test_help(tmp_path: Path, module: str) -> None:
    done = program.run(tmp_path, "--help", module=module)
    assert done.code == 0
    assert "python -m rapid_dse" in done.out


@pytest.mark.parametrize(("arguments", "spared"), [(["parallel.tp=8"], "pyarrow"), (["-m", "parallel.tp=1,8"], "joblib")])
def test_nothing_is_imported_that_is_not_used(tmp_path: Path, arguments: list[str], spared: str) -> None:
    heavy = {"pandas", "optuna", "numba", "scipy", "matplotlib", "hydra", "omegaconf", "rich", "pyarrow.compute", "numpy.ma", spared}
    code = f"import sys; from rapid_dse.__main__ import run; run({arguments}); print(*({heavy} & set(sys.modules)), file=sys.stderr)"
    wide = {name: value for name, value in environment().items() if name != "COLUMNS"}  # rich breaks lines for those who ask
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=wide, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip()


def test_a_signal_at_a_commands_very_end_has_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_flushed", lambda *given: os.kill(os.getpid(), signal.SIGTERM))
    assert command.guarded(lambda arguments: 0, []) == 143
