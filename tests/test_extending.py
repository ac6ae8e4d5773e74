"""The worked examples of docs/extending.md, as they stand there."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path

import pandas as pd
import program
import pytest
from generated import ROOT
from test_pipeline_graphs import B, F, W, makespan
from trials import priced, scenario

from rapid_dse.config import recompute_entries
from rapid_dse.model import recompute

FILES = re.compile(r"<!-- (?P<path>\S+) -->\n(?:<!-- not run: [^\n]* -->\n)?```\w+\n(?P<text>.*?)```\n", re.DOTALL)


def written(section: str, folder: Path) -> list[Path]:
    """Writes the files of a section below a folder."""
    text = (ROOT / "docs" / "extending.md").read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    paths = []
    for found in FILES.finditer(text):
        path = folder / found["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found["text"])
        paths.append(path)
    assert paths
    return paths


SMALL = ("model=llama3_1_8b", "hw.num_gpus=16", "workload.global_batch_size=16")
SAME = ("software=megatron_lm", "software.loss=fused", "software.gradient_dtype=bf16")
TYPICAL = ("software.elementwise_traffic=2", "software.matmul_efficiency=0.95", "software.measured=[]")


@pytest.mark.parametrize("as_file", [False, True])
def test_a_new_framework_is_one_short_file(tmp_path: Path, as_file: bool) -> None:
    (path,) = written("A new framework", tmp_path)
    assert len([line for line in path.read_text().splitlines() if line]) <= 6
    option = f"software=./{path.relative_to(tmp_path)}" if as_file else "software=short_trainer"
    mine = program.done(tmp_path, option, "parallel.tp=8", *SMALL).out
    same = program.done(tmp_path, *SAME, *TYPICAL, "parallel.tp=8", *SMALL).out
    figures = [line for line in mine.splitlines() if re.match(r"(step time|compute|peak memory|gradients)", line)]
    assert len(figures) == 4
    assert figures == [line for line in same.splitlines() if line in figures]
    refused = program.run(tmp_path, option, "parallel.tp=4", "parallel.pp=2", *SMALL)
    assert refused.code == 2
    assert "short_trainer does not offer pp > 1" in refused.err


def test_a_new_schedule_is_a_file_and_a_line(tmp_path: Path) -> None:
    """In a copy of the package: named in help and messages, priced as GPipe, whose bubble it has; on the event engine too."""
    for part in ("rapid_dse", "hydra_plugins", "conf", "sweeps"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (path,) = written("A new schedule", tmp_path)
    names, line = tmp_path / "rapid_dse" / "config" / "schedule_names.py", '    "torchgpipe": "torchgpipe",\n'
    assert line in (ROOT / "docs" / "extending.md").read_text()
    names.write_text(names.read_text().replace("\n}\n", f"\n{line}}}\n", 1))
    (tmp_path / "run").mkdir()
    env = program.environment() | {"PYTHONPATH": str(tmp_path)}

    def swept(schedules: str) -> program.Ended:
        wish = ("-m", "parallel.pp=4", f"parallel.schedule={schedules}", "software.enforce=false")
        return program.process(tmp_path / "run", *wish, *SMALL, env=env)

    program.well(swept("torchgpipe,gpipe"))
    found = program.rows(tmp_path / "run").set_index("parallel.schedule")
    figures = ["step_time_s", "time_bubble_s", "peak_memory_bytes", "memory_activations_bytes"]
    assert found.loc["torchgpipe", figures].tolist() == found.loc["gpipe", figures].tolist()
    assert (found[figures] > 0).all(axis=None)
    assert "torchgpipe" in swept("chimera").err
    pp, m = 4, 8
    schedule = runpy.run_path(str(path))["SCHEDULE"]
    assert makespan(schedule, pp, 1, m) == pytest.approx((m + pp - 1) * (F + B + W), rel=1e-5)


def test_a_new_recompute_mode_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of Llama 3.1 8B keeps two streams of 4,096 and one of 14,336 less, 2 bytes each; no product runs again."""
    folder = tmp_path / "rapid_dse/config/recompute"
    shutil.copytree(recompute_entries.FOLDER, folder)
    written("A new recompute mode", tmp_path)
    monkeypatch.setattr(recompute_entries, "FOLDER", folder)
    row = {"num_gpus": 1, "tp": 1, "global_batch_size": 1, "recompute": "selective"}
    of = {"workload__seq_len": 1024, "software": "pytorch_compile"}
    modules = {"none": None, "selective": "small_kernels"}
    none, mine = (priced(scenario(parallel__recompute_modules=modules[each], **of), row | {"recompute": each}) for each in modules)
    assert (none.memory_activations_bytes - mine.memory_activations_bytes)[0] == pytest.approx(31 * 1024 * 2 * (2 * 4096 + 14336))
    (found,) = recompute.selective(scenario(parallel__recompute_modules="small_kernels", **of))
    assert (found.products, found.core) == ((0, 0, 0, 0), 0)
    assert none.time_compute_s[0] < mine.time_compute_s[0] < none.time_compute_s[0] * 1.1
    with pytest.raises(ValueError, match=r"expected .*small_kernels"):
        scenario(parallel__recompute_modules="x")


LINE = re.compile(r"\n```\n(    \"retention\".*\n)```\n")


def test_a_new_kind_of_layer_is_one_file_and_one_line(tmp_path: Path) -> None:
    """In a copy of the program: retention in two layers of three is the faster the longer the sequence, and has 5 matrices of 4,096² in the
    place of 2.5; memory, tensor parallelism and pipelines take it as any other."""
    for folder in ("rapid_dse", "conf", "sweeps", "hydra_plugins"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    written("A new kind of layer", tmp_path)
    line = LINE.search((ROOT / "docs" / "extending.md").read_text())
    assert line
    names = tmp_path / "rapid_dse" / "config" / "layer_names.py"
    before, known = names.read_text(), '    "sliding_attention": "sliding_attention",\n'
    names.write_text(before.replace(known, known + line[1]))
    assert names.read_text() == before.replace(known, known + line[1]) != before
    base = {"model": "llama3_1_8b", "hw.num_gpus": 8, "workload.global_batch_size": 8, "parallel.zero": 0}
    kinds, ways = ("full_attention", "retention,retention,full_attention"), ((1, 1), (2, 2))
    rows = [
        base | {"model.layer_types": types, "workload.seq_len": length, "parallel.tp": tp, "parallel.pp": pp}
        for types in kinds
        for length in (8192, 65536)
        for tp, pp in ways
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "cases.csv", index=False)
    environment = program.environment() | {"PYTHONPATH": str(tmp_path)}
    ended = program.process(tmp_path, "cases.csv", "--out", "found.csv", module="rapid_dse.evaluate", env=environment)
    assert ended.code == 0, ended.err
    found = pd.read_csv(tmp_path / "found.csv")
    assert set(found.status) <= {"ok", "oom"}, found.reason
    full, mixed = (found.step_time_s[rows].to_numpy() for rows in (slice(0, 3), slice(4, 7)))
    assert (mixed[2:] < 0.8 * full[2:]).all()
    assert (mixed[2:] / full[2:] < mixed[:1] / full[:1]).all()
    more = found.memory_parameters_bytes[4] - found.memory_parameters_bytes[0]
    assert more == pytest.approx(2 * 22 * (2.5 * 4096**2), rel=1e-9)
