"""The worked examples of docs/extending.md, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import program
import pytest
from generated import ROOT

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
