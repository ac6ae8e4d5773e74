"""What commands print: on a terminal without the characters, into a pipe that nobody reads, and where Python leaves out assertions."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import io
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from program import ROOT, one_line, run
from rich.console import Console

from rapid_dse import __main__, evaluate, rank
from rapid_dse.command import guarded
from rapid_dse.common import compiled
from rapid_dse.common.standard_output import StandardOutput
from rapid_dse.events.programs import script
from rapid_dse.sweep import console

FITS = ("hw=h200", "hw.num_gpus=64", "parallel.tp=8", "parallel.pp=4")
COMMANDS: dict[str, tuple[Any, Sequence[str]]] = {
    "a trial": (__main__.run, [*FITS]),
    "a sweep": (__main__.run, ["-m", *FITS, "search.study=s"]),
    "a search": (__main__.run, ["-m", "search=optuna", *FITS[:3], "parallel.pp=2,4", "search.n_trials=2", "search.study=o"]),
    "rank": (rank.run, ["results/s"]),
    "evaluate": (evaluate.run, ["cases.csv", "--out", "out.csv"]),
    "help": (__main__.run, ["--help"]),
    "a parser's help": (rank.run, ["--help"]),
    "the configuration": (__main__.run, ["--cfg"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("printed")
    (made / "cases.csv").write_text("parallel.tp,parallel.pp,note\n8,3,a\n")
    run(made, *COMMANDS["a sweep"][1])
    return made


@pytest.mark.parametrize("name", COMMANDS)
def test_a_terminal_without_the_characters_gets_others(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, arguments = COMMANDS[name]
    monkeypatch.chdir(folder)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert guarded(command, arguments) == 0
    text = written.getvalue().decode("ascii")
    assert text
    assert ("+-" in text) == (name in ("a trial", "a sweep", "a search", "rank"))  # the error to expect of a row
    assert ("1 x tp * cp * pp * dp must equal" in text) == (name == "evaluate")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_pipe_that_nobody_reads_ends_a_command_quietly(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command, arguments = COMMANDS[name]
    monkeypatch.chdir(folder)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stream, contextlib.redirect_stdout(stream):
        assert guarded(command, arguments) == 0
        stream.flush()  # as at the end of the process
    assert capfd.readouterr().err == ""


def test_a_disk_that_is_full_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    with open("/dev/full", "w", encoding="utf-8") as stream, contextlib.redirect_stdout(stream):
        assert guarded(__main__.run, ["--version"]) == 2
    assert capfd.readouterr().err == "rapid_dse: standard output: No space left on device\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_full_disk_behind_standard_output_refuses_is_blamed_on_no_file(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command, arguments = COMMANDS[name]
    monkeypatch.chdir(folder)
    file = StandardOutput(os.open("/dev/full", os.O_WRONLY), "wb")
    with io.TextIOWrapper(io.BufferedWriter(file), encoding="utf-8", write_through=name != "help") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert guarded(command, arguments) == 2
    assert capfd.readouterr().err.endswith("rapid_dse: standard output: No space left on device\n")


@pytest.mark.parametrize("unbuffered", [[], ["-u"]])
def test_a_process_names_its_standard_output(unbuffered: list[str]) -> None:
    code = "import sys; from rapid_dse.command import guarded; sys.exit(guarded(lambda arguments: print('±' * 9000) or 0, []))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run([sys.executable, *unbuffered, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert (done.returncode, done.stderr) == (2, "rapid_dse: standard output: No space left on device\n")
    done = subprocess.run([sys.executable, *unbuffered, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "+-" * 9000 + "\n")


def test_functions_and_mappings_of_overrides_are_read_where_assertions_are_left_out(tmp_path: Path) -> None:
    command = [sys.executable, "-OO", "-m", "rapid_dse", "-m", "parallel.tp=range(1,4)", "hw.energy.flop={bf16:1e-12,fp32:2e-12}"]
    done = subprocess.run(
        [*command, "search.study=s"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "3 trials" in done.stdout


BAD = {
    "another sweeper": (["-m", "parallel.tp=1,2", "hydra/sweeper=basic"], "hydra/sweeper=basic: sweeps are tables here"),
    "another sweeper's class": (["-m", "parallel.tp=1,2", "hydra.sweeper._target_=x"], "no other sweeper prices them"),
    "Hydra's mode": (["-m", "parallel.tp=1,2", "hydra.mode=RUN"], "hydra.mode=RUN"),
    "an option of Hydra's that is a list": (["hydra/launcher=[1]"], "the name of an option"),
    "a range of everything": (["-m", "parallel.tp=range(1,100000000)"], "99,999,999 values; allowed: up to 100,000"),
    "a range with a step of 0": (["-m", "parallel.tp=range(0,4,0)"], "parallel.tp=range(0,4,0): a step of 0"),
    "too many combinations": (["-m", *(f"parallel.{key}=range(1,2000)" for key in ("tp", "pp", "dp"))], "7,988,005,999 combinations"),
    "nothing to rank by": (["-m", "parallel.tp=1,2", "search.objectives=[]"], "search.objectives=[]; allowed"),
    "a number of thousands of digits": (["parallel.tp=" + "9" * 5000], "a number of too many digits"),
    "lists in lists in lists": (["hw.memory.bandwidth=" + "[" * 2000 + "]" * 2000], "nested too deeply"),
}


@pytest.mark.parametrize(("arguments", "part"), BAD.values(), ids=BAD.keys())
def test_what_no_command_can_do_is_refused_in_a_line(tmp_path: Path, arguments: list[str], part: str) -> None:
    assert part in one_line(run(tmp_path, *arguments))
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_no_machine_holds_is_refused_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["backend=full_astrasim_flattened", "hw.num_gpus=64", "parallel.tp=8", "parallel.pp=8"]
    # 10^8 micro-batches, each a forward and a backward pass of each of 8 stages
    assert "1,600,000,000 nodes to write or more" in one_line(run(tmp_path, *keys, "workload.global_batch_size=100000000"))
    monkeypatch.setattr(script, "MOST_WRITTEN", 5_000)  # 64 micro-batches: 1,024 passes, of 10 layers each
    assert "8,192 nodes to write or more; allowed: up to 5,000" in one_line(run(tmp_path, *keys, "workload.global_batch_size=64"))


@pytest.mark.parametrize(
    "module", ["rapid_dse.rank", "rapid_dse.validate", "rapid_dse.calibrate", "rapid_dse.evaluate", "rapid_dse.network"]
)
def test_a_wrong_option_is_refused_in_a_line(tmp_path: Path, module: str) -> None:
    assert "(see --help)" in one_line(run(tmp_path, "--fast", module=module))


def test_of_two_commands_one_says_that_it_compiles_and_the_other_that_it_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    note = tmp_path / "kernel.compiled"
    other = threading.Thread(target=compiled._locked, args=(note, "as it is now"))
    with note.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another process compiles
        other.start()
        assert compiled._WAITING.wait(10)
        compiled._tell("the kernel")
        file.write("as it is now")
    other.join(10)
    compiled._tell("the kernel")
    assert caplog.messages == ["waiting for another command that is compiling the kernel", "compiling the kernel"]


def test_a_command_collects_garbage_once_it_has_started_and_then_as_often_as_before() -> None:
    gc.collect()
    usual, seen = gc.get_threshold(), []

    def command(_: Sequence[str]) -> int:
        seen.append(gc.get_threshold()[0])
        return 0

    assert guarded(command, []) == 0
    assert guarded(command, []) == 0
    gc.collect()
    assert min(seen) > 100 * usual[0]
    assert gc.get_threshold() == usual


@pytest.mark.parametrize("line", ["a  b", "[bold]x[/bold]", "x\x1b[31my\tz", "Größe: 3 µs", "", "two\nlines ", ":) :smile_cat:"])
def test_a_pipe_gets_what_rich_would_print(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    rich_one = Console(file=io.StringIO(), width=10**6, emoji=False)  # no text of this program means a picture
    for options in ({"markup": False, "soft_wrap": True}, {"highlight": False}):
        for one in (console.console(), rich_one):
            one.print(line, **options)
    assert sys.stdout.getvalue() == rich_one.file.getvalue()
