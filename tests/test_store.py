"""The store: real files, whole or absent, read as one table with a row a configuration."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from generated import ROOT, many, portion

from rapid_dse.common import termination
from rapid_dse.config.run import Debug, Search
from rapid_dse.sweep import driver, identity, ranking, result_columns, show, standing, store, study_folder
from rapid_dse.sweep.choosing import chosen
from rapid_dse.sweep.pieces import pieces_of, rows_at
from rapid_dse.sweep.restored import usable_of
from rapid_dse.sweep.standing import Aim
from rapid_dse.sweep.standing_pieces import StandingPieces
from rapid_dse.sweep.table import priced_table


def written(folder: Path, table: pa.Table, name: str, code: str | None = None, when: str | None = None) -> Path:
    """A file of the store, as other code or another time would have written it."""
    study_folder.prepare(folder)
    path = store.write(folder, table, "{}", name)
    metadata = dict(pq.read_schema(path).metadata)
    if code:
        metadata[store.CODE] = code.encode()
    if when:
        metadata[store.WRITTEN] = when.encode()
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def with_code(table: pa.Table, code: str, seconds: float) -> pa.Table:
    """The same trials as ``code`` would have keyed and priced them."""
    lanes = store.key_lanes(table["key"]) ^ identity.from_hex([identity.code_hash()]) ^ identity.from_hex([code])
    keys = pa.array([bytes(row).decode() for row in identity.hex_bytes(lanes)])
    table = table.set_column(table.column_names.index("key"), "key", keys)
    return table.set_column(table.column_names.index("step_time_s"), "step_time_s", pa.array(np.full(len(table), seconds)))


def fail(line: str) -> None:
    raise AssertionError(line)


def assert_pieces_are_the_table(source: Path) -> None:
    """Read file by file, a folder has the rows of the one table, which stand as they do in it."""
    whole = result_columns.require_results(store.read(source, fail), source)
    found = pieces_of(source, fail)
    assert pa.concat_tables([piece.read() for piece in found]).equals(whole)
    places = np.array([len(whole) - 1, 0])
    assert rows_at(found, places, ["key"]) == whole.select(["key"]).take(places).to_pylist()
    study = StandingPieces(found)
    assert study.varying == standing.differing(whole, show.SECTIONS)
    aim = Aim("step_time_s", 3, varying=tuple(study.varying), headroom=0.05)
    stood, status, reasons = study.standing(aim)
    at_once = standing.standing_of(whole, aim, usable_of(whole), standing.place_lanes(len(whole)))
    assert chosen(stood, 0, aim) == chosen(at_once, 0, aim)
    assert np.array_equal(stood.lanes, at_once.lanes)
    assert (status, reasons) == ranking.counts(whole)


def test_a_signal_leaves_no_half_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(*given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return write(*given)

    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", at_once)
    with termination.raising(), pytest.raises(termination.Terminated):
        study_folder.prepare(tmp_path / "s")
    assert list((tmp_path / "s").iterdir()) == []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *given: (os.kill(os.getpid(), signal.SIGTERM), replace(*given)))
    with termination.raising(), pytest.raises(termination.Terminated):
        store.write(tmp_path / "s", priced_table(portion()), "{}", "abc")
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["abc.parquet"]


def test_a_writers_file_that_is_gone_by_the_time_it_is_looked_at_is_none_of_ours(tmp_path: Path) -> None:
    """A folder lists the file of a writer, here a link to nothing, that cannot be asked for its age any more."""
    (tmp_path / ".probe@elsewhere@1.part").symlink_to(tmp_path / "gone")
    study_folder.prepare(tmp_path)


def test_of_rows_with_one_key_the_last_one_counts() -> None:
    draw = np.random.default_rng(3)
    for n_rows, most in ((0, 1), (1, 1), (400, 4), (400, 2**63), (30_000, 2**40)):
        lanes = draw.integers(0, most, (n_rows, 2), np.uint64)
        lanes = np.concatenate([lanes, lanes[: n_rows // 200], lanes[n_rows // 400 :][:1]])
        last = {bytes(lane): at for at, lane in enumerate(lanes)}
        assert np.flatnonzero(np.concatenate(store.kept_rows([lanes]))).tolist() == sorted(last.values())


def test_a_file_reads_as_it_was_written_with_its_provenance(tmp_path: Path) -> None:
    table = priced_table(portion())
    path = store.write(tmp_path, table, '{"hw": {"name": "h100"}}', "abc")
    assert path == tmp_path / "abc.parquet"
    read = store.read_file(path)
    assert read.replace_schema_metadata(None).equals(table)
    metadata = pq.read_schema(path).metadata
    assert metadata[store.CODE].decode() == identity.code_hash()
    assert json.loads(metadata[store.CONFIGURATION]) == {"hw": {"name": "h100"}}
    assert metadata[store.VERSION]
    assert [child.name for child in tmp_path.iterdir()] == ["abc.parquet"], "nothing is left aside"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = priced_table(portion())
    path = store.write(tmp_path, table, "{}", "abc")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write(tmp_path, table.slice(0, 1), "{}", "abc")
    assert len(store.read_file(path)) == len(table)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty", "text"])
def test_a_damaged_file_is_found(tmp_path: Path, harm: str) -> None:
    path = store.write(tmp_path, priced_table(portion(layouts=many(2000))), "{}", "abc")
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[len(content) // 3] ^= 0xFF
    harmed = {"truncate": content[: len(content) // 2], "flip": content, "empty": b"", "text": b"no table"}[harm]
    path.write_bytes(bytes(harmed))
    with pytest.raises(store.Damaged, match=r"abc\.parquet"):
        store.read_file(path)


def test_rows_that_two_files_share_are_read_once(tmp_path: Path) -> None:
    table = priced_table(portion(layouts=many(10)))
    written(tmp_path, table.slice(0, 6), "a")
    written(tmp_path, table.slice(4, 6), "b")
    read = store.read(tmp_path, fail)
    assert sorted(read["key"].to_pylist()) == sorted(table["key"].to_pylist())


def test_rows_of_older_code_stand_only_where_nothing_newer_answers(tmp_path: Path) -> None:
    table = priced_table(portion(layouts=many(10)))
    written(tmp_path, with_code(table, "a" * 32, 1.0), "a", "a" * 32, "2026-01-01T00:00:00+00:00")
    written(tmp_path, with_code(table.slice(0, 6), "b" * 32, 2.0), "b", "b" * 32, "2026-02-01T00:00:00+00:00")
    # The current code's rows win even over those that carry a later date, as a clock that was wrong would give them.
    written(tmp_path, table.slice(0, 3), "c", when="2025-01-01T00:00:00+00:00")
    read = {row["workload.global_batch_size"] // 1024: row["step_time_s"] for row in store.read(tmp_path, fail).to_pylist()}
    assert_pieces_are_the_table(tmp_path)
    current = table["step_time_s"].to_pylist()
    assert [read[index] for index in range(1, 11)] == [*current[:3], 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0]


def test_files_with_different_columns_become_one_table(tmp_path: Path) -> None:
    written(tmp_path, priced_table(portion(layouts=many(2), keys={"hw.price": 2})), "a")
    written(tmp_path, priced_table(portion(layouts=many(3), keys={"hw.price": 2.5, "software.attention": "flash"}, hw__price=2.5)), "b")
    written(tmp_path, priced_table(portion(layouts=many(1), workload__seq_len=4096)), "c")
    assert_pieces_are_the_table(tmp_path)
    read = store.read(tmp_path, fail).to_pandas()
    assert len(read) == 6
    assert sorted(read["hw.price"].dropna()) == [2, 2, 2.5, 2.5, 2.5]
    assert read["software.attention"].notna().sum() == 3


def test_what_cannot_be_read_is_reported_and_the_rest_is_read(tmp_path: Path) -> None:
    written(tmp_path, priced_table(portion(layouts=many(2))), "a")
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    lines: list[str] = []
    assert len(store.read(tmp_path, lines.append)) == 2
    assert len(lines) == 1
    assert "b.parquet" in lines[0]
    with pytest.raises(ValueError, match=r"b\.parquet: damaged or unreadable .*; allowed: files that rapid_dse wrote"):
        store.read(tmp_path / "b.parquet", lines.append)
    with pytest.raises(ValueError, match="no such file or folder"):
        store.read(tmp_path / "none", fail)


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    node = platform.node()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    old, dead = tmp_path / ".a@elsewhere@1.part", tmp_path / f".b@{node}@{gone.pid}.part"
    young, alive = tmp_path / ".c@elsewhere@1.part", tmp_path / f".d@{node}@{os.getppid()}.part"
    for path in (old, dead, young, alive):
        path.write_bytes(b"half a table")
    os.utime(old, (1, 1))
    study_folder.prepare(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([young, alive]), "others may be writing now"


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    blocked = tmp_path / "results"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(ValueError, match=r"search\.results_dir: cannot write .*allowed: a folder that can be written"):
        driver.run([portion()], Search(results_dir=str(blocked)), Debug())


def test_a_writer_killed_at_any_moment_leaves_no_broken_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    store.write(source, priced_table(portion(layouts=many(20000))), "{}", "0")
    writer = (
        "import itertools, pathlib\n"
        "from rapid_dse.sweep import store\n"
        f"table = store.read_file(pathlib.Path({str(source / '0.parquet')!r}))\n"
        "for number in itertools.count():\n"
        f"    store.write(pathlib.Path({str(tmp_path)!r}), table, '{{}}', str(number % 5))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for pause in (0.0, 0.013, 0.031):
        process = subprocess.Popen([sys.executable, "-c", writer], env=environment)
        try:
            deadline = time.monotonic() + 60
            while not (tmp_path / "0.parquet").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(pause)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        for path in tmp_path.glob("*.parquet"):
            assert len(store.read_file(path)) == 20000
            path.unlink()


@pytest.mark.parametrize(
    ("column", "value", "line"), [("fits", "yes", "column fits holds"), ("key", "x" * 31, "a key has not 32 hex digits")]
)
def test_a_table_with_other_things_in_its_columns_is_refused_in_a_line(tmp_path: Path, column: str, value: str, line: str) -> None:
    table = priced_table(portion(layouts=many(2))).to_pandas().assign(**{column: value})
    table.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ValueError, match=line):
        result_columns.require_results(store.read(tmp_path / "a.csv", fail), tmp_path / "a.csv")
