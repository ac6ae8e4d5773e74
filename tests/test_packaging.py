"""The wheel carries all that the program needs, and runs from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from generated import ROOT
from program import in_a_row

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built with the build backend that is installed here, so that nothing is downloaded."""
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)], check=True, capture_output=True
    )
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's packages alone; their dependencies are this environment's."""
    target = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)],
        check=True,
        capture_output=True,
    )
    return target


def run(arguments: list[str], site: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command of the installed package, from ``folder``, with no checkout in sight."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PYTHON"))} | {"PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_carries_configuration_sweeps_and_plugin(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for group in ("hw", "model", "software"):
        for path in (ROOT / "conf" / group).rglob("*.yaml"):
            assert f"rapid_dse/_data/{path.relative_to(ROOT).as_posix()}" in names
    for path in (ROOT / "sweeps").glob("*.yaml"):
        assert f"rapid_dse/_data/sweeps/{path.name}" in names
    assert "rapid_dse/_data/conf/config.yaml" in names
    for folder in ("analysis/report", "explorer"):  # templates, styles and scripts of pages
        for path in (ROOT / "rapid_dse" / folder).rglob("*.*"):
            assert "__pycache__" in path.parts or path.relative_to(ROOT).as_posix() in names
    assert any(name.startswith("hydra_plugins/") and name.endswith("sweeper.py") for name in names)
    assert "hydra_plugins/__init__.py" not in names, "a namespace package: other plugins live beside it"
    assert not [name for name in names if name.startswith(("tests/", "results/", "benchmarks/"))]


def test_an_installed_wheel_sweeps_from_any_folder(installed: Path, tmp_path: Path) -> None:
    done = run(["-m", "rapid_dse", "-m", "hw=h100", "parallel.tp=1,8,64"], installed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 trials" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"], "no outputs/, no multirun/"
    (study,) = (tmp_path / "results").iterdir()
    commands = (
        ("rapid_dse.rank", str(study), "--top", "1"),
        ("rapid_dse", "hw=a100", "model=llama3_1_8b", "parallel.tp=4"),
        ("rapid_dse", "-m", "+sweeps=gpt3_175b_1024xa100", "parallel.vpp=1", "search.top=3"),
    )
    others = run(["-c", in_a_row(*commands)], installed, tmp_path)
    assert others.returncode == 0, others.stderr
    for said in ("3 trials", "step time", "gpt3_175b_1024xa100"):
        assert said in others.stdout
    assert (tmp_path / "results" / "gpt3_175b_1024xa100").is_dir()


def test_the_console_script_is_the_module(installed: Path) -> None:
    script = installed / "bin" / "rapid-dse"
    assert "from rapid_dse.__main__ import main" in script.read_text()
