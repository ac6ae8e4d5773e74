"""The cache of simulated graphs: hits, keys, damage, size, many processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rapid_dse.events import network_command
from rapid_dse.events.cache import MODE_VARIABLE, AstraCache, cache_mode, run_key
from rapid_dse.interconnect.engine import RunResult
from rapid_dse.interconnect.system import SystemSettings
from rapid_dse.interconnect.topology import Topology
from rapid_dse.trace.graph_file import GraphFile, parse_graph

PIPELINE = Path(__file__).parent / "data" / "astrasim" / "graphs" / "g04_gpipe_fwd_ring4.json"


def pipeline() -> GraphFile:
    return parse_graph(json.loads(PIPELINE.read_text()))


def keyed() -> tuple[str, RunResult]:
    file = pipeline()
    topology, system = Topology.from_json(file.network), SystemSettings.from_json(file.system)
    return run_key(file.graph, topology, system, "fair", "builtin 1"), network_command.builtin_engine(file, "congestion_aware")


def test_cache_hit_and_modes(tmp_path: Path) -> None:
    key, result = keyed()
    assert AstraCache(tmp_path, "CACHE_READONLY").run(key, lambda: result) is result
    assert not list(tmp_path.iterdir())
    cache = AstraCache(tmp_path)
    assert cache.run(key, lambda: result) is result

    def never() -> RunResult:
        raise AssertionError("a hit must not simulate")

    hit = AstraCache(tmp_path, "CACHE_READONLY").run(key, never)
    np.testing.assert_array_equal(hit.end_ns, result.end_ns)
    np.testing.assert_array_equal(hit.links.bytes, result.links.bytes)
    assert hit.makespan_ns == result.makespan_ns
    assert AstraCache(tmp_path, "NO_CACHE").get(key) is None


def test_key_follows_content() -> None:
    file = pipeline()
    topology, system = Topology.from_json(file.network), SystemSettings.from_json(file.system)
    base = run_key(file.graph, topology, system, "fair", "a")
    longer = replace(file.graph, duration_ns=file.graph.duration_ns + 1)
    keys = {
        base,
        run_key(longer, topology, system, "fair", "a"),
        run_key(file.graph, topology, system, "ideal", "a"),
        run_key(file.graph, topology, system, "fair", "b"),
        run_key(file.graph, topology, replace(system, splits=2), "fair", "a"),
        run_key(file.graph, Topology.torus([4], 51, 500), system, "fair", "a"),
    }
    assert len(keys) == 6
    assert run_key(pipeline().graph, topology, system, "fair", "a") == base


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d[:-5],
        lambda d: d[:-5] + b"xxxxx",
        lambda d: d.replace(b'"makespan_ns": 2', b'"makespan_ns": 3'),
        lambda d: b"",
        lambda d: b"{}\n",
    ],
)
def test_damaged_entry_is_a_reported_miss(tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    key, result = keyed()
    cache = AstraCache(tmp_path)
    cache.put(key, result)
    path = tmp_path / f"{key}.run"
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get(key) is None
    assert "is damaged and not used" in caplog.text
    assert cache.run(key, lambda: result) is result
    assert cache.get(key) is not None


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    key, result = keyed()
    AstraCache(tmp_path).put(key, result)
    size = (tmp_path / f"{key}.run").stat().st_size
    cache = AstraCache(tmp_path, limit_bytes=2 * size)
    for i, name in enumerate(("b", "c")):
        os.utime(tmp_path / f"{key}.run", ns=(10, 10)) if name == "b" else cache.get(key)
        cache.put(name, result)
        if name == "b":
            os.utime(tmp_path / "b.run", ns=(20 + i, 20 + i))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"{key}.run", "c.run"])


def use_cache(task: tuple[Path, int]) -> int:
    """Put and read entries of its own and of all processes; returns how many reads were hits."""
    folder, number = task
    _, result = keyed()
    cache, hits = AstraCache(folder, limit_bytes=40_000), 0
    for i in range(60):
        for name in (f"own{number}_{i}", f"all{i % 5}"):
            cache.put(name, replace(result, makespan_ns=1000 + i % 5))
            found = cache.get(f"all{i % 5}")
            if found is not None:
                assert found.makespan_ns == 1000 + i % 5
                hits += 1
    return hits


def test_many_processes_share_a_folder(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert min(pool.map(use_cache, [(tmp_path, number) for number in range(4)])) > 0
    AstraCache(tmp_path, limit_bytes=40_000).put("last", keyed()[1])
    files = list(tmp_path.iterdir())
    assert sum(path.stat().st_size for path in files) <= 40_000
    assert {path.suffix for path in files} == {".run"}


def test_folder_that_takes_no_entry_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    key, result = keyed()
    assert AstraCache(tmp_path / "file" / "cache").run(key, lambda: result) is result
    assert "takes no entry" in caplog.text


def test_abandoned_entries_are_swept_away(tmp_path: Path) -> None:
    for name, age in (("old.tmp", 7200), ("new.tmp", 10)):
        (tmp_path / name).write_bytes(b"part of an entry")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    AstraCache(tmp_path).put("a", keyed()[1])
    assert {path.name for path in tmp_path.iterdir()} == {"a.run", "new.tmp"}


def test_mode_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MODE_VARIABLE, raising=False)
    assert cache_mode() == "CACHE_READWRITE"
    monkeypatch.setenv(MODE_VARIABLE, "CACHE_SOMETIMES")
    with pytest.raises(ValueError, match="CACHE_SOMETIMES"):
        cache_mode()


def test_an_entry_under_another_key_is_a_miss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key, result = keyed()
    cache = AstraCache(tmp_path)
    cache.put(key, result)
    (tmp_path / f"{key}.run").rename(tmp_path / "other.run")
    assert cache.get("other") is None
    assert "another graph's result" in caplog.text
