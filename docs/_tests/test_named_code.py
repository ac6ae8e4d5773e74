"""What pages name of the code exists: files, and dotted names whose parts are words of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(ROOT.glob("docs/*.md"))
READ = ("rapid_dse", "tests", "benchmarks", "docs")
CODE = [path for folder in READ for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml", ".j2", ".js")]
WORDS = set(re.findall(r"\w+", "\n".join(path.read_text() for path in [*CODE, *(ROOT / "conf").rglob("*.yaml"), ROOT / "Makefile"])))
PATHS = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if not path.is_relative_to(ROOT / "build")}


def quoted(page: Path) -> list[str]:
    """What stands between backticks outside blocks of code."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_the_code_that_a_page_names_exists(page: Path) -> None:
    rooms = {*READ, *(path.name for path in (ROOT / "rapid_dse").iterdir() if path.is_dir())}
    named = [text.rstrip("/") for text in quoted(page) if re.fullmatch(r"[a-z_]+(/[\w.]+)+/?", text) and text.split("/")[0] in rooms]
    assert not [text for text in named if not any(path == text or path.endswith(f"/{text}") for path in PATHS)]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name in ("architecture.md", "extending.md")], ids=lambda page: page.name)
def test_every_name_of_the_code_that_a_page_names_exists(page: Path) -> None:
    named = [text.removesuffix("()") for text in quoted(page) if re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*(\(\))?", text)]
    files = {path.rsplit("/", 1)[-1] for path in PATHS}
    assert not [text for text in named if text not in files and not set(text.split(".")) <= WORDS | {""}]
