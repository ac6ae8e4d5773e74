"""What rots in a store, or was never its own: bits that flip, lines that are lost, files of other programs in a study's folder."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from generated import many, portion
from rich.console import Console
from studies import essence, study, trials

from rapid_dse.config.run import Debug, Search
from rapid_dse.sweep import driver, store, study_folder
from rapid_dse.sweep.search.journal import Journal
from rapid_dse.sweep.search.lines import LineReader, marked
from rapid_dse.sweep.table import priced_table


def flipped(content: bytes, bit: int) -> bytes:
    harmed = bytearray(content)
    harmed[bit // 8] ^= 1 << bit % 8
    return bytes(harmed)


def reads_as(path: Path) -> pa.Table | None:
    """What the file holds by the store; None where the store says that it is damaged."""
    try:
        return store.read_file(path)
    except store.Damaged:
        return None


@pytest.mark.parametrize("part", ["anywhere", "footer", "seal"])
def test_a_flipped_bit_in_a_table_is_seen_or_changes_nothing(tmp_path: Path, part: str) -> None:
    path = store.write(tmp_path, priced_table(portion(layouts=many(50))), "{}", "abc")
    whole, content, draw = store.read_file(path), path.read_bytes(), random.Random(5)
    footer = int.from_bytes(content[-8:-4], "little")
    ends = {
        "anywhere": (0, len(content)),
        "footer": (len(content) - footer - 8, len(content)),
        "seal": (len(content) - footer - 48, len(content) - footer - 8),
    }
    start, stop = ends[part]
    seen = 0
    for _ in range(300):
        path.write_bytes(flipped(content, draw.randrange(8 * start, 8 * stop)))
        read = reads_as(path)
        seen += read is None
        assert read is None or read.equals(whole, check_metadata=True)
    assert seen > 200


def test_other_readers_of_parquet_take_a_sealed_file(tmp_path: Path) -> None:
    path = store.write(tmp_path, priced_table(portion()), "{}", "abc")
    assert pq.read_table(path, page_checksum_verification=True).equals(store.read_file(path))


FOREIGN: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: path.mkdir(),
    "nothing": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("step_time_s\n1.0\n"),
    "a pickle": lambda path: path.write_bytes(pickle.dumps([1])),
    "Parquet of another program": lambda path: pq.write_table(pa.table({"a": [1, 2]}), path),
    "keys that are numbers": lambda path: pq.write_table(pa.table({"key": [1, 2], "status": ["ok", "ok"]}), path),
    "keys that are none": lambda path: pq.write_table(pa.table({"key": ["a", "b"], "status": ["ok", "ok"]}), path),
    "a status that is a number": lambda path: pq.write_table(pa.table({"key": ["0" * 32], "status": [1]}), path),
    "no rows and no columns": lambda path: pq.write_table(pa.table({}), path),
    "CSV under Parquet's name": lambda path: csv.write_csv(pa.table({"key": ["0" * 32]}), path),
    "half a table": lambda path: path.write_bytes(b"PAR1" + os.urandom(2000) + b"PAR1"),
}


@pytest.mark.parametrize("place", ["its own name", "another name"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_another_program_s_is_named_and_set_aside_and_its_rows_are_priced(tmp_path: Path, kind: str, place: str) -> None:
    def run(layouts: int) -> tuple[int, str]:
        out, err = io.StringIO(), io.StringIO()
        search = Search(study="s", results_dir=str(tmp_path))
        code = driver.run([portion(layouts=many(layouts))], search, Debug(), Console(file=out, width=200), Console(file=err, width=200))
        return code, err.getvalue()

    assert run(3)[0] == 0
    (own,) = (tmp_path / "s").glob("*.parquet")
    rows = store.read(tmp_path / "s", print).num_rows
    path = own if place == "its own name" else own.with_name("other.parquet")
    if path == own:
        own.unlink()
    FOREIGN[kind](path)
    code, said = run(3 if path == own else 4)
    assert code == 0
    assert path.name in said
    assert path.with_name(f"{path.name}.damaged").exists()
    assert store.read(tmp_path / "s", print).num_rows == rows + (path != own)
    assert run(3)[1].count(path.name) == 0, "said once"


def test_a_study_may_end_in_parquet(tmp_path: Path) -> None:
    table = priced_table(portion())
    study_folder.prepare(tmp_path / "a.parquet")
    store.write(tmp_path / "a.parquet", table, "{}", "rows")
    assert store.read(tmp_path, print).num_rows == store.read(tmp_path / "a.parquet", print).num_rows == table.num_rows


def logs(number: int) -> list[dict[str, object]]:
    return [{"op_code": 8, "worker_id": "w", "study_id": 0, "user_attr": {"n": index, "x": 0.1 * index}} for index in range(number)]


def journal(tmp_path: Path, lines: bytes) -> Journal:
    path = tmp_path / "j.journal"
    path.write_bytes(lines)
    return Journal(path)


def test_every_flipped_bit_in_a_journal_s_line_is_seen_or_changes_nothing() -> None:
    (log,) = logs(1)
    line = marked(log, 0)
    for bit in range(8 * (len(line) - 1)):
        reader = LineReader()
        found = reader.log(flipped(line, bit))
        assert found is None or {key: value for key, value in found.items() if key in log} == log
        assert (found is None) == bool(reader.damages)


@pytest.mark.parametrize(
    "line",
    [
        {"op_code": "four", "study_id": 0},
        {"op_code": 99},
        {"op_code": 4},
        {"op_code": 4, "study_id": "0", "datetime_start": None},
        {"op_code": 4, "study_id": 0, "datetime_start": None, "system_attrs": [1]},
        {"op_code": 4, "study_id": 0, "datetime_start": "soon"},
        {"op_code": 4, "study_id": 0, "datetime_start": None, "state": 77},
        {"op_code": 5, "trial_id": 0, "param_name": "x", "param_value_internal": 1, "distribution": "{}"},
        {"op_code": 6, "trial_id": 0, "state": 1, "values": [1.0]},
        {"op_code": 8, "trial_id": 0, "user_attr": {}},
    ],
    ids=str,
)
def test_a_line_of_another_program_that_optuna_cannot_read_is_left_out(tmp_path: Path, line: dict[str, object]) -> None:
    first = journal(tmp_path, b"".join(marked(log, at) for at, log in enumerate(logs(2)))).path.read_bytes()
    given = journal(tmp_path, first + json.dumps({"worker_id": "w", **line}).encode() + b"\n" + b"[" * 9000 + b"\n")
    assert len(list(given.read_logs(0))) == 2
    assert [text.partition(": ")[2] for text in given.damages] == ["Optuna cannot read it", "it is no JSON"]


def test_lost_and_doubled_lines_of_a_journal_are_seen(tmp_path: Path) -> None:
    lines = [marked(log, number) for number, log in enumerate(logs(6))]
    lost = journal(tmp_path, b"".join(lines[:2] + lines[4:]))
    assert list(lost.read_logs(0)) == [logs(6)[at] for at in (0, 1, 4, 5)]
    assert lost.damages == ["2 lines before line 5 are lost"]
    doubled = journal(tmp_path, b"".join([*lines[:3], lines[1], *lines[3:]]))
    assert list(doubled.read_logs(0)) == logs(6)
    assert doubled.damages == ["line 2 stands there twice"]
    assert list(doubled.read_logs(4)) == logs(6)[4:]


def test_lines_of_optuna_s_own_programs_are_kept_between_ours(tmp_path: Path) -> None:
    foreign = b'{"op_code":2,"worker_id":"dashboard","study_id":0,"user_attr":{"note":1}}\n'
    mixed = journal(tmp_path, marked(logs(1)[0], 0) + foreign)
    mixed.append_logs(logs(2)[1:])
    assert [log["worker_id"] for log in mixed.read_logs(0)] == ["w", "dashboard", "w"]
    assert [log["worker_id"] for log in journal(tmp_path, mixed.path.read_bytes()).read_logs(1)] == ["dashboard", "w"]
    assert not mixed.damages


def test_a_dead_writer_s_half_line_does_not_join_the_next_writer_s(tmp_path: Path) -> None:
    first = journal(tmp_path, b"")
    first.append_logs(logs(2))
    with first.path.open("ab") as file:  # another process, killed in the middle of its write
        file.write(marked(logs(3)[2], 2)[:40])
    first.append_logs(logs(4)[2:])
    assert list(first.read_logs(0)) == list(Journal(first.path).read_logs(0)) == logs(4)


@pytest.mark.parametrize("which", ["a trial", "the first line", "what made the study"])
def test_a_study_goes_on_where_a_line_of_its_journal_is_damaged(tmp_path: Path, which: str) -> None:
    first = study(tmp_path, "search.n_trials=12")
    path, before = first.folder / "_study.journal", essence(first.trials)
    lines = path.read_bytes().splitlines(keepends=True)
    words = {"a trial": b"peak_memory_bytes", "the first line": b"study_name", "what made the study": b"configuration"}[which]
    harmed = next(at for at, line in enumerate(lines) if words in line)
    path.write_bytes(b"".join([*lines[:harmed], flipped(lines[harmed], 403), *lines[harmed + 1 :]]))
    again = study(tmp_path, "search.n_trials=20")
    assert again.code == 0
    assert f"line {harmed + 1} is left out" in again.err
    found = optuna.load_study(study_name="study", storage=optuna.storages.JournalStorage(Journal(path))).trials
    assert len(found) == 20
    assert path.with_name("_study.journal.damaged").exists() == (which != "a trial")
    if which != "a trial":
        assert essence(found[:12]) == before
        assert store.read(first.folder, print).num_rows == len({trial.user_attrs["key"] for trial in found})


def test_a_study_s_lost_rows_are_priced_again(tmp_path: Path) -> None:
    first = study(tmp_path, "search.n_trials=12")
    rows = store.read(first.folder, print)
    lost = sorted(first.folder.glob("*.parquet"))[0]
    lost.write_bytes(lost.read_bytes()[:-100])
    again = study(tmp_path, "search.n_trials=12")
    assert lost.name in again.err
    assert essence(again.trials) == essence(first.trials)
    after = store.read(first.folder, print)
    assert sorted(after["key"].to_pylist()) == sorted(rows["key"].to_pylist())
    times = dict(zip(rows["key"].to_pylist(), rows["step_time_s"].to_pylist(), strict=True))
    assert all(times[key] == seconds for key, seconds in zip(after["key"].to_pylist(), after["step_time_s"].to_pylist(), strict=True))
    assert np.isfinite(list(times.values())).all()
    assert len(trials(first.folder / "_study.journal")) == 12
