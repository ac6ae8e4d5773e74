"""Every page of the documentation, and the README, typed by a reader."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import DOCS, ROOT, blocks, masked, prepare, runs, typed

PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
RECIPE_SECONDS = 10.0  # of CPU, for a block of the README


@pytest.mark.parametrize("page", [page for page in PAGES if any(map(runs, blocks(page)))], ids=lambda page: page.stem)
def test_what_a_page_says_to_type_runs_and_prints_what_it_shows(page: Path, tmp_path: Path) -> None:
    printed = ""
    for block in blocks(page):
        prepare(block, tmp_path)
        if runs(block):
            outcome = typed(block, tmp_path)
            assert outcome.code == 0, f"{page.name}, line {block.line}: {block.text}\n{outcome.out}"
            assert page.stem != "README" or outcome.cpu_seconds <= RECIPE_SECONDS, f"line {block.line}: {outcome.cpu_seconds:.1f} s"
            printed = outcome.out
        elif block.mark == "prints":
            missing = [line for line in masked(block.text) if line not in masked(printed)]
            assert not missing, f"{page.name}, line {block.line}: not printed: {missing}\n{printed}"


def test_all_result_columns_are_listed() -> None:
    from rapid_dse.simulate.results import Priced

    listed = set(re.findall(r"`([a-z_]+)`", (DOCS / "columns.md").read_text()))
    assert set(Priced.__dataclass_fields__) <= listed
    assert {"key", "status", "reason", "backend", "elapsed_s", "expected_error", "outside"} <= listed


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set(re.findall(r"^(\w+)$", (DOCS / "index.md").read_text(), re.MULTILINE))
    assert {page.stem for page in DOCS.glob("*.md")} - {"index"} <= listed
