"""How long 1F1B, plain or interleaved, takes with passes of any lengths: the schedule's own recurrence, compiled.

A pass starts when its stage has ended the pass before it and the neighbouring stage has ended the pass that it takes its input from.
Importing this module loads numba.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.compiled import compiled_once
from rapid_dse.parallel.orders import alternating_steps, warm_ups

Ints = NDArray[np.int64]
Shorts = NDArray[np.int32]
FloatColumn = NDArray[np.float64]

FIRST, MOST = 4, 32  # groups of pp micro-batches that are run, at first and where stages do not settle
LANES = 32  # layouts side by side at most, as many as numba's vector loops take at a time
VECTOR = 4  # floats of one instruction
_SOURCE = f"{zlib.crc32(Path(__file__).read_bytes()):08x}"
SETTLED = 1e-9  # stages that take the same time for a group, but for rounding, take it for all that follow


def step_seconds(passes: FloatColumn, pp: int, vpp: int, micro_batches: Ints, kind: Ints | None = None) -> FloatColumn:
    """Seconds from the first pass of a step to the end of the last, ``(n,)``.

    Once all stages take equally long for a group of ``pp`` micro-batches, so do they for each that follows: such groups are not run but
    added. A stage that falls behind by little each time may take long to hold up the others, so that more groups are run for it.

    Args:
        passes: seconds of each kind of pass with the send behind it, ``(n_kinds, n)``.
        vpp: chunks of a stage; 1 is 1F1B, more interleaved 1F1B.
        micro_batches: of a step, ``(n,)``; where stages have several chunks, multiples of ``pp``.
        kind: of each pass, ``(2 * vpp * pp,)``: forward and backward, chunk, stage; None: each is a kind of its own, in that order.
    """
    kind = np.arange(2 * vpp * pp) if kind is None else kind
    seconds, left, length = np.empty(len(micro_batches)), np.arange(len(micro_batches)), FIRST
    while len(left):
        run = np.minimum(micro_batches[left], micro_batches[left] % pp + length * pp)
        settled = np.ones(len(left), bool)
        for each in np.flatnonzero(np.bincount(run)).tolist():
            here = np.flatnonzero(run == each)
            rows = left[here]
            end, fastest, slowest = _run(passes.take(rows, axis=1), kind.astype(np.int32), (pp, vpp, each))
            more = (micro_batches[rows] - each) // pp  # groups
            seconds[rows] = end + more * slowest
            settled[here] = (more == 0) | (slowest - fastest <= SETTLED * slowest)
        left, length = left[~settled] if length < MOST else left[:0], 2 * length
    return seconds


def _run(passes: FloatColumn, kind: Shorts, pipeline: tuple[int, int, int]) -> FloatColumn:
    """The recurrence itself, ``(3, n)``: its end, and the shortest and the longest that a stage took for its last group before the end.

    ``pipeline``: pp, vpp, and the micro-batches that are run.
    """
    n = passes.shape[1]
    lanes = -(-n // (-(-n // LANES) * VECTOR)) * VECTOR  # of equal rounds, as few as hold all
    padded = np.zeros((len(passes), -(-n // lanes) * lanes))
    padded[:, :n] = passes
    before, source, which, kept, ring = _sequence_of(*pipeline)
    found: FloatColumn = _ends(before, source, kind[which], kept, ring, padded, pipeline[0], lanes)[:, :n]
    return found


@lru_cache(maxsize=256)
def _sequence_of(pp: int, vpp: int, micro_batches: int) -> tuple[Shorts, Shorts, Shorts, Shorts, int]:
    """All passes in an order in which each comes behind what it waits for (see ``_sequence``), as ``_ends`` takes them.

    Ends are kept in a ring of rows that is as long as any pass looks back, so that it stays in the processor's cache.
    """
    steps = np.stack([alternating_steps(stage, pp, vpp, micro_batches) for stage in range(pp)])
    before, source, which, marks = _sequence(steps, warm_ups(pp, vpp), vpp)
    needs = np.stack([before, source])
    back = np.where(needs > 0, np.arange(1, len(which) + 1) - needs, 0).max()
    ring = 2 ** int(back).bit_length()
    before, source = np.where(needs > 0, (needs - 1) % ring + 1, 0)
    kept = np.full(len(which), -1)
    number, slot = marks.ravel(), np.arange(marks.size)
    kept[number[number > 0] - 1] = slot[number > 0]
    return before.astype(np.int32), source.astype(np.int32), which.astype(np.int32), kept.astype(np.int32), ring


@compiled_once("Tuple((int64[::1], int64[::1], int64[::1], int64[:, ::1]))(int64[:, ::1], int64[::1], int64)", _SOURCE, error_model="numpy")
def _sequence(steps: Ints, warm_up: Ints, vpp: int) -> tuple[Ints, Ints, Ints, Ints]:
    """For each pass from 1 on: the pass before it on its stage, the pass that it takes its input from (0: none), and which it is.

    ``steps`` ``(pp, n)`` are ``alternating_steps``, ``warm_up`` those of their stages. Last come the passes between which each stage does a
    group, ``(2, pp)``, the last before it does nothing but what ends the step (0: it does none).
    """
    pp, n = steps.shape
    total, places = pp * n, pp * vpp
    before, source, which = np.zeros(total, np.int64), np.zeros(total, np.int64), np.zeros(total, np.int64)
    number, marks = np.zeros((2, n // (2 * vpp), places), np.int64), np.zeros((2, pp), np.int64)
    done, latest, count = np.zeros(pp, np.int64), np.zeros(pp, np.int64), 0
    while count < total:
        for stage in range(pp):
            turned = n - warm_up[stage]
            while done[stage] < n:
                step = steps[stage, done[stage]]
                back = 1 if step < 0 else 0
                k = ~step if back else step
                chunk = k % places // pp
                place = (vpp - 1 - chunk if back else chunk) * pp + stage
                micro_batch = k // places * pp + k % pp
                needed = 0
                if place != (places - 1 if back else 0):
                    needed = number[back, micro_batch, place + 1 if back else place - 1]
                    if needed == 0:
                        break
                before[count], source[count], which[count] = latest[stage], needed, back * places + place
                count += 1
                latest[stage] = number[back, micro_batch, place] = count
                done[stage] += 1
                if done[stage] == turned - 2 * places:
                    marks[0, stage] = count
                elif done[stage] == turned:
                    marks[1, stage] = count
    return before, source, which, marks


@compiled_once(
    "float64[:, ::1](int32[::1], int32[::1], int32[::1], int32[::1], int64, float64[:, ::1], int64, int64)", _SOURCE, error_model="numpy"
)
def _ends(
    before: Shorts, source: Shorts, which: Shorts, kept: Shorts, ring: int, passes: FloatColumn, stages: int, lanes: int
) -> FloatColumn:
    """When the last pass ends, which is the first stage's and behind all others, and what ``_run`` says; n divides by ``lanes``.

    ``lanes`` is an argument because a loop of a constant length would be unrolled and not made into vector instructions.
    """
    total, n = len(which), passes.shape[1]
    end, marked = np.zeros((ring + 1, lanes)), np.zeros((2 * stages, lanes))
    found, mine = np.zeros((3, n)), np.zeros((len(passes), lanes))
    for first in range(0, n, lanes):
        mine[:] = passes[:, first : first + lanes]
        row = 0
        for t in range(total):
            own, other, each = before[t], source[t], which[t]
            row = row + 1 if row < ring else 1
            for lane in range(lanes):
                a, b = end[own, lane], end[other, lane]
                end[row, lane] = (a if a > b else b) + mine[each, lane]
            if kept[t] >= 0:
                marked[kept[t]] = end[row]
        for lane in range(lanes):
            found[0, first + lane], found[1, first + lane] = end[row, lane], np.inf
            for stage in range(stages):
                took = marked[stages + stage, lane] - marked[stage, lane]
                found[1, first + lane] = min(found[1, first + lane], took)
                found[2, first + lane] = max(found[2, first + lane], took)
    return found
