"""python -m rapid_dse.explore over real HTTP: who is answered, what names may be, what filters leave, and what overrides compose."""

from __future__ import annotations

import asyncio
import contextlib
import html
import http.client
import json
import re
import shlex
import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import pandas as pd
import pytest
import uvicorn
from program import done, one_line, run
from test_report import Page, number

import rapid_dse as rd
from rapid_dse import command
from rapid_dse.explorer.cloud_points import KINDS
from rapid_dse.explorer.launched_sweeps import Launches
from rapid_dse.explorer.page_guard import Access
from rapid_dse.explorer.study_shelf import Shelf
from rapid_dse.explorer.web_app import application
from rapid_dse.explorer.what_if import overrides_of_row

GRID = (
    *("-m", "hw=h100,a100", "model=llama3_1_8b", "hw.num_gpus=16,32", "workload.global_batch_size=128"),
    *("parallel.tp=1,2,4,8", "parallel.pp=1,2,3", "parallel.zero=0,1", "parallel.recompute=none,full", "parallel.micro_batch_size=1,4"),
)
SCRIPT = "<script>alert(1)&\"'"
COOKIE = "Cookie"


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def message(self) -> str:
        found = re.search(r'role="alert">.*?</strong></p><p>(.*?)</p>', self.text, re.DOTALL)
        assert found, self.text[:2000]
        return html.unescape(found[1])


@dataclass
class Served:
    """A page that runs; ``ask`` sends what its own browser would, with some headers changed (None: left out)."""

    access: Access
    shelf: Shelf
    cookies: str = field(init=False)

    def __post_init__(self) -> None:
        self.cookies = f"{self.access.cookie}={self.access.token}"

    def ask(self, address: str, form: dict[str, str] | None = None, **headers: str | None) -> Answer:
        own = {"Host": self.access.hosts[0], COOKIE: self.cookies}
        if form is not None:
            own |= {"Origin": f"http://{self.access.hosts[0]}", "Content-Type": "application/x-www-form-urlencoded"}
        own |= headers  # type: ignore[arg-type]
        link = http.client.HTTPConnection("127.0.0.1", self.access.port, timeout=30)
        link.putrequest("GET" if form is None else "POST", address, skip_host=True)
        body = b"" if form is None else urlencode(form).encode()
        for name, value in {**own, "Content-Length": str(len(body))}.items():
            if value is not None:
                link.putheader(name, value)
        link.endheaders(body)
        found = link.getresponse()
        answer = Answer(found.status, found.headers, found.read())
        link.close()
        return answer

    def rows(self, **query: str) -> Answer:
        return self.ask(f"/rows?{urlencode({'study': 'small', **query})}")

    def count(self, **query: str) -> int:
        found = re.search(r">([\d,]+) of [\d,]+ rows", self.rows(**query).text)
        assert found, self.rows(**query).message
        return int(found[1].replace(",", ""))


@contextlib.contextmanager
def serving(root: Path, allow_runs: bool = False) -> Iterator[Served]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        access, shelf = Access(listening.getsockname()[1]), Shelf(root)
        server = uvicorn.Server(uvicorn.Config(application(shelf, Launches(root, allow_runs), access), log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        yield Served(access, shelf)
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("explore")
    done(where, *GRID, "search.study=small")
    shutil.copytree(where / "results" / "small", where / "results" / SCRIPT)
    (where / "secret.parquet").write_bytes((next((where / "results" / "small").glob("*.parquet"))).read_bytes())
    return where / "results"


@pytest.fixture(scope="module")
def page(root: Path) -> Iterator[Served]:
    with serving(root) as found:
        yield found


@pytest.fixture(scope="module")
def frame(root: Path) -> pd.DataFrame:
    return pd.read_parquet(root / "small")


REFUSED: dict[str, dict[str, str | None]] = {
    "foreign host": {"Host": "evil.example:80"},
    "host without the port": {"Host": "127.0.0.1"},
    "no host": {"Host": ""},
    "foreign origin": {"Origin": "http://evil.example"},
    "null origin": {"Origin": "null"},
    "origin of another port": {"Origin": "http://127.0.0.1:1"},
    "no token": {COOKIE: None},
    "another token": {COOKIE: "rapid_dse_1=abc"},
    "wrong token": {COOKIE: "wrong"},
}


@pytest.mark.parametrize("headers", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("address", ["/", "/study?study=small", "/static/htmx.js", "/nothing"])
def test_whoever_else_asks_is_refused(page: Served, address: str, headers: dict[str, str | None]) -> None:
    if headers.get(COOKIE) == "wrong":
        headers = {COOKIE: f"{page.access.cookie}=wrong"}
    found = page.ask(address, **headers)
    assert found.status == 403
    assert b"small" not in found.body
    assert found.headers["content-security-policy"]


def test_a_form_needs_an_origin(page: Served) -> None:
    form = {"overrides": "parallel.tp=2"}
    assert page.ask("/count", form).status == 200
    assert page.ask("/count", form, Origin=None).status == 403
    assert page.ask("/count", form, Origin="http://evil.example").status == 403
    assert page.ask("/count?overrides=parallel.tp=2").status == 405, "what changes something is no link"


def test_the_token_becomes_a_cookie_that_no_other_page_sends(page: Served) -> None:
    found = page.ask(f"/?token={page.access.token}", Cookie=None)
    assert (found.status, found.headers["location"]) == (303, "/")
    parts = [part.strip().lower() for part in found.headers["set-cookie"].split(";")]
    assert found.headers["set-cookie"].startswith(f"{page.access.cookie}={page.access.token};")
    assert {"httponly", "samesite=strict"} <= set(parts)
    assert page.ask("/?token=wrong", Cookie=None).status == 403
    assert len(page.access.token) >= 40
    assert Access(1).token != Access(1).token


def test_only_this_machine_is_listened_to(tmp_path: Path) -> None:
    from rapid_dse.explore import HOST, _socket

    with _socket(0) as listening:
        assert listening.getsockname()[0] == HOST == "127.0.0.1"
        socket.create_connection(listening.getsockname(), timeout=5).close()  # taken before anything answers


# Every address with all its parameters: each is tried with a path in the place of its value.
PARAMETERS = {
    "/study": ("study", "q", "by", "x", "y", "first", "lasso", "c.hw"),
    "/rows": ("study", "q", "by", "x", "y", "first", "lasso", "c.hw"),
    "/points": ("study", "q", "by", "x", "y", "first", "c.hw"),
    "/nearest": ("study", "q", "by", "x", "y", "at_x", "at_y"),
    "/pictures": ("study", "by"),
    "/row": ("study", "key"),
    "/explain": ("study", "key", "against"),
    "/difference": ("study", "a", "b"),
    "/launch-file": ("study", "key", "to"),
    "/run": ("number",),
}
FORMS = {"/trial": "overrides", "/count": "overrides", "/launch": "overrides", "/cancel": "number"}


def usual(name: str, key: str) -> str:
    return {"study": "small", "key": key, "a": key, "b": key, "at_x": "5", "at_y": "5e10"}.get(name, "")


@pytest.mark.parametrize("path", ["../secret.parquet", "/etc/passwd"])
def test_a_path_is_refused_in_every_parameter(page: Served, frame: pd.DataFrame, path: str) -> None:
    for address, names in PARAMETERS.items():
        for name in names:
            query = {each: usual(each, frame["key"][0]) for each in names} | {name: path}
            found = page.ask(f"{address}?{urlencode({each: value for each, value in query.items() if value})}")
            assert found.status in (400, 404), (address, name, found.status)
            assert found.message.count("allowed:") == 1 or "did you mean" in found.message, found.message
    for address, name in FORMS.items():
        assert page.ask(address, {name: path}).status in (400, 404)
        assert page.ask(address, {name: f"model={path}"}).status in (400, 404)
    for address in (f"/static/{quote(path, safe='')}", f"/static/{path}", f"/{path}"):
        assert page.ask(address).status == 404


def test_what_no_page_has_is_refused(page: Served) -> None:
    assert "no parameter here; did you mean 'study'" in page.ask("/study?studi=small").message
    assert "is given twice" in page.ask("/study?study=small&study=small").message
    assert page.ask("/study?study=").message == "study: is missing; allowed: study=…"
    assert page.ask("/count", {"overrides": "x" * 120_000}).status == 413


def test_a_study_named_as_a_script_is_text(page: Served) -> None:
    for address in (
        "/",
        f"/study?{urlencode({'study': SCRIPT})}",
        f"/pictures?{urlencode({'study': SCRIPT})}",
        f"/study?{urlencode({'study': SCRIPT[:-1] + '?'})}",
    ):
        found = page.ask(address)
        shown = Page(found.text)
        assert SCRIPT[:-1] in shown.text
        assert found.text.count("<script") == found.text.count('<script src="/static/') == 5
        assert not [name for name, _ in shown.attributes if name.startswith("on") or name == "style"]


def test_answers_allow_no_script_but_the_pages_own(page: Served) -> None:
    for address in ("/", "/nothing", "/static/explore.js", "/points?study=small"):
        headers = page.ask(address).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"


FILTERS = {
    "fits": "fits",
    "oom": "status == 'oom'",
    "hw=h100 tp>=4": "hw == 'h100' and `parallel.tp` >= 4",
    "tp=2,8 zero!=1": "`parallel.tp` in (2, 8) and `parallel.zero` != 1",
    "step_time_s<9s fits": "fits and step_time_s < 9",
    "'peak_memory_bytes <= 30 GiB'": f"peak_memory_bytes <= {30 * 2**30}",
    "recompute=full schedule!=none": "`parallel.recompute` == 'full' and `parallel.schedule` != 'none'",
    "sequence_parallel=true": "`parallel.sequence_parallel` == True",
    "inside": "outside.isna() and expected_error.notna()",
    "step_time_s>1e6": "step_time_s > 1e6",
}


@pytest.mark.parametrize("text", FILTERS)
def test_filters_leave_what_pandas_leaves(page: Served, frame: pd.DataFrame, text: str) -> None:
    frame = frame.assign(fits=frame["fits"].fillna(False).astype(bool))
    assert page.count(q=text) == len(frame.query(FILTERS[text], engine="python"))


def test_choices_and_terms_hold_together(page: Served, frame: pd.DataFrame) -> None:
    kept = frame[(frame["hw"] == "a100") & (frame["parallel.pp"] == 2) & (frame["status"] == "ok")]
    assert page.count(**{"c.hw": "a100", "c.parallel.pp": "2", "q": "fits"}) == len(kept) > 0
    shown = Page(page.ask("/study?study=small").text)
    offered = {value for name, value in shown.attributes if name == "name"}
    assert {"c.hw", "c.hw.num_gpus", "c.parallel.tp", "c.status"} <= offered
    assert "c.model" not in offered, "it has one value"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"q": "step_tim_s<3"}, "filter: step_tim_s: no column of this study; did you mean 'step_time_s'?"),
        ({"q": "tp>=four"}, "filter: 'tp>=four': 'four' is no number; allowed: parallel.tp beside a number"),
        ({"q": "hw<3"}, "filter: 'hw<3': hw holds texts; allowed: hw=value, or hw!=value"),
        ({"q": "fit"}, "filter: 'fit' is no term; allowed: fits, ok, oom"),
        ({"q": "'half"}, "cannot be read (No closing quotation)"),
        ({"q": "peak_memory_bytes<3 s"}, "filter: 's' is no term"),
        ({"q": "'peak_memory_bytes<3 s'"}, "peak_memory_bytes"),
        ({"by": "speed"}, "by=speed: no column of numbers; did you mean"),
        ({"lasso": "1,2;3"}, "lasso='1,2;3': no outline; allowed: 3 to 400 corners"),
        ({"first": "-1"}, "first='-1': allowed: a whole number from 0"),
    ],
)
def test_what_is_wrong_in_a_filter_is_one_line(page: Served, query: dict[str, str], said: str) -> None:
    found = page.rows(**query)
    assert found.status == 400
    assert said in found.message


def test_rows_come_best_first_and_by_pages(page: Served, frame: pd.DataFrame) -> None:
    ok = frame[frame["status"] == "ok"]
    for by, column, ascending in (("step_time_s", "step_time_s", True), ("mfu", "mfu", False), ("-cost_usd", "cost_usd", False)):
        keys = [key for first in (0, 50) for key in re.findall(r'<tr data-key="(\w*)"', page.rows(by=by, first=str(first), q="fits").text)]
        values = ok.set_index("key").loc[keys, column].tolist()
        assert values == ok[column].sort_values(ascending=ascending).tolist()[:100]
        assert len(set(keys)) == 100
    every = [key for first in range(0, len(frame), 50) for key in re.findall(r'<tr data-key="(\w*)"', page.rows(first=str(first)).text)]
    assert sorted(every) == sorted(frame["key"])
    statuses = frame.set_index("key").loc[every, "status"].map({"ok": 0, "oom": 1, "invalid": 2}).tolist()
    assert statuses == sorted(statuses)


def points(body: bytes) -> tuple[dict[str, object], np.ndarray, np.ndarray]:
    """The header, the points ``(n, 2)`` and their kinds."""
    (size,) = struct.unpack_from("<I", body)
    header = json.loads(body[4 : 4 + size])
    count, start = header["points"], 4 + size
    columns = [np.frombuffer(body, "<f4", count, start + 4 * count * at) for at in range(2)]
    return header, np.stack(columns, 1), np.frombuffer(body, np.uint8, count, start + 8 * count)


def test_points_are_the_rows(page: Served, frame: pd.DataFrame) -> None:
    header, place, kind = points(page.ask(f"/points?{urlencode({'study': 'small', 'q': 'hw=h100'})}").body)
    kept = frame[(frame["hw"] == "h100") & frame["step_time_s"].notna()]
    assert header["rows"] == len(kept)
    pairs = kept[["step_time_s", "peak_memory_bytes"]].to_numpy(np.float32)
    assert {tuple(pair) for pair in place} <= {tuple(pair) for pair in pairs}
    # a row that is not sent lies on the pixel of one that is
    span = (
        np.log(frame["step_time_s"].max() / frame["step_time_s"].min()),
        np.log(frame["peak_memory_bytes"].max() / frame["peak_memory_bytes"].min()),
    )
    apart = np.abs(np.log(pairs)[:, None] - np.log(place)[None]) / np.array(span)
    assert (apart <= [1 / 1199, 1 / 799]).all(axis=2).any(axis=1).all()
    fitting = kept[kept["status"] == "ok"][["step_time_s", "peak_memory_bytes"]].to_numpy()
    front = {tuple(pair) for pair in fitting if not any((other <= pair).all() and (other < pair).any() for other in fitting)}
    assert {tuple(pair) for pair in place[kind == KINDS.index("front")]} == {tuple(np.float32(pair)) for pair in front}


def test_a_lasso_selects_what_lies_inside(page: Served, frame: pd.DataFrame) -> None:
    corners = np.array([[3.0, 2e10], [30.0, 3e10], [8.0, 2e11]])
    priced = frame[frame["step_time_s"].notna()]
    at, (a, b, c) = np.log(priced[["step_time_s", "peak_memory_bytes"]].to_numpy()), np.log(corners)
    # by barycentric coordinates of the triangle on logarithmic axes
    weights = np.linalg.solve(np.stack([b - a, c - a], 1), (at - a).T)
    inside = (weights >= 0).all(axis=0) & (weights.sum(axis=0) <= 1)
    lasso = ";".join(f"{x},{y}" for x, y in corners)
    assert 0 < inside.sum() < len(priced)
    assert page.count(lasso=lasso) == inside.sum()
    assert page.count(lasso=lasso, q="fits") == (inside & (priced["status"] == "ok")).sum()
    keys = re.findall(r'<tr data-key="(\w*)"', page.rows(lasso=lasso).text)
    assert set(keys) <= set(priced["key"][inside])


def test_the_row_at_a_place_is_the_nearest(page: Served, frame: pd.DataFrame) -> None:
    best = frame[frame["status"] == "ok"].nsmallest(1, "step_time_s").iloc[0]
    query = urlencode({"study": "small", "q": "fits", "at_x": best["step_time_s"] * 0.99, "at_y": best["peak_memory_bytes"]})
    assert f'data-key="{best["key"]}"' in page.ask(f"/nearest?{query}").text


def test_a_row_has_its_figures_and_its_launch_file(page: Served, frame: pd.DataFrame) -> None:
    best = frame[frame["status"] == "ok"].nsmallest(1, "step_time_s").iloc[0]
    of = urlencode({"study": "small", "key": best["key"]})
    row = Page(page.ask(f"/row?{of}").text)
    assert f"{100 * best['mfu']:.1f} %" in row.text
    assert f"{best['peak_memory_bytes'] / 2**30:.1f} GiB of " in row.text
    assert len(row.pictures) == 2
    exported = done(page.shelf.root.parent, "results/small", "--key", best["key"], module="rapid_dse.export").out
    assert exported in Page(page.ask(f"/launch-file?{of}").text).text
    assert "tensor_parallel_degree" in page.ask(f"/launch-file?{of}&to=torchtitan").text
    assert "to=slurm: no framework" in page.ask(f"/launch-file?{of}&to=slurm").message


def test_a_difference_is_that_of_the_terms(page: Served, frame: pd.DataFrame) -> None:
    first, second = (row for _, row in frame[frame["status"] == "ok"].nsmallest(9, "step_time_s").iloc[[0, 8]].iterrows())
    shown = Page(page.ask(f"/difference?{urlencode({'study': 'small', 'a': first['key'], 'b': second['key']})}").text)
    for name, row in (("A", first), ("B", second)):
        caption = "Time of a step by term"
        (head,) = (each for each in shown.tables[caption][0] if each.startswith(f"{name}: "))
        cells = dict(zip(shown.column(caption, "term"), shown.column(caption, head), strict=True))
        assert number(cells["all"]) == pytest.approx(row["step_time_s"], rel=1e-3)
        assert number(cells["compute"]) == pytest.approx(row["time_compute_s"], rel=1e-3)
    said = re.search(r"([\d.]+ m?s) slower: |([\d.]+ m?s) faster: ", shown.text)
    assert said
    assert number(said[1] or said[2]) == pytest.approx(abs(first["step_time_s"] - second["step_time_s"]), rel=2e-3)
    assert bool(said[2])
    changed = {row[0] for row in shown.tables["What differs"][1:]}
    assert changed >= {key for key in ("hw.num_gpus", "parallel.tp", "parallel.pp", "parallel.recompute") if first[key] != second[key]} - {
        "hw.num_gpus"
    }
    same = urlencode({"study": "small", "a": first["key"], "b": first["key"]})
    assert page.ask(f"/difference?{same}").message == "a and b are one row; allowed: two different rows"
    invalid = frame[frame["status"] == "invalid"].iloc[0]["key"]
    assert (
        "this row has status=invalid" in page.ask(f"/difference?{urlencode({'study': 'small', 'a': first['key'], 'b': invalid})}").message
    )
    assert page.ask(f"/row?{urlencode({'study': 'small', 'key': invalid})}").status == 200
    assert "this row has status=invalid" in page.ask(f"/launch-file?{urlencode({'study': 'small', 'key': invalid})}").message


def trial_cells(page: Served, overrides: str) -> dict[str, str]:
    found = page.ask("/trial", {"overrides": overrides})
    assert found.status == 200, found.message
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html.unescape(found.text)))


def test_a_rows_overrides_compose_it_again(page: Served, frame: pd.DataFrame) -> None:
    for _, row in frame[frame["status"] != "invalid"].iloc[[7]].iterrows():
        plain = row.astype(object).where(row.notna(), None).to_dict()
        assert trial_cells(page, shlex.join(overrides_of_row(plain)))["key"] == row["key"]
    other = rd.simulate(
        hw="h100", model="gpt_oss_20b", workload="inference", num_gpus=8, tp=2, prompt_len=1000, decode_len=200, concurrency=16
    )
    found = trial_cells(page, shlex.join(overrides_of_row(other.row)))
    assert found["key"] == other["key"]


BAD = (*("parallel.tpp=2", "hw=h1000", "parallel.tp=5", "hw.memory.bandwidth=3days", "parallel.tp=1,2"),)


@pytest.mark.parametrize("text", BAD)
def test_a_wrong_value_has_the_command_lines_message(page: Served, tmp_path: Path, text: str) -> None:
    said = one_line(run(tmp_path, *shlex.split(text)))
    found = page.ask("/trial", {"overrides": text})
    assert found.status == 400
    assert command.one_line(found.message) == said, "a terminal's line leaves out the middle of long ones"


@pytest.mark.parametrize(
    "text",
    [
        *("model=./config.json", "hw=x.yaml", "model=/etc/passwd", "cluster=..", "hw=..\\x", "--config-dir=conf", "-m parallel.tp=2"),
        *(
            "hydra.searchpath=[pkg]",
            "+hydra.run=1",
            "backend.astrasim.binary=true",
            "backend.artifacts.timeline=true",
            "search.results_dir=x",
        ),
        *("search.storage=x", "search.launcher=dask", "search.launcher_address=x", "debug.hw_snapshots=true", "hw='${oc.env:HOME}'"),
        *("zip(model=a.json,b.json;parallel.tp=1,2)", "+sweeps=../x", "search.space={a:1}"),
    ],
)
def test_what_names_files_programs_or_machines_is_refused(page: Served, text: str) -> None:
    for address in ("/trial", "/count"):
        found = page.ask(address, {"overrides": text})
        assert found.status == 400
        assert "allowed" in found.message


def test_units_with_a_stroke_are_no_paths(page: Served) -> None:
    assert "step time" in trial_cells(page, "hw=h100 model=llama3_1_8b 'hw.memory.bandwidth=3.0 TB/s' 'hw.price=2 USD/h'")


def test_a_sweep_is_counted_before_it_is_launched(page: Served, frame: pd.DataFrame, root: Path) -> None:
    overrides = shlex.join([*GRID[1:], "search.study=small"])
    found = page.ask("/count", {"overrides": overrides}).text
    assert f"<h2>{len(frame):,} trials</h2>" in found
    assert "which is there already" in found
    assert "Launch " not in found, "the page is for reading"
    assert "for reading" in page.ask("/launch", {"overrides": overrides}).message


def test_files_that_change_are_read_again(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "small", tmp_path / "small")
    with serving(tmp_path) as page:
        before = page.count()
        first = min((tmp_path / "small").glob("*.parquet"))
        first.write_bytes(first.read_bytes()[:-3])
        shown = page.ask("/study?study=small").text
        assert "damaged" in shown
        assert page.count() < before
        shutil.rmtree(tmp_path / "small")
        assert page.ask("/study?study=small").status == 404
        assert "No results in" in page.ask("/").text


def test_files_that_are_no_results_have_a_message(root: Path, frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.drop(columns=["mfu"]).to_parquet(tmp_path / "foreign.parquet")
    frame[["key", "hw"]].to_parquet(tmp_path / "none.parquet")
    frame[frame["status"] == "invalid"].to_parquet(tmp_path / "invalid.parquet")
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    with serving(tmp_path) as page:
        assert page.ask("/").text.count('class="opens"') == 4
        for name, said in (("foreign", "lacks mfu"), ("none", "lacks status"), ("junk", "damaged or unreadable")):
            found = page.ask(f"/study?study={name}.parquet")
            assert (found.status, said in found.message) == (400, True)
        assert page.ask("/study?study=invalid.parquet").text.count("<tr data-key") == 50
        assert page.ask("/points?study=invalid.parquet").status == 200
        assert "was priced" in page.ask("/pictures?study=invalid.parquet").message


def test_what_is_wrong_in_the_command_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments in (["nowhere"], ["file"], [".", "--port", "70000"], [".", "--port", "x"], []):
        assert "allowed" in one_line(run(tmp_path, *arguments, module="rapid_dse.explore"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "in use" in one_line(run(tmp_path, ".", "--port", port, module="rapid_dse.explore"))


def test_who_leaves_in_the_middle_of_a_form_is_sent_nothing(root: Path) -> None:
    access = Access(80)
    headers = {"host": access.hosts[0], "origin": f"http://{access.hosts[0]}", "cookie": f"{access.cookie}={access.token}"}
    scope = {"type": "http", "method": "POST", "path": "/trial", "raw_path": b"/trial", "query_string": b"", "http_version": "1.1",
             "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}  # fmt: skip
    came = iter([{"type": "http.request", "body": b"overrides=", "more_body": True}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(came)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(application(Shelf(root), Launches(root, False), access)(scope, receive, send))
    assert sent == []
