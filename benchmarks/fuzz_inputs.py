"""Inputs that are wrong in every way, made by chance from sound ones, and what takes them: one kind, one class.

What an input may do: give a finite result, or raise what the commands print as one line. Each kind is run in this process, by the
function that the command calls, so that thousands a second are tried.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
# What a command prints as one line (command.guarded); anything else would be a traceback.
SAID = (ValueError, OSError, RecursionError)

GIVEN = json.loads(Path(__file__).with_name("fuzz_values.json").read_text())
NASTY: list[str] = GIVEN["values"]
CHARACTERS = string.printable + "äß×–\x00\ufeff\u202e😀"


@dataclass(frozen=True)
class FuzzKind:
    """A kind of input.

    Attributes:
        name: as it is counted.
        make: an input, by chance; ``folder`` is where it may lie.
        take: does what a command does with it.
        share: of all inputs.
    """

    name: str
    make: Callable[[random.Random, Path], Any]
    take: Callable[[Any], None]
    share: float


def mutated(text: str, rng: random.Random, most: int = 4) -> str:
    """A text with some of it lost, doubled, swapped or replaced."""
    for _ in range(rng.randint(0, most)):
        at, end = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        end = min(end, at + 40)
        kind = rng.randrange(6)
        if kind == 0:
            text = text[:at] + text[end:]
        elif kind == 1:
            text = text[:end] + text[at:]
        elif kind == 2:
            text = text[:at] + rng.choice(CHARACTERS) + text[at:]
        elif kind == 3:
            text = text[:at] + rng.choice(NASTY) + text[end:]
        elif kind == 4:
            text = text[:at]
        else:
            text = text[:at] + text[at:end][::-1] + text[end:]
    return text


def damaged(data: bytes, rng: random.Random, most: int = 4) -> bytes:
    """Bytes with bits flipped, parts lost or doubled."""
    found = bytearray(data)
    for _ in range(rng.randint(1, most)):
        if not found:
            break
        at = rng.randrange(len(found))
        if rng.random() < 0.7:
            found[at] ^= 1 << rng.randrange(8)
        elif rng.random() < 0.5:
            del found[at : at + rng.randint(1, 64)]
        else:
            found[at:at] = found[at : at + rng.randint(1, 64)]
    return bytes(found)


def changed(tree: Any, rng: random.Random) -> Any:
    """A JSON-like tree in which values were replaced, lost, or moved."""
    if isinstance(tree, Mapping):
        found = {key: changed(value, rng) for key, value in tree.items() if rng.random() > 0.02}
        if rng.random() < 0.05:
            found[rng.choice([*tree, "unknown", "a.b", ""])] = _value(rng)
        return found
    if isinstance(tree, list):
        return [changed(value, rng) for value in tree if rng.random() > 0.02]
    return _value(rng) if rng.random() < 0.05 else tree


def _value(rng: random.Random) -> Any:
    plain = (0, -1, 1, 2, 3, 7, 1 << 31, 1 << 63, 1 << 200, 0.5, -0.5, 1e308, 1e-308, math.nan, math.inf)
    plain += (True, False, None, [], {}, [1], {"a": 1}, [None], [[1]])
    return rng.choice(plain) if rng.random() < 0.6 else rng.choice(NASTY)


def texts_of(kind: str) -> list[str]:
    """What options and files of the repository say, as texts to change."""
    return [path.read_text() for path in sorted((ROOT / "conf" / kind).glob("*.yaml"))]


@cache
def keys() -> tuple[str, ...]:
    """The keys of a trial, as --cfg lists them, and the groups."""
    from rapid_dse.sweep.overrides import GROUPS, read
    from rapid_dse.sweep.space import plan

    def leaves(tree: Any, prefix: str) -> Iterator[str]:
        for name, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield f"{prefix}{name}"
            if isinstance(value, Mapping | list):
                yield from leaves(value, f"{prefix}{name}.")

    tree = plan(read([])).portions[0].scenario.model_dump(mode="json")
    return (*GROUPS, "sweeps", *leaves(tree, ""))


# Overrides ---------------------------------------------------------------------------------------------------------------------------


def override(rng: random.Random, _: Path) -> str:
    text = f"{rng.choice(keys())}={rng.choice(NASTY)}" if rng.random() < 0.8 else rng.choice(NASTY)
    if rng.random() < 0.3:
        text = f"{text},{rng.choice(NASTY)}"
    if rng.random() < 0.1:
        text = rng.choice(("+", "++", "~", "-", "@")) + text
    return mutated(text, rng, 2)


def take_override(text: str) -> None:
    from rapid_dse.sweep.overrides import for_hydra, read

    read([text])
    if not text.startswith("zip("):
        for_hydra([text])


# Units -------------------------------------------------------------------------------------------------------------------------------


def quantity(rng: random.Random, _: Path) -> tuple[str, str]:
    from rapid_dse.config.units import EXAMPLES, UNITS

    unit = rng.choice(list(UNITS))
    text = rng.choice((EXAMPLES[unit], *NASTY, f"{rng.uniform(-10, 1e9)}{rng.choice('kMGTPEZYmunpf')}{rng.choice(list(UNITS[unit]))}"))
    return mutated(text, rng), unit


def take_quantity(given: tuple[str, str]) -> None:
    from rapid_dse.config.units import share, to_si

    found = to_si(*given)
    assert math.isfinite(found), given
    with contextlib.suppress(ValueError):
        share(given[0])


# Whole trials ------------------------------------------------------------------------------------------------------------------------


def trial(rng: random.Random, _: Path) -> list[str]:
    base = ["model=llama3_1_8b", "hw.num_gpus=8", "parallel.tp=8", "workload.global_batch_size=8"]
    if rng.random() < 0.3:
        base = ["workload=inference", "model=llama3_1_8b", "hw.num_gpus=8", "parallel.tp=8"]
    own = [key for key in keys() if "." in key and not key.startswith(("search.", "debug.", "backend."))]
    return [*base, *(f"{rng.choice(own)}={rng.choice(GIVEN['extremes'])}" for _ in range(rng.randint(1, 3)))]


def take_trial(arguments: list[str]) -> None:
    from rapid_dse.__main__ import run

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        assert run([*arguments, "--json"]) == 0
    row = json.loads(printed.getvalue())
    wrong = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
    assert not wrong, wrong
    if row["status"] in ("ok", "oom"):
        times = [name for name in row if name.startswith("time_") and name.endswith("_s") and row[name] is not None and row[name] < 0]
        assert not times, times
        assert row["step_time_s"] > 0, "a step takes time"


# Files -------------------------------------------------------------------------------------------------------------------------------


@cache
def _options() -> tuple[tuple[str, str], ...]:
    return tuple((kind, text) for kind in ("hw", "model", "cluster", "software") for text in texts_of(kind))


def option_file(rng: random.Random, folder: Path) -> tuple[str, Path]:
    kind, text = rng.choice(_options())
    path = folder / f"option.{rng.choice(('yaml', 'yaml', 'yml', 'json'))}"
    aliases = "a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a]\n" if rng.random() < 0.05 else ""
    path.write_text(aliases + mutated(text, rng), encoding="utf-8", errors="surrogatepass")
    return kind, path


def take_option(given: tuple[str, Path]) -> None:
    from rapid_dse.imports.file_options import read_option
    from rapid_dse.sweep.compose import scenario_of
    from rapid_dse.sweep.places import home

    kind, path = given
    found = read_option(kind, path, home())
    tree = _base() | {kind: {key: value for key, value in found.option.items() if key != "run"}}
    scenario_of(tree)


@cache
def _base() -> dict[str, Any]:
    from rapid_dse.sweep.compose import composed, hydra_ready

    with hydra_ready():
        return dict(composed({}).tree)


@cache
def _configs() -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(path.read_text()) for path in sorted((DATA / "hugging_face").glob("*.json")))


def config_json(rng: random.Random, folder: Path) -> tuple[str, Path]:
    path = folder / "config.json"
    text = json.dumps(changed(rng.choice(_configs()), rng))
    path.write_text(mutated(text, rng, 1) if rng.random() < 0.3 else text, encoding="utf-8", errors="surrogatepass")
    return "model", path


def sweep_file(rng: random.Random, folder: Path) -> str:
    texts = _sweeps()
    return mutated(rng.choice(texts), rng)


@cache
def _sweeps() -> tuple[str, ...]:
    return tuple(path.read_text() for path in sorted((ROOT / "sweeps").glob("*.yaml")))


def take_sweep(text: str) -> None:
    """What Hydra's source asks of the file, and what is done with the space in it."""
    from rapid_dse.common.bounded_files import yaml_of
    from rapid_dse.sweep.compose import scenario_of
    from rapid_dse.sweep.overrides import read_space

    tree = yaml_of(text)
    if not isinstance(tree, Mapping):
        return
    parts = {key: {**_base()[key], **value} for key, value in tree.items() if key in _base() and isinstance(value, Mapping)}
    scenario_of({**_base(), **parts})
    space = tree.get("search", {}).get("space") if isinstance(tree.get("search"), Mapping) else None
    if isinstance(space, Mapping):
        read_space({str(key): value for key, value in space.items()})


# Launch files ------------------------------------------------------------------------------------------------------------------------


@cache
def _launched() -> tuple[tuple[str, str], ...]:
    """A file of each framework, as export writes it, and one that a person wrote."""
    from rapid_dse.analysis.launch_files.exported import exported
    from rapid_dse.analysis.launch_files.frameworks import FRAMEWORKS
    from rapid_dse.sweep.overrides import read
    from rapid_dse.sweep.space import single

    found = []
    for name, each in FRAMEWORKS.items():
        work = ["workload=inference"] if each.kind == "inference" else ["workload.global_batch_size=64"]
        row = single(
            read(
                ["model=llama3_1_8b", f"software={name}", "hw.num_gpus=16", *work, *(["parallel.tp=8"] if each.kind == "inference" else [])]
            )
        )
        file = exported(row, each, _composer())
        found.append((file.suffix, file.text))
    found.append((".sh", "\n".join(GIVEN["script"])))
    return tuple(found)


@cache
def _composer() -> Any:
    from rapid_dse.analysis.launch_files.launched import Composer

    return Composer()


def launch_file(rng: random.Random, folder: Path) -> Path:
    suffix, text = rng.choice(_launched())
    path = folder / f"run{suffix}"
    path.write_text(mutated(text, rng), encoding="utf-8", errors="surrogatepass")
    return path


def take_launch(path: Path) -> None:
    from rapid_dse.analysis.launch_files.frameworks import read_file
    from rapid_dse.analysis.launch_files.launched import launched

    launched(read_file(path), ("hw.num_gpus=16",), _composer())


# Tables ------------------------------------------------------------------------------------------------------------------------------


def csv_table(rng: random.Random, folder: Path) -> Path:
    names = [rng.choice(keys()) if rng.random() < 0.8 else rng.choice(NASTY) for _ in range(rng.randint(1, 3))]
    rows = [
        ",".join(rng.choice(NASTY) if rng.random() < 0.3 else str(rng.choice((1, 2, 4, 8, ""))) for _ in names)
        for _ in range(rng.randint(0, 3))
    ]
    path = folder / "cases.csv"
    path.write_text(mutated("\n".join([",".join(names), *rows]), rng, 2), encoding="utf-8", errors="surrogatepass")
    return path


def take_table(path: Path) -> None:
    from rapid_dse.sweep.cases import read_cases

    read_cases(path, {} if path.stat().st_size % 2 else None)


@cache
def _parquet() -> tuple[bytes, bytes]:
    """A table of cases as pandas writes it, and one of results as the store does."""
    import tempfile

    import pandas as pd

    from rapid_dse.sweep import store
    from rapid_dse.sweep.overrides import read
    from rapid_dse.sweep.space import single
    from rapid_dse.sweep.table import priced_table

    cases = io.BytesIO()
    pd.DataFrame({"parallel.tp": [1, 2, 4], "model": ["llama3_1_8b"] * 3, "hw.num_gpus": [8.0, None, 16.0]}).to_parquet(cases)
    with tempfile.TemporaryDirectory() as folder:
        portion = single(read(["parallel.tp=8"]))
        return cases.getvalue(), store.write(Path(folder), priced_table(portion), "{}", "rows").read_bytes()


def parquet_table(rng: random.Random, folder: Path) -> tuple[Path, bool]:
    stored = rng.random() < 0.5
    path = folder / "table.parquet"
    path.write_bytes(damaged(_parquet()[int(stored)], rng))
    return path, stored


def take_parquet(given: tuple[Path, bool]) -> None:
    from rapid_dse.sweep import store

    path, stored = given
    if stored:
        with contextlib.suppress(store.Damaged):
            store.read_own(path)
            store.read(path, lambda _: None)
    else:
        take_table(path)


# Graphs of the network command -------------------------------------------------------------------------------------------------------

_NODES = [{"id": 1, "type": "comp", "dur_us": 1.5, "deps": []}, {"id": 2, "type": "coll", "coll": "ALL_REDUCE", "size": 1024, "deps": [1]}]
_GRAPH = {
    "name": "fuzz",
    "network": {"topology": ["Ring"], "npus_count": [4], "bandwidth_GBps": [50.0], "latency_ns": [500.0]},
    "system": {"scheduling-policy": "LIFO", "endpoint-delay": 10, "all-reduce-implementation": ["ring"], "active-chunks-per-dimension": 1},
    "comm_groups": {"1": [0, 1]},
    "ranks": {str(rank): _NODES for rank in range(4)},
}  # fmt: skip


def graph(rng: random.Random, _: Path) -> Any:
    return changed(_GRAPH, rng)


def take_graph(tree: Any) -> None:
    from rapid_dse.events.network_command import builtin_engine
    from rapid_dse.trace.graph_file import parse_graph

    found = builtin_engine(parse_graph(tree), "congestion_aware")
    assert found.deadlocked or found.makespan_ns >= 0


# Requests to explore -----------------------------------------------------------------------------------------------------------------


def request(rng: random.Random, folder: Path) -> tuple[str, str, bytes, list[tuple[bytes, bytes]], bytes]:
    from urllib.parse import quote

    paths = GIVEN["addresses"]
    path = rng.choice(paths) if rng.random() < 0.9 else mutated(rng.choice(paths), rng, 2)
    names = ("study", "key", "against", "a", "b", "to", "by", "number", "overrides", "at_x", "at_y", "page", "is.hw", "token", "")
    pairs = "&".join(f"{rng.choice(names)}={quote(rng.choice((*NASTY, 's', '0')), errors='replace')}" for _ in range(rng.randint(0, 4)))
    if rng.random() < 0.1:
        pairs = mutated(pairs, rng)
    headers = [(b"hx-request", b"true")] if rng.random() < 0.3 else []
    body = pairs.encode(errors="replace") if rng.random() < 0.5 else b""
    return rng.choice(("GET", "GET", "POST", "PUT", "HEAD")), path, b"" if body else pairs.encode(errors="replace"), headers, body


@cache
def _page() -> tuple[Any, Any]:
    """The page over a folder with a study, without runs, and who may ask."""
    import tempfile

    from rapid_dse.explorer.launched_sweeps import Launches
    from rapid_dse.explorer.page_guard import Access
    from rapid_dse.explorer.study_shelf import Shelf
    from rapid_dse.explorer.web_app import application

    folder, access = Path(tempfile.mkdtemp()), Access(8080)
    (folder / "s").mkdir()
    (folder / "s" / "rows.parquet").write_bytes(_parquet()[1])
    return application(Shelf(folder), Launches(folder, False), access), access


def take_request(given: tuple[str, str, bytes, list[tuple[bytes, bytes]], bytes]) -> None:
    import asyncio

    method, path, query, headers, body = given
    page, access = _page()
    own = [(b"host", b"127.0.0.1:8080"), (b"origin", b"http://127.0.0.1:8080"), (b"cookie", f"{access.cookie}={access.token}".encode())]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http", "path": path,
             "raw_path": path.encode(errors="replace"), "query_string": query, "root_path": "", "headers": [*own, *headers],
             "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8080)}  # fmt: skip
    codes: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            codes.append(message["status"])

    asyncio.run(page(scope, receive, send))
    assert codes, "no answer"
    assert codes[0] < 500, codes


def kinds() -> tuple[FuzzKind, ...]:
    """All kinds; requests where what explore needs is there."""
    from importlib.util import find_spec

    found = (
        FuzzKind("overrides", override, take_override, 0.24),
        FuzzKind("units", quantity, take_quantity, 0.25),
        FuzzKind("trials", trial, take_trial, 0.03),
        FuzzKind("options", option_file, take_option, 0.05),
        FuzzKind("config.json", config_json, take_option, 0.09),
        FuzzKind("sweep files", sweep_file, take_sweep, 0.06),
        FuzzKind("launch files", launch_file, take_launch, 0.06),
        FuzzKind("CSV tables", csv_table, take_table, 0.06),
        FuzzKind("Parquet tables", parquet_table, take_parquet, 0.08),
        FuzzKind("graphs", graph, take_graph, 0.08),
    )
    if find_spec("starlette") is None:  # an extra's
        return found
    return (*found, FuzzKind("requests", request, take_request, 0.06))
