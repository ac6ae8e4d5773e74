"""python -m rapid_dse.report: the page's figures are the Parquet's, its pictures are well-formed, and no text of a user is markup."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import time
import xml.etree.ElementTree as ET
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from machine import slowness
from program import done, one_line, run

import rapid_dse as rd
from rapid_dse.analysis.report.study_page import Origin, page
from rapid_dse.analysis.report.svg_scales import Scale, scale_of
from rapid_dse.sweep import result_columns, store

GRID = (
    *("-m", "hw=h100,a100", "model=llama3_1_8b", "hw.num_gpus=16,32", "workload.global_batch_size=128", "workload.train_tokens=1e12"),
    *("parallel.tp=1,2,4,8", "parallel.pp=1,2,3,4", "parallel.zero=0,1", "parallel.recompute=none,full", "parallel.micro_batch_size=1,4"),
)
UNITS = {"tokens/s": 1.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "GiB": 2.0**30, "%": 0.01, "days": 86400.0, "h": 3600.0, "": 1.0}
VOID = {"meta", "br", "link", "img", "input"}


class Page(HTMLParser):
    """A page's tables by caption, its text outside the style sheet, its tags and attributes, and its pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text, self._open, self._caption, self._rows = "", [], "", []
        self.feed(text)
        self.close()
        assert not self._open, "every element is closed"
        self.pictures = {svg.find("title").text: svg for svg in map(ET.fromstring, re.findall(r"<svg.*?</svg>", text, re.DOTALL))}  # type: ignore[union-attr]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag == "caption":
            self._caption = ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "table":
            self.tables.setdefault(self._caption, self._rows)

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("td", "th"):
            self._rows[-1][-1] += data
        elif self._open and self._open[-1] == "caption":
            self._caption += data
        if "style" not in self._open:
            self.text += data

    def column(self, caption: str, name: str) -> list[str]:
        head, *rows = self.tables[caption]
        return [row[head.index(name)] for row in rows]


def number(text: str) -> float:
    """A figure of the page in SI units."""
    found = re.fullmatch(r"\$?([\d,.]+)(?: (\S+))?(?: ±.*)?", text.strip())
    assert found, text
    return float(found[1].replace(",", "")) * UNITS[found[2] or ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("report")
    done(where, *GRID, "search.study=small")
    assert "small.html" in done(where, "results/small", "--out", "small.html", module="rapid_dse.report").out
    return where


@pytest.fixture(scope="module")
def rows(folder: Path) -> pd.DataFrame:
    found = pd.read_parquet(folder / "results" / "small")
    assert set(found["status"]) == {"ok", "oom", "invalid"}
    return found


@pytest.fixture(scope="module")
def fitting(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["fits"].fillna(False).astype(bool)].sort_values("step_time_s", kind="stable")


@pytest.fixture(scope="module")
def shown(folder: Path) -> Page:
    return Page((folder / "small.html").read_text())


def test_terms_of_the_winner_are_the_rows(shown: Page, fitting: pd.DataFrame) -> None:
    best = fitting.iloc[0]
    for caption, pattern in (("Time of a step by term", "time_{}_s"), ("Peak memory of a GPU by term", "memory_{}_bytes")):
        head = shown.tables[caption][0]
        winner = next(name for name in head if name.startswith("winner"))
        cells = dict(zip(shown.column(caption, "term"), shown.column(caption, winner), strict=True))
        whole = best["step_time_s"] if pattern.endswith("_s") else best["peak_memory_bytes"]
        assert number(cells.pop("all")) == pytest.approx(whole, rel=1e-3)
        cells.pop("usable", None)
        assert cells
        for term, cell in cells.items():
            assert number(cell) == pytest.approx(best[pattern.format(term)], rel=1e-3, abs=0.05 * 2**30 if "memory" in pattern else 0)
        rest = [
            name
            for name in best.index
            if re.fullmatch(pattern.format("(.*)"), name) and name.split("_", 1)[1].rsplit("_", 1)[0] not in cells
        ]
        assert not any(best[name] > 0 for name in rest if name not in ("time_prefill_s",)), "terms that are not shown are 0"


def test_parts_of_a_bar_are_as_wide_as_their_terms(shown: Page, fitting: pd.DataFrame) -> None:
    best = fitting.iloc[0]
    parts = [rect for rect in shown.pictures["Time of a step by term"].iter("rect") if rect.get("y") == "32.0"]  # the first bar
    widths = {rect.find("title").text.split(":")[0]: float(rect.get("width")) for rect in parts}  # type: ignore[union-attr, arg-type]
    assert widths
    for term, width in widths.items():
        assert width / sum(widths.values()) == pytest.approx(best[f"time_{term}_s"] / best["step_time_s"], abs=1e-3)


def test_the_card_has_the_winners_figures(shown: Page, fitting: pd.DataFrame) -> None:
    best = fitting.iloc[0]
    card = shown.text[shown.text.index("which row") : shown.text.index("Time of a step by term")]
    assert best["key"] in card
    assert f"{100 * best['mfu']:.1f} %" in card
    assert f"{best['peak_memory_bytes'] / 2**30:.1f} GiB of " in card
    assert f"±{100 * best['expected_error']:.0f} %" in card
    assert f"{best['train_time_s'] / 86400:.1f} days" in card
    assert f"${best['train_cost_usd']:,.0f}" in card
    assert (f"outside: {best['outside']}" in card) == (best["outside"] is not None)
    assert f"--tensor-model-parallel-size {best['parallel.tp']}" in card, "its launch file"


def test_the_front_is_that_of_all_pairs(shown: Page, fitting: pd.DataFrame) -> None:
    pairs = fitting[["step_time_s", "peak_memory_bytes"]].drop_duplicates().to_numpy()
    front = [pair for pair in pairs if not any((other <= pair).all() and (other < pair).any() for other in pairs)]
    caption = "Time and memory of every row"
    assert [number(cell) for cell in shown.column(caption, "step_time_s")] == pytest.approx([pair[0] for pair in front], rel=1e-3)
    assert [number(cell) for cell in shown.column(caption, "peak_memory_bytes")] == pytest.approx(
        [pair[1] for pair in front], abs=0.06 * 2**30
    )
    circles = [circle.get("class") for circle in shown.pictures[caption].iter("circle")]
    assert circles.count("front") == len(front)
    assert circles.count("winner") == 1


def test_rows_that_do_not_fit_are_drawn(shown: Page, rows: pd.DataFrame) -> None:
    drawn = {
        (path.get("class") or "").removesuffix(" few"): path.get("d")
        for path in shown.pictures["Time and memory of every row"].iter("path")
    }
    for kind, status in (("dots oom", "oom"), ("dots fits", "ok")):
        dots = (drawn[kind] or "").count("M")
        distinct = len(rows[rows["status"] == status][["step_time_s", "peak_memory_bytes"]].drop_duplicates())
        assert distinct / 2 < dots <= distinct


def test_the_heat_map_has_the_best_of_each_pair(shown: Page, fitting: pd.DataFrame) -> None:
    best = fitting.groupby(["parallel.tp", "parallel.pp"])["step_time_s"].min()
    caption = "step_time_s of the best row for each tp and pp"
    pairs = zip(shown.column(caption, "tp"), shown.column(caption, "pp"), shown.column(caption, "step_time_s"), strict=True)
    found = {(int(tp), int(pp)): number(cell) for tp, pp, cell in pairs}
    assert found == pytest.approx(best.to_dict(), rel=1e-3)
    cells = [rect for rect in shown.pictures[caption].iter("rect") if rect.get("class") == "cell"]
    shade = {(rect.findtext("title") or "").split(":")[0]: float(rect.get("fill-opacity") or 0) for rect in cells}
    assert len(shade) == len(best)
    assert max(shade, key=shade.__getitem__) == "tp {}, pp {}".format(*best.idxmin())
    assert min(shade, key=shade.__getitem__) == "tp {}, pp {}".format(*best.idxmax())


def test_at_another_price_the_cheapest_row_wins(shown: Page, fitting: pd.DataFrame) -> None:
    cheapest = fitting.groupby("hw", observed=True)["cost_usd"].min()
    caption = "On another machine"
    found = dict(zip(shown.column(caption, "on another machine"), shown.column(caption, "best"), strict=True))
    for chip, other in (("h100", "a100"), ("a100", "h100")):
        for factor in (0.5, 2):
            expected = min(cheapest[chip] * factor, cheapest[other])
            assert number(found[f"price of {chip} × {factor:g}"]) == pytest.approx(expected, rel=6e-3)
    assert len(found) == 2 * 2 * 7, "of each chip: arithmetic, HBM, memory, NVLink, network, latency and price"


def test_each_chip_and_number_of_gpus_has_its_best(shown: Page, fitting: pd.DataFrame) -> None:
    first = fitting.groupby(["hw", "hw.num_gpus"], observed=True).first()
    caption = "The best by chip and number of GPUs: cost against time"
    keys = list(zip(shown.column(caption, "chip"), map(int, shown.column(caption, "GPUs")), strict=True))
    assert keys == sorted(first.index)
    assert len(keys) == 4
    for name in ("step_time_s", "train_time_s", "train_cost_usd"):
        assert [number(cell) for cell in shown.column(caption, name)] == pytest.approx([first.loc[key, name] for key in keys], rel=6e-3)


def test_machines_that_none_beats_are_named(shown: Page, fitting: pd.DataFrame) -> None:
    first = fitting.groupby(["hw", "hw.num_gpus"], observed=True).first()[["train_time_s", "train_cost_usd"]]
    front = [key for key, own in first.iterrows() if not any((other <= own).all() and (other < own).any() for _, other in first.iterrows())]
    svg = shown.pictures["The best by chip and number of GPUs: cost against time"]
    texts = [each.text or "" for each in svg.iter("text")]
    assert sorted(text for text in texts if " × " in text) == sorted(f"{hw} × {gpus}" for hw, gpus in front)
    assert 0 < len(front) < len(first)
    assert len(list(svg.iter("circle"))) == len(first)


def test_ties_lie_within_the_winners_error(shown: Page, fitting: pd.DataFrame) -> None:
    best = fitting.iloc[0]
    same = fitting[(fitting["hw"] == best["hw"]) & (fitting["hw.num_gpus"] == best["hw.num_gpus"])]
    count = int((same["step_time_s"] <= best["step_time_s"] * (1 + best["expected_error"])).sum())
    assert count > 1
    assert f"No prediction tells {count} rows apart" in shown.text


def test_what_was_rejected_is_counted(shown: Page, rows: pd.DataFrame) -> None:
    counted = rows["reason"].value_counts()
    found = dict(zip(shown.column("Rejected", "reason"), map(int, shown.column("Rejected", "rows")), strict=True))
    assert found == counted[counted > 0].to_dict()


def test_provenance(shown: Page, folder: Path) -> None:
    metadata = [pa.parquet.read_schema(path).metadata for path in (folder / "results" / "small").glob("*.parquet")]
    assert shown.column("Provenance", "code") == [metadata[0][store.CODE].decode()]
    assert shown.column("Provenance", "rapid_dse") == [rd.__version__]
    assert shown.column("Provenance", "files") == [str(len(metadata))]
    command = next(line for line in shown.text.splitlines() if line.startswith("python -m rapid_dse.explain"))
    assert command.split()[3:5] == ["results/small", "--key"]


def test_pictures_are_titled_and_lie_in_their_frames(shown: Page) -> None:
    assert len(shown.pictures) == 6
    for svg in shown.pictures.values():
        assert svg.get("role") == "img"
        assert (svg.findtext("desc") or "").strip()
        ids = {each.get("id") for each in svg.iter() if each.get("id")}
        assert set((svg.get("aria-labelledby") or "").split()) == ids
        wide, high = map(float, (svg.get("viewBox") or "").split()[2:])
        for each in svg.iter():
            for names, most in ((("x", "x1", "x2", "cx"), wide), (("y", "y1", "y2", "cy"), high)):
                assert all(0 <= float(each.get(name, 0)) <= most for name in names)
            assert float(each.get("x", 0)) + float(each.get("width", 0)) <= wide + 0.2
    ids = [value for name, value in shown.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_each_picture_has_a_table(shown: Page) -> None:
    captions = {caption: caption for caption in shown.tables} | {"Rows that are not ok, by reason": "Rejected"}
    assert all(captions[title] in shown.tables for title in shown.pictures)


def scripts_of(text: str) -> list[str]:
    return re.findall(r"<script>(.*?)</script>", text, re.DOTALL)


def test_the_page_is_one_file_with_no_script_but_its_own(folder: Path, shown: Page) -> None:
    """Its policy runs those scripts alone whose digests it names; pictures are there before them."""
    text = (folder / "small.html").read_text()
    assert not shown.tags & {"link", "img", "iframe", "object", "embed", "base", "form"}
    assert not [name for name, _ in shown.attributes if name in ("src", "href", "srcset", "action", "xlink:href") or name.startswith("on")]
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style
    assert not re.search(r"url\(|@import|https?://", style[1])
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', html.unescape(text))
    digests = [f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in scripts_of(text)]
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src {' '.join(digests)}"
    assert text.count("<script") == len(digests) + 1, "and the rows, which are no script"
    assert text.index("<svg") < text.index("<script")
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def unpacked(text: str) -> dict[str, list[Any]]:
    """The columns of the page's packed rows, as its own script reads them."""
    found = re.search(r'id="packed-rows">(.*?)</script>', text)
    assert found
    content = zlib.decompress(base64.b64decode(found[1]))
    size = int.from_bytes(content[:4], "little")
    header, at = json.loads(content[4 : 4 + size]), 4 + size
    columns: dict[str, list[Any]] = {}
    for column in header["columns"]:
        width = {"codes": column.get("width", 0), "floats": 4, "hex": column.get("digits", 0) // 2}[column["kind"]]
        raw = np.frombuffer(content, np.uint8, width * header["rows"], at)
        at += len(raw)
        if column["kind"] == "hex":
            columns[column["name"]] = [raw[row : row + width].tobytes().hex() for row in range(0, len(raw), width)]
            continue
        mixed = np.ascontiguousarray(raw.reshape(width, -1).T)
        if column["kind"] == "floats":
            columns[column["name"]] = mixed.view("<f4")[:, 0].tolist()
        else:
            columns[column["name"]] = [column["values"][code] for code in mixed.view(f"<u{width}")[:, 0].tolist()]
    assert at == len(content)
    return columns


def test_all_rows_are_on_the_page(folder: Path) -> None:
    table = result_columns.require_results(store.read(folder / "results" / "small", print), folder)
    columns = unpacked((folder / "small.html").read_text())
    for name in table.column_names:
        values = table[name].to_pylist()
        if all(value is None for value in values):
            assert name not in columns
        elif name == "key":
            assert columns[name] == [key[:12] for key in values]
            assert len(set(columns[name])) == len(values)
        elif isinstance(next(value for value in values if value is not None), str | bool):
            assert columns[name] == values, name
        else:
            found = np.array([np.nan if value is None else value for value in columns[name]], np.float32)
            assert np.array_equal(found, np.array([np.nan if value is None else value for value in values], np.float32), equal_nan=True), (
                name
            )


def test_the_pipeline_of_the_winner(tmp_path: Path) -> None:
    done(tmp_path, "-m", "hw=h100", "model=llama3_1_8b", "hw.num_gpus=16", "parallel.pp=4", "parallel.tp=1,2", "search.study=piped")
    done(tmp_path, "results/piped", "--no-sensitivity", module="rapid_dse.report")
    found, stored = Page((tmp_path / "report.html").read_text()), pd.read_parquet(tmp_path / "results" / "piped")
    best = stored[stored["fits"].fillna(False).astype(bool)].nsmallest(1, "step_time_s").iloc[0]
    caption = "Pipeline of the winner: passes of each stage"
    assert found.column(caption, "stage") == ["0", "1", "2", "3"]
    stages = [sum(number(found.column(caption, name)[stage]) for name in ("forward", "backward", "waits")) for stage in range(4)]
    assert stages == pytest.approx([stages[0]] * 4, rel=2e-3)
    behind = best["time_dp_s"] + best["time_optimizer_s"]
    assert stages[0] + behind == pytest.approx(best["step_time_s"], rel=0.01)
    spans = {path.get("class"): path.get("d") or "" for path in found.pictures[caption].iter("path")}
    assert set(spans) == {"span forward", "span backward"}
    lanes = [rect.findtext("title") or "" for rect in found.pictures[caption].iter("rect")]
    assert lanes[0].startswith("stage 0, forward ")


def test_no_text_of_a_user_is_markup(folder: Path) -> None:
    name = "<script>alert(1)&\"'"
    shutil.copytree(folder / "results" / "small", folder / "results" / name)
    done(folder, f"results/{name}", "--out", "named.html", module="rapid_dse.report")
    found = Page((folder / "named.html").read_text())
    small, named = ((folder / page).read_text() for page in ("small.html", "named.html"))
    assert scripts_of(named) == scripts_of(small)
    assert named.count("<script") == small.count("<script")
    assert found.text.count(name) >= 2
    table = result_columns.require_results(store.read(folder / "results" / "small", print), folder)
    bad = "</title><img src=x onerror=alert(2)>\0 ]]>"
    for column in ("reason", "hw", "outside", "model", "parallel.schedule"):
        at = table.column_names.index(column)
        texts = [bad if text is None or column != "reason" else f"{text} {bad}" for text in table[column].to_pylist()]
        table = table.set_column(at, column, pa.array(texts, pa.string()))
    text = page(table, Origin(bad))
    found = Page(text)
    assert not found.tags & {"img"}
    assert text.count("<script") == small.count("<script")
    assert "onerror=alert(2)" in found.text
    assert "cannot be composed here" in found.text


def test_python_writes_the_same_pictures(folder: Path, shown: Page) -> None:
    results = rd.load(folder / "results" / "small")
    out = results.report(folder / "python.html")
    found = Page(out.read_text())
    assert found.tables == shown.tables
    assert {title: ET.tostring(svg) for title, svg in found.pictures.items()} == {
        title: ET.tostring(svg) for title, svg in shown.pictures.items()
    }
    by_mfu = Page(results.report(folder / "mfu.html", by="mfu").read_text())
    assert number(by_mfu.tables["Ranking by mfu"][1][by_mfu.tables["Ranking by mfu"][0].index("MFU")]) == pytest.approx(
        max(trial.row["mfu"] for trial in results.where("fits")), abs=6e-4
    )


def test_a_study_of_which_nothing_fits(tmp_path: Path) -> None:
    done(tmp_path, "-m", "hw=h100", "model=llama3_1_70b", "hw.num_gpus=8", "parallel.tp=1,2,4,8", "search.study=none")
    done(tmp_path, "results/none", module="rapid_dse.report")
    found, stored = Page((tmp_path / "report.html").read_text()), pd.read_parquet(tmp_path / "results" / "none")
    assert not stored["fits"].any()
    assert "Nothing fits in memory" in found.text
    caption = "Peak memory of a GPU by term"
    nearest = number(dict(zip(found.column(caption, "term"), found.column(caption, "nearest to fitting"), strict=True))["all"])
    assert nearest == pytest.approx(stored["peak_memory_bytes"].min(), rel=1e-3)


def test_requests_and_several_jobs(tmp_path: Path) -> None:
    serving = ("workload=inference", "hw=h100", "hw.num_gpus=8", "parallel.tp=1,2,4,8", "workload.concurrency=16,64")
    done(tmp_path, "-m", *serving, "model=llama3_1_8b,llama3_1_70b", "search.study=serve")
    done(tmp_path, "results/serve", module="rapid_dse.report")
    found, stored = Page((tmp_path / "report.html").read_text()), pd.read_parquet(tmp_path / "results" / "serve")
    best = stored[stored["fits"].fillna(False).astype(bool)].groupby(["model", "workload.concurrency"], observed=True)["step_time_s"].min()
    assert len(best) == 4
    assert sorted(map(number, found.column("Jobs", "step_time_s"))) == pytest.approx(sorted(best), rel=1e-3)
    assert "Time of a token and throughput of a GPU, every row" in found.tables
    for model, rows in stored[stored["fits"].fillna(False).astype(bool)].groupby("model", observed=True):
        pairs = rows[["step_time_s", "tokens_per_s_per_gpu"]].to_numpy() * [1, -1]
        front = sorted(tuple(pair) for pair in pairs if not any((other <= pair).all() and (other < pair).any() for other in pairs))
        caption = f"Throughput of a GPU and time of a token, all loads: model={model}"
        assert list(map(number, found.column(caption, "step_time_s"))) == pytest.approx([pair[0] for pair in front], rel=1e-3)
        assert len(set(found.column(caption, "workload.concurrency"))) == 2, "a front over loads"


def test_a_hundred_thousand_rows(folder: Path) -> None:
    small = result_columns.require_results(store.read(folder / "results" / "small", print), folder)
    rows = np.resize(np.arange(len(small)), 100_000)
    spread = np.random.default_rng(1).lognormal(0, 0.5, (2, len(rows)))
    table = small.take(rows)
    for name, factor in zip(("step_time_s", "peak_memory_bytes"), spread, strict=True):
        values = table[name].to_numpy() * factor
        table = table.set_column(table.column_names.index(name), name, pa.array(values, from_pandas=True))
    start = time.perf_counter()
    text = page(table, Origin("large"), sensitivity=False)
    assert time.perf_counter() - start < 10 * slowness()
    assert len(text.encode()) < 8e6
    assert f"{int(pa.compute.sum(table['fits']).as_py()):,} rows fit" in text


def test_what_is_wrong_is_one_line(folder: Path) -> None:
    for arguments in (["nowhere"], ["results/small", "--by", "speed"], ["results/small", "--out", "no/such/folder.html"], []):
        ended = run(folder, *arguments, module="rapid_dse.report")
        assert "allowed" in one_line(ended) or "did you mean" in one_line(ended)
    assert not list(folder.glob(".*"))


def test_axes() -> None:
    linear, logarithmic = Scale(10, 20, 0, 100), Scale(1, 100, 0, 100)
    assert linear.place(np.array([10.0, 15.0, 20.0])).tolist() == pytest.approx([0, 50, 100])
    assert logarithmic.place(np.array([1.0, 10.0, 100.0])).tolist() == pytest.approx([0, 50, 100])
    assert linear.ticks() == pytest.approx([10, 12, 14, 16, 18, 20])
    assert logarithmic.ticks() == pytest.approx([1, 2, 5, 10, 20, 50, 100])
    days = Scale(86400, 100 * 86400, 0, 100)
    assert [tick / 86400 for tick in days.ticks(86400)] == pytest.approx([1, 2, 5, 10, 20, 50, 100])
    one = scale_of(np.array([7.0]), 0, 100)
    assert one.low < 7 < one.high
