"""The worked examples of docs/extending.md, as they stand there."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path

import program
import pytest
from generated import ROOT
from test_pipeline_graphs import B, F, W, makespan

FILES = re.compile(r"<!-- (?P<path>\S+) -->\n```\w+\n(?P<text>.*?)```\n", re.DOTALL)


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
SAME = ("software=megatron_lm", "software.loss=fused", "software.gradient_dtype=bf16", "software.dropout=false")
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

    def priced(schedule: str) -> program.Ended:
        wish = ("parallel.pp=4", f"parallel.schedule={schedule}", "software.enforce=false")
        return program.process(tmp_path / "run", *wish, *SMALL, env=env)

    mine, same = (program.well(priced(schedule)).out for schedule in ("torchgpipe", "gpipe"))
    figures = [line for line in mine.splitlines() if re.match(r"(step time|bubble|peak memory|activations)", line)]
    assert len(figures) == 4
    assert figures == [line for line in same.splitlines() if line in figures]
    assert "torchgpipe" in priced("chimera").err
    pp, m = 4, 8
    found = runpy.run_path(str(path))["SCHEDULE"]
    assert makespan(found, pp, 1, m) == pytest.approx((m + pp - 1) * (F + B + W), rel=1e-5)
