"""Faults around a command: a driver that is killed, folders that cannot be written, a terminal without width."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from generated import ROOT
from program import done, rows, run, start

TRIAL = ("hw=h100", "model=llama3_1_8b", "hw.num_gpus=8", "parallel.tp=2")
SWEEP = ("-m", "hw=h100", "model=llama3_1_8b", "hw.num_gpus=8", "parallel.tp=2,4", "search.study=s")
SLOW = (
    *("-m", "hw=h100", "model=llama3_1_8b", "hw.num_gpus=16", "parallel.tp=1,2,4", "parallel.pp=1,2", "search.jobs=2"),
    *("backend=full_astrasim_flattened", "workload.global_batch_size=64,128"),
)


def of_session(session: int) -> list[int]:
    """Processes of a session that run, by number."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, number, *_ = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(number) == session and state != "Z":
            found.append(int(path.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are told by /proc")
def test_a_driver_that_is_killed_leaves_no_workers(tmp_path: Path) -> None:
    command, environment = [sys.executable, "-m", "rapid_dse", *SLOW], {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while len(of_session(process.pid)) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(of_session(process.pid)) >= 3, "a driver and two workers"
        process.kill()
        process.wait()
        deadline = time.monotonic() + 15
        while of_session(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert of_session(process.pid) == []
    finally:
        for number in of_session(process.pid):
            os.kill(number, signal.SIGKILL)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A view of ``tmp_path/work`` through which nothing can be written."""
    view = tmp_path / "view"
    view.mkdir()
    (tmp_path / "work").mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "--bind", tmp_path / "work", view], check=False, capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("this user may not mount")
    subprocess.run(["mount", "-o", "remount,ro,bind", view], check=True)
    try:
        yield view
    finally:
        subprocess.run(["umount", view], check=True)


def test_a_whole_study_is_read_where_nothing_can_be_written(tmp_path: Path, read_only: Path) -> None:
    first = done(tmp_path / "work", *SWEEP)
    again = done(read_only, *SWEEP)
    assert "all read from there" in again.out
    assert first.out.splitlines()[:5] == again.out.splitlines()[:5]
    more = run(read_only, *SWEEP[:-2], "parallel.tp=2,4,8", SWEEP[-1])
    assert more.code == 2
    assert "Read-only file system" in more.err


def test_sigterm_ends_a_sweep_with_its_own_code_and_is_named(tmp_path: Path) -> None:
    with start(tmp_path, *SLOW, "search.study=s", start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "results/s").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert err.splitlines()[-1].startswith("ended by SIGTERM after ")
    assert "Traceback" not in err
    assert of_session(process.pid) == []
    assert not list((tmp_path / "results/s").glob(".*"))


def test_closed_standard_files_harm_no_table(tmp_path: Path) -> None:
    command = f"{sys.executable} -m rapid_dse {' '.join(SWEEP)} <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode == 0
    assert len(rows(tmp_path)) == 2


@pytest.mark.parametrize("columns", ["0", "1", "-5", "x"])
def test_a_terminal_of_any_width_gets_its_report(tmp_path: Path, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert "step" in done(tmp_path, *TRIAL).out
