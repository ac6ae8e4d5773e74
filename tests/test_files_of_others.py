"""Sweep files, options, tables and launch files that others wrote: what they may not do, and files whose reading would not end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from generated import ROOT
from program import Ended, done, one_line, run

from rapid_dse.command import LONGEST
from rapid_dse.command import one_line as printed
from rapid_dse.common.bounded_files import MOST_VALUES_OF_ALIASES, require_few_aliases
from rapid_dse.sweep.driver import require_study
from rapid_dse.sweep.overrides import read
from rapid_dse.sweep.space import plan

SMALL = ("model=llama3_1_8b", "hw.num_gpus=8", "parallel.tp=2,4", "search.study=s")


def _doubled(line: str, reference: str) -> str:
    """Lines of which each stands twice for the next one: the first would have 2³⁰ characters."""
    return "\n".join([*(line.format(at, reference.format(at + 1)) for at in range(30)), line.format(30, "x")])


ASKS = {
    "a folder for results": "search: {results_dir: ../elsewhere}",
    "a storage": "search: {storage: 'sqlite:///elsewhere.db'}",
    "a cluster": "search: {launcher: dask, launcher_address: 'tcp://host:1'}",
    "trust": "search: {trust: true}",
    "a program": "backend: {astrasim: {binary: /bin/true}}",
    "snapshots": "debug: {hw_snapshots: true}",
    "artifacts": "backend: {artifacts: {timeline: true}}",
    "the environment": "model: {name: '${oc.env:HOME}'}",
    "the environment, by a name that is put together": "cluster: {name: oc}\nmodel: {name: '${${cluster.name}.env:HOME}'}",
    "the environment, for an option": "defaults: [{override /cluster: '${oc.env:HOME}'}]",
    "callbacks": "hydra: {callbacks: {a: {_target_: os.mkdir, path: made}}}",
    "a sweeper": "hydra: {sweeper: {_target_: os.mkdir, path: made}}",
    "references that double": "model: {name: '" + "${hw.name}" * 20 + "'}",
    "references that double beside all groups": _doubled("k{}: '{}'", "${{k{0}}}${{k{0}}}") + "\nmodel: {name: '${k0}'}",
    "references that double in Hydra's own part": "hydra:\n  job:\n    env_set:\n      "
    + _doubled("k{}: '{}'", "${{hydra.job.env_set.k{0}}}${{hydra.job.env_set.k{0}}}").replace("\n", "\n      ")
    + "\nmodel: {name: '${hydra.job.env_set.k0}'}",
    "an argument of the sweeper": "hydra: {sweeper: {x: '${oc.env:HOME}'}}",
    "what Hydra holds": "model: {name: '${hydra.runtime.cwd}'}",
}


def swept(folder: Path, text: str, *beside: str) -> Ended:
    """The sweep that a file with this text describes, in this process."""
    (folder / "sweeps").mkdir(exist_ok=True)
    (folder / "sweeps/theirs.yaml").write_text(f"# @package _global_\n{text}\n")
    return run(folder, "-m", "+sweeps=theirs", *SMALL, *beside)


@pytest.mark.parametrize("text", ASKS.values(), ids=ASKS.keys())
def test_a_sweep_file_says_what_is_priced_alone(text: str, tmp_path: Path) -> None:
    one_line(swept(tmp_path, text))
    assert {path.name for path in tmp_path.iterdir()} == {"sweeps"}
    assert not (tmp_path.parent / "elsewhere").exists()


def test_a_trusted_file_chooses_its_folder_and_reads_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "chosen")
    ended = swept(tmp_path, "search: {results_dir: '${oc.env:WHERE}'}", "--trust")
    assert ended.code == 0, ended.err
    assert list((tmp_path / "chosen/s").glob("*.parquet"))
    assert swept(tmp_path, ASKS["callbacks"], "--trust").code == 2
    assert not (tmp_path / "made").exists()


def test_the_command_line_goes_over_what_a_file_asks_for(tmp_path: Path) -> None:
    assert swept(tmp_path, ASKS["a folder for results"], "search.results_dir=mine").code == 0
    assert list((tmp_path / "mine/s").glob("*.parquet"))


def test_options_of_a_further_folder_are_looked_at_too(tmp_path: Path) -> None:
    (tmp_path / "theirs/model").mkdir(parents=True)
    model = (ROOT / "conf/model/llama3_1_8b.yaml").read_text()
    (tmp_path / "theirs/model/env.yaml").write_text(model.replace("name:", "name: ${oc.env:HOME} #"))
    (tmp_path / "theirs/model/large.yaml").write_text(model + "#" * (1 << 20))
    (tmp_path / "theirs/model/sound.yaml").write_text(model)
    assert "environment" in one_line(run(tmp_path, "--config-dir", "theirs", "model=env"))
    assert "bytes" in one_line(run(tmp_path, "--config-dir", "theirs", "model=large"))
    done(tmp_path, "--config-dir", "theirs", "model=sound", "parallel.tp=8")


def test_a_table_of_cases_says_what_is_priced_alone(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("parallel.tp,backend.artifacts.timeline\n8,true\n")
    command = ("cases.csv", "--out", "out.csv")
    assert "row 1: backend.artifacts.timeline=True: set by a file" in one_line(run(tmp_path, *command, module="rapid_dse.evaluate"))
    done(tmp_path, *command, "--trust", module="rapid_dse.evaluate")


def test_a_launch_file_runs_no_program(tmp_path: Path) -> None:
    text = "# rapid_dse: backend.engine=astrasim backend.astrasim.binary=/bin/true backend=hybrid\n"
    (tmp_path / "run.sh").write_text(f"{text}torchrun pretrain_gpt.py --num-layers 2 --hidden-size 64 --num-attention-heads 2\n")
    assert "backend.astrasim.binary=/bin/true: set by a file" in one_line(run(tmp_path, "run.sh", module="rapid_dse.advise"))


def test_aliases_that_stand_for_too_much_are_refused_before_they_are_written_out() -> None:
    few = "a: &a [1, 2]\nb: *a\nc: {<<: {d: *a}}\n"
    require_few_aliases(few)
    levels = "\n".join(f"x{level + 1}: &x{level + 1} [{', '.join([f'*x{level}'] * 9)}]" for level in range(12))
    with pytest.raises(ValueError, match=f"{MOST_VALUES_OF_ALIASES:,}"):
        require_few_aliases(f"x0: &x0 [1]\n{levels}\n")
    with pytest.raises(ValueError, match="inside of what it names"):
        require_few_aliases("a: &a [*a]")


@pytest.mark.parametrize("name", ["theirs.csv", "theirs.json", "theirs.yaml", "theirs.sh"])
def test_a_pipe_is_refused_in_place_of_read(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    module, arguments = {
        ".csv": ("rapid_dse.evaluate", (name, "--out", "out.csv")),
        ".sh": ("rapid_dse.advise", (name,)),
    }.get(Path(name).suffix, ("rapid_dse", (f"model=./{name}",)))
    assert "is a pipe or a device" in one_line(run(tmp_path, *arguments, module=module))


@pytest.mark.parametrize("name", ["CON", "nul.txt", "Com1", "lpt9.a.b", "x.", "a/b", "..", "", "x" * 200])
def test_names_that_are_no_folders_anywhere_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="allowed"):
        require_study(name)


@pytest.mark.parametrize("name", ["s", "h100+h200-x=1", "console", "a.parquet", "com10"])
def test_names_of_folders_are_taken(name: str) -> None:
    require_study(name)


def test_a_study_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "results/s").symlink_to(tmp_path / "elsewhere")
    assert "is a link" in one_line(run(tmp_path, "-m", *SMALL))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_more_combinations_than_a_memory_holds_are_refused_at_once() -> None:
    for given in (["hw.sms=range(1,1000000000)"], ["hw.sms=range(1,1000)", "hw.clock=range(1000000,1001000)"]):
        with pytest.raises(ValueError, match="allowed: up to"):
            plan(read(given))


@pytest.mark.parametrize("length", [0, 250, 10_000])
def test_a_line_of_an_error_is_short_whatever_the_value(length: int) -> None:
    line = printed(f"{'x' * length}; allowed: less")
    assert len(line) <= LONGEST
    assert line.endswith("allowed: less")


@pytest.mark.parametrize("more", [(), ("parallel.recompute_modules=[core_attn]",), ("parallel.tp=1,2",)])
def test_a_model_that_lacks_most_of_it_is_refused_with_what_it_lacks(more: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    ended = run(tmp_path, "-m", "model=./config.json", "hw.num_gpus=8", "search.study=s", *more)
    assert ended.code in (0, 2)
    assert "num_hidden_layers is missing: a model of the kind transformer needs it" in ended.out + ended.err
