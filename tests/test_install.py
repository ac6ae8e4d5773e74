"""An editable install in an environment of its own, used from an empty folder (test_packaging.py has the wheel).

Nothing is downloaded: the environment sees this one's dependencies, and the build back end is one of the dev extras.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pandas as pd
import pytest
from program import ROOT, in_a_row

PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir")


def call(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command that must end well, without the checkout on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"COLUMNS": "200"}
    ended = subprocess.run([str(a) for a in arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended


def new_environment(folder: Path) -> Path:
    """An empty virtual environment that sees this one's dependencies; its folder of programs."""
    venv.create(folder, with_pip=False)
    programs = folder / "bin"
    site = call(programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).stdout.strip()
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of an environment in which the checkout is installed as editable."""
    folder = tmp_path_factory.mktemp("editable")
    found = new_environment(folder / "env")
    how = ("--no-deps", "--ignore-installed", "--no-build-isolation", "--editable", ROOT)
    call(*PIP, "--python", found / "python", "install", *how, cwd=folder)
    return found


@pytest.mark.slow
def test_an_editable_install_works_from_any_folder(programs: Path, tmp_path: Path) -> None:
    assert "step time" in call(programs / "rapid-dse", "model=llama3_1_8b", "parallel.tp=8", cwd=tmp_path).stdout
    (tmp_path / "cases.csv").write_text("hw,parallel.tp\nh100,8\n")
    narrow = ("parallel.tp=8", "parallel.cp=1", "parallel.recompute=full", "parallel.zero=1")
    commands = (
        ("rapid_dse", "-m", "hw=h100", "parallel.tp=1,8,64", "search.study=a"),
        ("rapid_dse", "-m", "+sweeps=llama3_1_70b_512xh100", *narrow),
        ("rapid_dse.evaluate", "cases.csv", "--out", "out.csv"),
        ("rapid_dse.rank", "results"),
    )
    where = "import rapid_dse; print(rapid_dse.__file__)"
    said = call(programs / "python", "-c", f"{where}\n{in_a_row(*commands)}", cwd=tmp_path).stdout
    assert Path(said.splitlines()[0]).is_relative_to(ROOT)
    assert sorted(pd.read_parquet(tmp_path / "results/a")["parallel.tp"]) == [1, 8, 64]
    assert len(pd.read_parquet(tmp_path / "results/llama3_1_70b_512xh100")) > 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cases.csv", "out.csv", "results"]
