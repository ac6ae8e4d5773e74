"""The local page in a real Chromium: clicks, keys, messages, a launched sweep, and how it looks."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from conftest import SCHEMES, SHOTS, WIDTHS, Opened
from playwright.sync_api import Page, expect
from seen import axe_faults, faults

SMALL = "/study?study=small"


@pytest.fixture(scope="module")
def frame(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "results" / "small")


def ready(page: Page) -> None:
    """Waits until the page's script has taken over from plain links and forms."""
    expect(page.locator("html")).to_have_attribute("data-ready", "true")


def drawn(page: Page) -> None:
    expect(page.locator("#cloud")).to_have_attribute("data-points", re.compile("[1-9]"))


def counted(page: Page) -> int:
    found = re.match(r"([\d,]+) of", page.locator("#counted").inner_text())
    assert found
    return int(found[1].replace(",", ""))


def test_by_clicks_from_the_list_to_a_priced_trial(opened: Opened, frame: pd.DataFrame) -> None:
    page = opened("/")
    page.get_by_role("link", name="small", exact=True).click()
    ready(page)
    page.locator("table.moving tbody tr").nth(2).click()
    third = frame[frame["status"] == "ok"].nsmallest(3, "step_time_s").iloc[2]
    expect(page.locator("#detail")).to_contain_text(third["key"])
    page.get_by_role("button", name="Explain").click()
    expect(page.locator("#detail .answer")).to_contain_text("One change")
    page.get_by_role("button", name="Launch flags").click()
    expect(page.locator("#detail pre")).to_contain_text(f"--tensor-model-parallel-size {third['parallel.tp']}")
    page.locator("#detail select[name=to]").select_option("torchtitan")
    expect(page.locator("#detail pre")).to_contain_text("tensor_parallel_degree")
    page.get_by_role("link", name="What if …").click()
    ready(page)
    expect(page.locator("#overrides")).to_have_value(re.compile(rf"parallel\.tp={third['parallel.tp']}\b"))
    page.get_by_role("button", name="Price this trial").click()
    expect(page.locator("#answer")).to_contain_text(third["key"])
    page.locator("#g-hw").select_option("h200")
    expect(page.locator("#overrides")).to_have_value(re.compile(r"^hw=h200 "))
    page.get_by_role("button", name="Price this trial").click()
    expect(page.locator("#answer")).to_contain_text("hw=h200")


def test_a_study_that_takes_long_to_read_says_so(opened: Opened) -> None:
    page = opened("/")
    ready(page)
    expect(page.locator("#opening")).to_be_hidden()
    page.evaluate("addEventListener('click', (event) => event.preventDefault())")  # as long as the study is not there the page stays
    page.get_by_role("link", name="small", exact=True).click()
    expect(page.locator("#opening")).to_contain_text("384 rows of small")
    expect(page.locator("#opening progress")).to_be_visible()


def test_by_keys(opened: Opened, frame: pd.DataFrame) -> None:
    page = opened(SMALL)
    drawn(page)
    ok = frame[(frame["status"] == "ok") & (frame["parallel.tp"] >= 2)].sort_values("step_time_s", kind="stable")
    page.keyboard.press("/")
    page.keyboard.type("fits tp>=2")
    expect(page.locator("#counted")).to_contain_text(f"{len(ok)} of {len(frame)} rows")
    page.keyboard.press("Escape")
    expect(page.locator("#filters")).not_to_have_class(re.compile("htmx-request"))
    for key in "jjjk":
        page.keyboard.press(key)
    expect(page.locator("#said")).to_contain_text("row 2 of 50")
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_contain_text(ok.iloc[1]["key"])
    page.keyboard.press("Space")
    expect(page.locator("#pinned")).to_contain_text("A: ")
    page.keyboard.press("d")
    expect(page.locator("#said")).to_contain_text("pin two rows")
    page.keyboard.press("j")
    page.keyboard.press("Space")
    expect(page.locator("tr.pinned")).to_have_count(2)
    page.keyboard.press("d")
    expect(page.locator("section.difference")).to_contain_text("A against B")
    more = abs(ok.iloc[1]["peak_memory_bytes"] - ok.iloc[2]["peak_memory_bytes"]) / 2**30
    expect(page.locator("section.difference")).to_contain_text(f"{more:,.1f} GiB")
    page.get_by_role("button", name="What would turn").click()
    expect(page.locator("section.difference .answer")).to_contain_text("order round", timeout=90_000)  # both rows are priced many times
    page.reload()
    expect(page.locator("#pinned")).to_contain_text("B: ")
    page.get_by_role("button", name="Unpin").click()
    expect(page.locator("#pins")).to_be_hidden()


def test_a_lasso_and_a_click(opened: Opened, frame: pd.DataFrame) -> None:
    page = opened(SMALL)
    drawn(page)
    over = page.locator("#cloud .u-over")
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    assert box is not None
    priced = frame["step_time_s"].notna().sum()
    corners = [(0.02, 0.02), (0.5, 0.02), (0.5, 0.98), (0.02, 0.98), (0.02, 0.05)]
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*at[0])
    page.mouse.down()
    for corner in at[1:]:
        page.mouse.move(*corner, steps=5)
    page.mouse.up()
    expect(page.locator("#counted")).to_contain_text("inside the lasso")
    assert 0 < counted(page) < priced
    page.get_by_role("button", name="Drop the lasso").click()
    expect(page.locator("#counted")).not_to_contain_text("inside the lasso")
    assert counted(page) == len(frame)
    page.locator("#cloud").focus()
    page.keyboard.press("ArrowRight")
    first = frame[frame["step_time_s"].notna()].nsmallest(1, "step_time_s").iloc[0]
    expect(page.locator("#said")).to_contain_text("1 of")
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_contain_text(first["key"])
    page.locator("#o-y").select_option("mfu")
    drawn(page)
    over.click(position={"x": 40, "y": 40})
    expect(page.locator("#said")).to_contain_text("shown: ")


def test_a_bad_value_has_a_message(opened: Opened) -> None:
    page = opened(SMALL, refuses=True)
    page.locator("#q").fill("step_tim_s<3")
    expect(page.get_by_role("alert")).to_contain_text("did you mean 'step_time_s'?")
    page.locator("#q").fill("step_time_s<3")
    expect(page.locator("#counted")).to_be_visible()


def test_a_bad_override_has_the_command_lines_message(opened: Opened) -> None:
    page = opened("/what-if", refuses=True)
    page.locator("#overrides").fill("hw=h100 parallel.tpp=2")
    page.get_by_role("button", name="Price this trial").click()
    expect(page.get_by_role("alert")).to_contain_text("parallel.tpp: no such key; did you mean 'tp'?")


def test_a_sweep_is_counted_launched_and_opened(opened: Opened) -> None:
    page = opened("/what-if")
    page.locator("#overrides").fill(
        "hw=h100 model=llama3_1_8b hw.num_gpus=16 workload.global_batch_size=64 parallel.tp=1,2,4 search.study=launched"
    )
    page.get_by_role("button", name="Count a sweep").click()
    expect(page.locator("#answer")).to_contain_text("3 trials")
    expect(page.locator("#answer")).to_contain_text("about a second")
    page.get_by_role("button", name="Launch 3 trials").click()
    expect(page.locator("#run")).to_contain_text("done")
    expect(page.locator("#run progress")).to_have_attribute("value", "100")
    page.locator("#its-study").click()
    expect(page.locator("#counted")).to_contain_text("3 of 3 rows")


def test_a_search_is_counted_by_its_trials(opened: Opened) -> None:
    page = opened("/what-if")
    page.locator("#overrides").fill("hw=h100 model=llama3_1_8b hw.num_gpus=16 parallel=all search=optuna search.n_trials=77")
    page.get_by_role("button", name="Count a sweep").click()
    expect(page.locator("#answer")).to_contain_text("77 trials")


def test_a_launched_sweep_can_be_cancelled(opened: Opened) -> None:
    page = opened("/what-if")
    prices = ",".join(str(price) for price in range(1, 90))
    page.locator("#overrides").fill(f"+sweeps=llama3_1_405b_16384gpus hw=h100 hw.price={prices} search.jobs=1 search.study=cancelled")
    page.get_by_role("button", name="Count a sweep").click()
    page.locator("#launch").click(timeout=60_000)
    expect(page.locator("#run")).to_contain_text("runs")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#run strong")).to_have_text("cancelled", timeout=30_000)


def test_it_works_without_script(opened: Opened, frame: pd.DataFrame) -> None:
    page = opened(SMALL, java_script_enabled=False)
    page.locator("#q").fill("oom")
    page.get_by_role("button", name="Filter", exact=True).click()
    expect(page.locator("#counted")).to_contain_text(f"{(frame['status'] == 'oom').sum()} of {len(frame)} rows")
    page.get_by_role("link", name="row 1", exact=True).click()
    expect(page.locator("h2")).to_contain_text("×")
    page.get_by_role("link", name="What if …").click()
    page.get_by_role("button", name="Price this trial").click()
    expect(page.locator("main")).to_contain_text("Launch it")


def test_a_study_named_as_a_script_runs_none(opened: Opened) -> None:
    page = opened("/")
    page.get_by_role("link", name="<script>").first.click()
    expect(page.locator("h1")).to_have_text("<script>alert(1)<|script>")


def with_a_difference(page: Page) -> None:
    drawn(page)
    for key in ("j", "Enter", "Space", "j", "j", "j", "Space", "d"):
        page.keyboard.press(key)
    page.wait_for_selector("section.difference")
    page.wait_for_selector("#detail h2")


def with_a_trial(page: Page) -> None:
    page.get_by_role("button", name="Price this trial").click()
    page.wait_for_selector("#answer dl")


PAGES = {
    "list": ("/", None),
    "study": (SMALL, drawn),
    "difference": (SMALL, with_a_difference),
    "serving": ("/study?study=serving&y=tokens_per_s_per_gpu", drawn),
    "pictures": ("/pictures?study=small", None),
    "what-if": ("/what-if", with_a_trial),
    "runs": ("/runs", None),
    "message": ("/study?study=nothing", None),
}


@pytest.mark.parametrize("name", PAGES)
def test_nothing_overlaps_is_cut_or_a_serious_fault(opened: Opened, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    path, then = PAGES[name]
    found = []
    for scheme in SCHEMES:
        page = opened(path, scheme=scheme, refuses=name == "message")
        if then is not None:
            then(page)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(150)
            page.screenshot(path=SHOTS / f"{name}-{width}-{scheme}.png", full_page=True)
            found += [f"{width} {scheme}: {each}" for each in faults(page)]
        found += [f"{scheme}: {each}" for each in axe_faults(page)]
    assert not found, "\n".join(found)
