"""Every page of the documentation, and the README, typed by a reader."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from machine import slowness
from pages import DOCS, ROOT, WORDS_READ, blocks, masked, minutes_of, prepare, runs, typed

PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
RECIPE_SECONDS = 10.0  # of CPU, for a block of the README, on the machine that bars are written for
TUTORIAL_MINUTES, SETUP_MINUTES = 10.0, 1.0  # make run takes half a minute in a fresh clone


@pytest.mark.parametrize("page", [page for page in PAGES if any(map(runs, blocks(page)))], ids=lambda page: page.stem)
def test_what_a_page_says_to_type_runs_and_prints_what_it_shows(page: Path, tmp_path: Path) -> None:
    printed, minutes = "", minutes_of(page)
    for block in blocks(page):
        prepare(block, tmp_path)
        if runs(block):
            outcome = typed(block, tmp_path)
            assert outcome.code == 0, f"{page.name}, line {block.line}: {block.text}\n{outcome.out}"
            if page.stem == "README" and outcome.cpu_seconds > RECIPE_SECONDS:
                assert outcome.cpu_seconds <= RECIPE_SECONDS * slowness(), f"line {block.line}: {outcome.cpu_seconds:.1f} s"
            printed = outcome.out
            minutes += outcome.cpu_seconds / 60 + len(printed.split()) / WORDS_READ  # of one who reads all that is printed
        elif block.mark == "prints":
            missing = [line for line in masked(block.text) if line not in masked(printed)]
            assert not missing, f"{page.name}, line {block.line}: not printed: {missing}\n{printed}"
    assert page.stem != "tutorial" or SETUP_MINUTES + minutes <= TUTORIAL_MINUTES, f"{SETUP_MINUTES + minutes:.1f} minutes"


def test_all_result_columns_are_listed() -> None:
    from rapid_dse.simulate.results import Priced

    listed = set(re.findall(r"`([a-z_]+)`", (DOCS / "columns.md").read_text()))
    assert set(Priced.__dataclass_fields__) <= listed
    assert {"key", "status", "reason", "backend", "elapsed_s", "expected_error", "outside"} <= listed


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set(re.findall(r"^(\w+)$", (DOCS / "index.md").read_text(), re.MULTILINE))
    assert {page.stem for page in DOCS.glob("*.md")} - {"index"} <= listed
