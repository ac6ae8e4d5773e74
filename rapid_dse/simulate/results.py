"""What a priced table of layouts is: columns beside the layouts' own, each of shape ``(n_layouts,)``, SI units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.parallel.engines import Engines
from rapid_dse.parallel.layouts import Layouts

FloatColumn = NDArray[np.float64]
BoolColumn = NDArray[np.bool_]

TIME_TERMS = ("compute", "tp", "cp", "ep", "pp", "dp", "bubble", "optimizer", "host")
OF_INFERENCE = "prefill"  # one more term of a token: the wait on others' prompts
MEMORY_TERMS = ("parameters", "gradients", "optimizer", "activations", "kv_cache", "gathered", "buffers", "framework")


REQUEST_COSTS = ("energy_j", "energy_j_per_token", "power_w_per_gpu", "cost_usd", "usd_per_million_tokens")
ABSENT = frozenset(
    {
        *("ttft_s", "tpot_s", "request_latency_s", "requests_per_s", "running_requests", "time_prefill_s", "usd_per_million_tokens"),
        *("train_time_s", "train_cost_usd", "train_energy_j", "goodput"),
    }
)  # NaN where a trial has no such quantity
POSITIVE = ("step_time_s", "tokens_per_s", "tokens_per_s_per_gpu", "peak_memory_bytes")
ADDS_UP = 1e-9  # terms add up to their sum within this share of it

FEW = 64  # rows at most whose quantities are looked at together
PIECE = 16384  # rows that are checked at a time: they stay in the processor's cache
# Bytes of columns that are one block of memory. Of blocks that are given back the C library keeps twice the size of the largest one of up
# to 32 MiB for whoever asks next: so the next results find memory that the system need not clear first.
BLOCK = 30 << 20
_TERM_COLUMNS = frozenset({f"time_{term}_s" for term in TIME_TERMS} | {f"memory_{term}_bytes" for term in MEMORY_TERMS})


@dataclass(frozen=True)
class Priced:
    """Result columns of trials that could be priced; the order here is the order in tables.

    ``time_<term>_s`` add up to ``step_time_s``, ``memory_<term>_bytes`` to ``peak_memory_bytes``. ``fits`` is peak against
    hw.memory.usable. What ``ABSENT`` names is NaN where a trial has no such quantity: of training all but the cost of tokens; ``tpot_s``
    of requests that generate one token; ``train_*`` and ``goodput`` without ``workload.train_tokens``. Of inference a step is a token of a
    request, energy and cost are a request's. ``energy_j`` is the whole site's; ``power_w_per_gpu`` is what a GPU itself draws in the mean.
    """

    step_time_s: FloatColumn
    tokens_per_s: FloatColumn
    tokens_per_s_per_gpu: FloatColumn
    mfu: FloatColumn
    fits: NDArray[np.bool_]
    peak_memory_bytes: FloatColumn
    memory_parameters_bytes: FloatColumn
    memory_gradients_bytes: FloatColumn
    memory_optimizer_bytes: FloatColumn
    memory_activations_bytes: FloatColumn
    memory_kv_cache_bytes: FloatColumn
    memory_gathered_bytes: FloatColumn
    memory_buffers_bytes: FloatColumn
    memory_framework_bytes: FloatColumn
    time_compute_s: FloatColumn
    time_tp_s: FloatColumn
    time_cp_s: FloatColumn
    time_ep_s: FloatColumn
    time_pp_s: FloatColumn
    time_dp_s: FloatColumn
    time_bubble_s: FloatColumn
    time_optimizer_s: FloatColumn
    time_host_s: FloatColumn
    energy_j: FloatColumn
    energy_j_per_token: FloatColumn
    power_w_per_gpu: FloatColumn
    cost_usd: FloatColumn
    ttft_s: FloatColumn
    tpot_s: FloatColumn
    request_latency_s: FloatColumn
    requests_per_s: FloatColumn
    running_requests: FloatColumn
    time_prefill_s: FloatColumn
    usd_per_million_tokens: FloatColumn
    train_time_s: FloatColumn
    train_cost_usd: FloatColumn
    train_energy_j: FloatColumn
    goodput: FloatColumn

    def __len__(self) -> int:
        return len(self.step_time_s)

    def take(self, rows: NDArray[np.intp]) -> Priced:
        """The rows at these positions, in their order."""
        return Priced(*(getattr(self, f.name)[rows] for f in fields(self)))

    def part(self, rows: slice) -> Priced:
        """Some neighbouring rows; nothing is copied."""
        return Priced(*(column[rows] for column in vars(self).values()))

    @classmethod
    def in_pieces(cls, n_rows: int, pieces: Iterable[Priced]) -> Priced:
        """All rows of pieces, ``n_rows`` together, in order. Each piece is copied to its place as soon as it is there, so that no two of
        them are held at once; columns that are one array in each piece are one in the whole."""
        whole: dict[str, NDArray[Any]] = {}
        one_array: dict[str, str] = {}
        end = 0
        for piece in pieces:
            if len(piece) == n_rows:
                return piece
            rows, end = slice(end, end + len(piece)), end + len(piece)
            whole = whole or _room(piece, n_rows)
            first_name: dict[int, str] = {}
            for name, column in vars(piece).items():
                first = first_name.setdefault(id(column), name)
                if not rows.start and first != name:
                    one_array[name] = first
                elif name in one_array and one_array[name] != first:  # not in this piece
                    del one_array[name]
                    whole[name] = whole[name].copy()
                if name not in one_array:
                    whole[name][rows] = column
        return cls(**whole)

    @classmethod
    def concatenate(cls, parts: Sequence[Priced]) -> Priced:
        """All rows of ``parts``, in order; columns that are one array in each part are one in the whole."""
        columns = [tuple(getattr(part, f.name) for part in parts) for f in fields(cls)]
        together = {tuple(map(id, part)): part for part in columns}
        whole = {ids: np.concatenate(part) for ids, part in together.items()}
        return cls(*(whole[tuple(map(id, part))] for part in columns))


def _room(piece: Priced, n_rows: int) -> dict[str, NDArray[Any]]:
    """Columns for ``n_rows`` rows like those of a piece; what is one array there is one here.

    Numbers stand in one block of memory where that is no larger than ``BLOCK``.
    """
    numbers = list({id(column): column for column in vars(piece).values() if column.dtype == np.float64})
    made: dict[int, NDArray[Any]] = {}
    if 8 * n_rows * len(numbers) <= BLOCK:
        made = dict(zip(numbers, np.empty((len(numbers), n_rows)), strict=True))
    for key, column in {id(column): column for column in vars(piece).values()}.items():
        made[key] = made[key] if key in made else np.empty(n_rows, column.dtype)
    return {name: made[id(column)] for name, column in vars(piece).items()}


def unlawful(priced: Priced) -> list[tuple[str, BoolColumn]]:
    """What results break of what every result must hold, with the rows that do, ``(n_layouts,)`` each; empty where all rows are right.

    Every quantity is finite and at least 0, step time, tokens a second and peak memory above 0; the times add up to the step, the terms of
    memory to the peak. A row that breaks this could not be priced, whatever stands in it.
    """
    if not len(priced) or (len(priced) <= FEW and _few_lawful(priced)):
        return []
    if all(_lawful(priced.part(slice(start, start + PIECE))) for start in range(0, len(priced), PIECE)):
        return []
    ranges = [
        (f"{name} is no finite number of at least 0", ~((column >= 0) & (column < np.inf))) for name, column in _quantities(priced).items()
    ]
    return [(f"could not be priced: {law}", broken) for law, broken in [*ranges, *_laws(priced)] if broken.any()]


def _quantities(priced: Priced) -> dict[str, FloatColumn]:
    """The columns that every row has a number in."""
    return {name: getattr(priced, name) for name in _QUANTITIES}


def _laws(priced: Priced) -> list[tuple[str, BoolColumn]]:
    """What every row must hold beside the range of each number, with the rows that do not."""
    return _adding_up(priced) + [(f"{name} is not above 0", ~(getattr(priced, name) > 0)) for name in POSITIVE]


def _adding_up(priced: Priced) -> list[tuple[str, BoolColumn]]:
    """That terms add up, with the rows whose terms do not."""
    return [
        _sums("times", "step_time_s", TIME_TERMS, "time_{}_s", priced),
        _sums("terms", "peak_memory_bytes", MEMORY_TERMS, "memory_{}_bytes", priced),
    ]


def _lawful(priced: Priced) -> bool:
    """Whether all rows, at least one, are right."""
    least = {name: column.min() for name, column in _quantities(priced).items()}  # NaN where one is, which is not at least 0
    if not all(value >= 0 for value in least.values()) or not all(least[name] > 0 for name in POSITIVE):
        return False
    # an infinite term makes an infinite sum
    if not all(column.max() < np.inf for name, column in _quantities(priced).items() if name not in _TERM_COLUMNS):
        return False
    return not any(broken.any() for _, broken in _adding_up(priced))


def _few_lawful(priced: Priced) -> bool:
    """``_lawful`` of a few rows, whose quantities are looked at together; where it says no, ``_lawful`` says what is wrong."""
    values = np.array([getattr(priced, name) for name in _QUANTITIES])
    times, memory = values[_OF_TIMES].sum(0), values[_OF_MEMORY].sum(0)
    step, peak = values[_PLACE["step_time_s"]], values[_PLACE["peak_memory_bytes"]]
    waiting = priced.time_prefill_s
    times = times + np.where(np.isnan(waiting), 0.0, waiting)
    return bool(
        values.min() >= 0
        and values.max() < np.inf
        and values[_ABOVE_ZERO].min() > 0
        and (np.abs(times - step) <= ADDS_UP * step).all()
        and (np.abs(memory - peak) <= ADDS_UP * peak).all()
    )


def _sums(kind: str, whole: str, terms: Sequence[str], column: str, priced: Priced) -> tuple[str, BoolColumn]:
    """That ``terms`` add up to ``whole``."""
    expected, total = getattr(priced, whole), np.zeros(len(priced))
    for term in terms:
        total += getattr(priced, column.format(term))
    if whole == "step_time_s" and not np.isnan(priced.time_prefill_s).all():
        total += np.nan_to_num(priced.time_prefill_s)
    return f"the {kind} do not add up to {whole}", ~(np.abs(total - expected) <= ADDS_UP * expected)


_QUANTITIES = tuple(f.name for f in fields(Priced) if f.name not in ABSENT and f.name != "fits")
_PLACE = {name: place for place, name in enumerate(_QUANTITIES)}
_ABOVE_ZERO = [_PLACE[name] for name in POSITIVE]
_OF_TIMES = [_PLACE[f"time_{term}_s"] for term in TIME_TERMS]
_OF_MEMORY = [_PLACE[f"memory_{term}_bytes"] for term in MEMORY_TERMS]


def refused(scenario: Scenario, layouts: Layouts, priced: Priced) -> list[tuple[str, NDArray[np.bool_]]]:
    """Rows of inference that no system serves, by what is said of them: those of which the framework's share of memory holds no request,
    and those of an open loop that ask for more than can be served for ever."""
    if not isinstance(layouts, Engines):
        return []
    beyond = (layouts.request_rate > priced.requests_per_s * (1 + 1e-9)) & (layouts.num_prompts == 0)
    no_room = priced.fits & (priced.running_requests == 0)
    texts: dict[str, NDArray[np.bool_]] = {}
    for row in np.flatnonzero(beyond | no_room).tolist():
        text = _no_room(scenario, priced, row) if no_room[row] else _too_many(priced, row)
        texts.setdefault(text, np.zeros(len(layouts), bool))[row] = True
    return list(texts.items())


def _too_many(priced: Priced, row: int) -> str:
    more = "workload.num_prompts says how many queue up" if priced.fits[row] else "nor does it fit in memory"
    return f"cannot keep up: at most {priced.requests_per_s[row]:.4g} requests/s ({more})"


def _no_room(scenario: Scenario, priced: Priced, row: int) -> str:
    """What is said of an engine whose cache holds no request under ``software.memory_fraction``, with the least that would do."""
    serving, usable = scenario.software.serving, scenario.hw.memory.usable
    peak, cache = priced.peak_memory_bytes[row], priced.memory_kv_cache_bytes[row]
    share = cache / (usable - peak + cache) if serving.memory_fraction_of == "rest" else peak / usable
    least = math.ceil(share * 1000) / 1000
    return f"software.memory_fraction={serving.memory_fraction:g} leaves no room for one request; allowed here: {least:g} to 1"
