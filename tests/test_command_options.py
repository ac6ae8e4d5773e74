"""Options that people of Hydra know, paired sweeps, patterns of names, lengths in k, and progress into a pipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import program
import pytest
import yaml
from rich.console import Console

from rapid_dse.command import Parser
from rapid_dse.command_options import INSTEAD, asked
from rapid_dse.sweep import progress_lines
from rapid_dse.sweep.overrides import options_of, read

SMALL = ("model=llama3_1_8b", "hw.num_gpus=16", "workload.global_batch_size=64")


@pytest.mark.parametrize(
    ("arguments", "what", "word", "overrides"),
    [
        (["--cfg", "job", "--resolve", "hw=a100"], "cfg", "job", ["hw=a100"]),
        (["--cfg=job", "hw=a100"], "cfg", "job", ["hw=a100"]),
        (["-c", "job"], "cfg", "job", []),
        (["--cfg", "hw=a100"], "cfg", "job", ["hw=a100"]),
        (["hw=a100", "--cfg"], "cfg", "job", ["hw=a100"]),
        (["--info", "defaults"], "info", "defaults", []),
        (["--info"], "info", "all", []),
        (["-m", "--json", "parallel.tp=1,2"], "multirun", "", ["parallel.tp=1,2"]),
        (["-h", "-m"], "help", "", []),
    ],
)
def test_a_command_line_is_sorted(arguments: list[str], what: str, word: str, overrides: list[str]) -> None:
    found = asked(arguments)
    assert (found.what, found.word, list(found.overrides)) == (what, word, overrides)


@pytest.mark.parametrize("option", INSTEAD)
def test_options_without_a_meaning_say_what_to_write_instead(option: str, tmp_path: Path) -> None:
    line = program.one_line(program.run(tmp_path, option, "x"))
    assert line == f"rapid_dse: {option}: not an option here; {INSTEAD[option]}"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--cfg", "hydra"], "allowed: --cfg job"),
        (["--cfg", "jobs"], "allowed: job, hydra, all"),
        (["--info", "plugins"], "allowed: all, config, defaults, searchpath"),
        (["--resolve"], "goes with --cfg"),
        (["--config-dir", "nowhere"], "no such folder"),
        (["--config-dir"], "no such folder"),
    ],
)
def test_wrong_words_are_one_line(arguments: list[str], part: str, tmp_path: Path) -> None:
    assert part in program.one_line(program.run(tmp_path, *arguments))


def test_the_configuration_and_where_it_comes_from(tmp_path: Path) -> None:
    tree = yaml.safe_load(program.done(tmp_path, "--cfg", "job", "--resolve", "hw=a100", "workload.seq_len=8k").out)
    assert tree["hw"]["name"] == "a100"
    assert tree["workload"]["seq_len"] == 8192
    told = program.done(tmp_path, "--info", "defaults", "hw=a100").out
    assert "hw: a100" in told
    assert "searchpath" not in told


def test_a_folder_of_options_is_added(tmp_path: Path) -> None:
    (tmp_path / "more/model").mkdir(parents=True)
    (tmp_path / "more/model/mine.yaml").write_text((program.ROOT / "conf/model/llama3_1_8b.yaml").read_text())
    assert "8.03 B" in program.done(tmp_path, "--config-dir", "more", "model=mine", "parallel.tp=2").out
    sweep = ("-m", "model=glob(mine*)", "parallel.tp=2,4", "search.study=s")
    program.done(tmp_path, "--config-dir", "more", *sweep)
    assert set(program.rows(tmp_path)["model"]) == {"mine"}
    assert "did you mean" in program.one_line(program.run(tmp_path, "--config-dir", "more", "model=min"))


@pytest.mark.parametrize("module", ["evaluate", "rank", "validate", "calibrate", "network", "import_model", "explain", "report"])
def test_every_command_has_a_version(module: str, tmp_path: Path) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", program.done(tmp_path, "--version", module=f"rapid_dse.{module}").out)


def test_lists_are_paired(tmp_path: Path) -> None:
    program.done(tmp_path, "-m", "zip(parallel.tp=1,2,8;parallel.pp=4,2,1)", *SMALL, "search.study=s")
    rows = program.rows(tmp_path)
    assert sorted(zip(rows["parallel.tp"], rows["parallel.pp"], strict=True)) == [(1, 4), (2, 2), (8, 1)]


def test_pairs_of_groups_and_keys_go_with_lists_beside_them(tmp_path: Path) -> None:
    pairs = "zip(model=llama3_1_8b,llama3_1_70b;hw.num_gpus=16,64;parallel.tp=range(2,9,6))"
    program.done(tmp_path, "-m", pairs, "workload.seq_len=4k,8k", "workload.global_batch_size=64", "search.study=s")
    rows = program.rows(tmp_path)
    found = set(zip(rows["model"], rows["hw.num_gpus"], rows["parallel.tp"], rows["workload.seq_len"], strict=True))
    assert found == {
        ("llama3_1_8b", 16, 2, 4096),
        ("llama3_1_8b", 16, 2, 8192),
        ("llama3_1_70b", 64, 8, 4096),
        ("llama3_1_70b", 64, 8, 8192),
    }


@pytest.mark.parametrize(
    ("argument", "part"),
    [
        ("zip(parallel.tp=1,2;parallel.pp=4)", "lists of different lengths (parallel.tp 2, parallel.pp 1)"),
        ("zip(parallel.tp=1,2)", "allowed: several lists"),
        ("zip(parallel.tp=1,2;parallel.pp=all)", "parallel.pp has no list"),
        ("zip(parallel.tp=1,2;search.top=1,2)", "search.top: cannot be swept"),
        ("zip(parallel.tp=1,2;parallel.pq=1,2)", "did you mean"),
        ("zip(parallel.tp=1,2;parallel.zero=0,1", "allowed: several lists"),
        ("model=glob(nothing*)", "no option matches"),
        ("parallel.tp=glob(1*)", "patterns are for names of options"),
    ],
)
def test_wrong_pairs_and_patterns_are_one_line(argument: str, part: str, tmp_path: Path) -> None:
    assert part in program.one_line(program.run(tmp_path, "-m", *SMALL[1:], argument))


def test_a_pair_is_no_trial_and_stands_once(tmp_path: Path) -> None:
    pairs = "zip(parallel.tp=1,2;parallel.pp=4,2)"
    assert "-m before the overrides" in program.one_line(program.run(tmp_path, pairs))
    assert "stands in zip(...) and elsewhere" in program.one_line(program.run(tmp_path, "-m", pairs, "parallel.tp=4"))


SPACE = """# @package _global_
search:
  space:
    zip:
    - {parallel.tp: [1, 2, 8], parallel.pp: "4,2,1"}
    - {model: [llama3_1_8b, llama2_7b], workload.seq_len: [8192, 4096]}
"""
DEGREES = [(1, 4), (2, 2), (8, 1)]
MODELS = [("llama3_1_8b", 8192), ("llama2_7b", 4096)]


def paired(frame: Any) -> set[tuple[int, int, str, int]]:
    keys = ("parallel.tp", "parallel.pp", "model", "workload.seq_len")
    return set(zip(*(frame[key].tolist() for key in keys), strict=True))


@pytest.fixture
def pairs_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sweep file that pairs lists, which is the current one."""
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "pairs.yaml").write_text(SPACE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_sweep_file_pairs_lists_and_what_is_set_beside_it_wins(pairs_file: Path) -> None:
    import rapid_dse as rd

    program.done(pairs_file, "-m", "+sweeps=pairs", "hw.num_gpus=16")
    assert paired(program.rows(pairs_file)) == {(*degrees, *model) for degrees in DEGREES for model in MODELS}
    # tp is one of its own, pp keeps its list; a model of its own leaves the sequence lengths
    own = rd.sweep(sweeps="pairs", num_gpus=16, tp=2, model="llama2_13b").frame()
    assert paired(own) == {(2, pp, "llama2_13b", length) for pp in (4, 2, 1) for length in (8192, 4096)}


def test_pairs_are_a_dimension_of_a_search(pairs_file: Path) -> None:
    """With as many trials as there are layouts each pair is tried once, and nothing else."""
    import rapid_dse as rd

    found = rd.sweep(sweeps="pairs", num_gpus=16, search="optuna", n_trials=6, enqueue=0, sampler="brute_force").frame()
    assert len(found) == 6
    assert paired(found) == {(*degrees, *model) for degrees in DEGREES for model in MODELS}


def test_pairs_in_python_are_those_of_the_command_line() -> None:
    import rapid_dse as rd

    pairs = [{"tp": (1, 2, 8), "pp": [4, 2, 1]}, {"model": ["llama3_1_8b", "llama2_7b"], "workload.seq_len": [8192, 4096]}]
    found = rd.sweep(zip=pairs, hw="h100", num_gpus=16)
    assert paired(found.frame()) == {(*degrees, *model) for degrees in DEGREES for model in MODELS}
    for wrong, part in (
        ({"tp": [1, 2]}, "several lists"),
        ({"tp": [1, 2], "pp": [4]}, "different lengths"),
        ({"tp": [1, 2], "pp": "all"}, "has no list"),
        ({"tp": [1, 2], "top": [1, 2]}, "search.top: cannot be swept"),
    ):
        with pytest.raises(ValueError, match=part):
            rd.sweep(zip=wrong, hw="h100", num_gpus=16)
    with pytest.raises(ValueError, match=r"parallel\.tp: several values are a sweep"):
        rd.simulate(zip={"tp": [1, 2], "pp": [4, 2]})


def test_a_pattern_stands_for_the_options_that_match() -> None:
    found = read(["model=glob([llama3*,gpt],exclude=*405b)"]).swept["model"]
    expected = [name for name in options_of("model") if (name.startswith("llama3") and not name.endswith("405b")) or name == "gpt"]
    assert found.items == tuple(expected)  # type: ignore[union-attr]


@pytest.mark.parametrize(("text", "tokens"), [("8k", 8192), ("128K", 131_072), ("1M", 1_048_576), ("1.5k", 1536), ("4096", 4096)])
def test_lengths_in_k(text: str, tokens: int, tmp_path: Path) -> None:
    assert f"{tokens:,} tokens a sequence" in program.done(tmp_path, *SMALL, f"workload.seq_len={text}", "parallel.tp=8").out


def test_a_length_that_is_no_whole_number_is_refused(tmp_path: Path) -> None:
    assert "workload.seq_len=307.2: expected a whole number" in program.one_line(program.run(tmp_path, "workload.seq_len=0.3k"))
    assert "workload.global_batch_size='8k'" in program.one_line(program.run(tmp_path, "workload.global_batch_size=8k"))


def test_progress_into_a_pipe_tells_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    monkeypatch.setattr(progress_lines.time, "monotonic", lambda: now[0])
    lines = progress_lines.ProgressLines(400, Console(force_terminal=False, width=200), began=100.0, said=100.0)
    for at, rows in ((102.0, 50), (106.0, 50), (108.0, 50), (112.0, 50), (130.0, 200)):
        now[0] = at
        lines.advance(rows)
    # 100 of 400 after 6 s: 18 s for the rest; 200 after 12 s: 12 s
    assert capsys.readouterr().out.splitlines() == [
        "100 of 400 trials priced (25%), about 18 s left",
        "200 of 400 trials priced (50%), about 12 s left",
    ]


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_help_is_as_wide_as_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = ["a first line of words", " ".join(["words"] * 22), "and its end"]  # the middle one has 131 characters
    told = Parser(prog="program", description="One line.", epilog="\n".join(lines)).format_help()
    assert max(map(len, told.splitlines())) <= columns
    assert told.count("words") == 23
    assert ("\n".join(lines) in told) is (columns == 140)


def test_options_are_listed_within_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    told = program.done(tmp_path, "--help").out.splitlines()
    first, last = (next(at for at, line in enumerate(told) if line.startswith(f"  {group}")) for group in ("hw=", "software="))
    assert max(map(len, told[first:last])) <= 80
    assert "vit_huge" in " ".join(told[first:last]).split()


def test_a_table_of_requests_says_how_long_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = ("workload.prompt_len=2k", "workload.decode_len=1,100")
    load = ("workload=inference", "hw.num_gpus=1", "workload.concurrency=4")
    monkeypatch.setenv("COLUMNS", "200")
    out = program.done(tmp_path, "-m", "model=llama3_1_8b", *load, *lengths).out
    assert "1 GPUs  prompts of 2,048 tokens  1 generated  bf16" in out
    assert "1 GPUs  prompts of 2,048 tokens  100 generated  bf16" in out
    encoder = program.done(tmp_path, "-m", "model=vit_base", *load[:2], "workload.batch_size=1,2").out
    assert "1 GPUs  bf16" in encoder
