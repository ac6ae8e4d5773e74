"""Ranked tables: nothing is cut, what no prediction tells apart is one line, other jobs are other tables, and what would fit is said."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from generated import portion
from program import done, one_line, rows, run
from rich.console import Console

from rapid_dse.config.run import Search
from rapid_dse.config.scenario import unit_of
from rapid_dse.events.backends import price
from rapid_dse.parallel.enumeration import grid
from rapid_dse.sweep import advice, arrow, driver, figures, listing, ranking, show, standing
from rapid_dse.sweep.choosing import chosen
from rapid_dse.sweep.chunks import Summary
from rapid_dse.sweep.listing import Column
from rapid_dse.sweep.standing import Aim

GIB = 2**30


COLUMNS = {
    "numbers": pa.array([3, None, -1, 2**62, 7], pa.int64()),
    "small numbers": pa.array([3, 0, 250, 3, 3], pa.uint8()),
    "figures": pa.array([0.5, 0.1, None, 3e9, 0.1]),
    "truth": pa.array([True, None, False, True, True]),
    "texts": pa.array(["ok", "oom", None, "ok", "ok"]).dictionary_encode(),
    "plain texts": pa.array(["ok", "oom", None, "", "ok"]),
    "nothing": pa.array([None] * 5, pa.float64()),
    "distinct": pa.array([9, 7, 8, 7, 9]),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_are_read_as_arrow_computes_them(name: str) -> None:
    whole = COLUMNS[name]
    for column in (pa.chunked_array([whole]), pa.chunked_array([whole[1:], whole[:3], whole[2:2]]), pa.chunked_array([whole.slice(1, 3)])):
        assert arrow.absent(column).tolist() == column.is_null().to_pylist()
        codes, values = arrow.encoded(column)
        assert [values[code] for code in codes.tolist()] == column.to_pylist()
        if "texts" not in name:
            numbers = column.cast(pa.int8()) if name == "truth" else column
            expected = [float("nan") if value is None else float(value) for value in numbers.to_pylist()]
            np.testing.assert_array_equal(arrow.floats(column), expected)
        rows = np.array([1, 0, -1, 1, 0])
        assert arrow.taken(column, rows).equals(column.take(pa.array(rows, mask=rows < 0)).combine_chunks())


def test_rows_of_a_status_are_counted_in_the_order_in_which_they_come() -> None:
    parts = [pa.array(["oom", "ok", "ok"]).dictionary_encode(), pa.array(["invalid", "oom", "ok"]).dictionary_encode()]
    reasons = pa.chunked_array([["b", None, None], ["a", "b", None]])
    table = pa.table({"status": pa.chunked_array(parts), "reason": reasons})
    counted = [list(counter.items()) for counter in ranking.counts(table)]
    found = [pc.value_counts(table[name].cast(pa.string())).to_pylist() for name in ("status", "reason")]
    assert counted == [[(each["values"], each["counts"]) for each in pairs if each["values"] is not None] for pairs in found]
    assert arrow.are(table["status"], "oom").tolist() == [True, False, False, False, True, False]
    assert [list(counter) for counter in ranking.counts(table[:0])] == [[], []]


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (figures.result("step_time_s", 2.3104), "2.310 s"),
        (figures.result("step_time_s", 152.0), "152.0 s"),
        (figures.result("step_time_s", 9.99996), "10.00 s"),
        (figures.result("time_dp_s", 0.0351), "35.10 ms"),
        (figures.result("peak_memory_bytes", 68.23 * GIB), "68.2 GiB"),
        (figures.result("tokens_per_s", 1234.4), "1,234 tokens/s"),
        (figures.result("mfu", 0.4512), "45.1 %"),
        (figures.result("energy_j", 1.234e6), "1.23 MJ"),
        (figures.result("cost_usd", 12.34), "$12.3"),
        (figures.result("cost_usd", 0.8432), "$0.843"),
        (figures.result("cost_usd", 1234.5), "$1,234"),
        (figures.result("ttft_s", None), "–"),
        (figures.setting("hw.memory.bandwidth", 3.35e12), "3.35 TB/s"),
        (figures.setting("hw.network.dimensions.0.latency", 2e-6), "2 µs"),
        (figures.setting("hw.memory.usable", 78.4 * GIB), "78.4 GiB"),
        (figures.setting("hw.energy.flop.bf16", 0.6e-12), "0.6 pJ/FLOP"),
        (figures.setting("cluster.allreduce_busbw", "[[8, 95000000000.0], [16, 50000000000.0]]"), "{8: 95 GB/s, 16: 50 GB/s}"),
        (figures.setting("cluster.allreduce_busbw", "[[8, many]]"), "[[8, many]]"),
        (figures.setting("hw.sms", 132), "132"),
        (figures.setting("parallel.sequence_parallel", True), "true"),
        (figures.parameters(70_553_706_496), "70.6 B"),
        (figures.parameters(124_439_808), "124 M"),
    ],
)
def test_numbers_are_written_as_people_write_them(shown: str, text: str) -> None:
    assert shown == text


def test_the_schema_knows_its_units() -> None:
    found = {key: unit_of(key) for key in ("hw.memory.capacity", "hw.network.dimensions.1.bandwidth", "hw.price", "hw.sms")}
    assert found == {"hw.memory.capacity": "bytes", "hw.network.dimensions.1.bandwidth": "bytes/s", "hw.price": "USD/h", "hw.sms": None}


NAMES = {f"key{at}": [f"value {at}-{row}" for row in range(2)] for at in range(5)}
LAYOUT = ["tp16 cp16 dp32 pp16 ep8 vpp8 sp zero3 mb16 shards256 recompute=selective interleaved_1f1b", "dp8 zero1"]


@pytest.mark.parametrize("width", [80, 100, 140, 10**6])
@pytest.mark.parametrize("varying", [0, 1, 5])
def test_no_cell_is_cut_at_any_width(width: int, varying: int) -> None:
    names = [Column(title, cells, figure=False, key=True) for title, cells in list(NAMES.items())[:varying]]
    times = Column("step time", ["15.44 s ±10 %", "1.234 s ?"])
    rest = [Column(title, ["1,234 tokens/s", "5"]) for title in ("each GPU", "MFU", "memory")]
    found = listing.lines([Column("#", ["1", "2"]), *names, Column("layout", LAYOUT, figure=False), times, *rest], width)
    assert max(map(len, found)) <= width
    words = " ".join(" ".join(found).split())
    for column in (*names, times):
        assert all(cell in words for cell in column.cells), "a value with a blank in it stays together"
    assert all(word in words for text in LAYOUT for word in text.split())
    rows_a_line = [line for line in found if "15.44 s" in line]
    assert len(rows_a_line) == 1
    assert "dp8 zero1" in found[-1]
    assert width < 10**6 or len(found) == 3, "where there is room a row is a line"


def test_figures_that_are_too_wide_stand_below_with_the_names() -> None:
    titles = ("step time", "each GPU", "MFU", "memory", "a step")
    columns = [Column("#", ["1", "2"]), *(Column(title, ["12,345,678", "9"]) for title in titles), Column("within ±", ["3 more", ""])]
    hw = Column("hw", ["h100", "a100"], figure=False, key=True)
    found = listing.lines([columns[0], hw, *columns[1:]], 50)
    assert max(map(len, found)) <= 50
    assert found[0].split() == ["#", "step", "time", "each", "GPU", "MFU", "memory"]
    assert found[1:3] == ["1  12,345,678  12,345,678  12,345,678  12,345,678", "   hw=h100  a step=12,345,678  within ±=3 more"]
    assert found[4] == "   hw=a100  a step=9"


def test_titles_are_short_and_tell_keys_apart() -> None:
    keys = ["hw", "hw.memory.bandwidth", "hw.network.dimensions.0.bandwidth", "hw.network.dimensions.1.bandwidth", "hw.sms"]
    assert listing.short_titles(keys) == ["hw", "memory.bandwidth", "dimensions.0.bandwidth", "dimensions.1.bandwidth", "sms"]


def table(times: list[float], fits: list[bool] | None = None, error: float | None = 0.1, **columns: list[Any]) -> pa.Table:
    """A table of results: 8 GPUs' layouts with these step times; peaks are 60 GiB, or 100 where a row does not fit."""
    n = len(times)
    fits = fits or [True] * n
    whole = {
        "status": ["ok" if fit else "oom" for fit in fits],
        "fits": fits,
        "step_time_s": times,
        "mfu": [1 / time for time in times],
        "cost_usd": times,
        "peak_memory_bytes": [60.0 * GIB if fit else 100.0 * GIB for fit in fits],
        "expected_error": pa.array([error] * n, pa.float64()),
        **{f"parallel.{name}": [1] * n for name in ("tp", "cp", "pp", "ep", "vpp", "zero", "micro_batch_size")},
        "parallel.dp": [8] * n,
        "parallel.schedule": ["none"] * n,
        "parallel.recompute": ["selective"] * n,
    }
    return pa.table(whole | columns)


def stood(found: pa.Table, aim: Aim) -> standing.Standing:
    return standing.standing_of(found, aim, 80.0 * GIB, standing.place_lanes(len(found)))


def test_layouts_within_the_error_are_one_line_with_their_count() -> None:
    # within 10 % of 1.00: 1.05 and 1.10; within 10 % of 1.11: 1.20 and 1.22; 1.30 stands alone; 2.01 is beyond twice the best
    found = stood(
        table([1.30, 1.11, 1.05, 1.0, 1.22, 2.01, 1.10, 1.20], **{"parallel.tp": [1, 1, 2, 4, 1, 1, 1, 1]}), Aim("step_time_s", 5)
    )
    lines = chosen(found, 0, Aim("step_time_s", 5))
    assert [(line.rank, line.alike, line.simplest) for line in lines] == [(1, 2, False), (3, None, True), (4, 2, False), (7, 0, False)]
    assert [line.at for line in lines] == [3, 6, 1, 0], "the simplest is the one without tp"


def test_the_best_row_inside_what_was_measured_has_a_line() -> None:
    # the two that are measured and fit are the 5th and the 7th; a row without a known error is not inside
    outside = ["zero", None, "zero", "zero", None, "cp", None]
    errors = pa.array([0.01] * 4 + [0.01, 0.01, 0.01], pa.float64())
    rows = table([1.0, 0.5, 1.1, 1.2, 1.3, 1.4, 1.5], fits=[True, False] + [True] * 5, outside=pa.array(outside, pa.string()))
    rows = rows.set_column(rows.column_names.index("expected_error"), "expected_error", errors)
    aim = Aim("step_time_s", 2)
    assert [(line.rank, line.inside) for line in chosen(stood(rows, aim), 0, aim)] == [(1, False), (2, False), (4, True)]
    unknown = rows.set_column(rows.column_names.index("expected_error"), "expected_error", pa.array([0.01] * 4 + [None] * 3, pa.float64()))
    assert not any(line.inside for line in chosen(stood(unknown, aim), 0, aim))
    every = Aim("step_time_s", 20)
    assert [line.rank for line in chosen(stood(rows, every), 0, every) if line.inside] == [4]


def test_of_rates_the_largest_is_best_and_its_error_is_a_factor() -> None:
    # MFU 1/1.0 … : 1/1.1 lies within 10 % of the best, 1/1.2 does not
    found = stood(table([1.2, 1.0, 1.1]), Aim("mfu", 2))
    assert [(line.at, line.alike) for line in chosen(found, 0, Aim("mfu", 2))] == [(1, 1), (0, 0)]


@pytest.mark.parametrize(("by", "error"), [("step_time_s", None), ("peak_memory_bytes", 0.1)])
def test_rows_have_lines_of_their_own_where_no_error_is_known(by: str, error: float | None) -> None:
    aim = Aim(by, 2)
    assert [(line.rank, line.alike) for line in chosen(stood(table([1.0, 1.01, 1.02], error=error), aim), 0, aim)] == [(1, None), (2, None)]


def test_two_chips_are_told_apart_within_the_error() -> None:
    aim = Aim("step_time_s", 2, varying=("hw",))
    found = stood(table([1.0, 1.01, 1.02, 1.03], hw=["h200", "h200", "h100", "h100"]), aim)
    assert [(line.at, line.alike) for line in chosen(found, 0, aim)] == [(0, 1), (2, 1)]


def test_what_does_not_count_comes_last_the_nearest_to_fitting_first() -> None:
    peaks = {"peak_memory_bytes": [60.0 * GIB, 200.0 * GIB, 78.0 * GIB, 90.0 * GIB]}
    aim = Aim("step_time_s", 10, headroom=0.05)  # 76 of 80 GiB
    found = stood(table([3.0, 1.0, 2.0, 2.5], [True, False, True, False], **peaks), aim)
    lines = chosen(found, 0, aim)
    assert [(line.at, line.rank) for line in lines] == [(0, 1), (2, 0), (3, 0), (1, 0)]
    assert found.verdict[[line.at for line in lines]].tolist() == [standing.FITS, standing.NO_HEADROOM, standing.OOM, standing.OOM]
    assert found.nearest[()].over == pytest.approx(78 / 76)
    assert found.nearest[()].mfu == 1.0
    assert found.broken == {"leaves less than 5 % of usable memory free": 1}


@pytest.mark.parametrize("apart", [0, 1000])
def test_chunks_put_together_stand_as_one_table_does(apart: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "MOST_APART", apart)
    rng = np.random.default_rng(0)
    times, fits = rng.uniform(1, 3, 60).tolist(), (rng.random(60) < 0.7).tolist()
    whole = table(times, fits, **{"workload.seq_len": rng.choice([4096, 8192], 60).tolist()})
    aim = Aim("step_time_s", 5, varying=("workload.seq_len",))
    lanes = standing.place_lanes(60)
    tally = driver.Tally(aim)
    for at in (0, 20, 40):
        part = standing.standing_of(whole.slice(at, 20), aim, 80.0 * GIB, lanes[at : at + 20])
        tally.add(Summary(20, 20, Counter(), Counter(), part, Counter(), (), ()))
    assert len(tally.parts) == (3 if apart else 1)
    one, several = stood(whole, aim), tally.standing()
    for found in (one, several):
        assert len(found.labels) == 2
    for label in one.labels:
        picked = [
            [(found.lanes[line.at, 0], line.rank, line.alike) for line in chosen(found, found.labels.index(label), aim)]
            for found in (one, several)
        ]
        assert picked[0] == picked[1]
        assert one.nearest[label].over == several.nearest[label].over


SMALL = ("model=llama3_1_8b", "hw.num_gpus=8", "workload.global_batch_size=8")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame, str]:
    folder = tmp_path_factory.mktemp("tables")
    keys = ("parallel.tp=1,2,4,8", "parallel.zero=all", "hw.sms=60,132", "search.top=3")
    out = done(folder, "-m", *SMALL, *keys, "parallel.recompute=all", "search.study=s").out
    return folder, rows(folder), out


def test_what_differs_in_the_study_is_shown_where_the_shown_rows_agree(study: tuple[Path, pd.DataFrame, str]) -> None:
    folder, found, out = study
    best = found[found["fits"]].nsmallest(3, "step_time_s")
    assert set(best["hw.sms"]) == {132}
    for text in (out, done(folder, "results/s", "--top", "3", "--each", module="rapid_dse.rank").out):
        head, *lines = text.splitlines()
        assert head.split()[:3] == ["#", "sms", "layout"]
        assert lines[0].split()[:2] == ["1", "132"]
    assert "8.03 B parameters" in out


def test_a_value_without_a_line_is_told_how_to_see(study: tuple[Path, pd.DataFrame, str]) -> None:
    folder, _, out = study
    assert "not all values of hw.sms have a line; search.best_per=hw.sms shows the best of each" in out
    assert "not all values" not in done(folder, "results/s", "--best-per", "hw.sms", module="rapid_dse.rank").out


def test_reasons_are_broken_where_the_terminal_ends() -> None:
    out = io.StringIO()
    show.show_counts(Console(file=out, width=40), Counter(ok=1, invalid=2), Counter({"a reason of more words than a line takes": 2}), {})
    assert max(map(len, out.getvalue().splitlines())) <= 40
    assert out.getvalue().splitlines()[-1].startswith(" " * 16)


def test_the_best_of_each_value_of_a_key(study: tuple[Path, pd.DataFrame, str]) -> None:
    folder, found, _ = study
    want = found[found["fits"]].groupby("parallel.tp")["step_time_s"].min()
    out = done(folder, "results/s", "--best-per", "parallel.tp", module="rapid_dse.rank").out
    assert [line.split(" ±")[0].split("  ")[-1].strip() for line in out.splitlines()[1 : len(want) + 1]] == [
        figures.seconds(time) for time in sorted(want)
    ]
    again = done(folder, "-m", *SMALL, "parallel.tp=1,2,4,8", "parallel.zero=1,3", "search.best_per=parallel.tp").out
    assert again.splitlines()[1].split()[0] == "1"
    assert "no override key" in one_line(run(folder, "results/s", "--best-per", "parallel.tpp", module="rapid_dse.rank"))
    assert "search.best_per=tp" in one_line(run(folder, "-m", *SMALL, "parallel.tp=1,2", "search.best_per=tp"))


def test_constraints_and_headroom_hold_under_a_grid(study: tuple[Path, pd.DataFrame, str]) -> None:
    folder, found, _ = study
    sweep = ("-m", *SMALL, "parallel.tp=1,2,4,8", "parallel.zero=all", "hw.sms=60,132", "parallel.recompute=all", "search.study=s")
    usable = 78.4 * GIB
    limit = float(found["step_time_s"].median())
    fits = found[found["fits"]]
    free = fits["peak_memory_bytes"] <= 0.5 * usable
    meets = free & (fits["step_time_s"] <= limit)
    assert 0 < meets.sum() < free.sum() < len(fits)
    out = done(folder, *sweep, "search.headroom=50 %", "search.top=3", f'search.constraints=["step_time_s<={limit!r}"]').out
    assert figures.seconds(fits[meets]["step_time_s"].min()) in out.splitlines()[1]
    assert f"{len(fits) - free.sum():,}  leaves less than 50 % of usable memory free" in out
    assert f"{(free & ~meets).sum():,}  breaks step_time_s<=" in out
    options = ("--headroom", "50 %", "--constraint", f"step_time_s<={limit!r}")
    ranked = done(folder, "results/s", "--top", "3", *options, module="rapid_dse.rank").out
    assert ranked.splitlines()[:8] == out.replace("search.each=true", "--each").splitlines()[:8]
    assert "--headroom=2" in one_line(run(folder, "results/s", "--headroom", "2", module="rapid_dse.rank"))
    assert "--constraint: " in one_line(run(folder, "results/s", "--constraint", "mfu", module="rapid_dse.rank"))


def test_headroom_holds_in_a_study_too(tmp_path: Path) -> None:
    sweep = ("-m", *SMALL, "parallel.tp=all", "parallel.zero=all", "search=optuna", "search.n_trials=12", "search.study=o")
    done(tmp_path, *sweep, "search.headroom=0.6")
    out = done(tmp_path, *sweep, "search.headroom=0.6").out
    found = rows(tmp_path)
    best = found[found["peak_memory_bytes"] <= 0.4 * 78.4 * GIB]["step_time_s"].min()
    assert figures.seconds(best) in out.splitlines()[1]
    assert "its constraints have changed" in one_line(run(tmp_path, *sweep, "search.headroom=0.5"))


@pytest.mark.parametrize(("value", "share"), [("5 %", 0.05), ("5%", 0.05), (0.05, 0.05), ("0.05", 0.05), (0, 0)])
def test_headroom_is_a_share_or_a_percentage(value: Any, share: float) -> None:
    assert Search(headroom=value).headroom == pytest.approx(share)


@pytest.mark.parametrize("value", ["5 GiB", 1.0, -0.1, "100 %", "all"])
def test_headroom_that_is_no_share_is_refused(value: Any, tmp_path: Path) -> None:
    assert "search.headroom" in one_line(run(tmp_path, "-m", *SMALL, f"search.headroom={value}"))


def test_other_models_and_workloads_are_other_tables(tmp_path: Path) -> None:
    out = done(tmp_path, "-m", "model=llama3_1_8b,llama2_13b", *SMALL[1:], "parallel.tp=4,8", "workload.seq_len=2048,4096").out
    titles = re.findall(r"^model=(\w+), workload.seq_len=(\d+):$", out, re.MULTILINE)
    assert titles == [(model, length) for model in ("llama3_1_8b", "llama2_13b") for length in ("2048", "4096")]
    assert len(re.findall(r"^1  ", out, re.MULTILINE)) == 4, "each has its own first"
    lengths = ",".join(str(1024 * k) for k in range(1, 7))
    out = done(tmp_path, "-m", *SMALL, "parallel.tp=4,8", f"workload.seq_len={lengths}").out
    assert "the best layout for each of 6 values of workload.seq_len" in out
    assert re.findall(r"^\d  (\d+) ", out, re.MULTILINE) == lengths.split(",")
    out = done(tmp_path, "-m", *SMALL, "workload.global_batch_size=8,16", "parallel.tp=4,8", "search.objectives=[tokens_per_s]").out
    assert "global_batch_size" in out.splitlines()[0], "rates of two batches have one ranking"


def test_the_best_of_each_job_is_priced_again(tmp_path: Path) -> None:
    small = ("hw.num_gpus=8", "workload.global_batch_size=8", "workload.seq_len=2048", "model.num_hidden_layers=2")
    out = done(tmp_path, "-m", "model=llama2_7b,llama2_13b", *small, "parallel.tp=4,8", "search.refine=2").out
    again = out.split("priced now)")[1]
    assert re.findall(r"^1  (\w+)", again, re.MULTILINE) == ["llama2_7b", "llama2_13b"]
    assert again.count("priced again by hybrid: ") == 2


def test_of_many_models_each_has_its_parameters(tmp_path: Path) -> None:
    models = {"llama2_7b": "6.74 B", "llama2_13b": "13.0 B", "llama3_8b": "8.03 B", "llama2_70b": "69.0 B", "gpt3_175b": "175 B"}
    out = done(tmp_path, "-m", f"model={','.join(models)}", "parallel.tp=8", "parallel.pp=4").out
    assert dict(re.findall(r"^\d +(\w+) .* ([\d.]+ B)(?: .*)?$", out, re.MULTILINE)) == models


def test_single_changes_are_those_that_fit_alone() -> None:
    found = portion(grid(ONE_GIANT), model="llama3_1_70b")
    changes, tried = advice.changes(found.scenario, found.layouts, Aim("step_time_s", 1))
    kinds = [change.text.split("=")[0] for change in changes]
    assert len(kinds) == len(set(kinds)) < tried
    assert kinds[-1] == "hw.num_gpus"
    usable = found.scenario.hw.memory.usable
    assert all(change.peak_memory_bytes <= usable for change in changes)
    assert [change.step_time_s for change in changes[:-1]] == sorted(change.step_time_s for change in changes[:-1])
    # 70.55 B parameters over tp 8: with ZeRO 2 a GPU of 64 shares gradients with 8: 4 bytes · 7/8 · 8.82 B = 28.7 GiB less
    sharded = next(change for change in changes if change.text == "parallel.zero=2").peak_memory_bytes
    present = price(found.scenario, found.layouts).peak_memory_bytes[0]
    assert (present - sharded) / GIB == pytest.approx(28.7, abs=0.5)
    tight, _ = advice.changes(found.scenario, found.layouts, Aim("step_time_s", 1, headroom=0.9))
    assert tight == []


ONE_GIANT = {
    "num_gpus": [64],
    "global_batch_size": [1024],
    "tp": [8],
    "cp": [1],
    "dp": [0],
    "pp": [1],
    "ep": [1],
    "vpp": [1],
    "zero": [1],
    "sequence_parallel": [1],
    "micro_batch_size": [1],
    "recompute": [1],
    "schedule": [0],
}


def test_a_poor_winner_comes_with_what_would_fit(tmp_path: Path) -> None:
    out = done(tmp_path, "-m", "hw=h100", "parallel.tp=1,8,64", "search.study=f").out
    assert "nearest to fitting: tp8 dp8" in out
    single = done(tmp_path, "hw=h100", "parallel.tp=8", "parallel.pp=2").out
    step = re.findall(r"^step time +([\d.]+ s)", single, re.MULTILINE)[0]
    assert re.search(rf"^  parallel\.pp=2 +{re.escape(step)} ", out, re.MULTILINE), "the change is priced as the trial is"
    assert "fits: " in single
    ranked = done(tmp_path, "results/f", module="rapid_dse.rank").out
    assert ranked.split("nearest")[1].split("3 trials")[0] == out.split("nearest")[1].split("3 trials")[0]
    out = done(tmp_path, "-m", "hw=h100", "parallel.tp=1,8", "search.study=g").out
    assert "nothing fits in memory" in out
    oom = done(tmp_path, "hw=h100", "parallel.tp=8").out
    assert "does not fit (oom)" in oom
    assert "parallel.pp=2" in oom


def test_the_whole_space_is_one_word(tmp_path: Path) -> None:
    every = [f"parallel.{key}=all" for key in ("tp", "cp", "pp", "ep", "vpp", "zero", "sequence_parallel", "recompute", "schedule")]
    done(tmp_path, "-m", *SMALL, *every, "parallel.micro_batch_size=all", "search.study=a")
    done(tmp_path, "-m", *SMALL, "parallel=all", "search.study=b")
    keys = [set(pd.read_parquet(tmp_path / "results" / name)["key"]) for name in "ab"]
    assert keys[0] == keys[1]
    done(tmp_path, "-m", *SMALL, "parallel=all", "parallel.tp=2", "parallel.recompute=none,full", "search.study=c")
    narrow = pd.read_parquet(tmp_path / "results" / "c")
    assert set(narrow["parallel.tp"]) == {2}
    assert set(narrow["parallel.recompute"]) == {"none", "full"}
    assert set(narrow["key"]) < keys[0]
    assert "is a sweep" in one_line(run(tmp_path, *SMALL, "parallel=all"))
    assert "parallel=all alone" in one_line(run(tmp_path, "-m", *SMALL, "parallel=all,default"))


def test_a_sweep_file_takes_the_whole_space_and_holds_keys(tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    head = "# @package _global_\ndefaults:\n  - override /parallel: all\n"
    (tmp_path / "sweeps/own.yaml").write_text(f"{head}parallel: {{pp: 1, cp: 1}}\nhw: {{num_gpus: 8}}\n")
    done(tmp_path, "-m", "+sweeps=own", "model=llama3_1_8b")
    found = rows(tmp_path)
    assert set(found["parallel.pp"]) == set(found["parallel.cp"]) == {1}
    assert set(found["parallel.tp"]) == {1, 2, 4, 8}


def test_a_refused_row_makes_no_columns(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("hw,model,parallel.tp\nh100,llama3_1_8b,2\nh100,llama3_1_8b,4\nnone_such,llama3_1_8b,8\n")
    done(tmp_path, "cases.csv", "--out", "out.csv", "--keep-going", module="rapid_dse.evaluate")
    out = done(tmp_path, "out.csv", module="rapid_dse.rank").out
    assert out.split()[:3] == ["#", "layout", "step"]
    assert "1  hw=none_such: no such option" in out


def test_studies_of_other_work_have_other_names() -> None:
    names = {
        driver.default_study([portion(**changes)])
        for changes in ({}, {"hw__num_gpus": 128}, {"workload__global_batch_size": 512}, {"workload__seq_len": 4096})
    }
    assert len(names) == 4


def test_a_terminal_of_80_columns_shows_every_layout_whole() -> None:
    out = io.StringIO()
    columns = [Column("#", ["1"]), Column("sms", ["132"], figure=False, key=True), Column("layout", LAYOUT[:1], figure=False)]
    listing.show(Console(file=out, width=80), [*columns, *(Column(title, ["1,234 tokens/s"]) for title in ("each GPU", "all"))])
    assert all(word in out.getvalue() for word in LAYOUT[0].split())
    assert "sms=132" in out.getvalue()
