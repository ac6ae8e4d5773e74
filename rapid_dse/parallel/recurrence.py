"""How long a schedule takes with passes of any lengths: its own order of passes run as a recurrence, compiled.

A pass starts when its stage has ended the pass before it and the neighbouring place has ended the pass that it takes its input from.
Importing this module loads numba.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.compiled import compiled_once
from rapid_dse.parallel.schedules import SCHEDULE_CLASSES
from rapid_dse.parallel.schedules.schedule import BACKWARD, FORWARD, FORWARD_BESIDE, INPUT, KINDS, Order

Ints = NDArray[np.int64]
Shorts = NDArray[np.int32]
FloatColumn = NDArray[np.float64]

FIRST = 4  # groups of pp micro-batches that are run at first; where stages have not settled, twice as many and so on
LANES = 128  # layouts side by side at most: a pass waits for the one before it, and so many others are worked out meanwhile
VECTOR = 4  # floats of one instruction
_SOURCE = f"{zlib.crc32(Path(__file__).read_bytes()):08x}"
SETTLED = 1e-9  # stages that take the same time for a group, but for rounding, take it for all that follow
GROUP_BEGINS, GROUP_ENDS, BEGINS, ENDS = range(4)  # rows of marks


Pipeline = tuple[int, int, int]  # a schedule by its code, the stages that run it, the chunks of each


def step_seconds(
    passes: FloatColumn, pipeline: Pipeline, micro_batches: Ints, kind: Ints | None = None, launches: FloatColumn | None = None
) -> FloatColumn:
    """Seconds of a step, ``(n,)``: from the first pass of all to the end of the last, or, of schedules that run on into the next step, the
    time a step takes where many follow each other (``_pace``).

    No step gets longer where a pass gets shorter, as each pass ends when the later one of two others has ended, and its own time is over.

    Once all stages take equally long for a group of ``pp`` micro-batches, so do they for each that follows: such groups are not run but
    added. A stage that falls behind by little each time may take long to hold up the others, so that more groups are run for it.

    Args:
        passes: seconds of each kind of pass with the send behind it, ``(n_kinds, n)``.
        micro_batches: of a step, ``(n,)``.
        kind: the row of ``passes`` that each pass has, ``(KINDS * chunks * pp,)`` by kind and place; None: rows in that order.
        launches: seconds in which a stage's host launches each, as ``passes``: one after the other, each once its input has come from
            another stage. No pass ends before it is launched. None: in no time.
    """
    _, pp, chunks = pipeline
    kind = np.arange(KINDS * pp * chunks) if kind is None else kind
    row_of: Shorts = np.append(kind, len(passes)).astype(np.int32)  # a wait comes last
    if launches is None:
        return _settled(passes[None], np.arange(len(micro_batches)), row_of, pipeline, micro_batches)
    seconds, waits = np.empty(len(micro_batches)), (launches > passes).any(axis=0)  # elsewhere a host is done before its device
    for spent, rows in ((np.stack([passes, launches]), np.flatnonzero(waits)), (passes[None], np.flatnonzero(~waits))):
        if len(rows):
            seconds[rows] = _settled(spent, rows, row_of, pipeline, micro_batches.take(rows))
    return seconds


def _settled(spent: FloatColumn, layouts: Ints, row_of: Shorts, pipeline: Pipeline, micro_batches: Ints) -> FloatColumn:
    """``step_seconds`` of the ``layouts`` at these positions, of passes as ``_run`` takes them."""
    pp = pipeline[1]
    seconds, unsettled, length = np.empty(len(micro_batches)), np.arange(len(micro_batches)), FIRST
    while len(unsettled):
        run = np.minimum(micro_batches[unsettled], micro_batches[unsettled] % pp + length * pp)
        settled = np.ones(len(unsettled), bool)
        for pass_kind in np.flatnonzero(np.bincount(run)).tolist():
            here = np.flatnonzero(run == pass_kind)
            rows = unsettled[here]
            end, fastest, slowest = _run(spent, layouts.take(rows), row_of, pipeline, pass_kind)
            more = (micro_batches[rows] - pass_kind) // pp  # groups
            seconds[rows] = end + more * slowest
            settled[here] = (more == 0) | (slowest - fastest <= SETTLED * slowest)
        unsettled, length = unsettled[~settled], 2 * length
    return seconds


def _run(spent: FloatColumn, layouts: Ints, kind: Shorts, pipeline: Pipeline, micro_batches: int) -> FloatColumn:
    """The recurrence itself, ``(3, n)``, of the ``layouts`` at these positions: the step's seconds, and the shortest and the longest that a
    stage took for its last group of pp micro-batches before the end. ``spent``: seconds of passes, and of their launches if they take any,
    ``(1 or 2, n_kinds, n)``."""
    lanes = -(-len(layouts) // (-(-len(layouts) // LANES) * VECTOR)) * VECTOR  # of equal rounds, as few as hold all
    sequence, rows, counts = _sequence_of(pipeline, micro_batches)
    ends: FloatColumn = _ends(sequence, kind, spent, layouts, (rows, pipeline[1], lanes), counts)
    return ends


@lru_cache(maxsize=256)
def _sequence_of(pipeline: Pipeline, micro_batches: int) -> tuple[Shorts, int, Ints]:
    """All passes in an order in which each comes behind what it waits for (see ``_sequence``), ``(7, n_passes)``: the rows with the ends of
    the two passes that it waits for, which pass it is, what is kept of it, the row for its own end, its stage, and the row with the end
    of what it takes from another stage; how many rows there are; and, where stages run on into the next step, how often each stage runs
    which pass, ``(pp, n_which)``, else ``(0, n_which)``.

    Rows 1 to pp have when each stage begins.
    """
    code, pp, chunks = pipeline
    schedule = SCHEDULE_CLASSES[code]
    places = schedule.stage_map.places(pp, chunks)
    size = micro_batches, pp * chunks
    programs = _programs([schedule.order(stage, pp, chunks, micro_batches) for stage in range(pp)], places, size)
    length = np.array([program.shape[1] for program in programs])
    steps = np.zeros((pp, len(programs[0]), length.max()), np.int64)
    for stage, program in enumerate(programs):
        steps[stage, :, : length[stage]] = program
    needs, which, number = _sequence(steps, length, 2 * micro_batches * pp * chunks + 1)
    marks = _marks(programs, number, (pp, pp * chunks, micro_batches))
    kept = np.full(len(which), -1)
    wanted = np.flatnonzero(marks.ravel() >= 0)
    kept[marks.ravel()[wanted]] = wanted
    row = _rows(needs)
    row[1:] += pp
    before, source = row[needs]
    before[number[:, 0]] = 1 + np.arange(pp)
    stage_of = np.zeros(1 + len(which), np.int64)
    for stage, there in enumerate(number):
        stage_of[1 + there[there >= 0]] = stage
    arrived = np.where(stage_of[needs[1]] == stage_of[1:], 0, source)
    counts = np.zeros((pp if schedule.runs_on else 0, KINDS * pp * chunks + 1), np.int64)
    for stage, program in enumerate(programs[: len(counts)]):
        counts[stage] = np.bincount(program[WHICH], minlength=counts.shape[1])
    return np.stack([before, source, which, kept, row[1:], stage_of[1:], arrived]).astype(np.int32), int(row.max()), counts


NEEDS, GIVES, GIVES_TOO, WHICH = range(4)  # rows of a program


def _programs(orders: Sequence[Order], places: Ints, size: tuple[int, int]) -> list[Ints]:
    """What each pass of each stage reads and gives, ``(4, n)`` a stage: the rows are NEEDS, GIVES, GIVES_TOO and WHICH.

    Activations and gradients have numbers from 1 on by direction, micro-batch and the place that they come from; 0 is none. WHICH is the
    pass by kind and place. Of two passes that run together the forward one comes behind a wait for what the other reads, which is a kind of
    its own, and what it gives is there when the other has ended.

    Args:
        places: of the stages' chunks, ``(pp, chunks)``; ``size``: micro-batches of the step, and places of the model.
    """
    kind, micro_batch, chunk = (np.concatenate(column) for column in zip(*orders, strict=True))
    counts, (micro_batches, every) = np.array([len(order[0]) for order in orders]), size
    stage = np.repeat(np.arange(len(orders)), counts)
    at, pair = places[stage, chunk], kind == FORWARD_BESIDE
    ahead, back = (kind == FORWARD) | pair, (kind == BACKWARD) | (kind == INPUT)
    activation = 1 + micro_batch * every + at  # what comes from the place forward
    gradient = activation + micro_batches * every
    needs = np.where(ahead & (at > 0), activation - 1, np.where(back, np.where(at < every - 1, gradient + 1, activation), 0))
    gives = np.where(ahead & ~pair, activation, np.where(back, gradient, 0))
    which = np.where(pair, FORWARD, kind) * every + at
    also, behind = np.zeros_like(gives), np.flatnonzero(pair) + 1  # the other pass of each pair
    also[behind] = activation[behind - 1]
    awaited, needs[behind] = needs[behind], 0
    waits = np.stack([awaited, np.zeros_like(awaited), np.zeros_like(awaited), np.full_like(awaited, KINDS * every)])
    program = np.insert(np.stack([needs, gives, also, which]), behind - 1, waits, axis=1)
    return np.split(program, np.cumsum(counts + np.bincount(stage[behind - 1], minlength=len(orders)))[:-1], axis=1)


def _marks(programs: list[Ints], number: Ints, size: tuple[int, int, int]) -> Ints:
    """The passes of which something is kept, ``(4, pp)`` positions among all, -1 for none: the ends of those between which a stage does a
    group of pp micro-batches, when the input of its first one is there, the end of its last.

    A group lies between the forward passes of its last micro-batch and of the one pp before that through the stage's first chunk: up to
    there a schedule repeats itself. ``size``: pp, places of the model, micro-batches of the step.
    """
    pp, places, micro_batches = size
    marks = np.full((4, pp), -1)
    for stage, program in enumerate(programs):
        first_chunk = np.flatnonzero(program[WHICH] == FORWARD * places + stage)  # every stage map begins with the stage's own place
        if micro_batches > pp + 1:
            marks[GROUP_BEGINS, stage], marks[GROUP_ENDS, stage] = number[stage, first_chunk[[-1 - pp, -1]]]
        marks[[BEGINS, ENDS], stage] = number[stage, [0, program.shape[1] - 1]]
    return marks


@compiled_once("Tuple((int64[:, ::1], int64[::1], int64[:, ::1]))(int64[:, :, ::1], int64[::1], int64)", _SOURCE, error_model="numpy")
def _sequence(steps: Ints, length: Ints, given: int) -> tuple[Ints, Ints, Ints]:
    """Of each pass: the pass before it on its stage and the one whose output it takes, from 1 on (0: none), ``(2, n)``; which it is.

    ``steps`` ``(pp, 4, n)`` are the programs of the stages, as long as ``length``, which give so many things but for one. Last comes the
    position of each stage's passes among all, ``(pp, n)``.
    """
    pp, total, count = len(steps), length.sum(), 0
    needs, which = np.zeros((2, total), np.int64), np.zeros(total, np.int64)
    maker, number = np.zeros(given, np.int64), np.full((pp, steps.shape[2]), -1, np.int64)
    done, latest = np.zeros(pp, np.int64), np.zeros(pp, np.int64)
    while count < total:
        stuck = count
        for stage in range(pp):
            while done[stage] < length[stage]:
                now = done[stage]
                needed = steps[stage, NEEDS, now]
                if needed > 0 and maker[needed] == 0:
                    break
                needs[0, count], needs[1, count] = latest[stage], maker[needed] if needed > 0 else 0
                which[count], number[stage, now] = steps[stage, WHICH, now], count
                count += 1
                latest[stage] = count
                maker[steps[stage, GIVES, now]] = count
                maker[steps[stage, GIVES_TOO, now]] = count
                done[stage] += 1
        if count == stuck:
            raise ValueError("a schedule whose stages wait for each other")
    return needs, which, number


@compiled_once("int64[::1](int64[:, ::1])", _SOURCE, error_model="numpy")
def _rows(needs: Ints) -> Ints:
    """A row for the end of each pass, ``(1 + n,)``, from 1 on; 0 is of no pass.

    ``needs``: what each pass reads, ``(2, n)``. Once nobody reads an end any more, its row is another's, though not that of a pass which
    reads it: so rows are few enough to stay in the processor's cache.
    """
    total, n_rows, n_free = needs.shape[1], 0, 0
    row, free, last_read = np.zeros(total + 1, np.int64), np.zeros(total + 1, np.int64), np.full(total + 1, -1, np.int64)
    for t in range(total):
        last_read[needs[0, t]] = last_read[needs[1, t]] = t
    for t in range(total):
        if n_free > 0:
            n_free -= 1
            row[t + 1] = free[n_free]
        else:
            n_rows += 1
            row[t + 1] = n_rows
        before, source = needs[0, t], needs[1, t]
        for end in (before, 0 if source == before else source, t + 1):
            if end > 0 and last_read[end] == (t if end <= t else -1):
                free[n_free] = row[end]
                n_free += 1
    return row


@compiled_once("float64[:, ::1](float64[:, ::1], float64[:, ::1])", _SOURCE, error_model="numpy")
def sums(counts: FloatColumn, values: FloatColumn) -> FloatColumn:
    """The product of two matrices, ``(n_sums, n_values)`` and ``(n_values, n_rows)``, added up one value after the other; most counts are
    0."""
    total = np.zeros((len(counts), values.shape[1]))
    for number in range(len(counts)):
        for value in range(len(values)):
            count = counts[number, value]
            if count != 0:
                for row in range(values.shape[1]):
                    total[number, row] += count * values[value, row]
    return total


SAME = 1e-11  # relative difference of seconds that rounding makes, and more


@compiled_once("boolean(float64[:, :, ::1], int64, int64, int64[:, ::1], int32[::1], float64[:, :, ::1])", _SOURCE, error_model="numpy")
def _paced(reached: FloatColumn, step: int, lane: int, counts: Ints, kinds: Shorts, mine: FloatColumn) -> bool:
    """Whether the last of so many steps shows a lane's pace: all stages took the same for it, or none longer than the first stage for its
    first step, in which it waits for nothing of another step's, or than the stage with most work needs."""
    least, most, latest, work = np.inf, 0.0, 0.0, reached[1, 0, lane]
    for stage in range(reached.shape[1]):
        took = reached[step, stage, lane] - reached[step - 1, stage, lane]
        least, most, latest = min(least, took), max(most, took), max(latest, reached[step, stage, lane])
        for resource in range(len(mine)):
            own = 0.0
            for which in range(counts.shape[1]):
                if counts[stage, which] > 0:
                    own += counts[stage, which] * mine[resource, kinds[which], lane]
            work = max(work, own)
    steady: bool = most - max(least, work) <= SAME * latest
    return steady


@compiled_once("float64(float64[:, :, ::1], int64, int64)", _SOURCE, error_model="numpy")
def _pace(reached: FloatColumn, steps: int, lane: int) -> float:
    """Seconds a step of which many follow each other, each stage beginning one when it has ended the one before: of all circles of passes
    that wait for each other across steps the longest, over the steps that it spans.

    Of as many steps as there are stages it is Karp's formula for the largest mean of a circle (Discrete Mathematics 23, 1978); of fewer,
    whose last one shows the pace, the longest time that a stage takes for that. ``reached``: when each stage has ended so many steps, or,
    of none, when its first input is there.
    """
    stages, pace = reached.shape[1], 0.0
    for stage in range(stages):
        last = reached[steps, stage, lane]
        mean = last - reached[steps - 1, stage, lane]
        if steps == stages:
            for before in range(steps - 1):
                mean = min(mean, (last - reached[before, stage, lane]) / (steps - before))
        pace = max(pace, mean)
    return pace


@compiled_once(
    "void(int32[:, ::1], int32[::1], float64[:, :, ::1], float64[:, ::1], float64[:, ::1], float64[:, :, ::1])",
    _SOURCE,
    error_model="numpy",
)
def _step(sequence: Shorts, kinds: Shorts, mine: FloatColumn, end: FloatColumn, host: FloatColumn, marked: FloatColumn) -> None:
    """Runs one step of so many lanes: fills ``end`` with the ends of passes, ``host`` with when each stage's host is done, and ``marked``
    with what is kept of both."""
    before, source, which, kept, own_row, stage_of, arrived = sequence
    lanes, launched, stages = end.shape[1], len(mine) > 1, len(host)
    for t in range(len(which)):
        own, other, kind, row = before[t], source[t], kinds[which[t]], own_row[t]
        for lane in range(lanes):
            a, b = end[own, lane], end[other, lane]
            end[row, lane] = (a if a > b else b) + mine[0, kind, lane]
        if launched:
            stage, input_row = stage_of[t], arrived[t]
            for lane in range(lanes):
                a, b = host[stage, lane], end[input_row, lane]
                done = (a if a > b else b) + mine[1, kind, lane]
                host[stage, lane] = done
                end[row, lane] = max(end[row, lane], done)
        slot = kept[t]
        if slot >= 0:
            marked[0, slot] = end[other if slot // stages == BEGINS else row]
            marked[1, slot] = host[slot % stages]


@compiled_once("UniTuple(float64, 2)(float64[:, :], int64)", _SOURCE, error_model="numpy")
def _group(marked: FloatColumn, stages: int) -> tuple[float, float]:
    """The shortest and the longest time that a stage took for its last group of pp micro-batches, the host of each included: the longest
    is the device's, and the shortest as much less as all of them differ."""
    least, most, longest = np.inf, 0.0, 0.0
    for resource in range(len(marked)):
        for stage in range(stages):
            took = marked[resource, GROUP_ENDS * stages + stage] - marked[resource, GROUP_BEGINS * stages + stage]
            least, most = min(least, took), max(most, took)
            longest = most if resource == 0 else longest
    return longest - (most - least), longest


@compiled_once(
    "float64[:, ::1](int32[:, ::1], int32[::1], float64[:, :, ::1], int64[::1], UniTuple(int64, 3), int64[:, ::1])",
    _SOURCE,
    error_model="numpy",
)
def _ends(sequence: Shorts, kinds: Shorts, spent: FloatColumn, layouts: Ints, size: tuple[int, int, int], counts: Ints) -> FloatColumn:
    """What ``_run`` says.

    ``kinds``: the row of ``spent`` of each pass, of which a wait, which takes no time, is the one behind the last. ``size``: rows of ends
    at a time, stages, and ``lanes``: a loop of a constant length would be unrolled and not made into vector instructions. The last round
    may leave lanes over, whose numbers nobody reads. ``counts``: as ``_sequence_of`` has it; where stages run on, one step follows another
    until their pace is known.
    """
    (rows, stages, lanes), n = size, len(layouts)
    end, host, marked = np.zeros((rows + 1, lanes)), np.zeros((stages, lanes)), np.zeros((2, 4 * stages, lanes))
    ends, mine = np.zeros((3, n)), np.zeros((len(spent), spent.shape[1] + 1, lanes))
    reached = np.zeros((1 + max(1, len(counts)), stages, lanes))  # when each stage has ended so many steps
    for first in range(0, n, lanes):
        here = min(lanes, n - first)
        for resource in range(len(spent)):
            for kind in range(spent.shape[1]):
                for lane in range(here):
                    mine[resource, kind, lane] = spent[resource, kind, layouts[first + lane]]
        step, told = 0, np.zeros(here, np.bool_)  # lanes whose pace is known, each by its own steps alone
        while not told.all():
            host[:] = reached[step] if step > 0 else np.zeros((stages, lanes))
            end[1 : stages + 1] = host
            _step(sequence, kinds, mine, end, host, marked)
            step += 1
            reached[step] = marked[0, ENDS * stages :]
            if step == 1:
                reached[0] = marked[0, BEGINS * stages : ENDS * stages]
            for lane in range(here):
                if not told[lane] and (step >= len(counts) or _paced(reached, step, lane, counts, kinds, mine)):
                    ends[0, first + lane] = _pace(reached, step, lane) if len(counts) else reached[1, :, lane].max()
                    ends[1, first + lane], ends[2, first + lane] = _group(marked[: len(spent), :, lane], stages)
                    told[lane] = True
    return ends
