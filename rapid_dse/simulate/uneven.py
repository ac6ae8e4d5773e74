"""Pipelines whose stages wait for each other in a way that has no formula: their schedule is run pass by pass.

Each schedule says of which pipelines its formula is good enough (``Exact``): interleaved 1F1B is run wherever chunks differ, by their
layers or by the embedding table that ZeRO 2 and 3 gather and reduce around the first one; 1F1B where the user has split the layers or
they are of several kinds, as frameworks' own splits differ by a layer or two, of which 1F1B's formula is within 1 %.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import Positions, numbered
from rapid_dse.common.compiled import loading_numba
from rapid_dse.config.scenario import Scenario
from rapid_dse.model.architecture import architecture_of, split_of
from rapid_dse.parallel.layouts import BoolColumn, IntColumn, Layouts
from rapid_dse.parallel.schedules import SCHEDULE_CLASSES
from rapid_dse.parallel.schedules.schedule import BACKWARD, FORWARD, INPUT, KINDS, WEIGHTS, Exact
from rapid_dse.parallel.schedules.stage_maps import StageMap
from rapid_dse.parallel.stages import Split, packed, unpacked
from rapid_dse.simulate.host_launches import micro_batch_seconds
from rapid_dse.simulate.layer_kinds import MicroBatchTimes
from rapid_dse.simulate.slots import launched_slot, share_of, smoothed

FloatColumn = NDArray[np.float64]

THIRDS = np.array([1, 2, 1, 1]) / 3  # of a micro-batch's launches that each kind of pass has
LOOK_UP, LOOK_UP_BACKWARD, HEAD, HEAD_BACKWARD, SENT, LAUNCHED = range(6)  # parts of a pass beside its layers
AROUND = 6
LAYER_FORWARD, LAYER_BACKWARD, LAYER_WEIGHTS, LAYER_BESIDE = range(4)  # parts of a layer of each kind
OF_LAYER = 4


@dataclass(frozen=True)
class ChunkPasses:
    """What the passes of the chunks of one schedule's pipelines take, ``(n_layouts,)`` each or, of a layer of each kind,
    ``(n_kinds, n_layouts)``; and which layouts need a run.

    Attributes:
        layers: seconds of the forward and the backward pass, exposed transfers included, of weight gradients what is a part of the latter,
            and what they take more by themselves.
        ends: of the embedding's two passes and the head's two.
        sends: seconds that a stage sends a micro-batch's chunk, and that its host launches that in, one way.
        host: seconds in which the host launches a layer.
        split: pp, chunks and stage map as one number (``stages.packed``).
        uneven: whether chunks differ in their layers.
        layouts: whose they are.
    """

    layers: tuple[FloatColumn, FloatColumn, FloatColumn, FloatColumn]
    ends: tuple[FloatColumn, FloatColumn, FloatColumn, FloatColumn]
    sends: tuple[FloatColumn, FloatColumn]
    host: FloatColumn
    split: IntColumn
    uneven: BoolColumn
    layouts: Layouts

    @property
    def longer(self) -> BoolColumn:
        """Whether passes of one chunk differ from others' in what ZeRO moves around them: 2 and 3 transfer the table around the first chunk
        of every micro-batch, which is the longer one where layers are equal."""
        sharded: BoolColumn = self.layouts.sharding.gradients & (self.layouts.shards > 1) & (self.layouts.pp > 1)
        return sharded

    def without_formula(self, scenario: Scenario, exact: Exact) -> Positions:
        """Which of the layouts need a run, by what their schedule's formula is good for."""
        if exact is Exact.ALL_STAGES:
            return np.zeros(0, np.intp)
        if exact is Exact.SIMILAR_STAGES:
            similar = scenario.parallel.stage_layers is None and len(architecture_of(scenario).kinds) == 1
            return np.flatnonzero(self.uneven & (not similar))
        if exact is not Exact.EQUAL_CHUNKS or self.uneven.all():
            return np.arange(len(self.split))
        return np.flatnonzero(self.uneven | self.longer)


def passes_of(
    scenario: Scenario, layouts: Layouts, times: MicroBatchTimes, sends: tuple[FloatColumn, FloatColumn], same: bool
) -> ChunkPasses:
    """``ChunkPasses`` of layouts, of which ``times`` and ``sends`` are; ``same``: whether all have one pipeline."""
    split, n_layouts = split_of(scenario), len(layouts)
    splits = packed(layouts.take(slice(0, 1)) if same else layouts)
    number, count = numbered(splits)
    example = np.empty(count, np.int64)
    example[number] = splits
    differ = np.array([unpacked(key)[0] > 1 and _differ(split, *unpacked(key)) for key in example.tolist()], bool)
    layers = times.forward, times.backward, times.weights, times.beside_weights
    ends = times.embedding, times.embedding_backward, times.head_forward, times.head_backward
    return ChunkPasses(
        layers, ends, sends, times.host, np.broadcast_to(splits, n_layouts), np.broadcast_to(differ[number], n_layouts), layouts
    )


def chunk_waits(scenario: Scenario, code: int, passes: ChunkPasses, whole: FloatColumn, formula: Callable[[], FloatColumn]) -> FloatColumn:
    """The formula's waits, or, where it is not good enough, those that the schedule run pass by pass has, ``(n_candidates, n)``.

    Those stand at the stage with most work; the step is its work and they.

    Args:
        code: the schedule's.
        whole: seconds of a micro-batch on each candidate stage, ``(n_candidates, n)``; ``formula``: idle seconds there, by the formula,
            which is asked for only where some layout has them.
    """
    rows = passes.without_formula(scenario, SCHEDULE_CLASSES[code].exact)
    if not len(rows):
        return formula()
    every = len(rows) == whole.shape[1]
    work = whole if every else whole.take(rows, axis=1)
    busiest = work.max(axis=0)
    seconds = _run(scenario, code, passes, rows)
    idle = np.where(work == busiest, np.maximum(0.0, seconds - passes.layouts.num_micro_batches.take(rows) * busiest), 0.0)
    if every:
        return idle
    waits_of_chunks = np.array(np.broadcast_to(formula(), whole.shape))
    waits_of_chunks[:, rows] = idle
    return waits_of_chunks


def _run(scenario: Scenario, code: int, passes: ChunkPasses, rows: Positions) -> FloatColumn:
    """Seconds of a step of the schedule, of the layouts at ``rows``, ``(n,)``."""
    step_seconds = _recurrence().step_seconds
    pass_kinds = KINDS if SCHEDULE_CLASSES[code].splits_backward else 2
    splits, micro_batches, seconds = passes.split.take(rows), passes.layouts.num_micro_batches.take(rows), np.empty(len(rows))
    for part in runs_of(splits):
        pipeline, here = unpacked(int(splits[part.start])), rows[part]
        neighbours = here[-1] - here[0] == len(here) - 1
        at = slice(int(here[0]), int(here[-1]) + 1) if neighbours else here
        lasting, launches, pass_kind = _lasting(scenario, passes, at, pipeline, pass_kinds)
        seconds[part] = step_seconds(lasting, (code, *pipeline[:2]), micro_batches[part], pass_kind, launches)
    return seconds


def _lasting(
    scenario: Scenario, passes: ChunkPasses, at: Positions | slice, pipeline: tuple[int, int, StageMap], pass_kinds: int
) -> tuple[FloatColumn, FloatColumn | None, Positions]:
    """Seconds that each pass of ``StagePasses`` lasts in layouts of one pipeline, ``(n_lasting, n)``; those of its launches, where these
    are no part of it; and which of them each of the ``pass_kinds * pp * chunks`` passes is, by kind and place.

    ``at``: the layouts in ``passes``, ``(n,)``.
    """
    split = split_of(scenario)
    columns = (*passes.ends, *passes.sends, *(part[kind] for kind in range(split.kinds) for part in passes.layers))
    device, launches, _ = _shares(split, pipeline, pass_kinds)
    spent = np.stack([column[at] for column in columns])
    host = launches[:, :1] * passes.host[at] + launches[:, 1:] * micro_batch_seconds(scenario)
    stage_passes, on_device = _passes_of_stages(split, pipeline, pass_kinds), _recurrence().sums(device, spent)
    if pass_kinds < KINDS:
        return _launched(scenario, stage_passes, on_device, host), None, stage_passes.which
    lasting, launches = _launched_split(scenario, stage_passes, on_device, host)
    return lasting, launches if launches.any() else None, stage_passes.which


def runs_of(column: IntColumn) -> list[slice]:
    """Where neighbours have one value, in order."""
    ends = [*(np.flatnonzero(np.diff(column)) + 1).tolist(), len(column)]
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def pass_seconds(scenario: Scenario, code: int, passes: ChunkPasses) -> FloatColumn:
    """Seconds that each pass of the first layout's pipeline lasts, its send included, ``(pass_kinds, pp * chunks)`` by kind and place.

    ``code``: its schedule; there are kinds for split backward passes where it splits them, else forward and backward alone.
    """
    pass_kinds = KINDS if SCHEDULE_CLASSES[code].splits_backward else 2
    lasting, launches, pass_kind = _lasting(scenario, passes, np.zeros(1, np.int64), unpacked(int(passes.split[0])), pass_kinds)
    longer = lasting if launches is None else np.maximum(lasting, launches)
    seconds: FloatColumn = longer[pass_kind, 0].reshape(pass_kinds, -1)
    return seconds


@dataclass(frozen=True)
class Compiled:
    """``recurrence.step_seconds`` and ``recurrence.sums``."""

    step_seconds: Callable[[FloatColumn, tuple[int, int, int], IntColumn, Positions, FloatColumn | None], FloatColumn]
    sums: Callable[[FloatColumn, FloatColumn], FloatColumn]


@cache
def _recurrence() -> Compiled:
    """Numba is loaded where a layout is priced whose schedule is run, and nowhere else."""
    with loading_numba("the recurrence of uneven pipelines (once, about 5 s; then it is cached)"):
        from rapid_dse.parallel.recurrence import step_seconds, sums
    return Compiled(step_seconds, sums)


@dataclass(frozen=True)
class StagePasses:
    """Which passes the stages of a pipeline run for a micro-batch; stages that run the same are one kind.

    Attributes:
        counts: how many of each distinct pass of ``_shares`` a stage of each kind runs, by kind of pass, ``(pass_kinds, n_stage_kinds,
            n_distinct)``; ``every``: of all kinds of pass, ``(n_stage_kinds, n_distinct)``.
        of: of each pass that some stage runs its kind, the kind of stage and the distinct pass, ``(3, n)``: how long it waits for the host
            depends on what else its stage runs.
        which: which of those each pass is, by kind and place, ``(n_passes,)``.
    """

    counts: FloatColumn
    every: FloatColumn
    of: Positions
    which: Positions


def _launched(scenario: Scenario, passes: StagePasses, device: FloatColumn, host: FloatColumn) -> FloatColumn:
    """Seconds that each forward or backward pass lasts, ``(n, n_layouts)``, where the host launches each distinct one in ``host``.

    As ``slots.launched_passes`` of each stage.
    """
    (_, stage, passed), counts, sums = passes.of, passes.every, _recurrence().sums
    alone = launched_slot(scenario.software, device, host)
    spared = sums(counts, alone) - launched_slot(scenario.software, sums(counts, device), sums(counts, host))
    longer = alone - host
    share = share_of(np.maximum(0.0, spared), sums(counts, longer))
    lasting: FloatColumn = alone.take(passed, axis=0) - longer.take(passed, axis=0) * share.take(stage, axis=0)
    return lasting


def _launched_split(scenario: Scenario, passes: StagePasses, device: FloatColumn, host: FloatColumn) -> tuple[FloatColumn, FloatColumn]:
    """Seconds that each pass takes of its stage's device and of its host, ``(n, n_layouts)``, in schedules that run weight gradients by
    themselves.

    Those are short, and are launched while the device still runs what came before: both run their passes one after the other, and neither
    waits for the other but for what it needs (``slots.smoothed``). What the device takes longer, it takes with the weight gradients.
    """
    (kind, stage, passed), counts, sums = passes.of, passes.counts[[FORWARD, BACKWARD]].sum(axis=0), _recurrence().sums
    launches = sums(counts, host)
    late, longer = smoothed(scenario.software, sums(counts, device), launches)
    thirds = np.select([kind == WEIGHTS, kind == BACKWARD], [3.0, 1.5])[:, None]  # of the launches, whole backward passes have two
    return device[passed] + thirds * share_of(late, launches)[stage] * host[passed], longer[stage] * host[passed]


@lru_cache(maxsize=64)
def _passes_of_stages(split: Split, pipeline: tuple[int, int, StageMap], kinds: int) -> StagePasses:
    """The passes of a pipeline's stages."""
    pp, chunks, stage_map = pipeline
    device, _, kind_of = _shares(split, pipeline, kinds)
    of_kinds, places = kind_of.reshape(kinds, -1), stage_map.places(pp, chunks)
    every, stage_of = np.zeros((pp, kinds, len(device))), np.empty(pp * chunks, np.intp)
    for stage, chunks_here in enumerate(places):
        for kind in range(kinds):
            np.add.at(every[stage, kind], of_kinds[kind, chunks_here], 1.0)
        stage_of[chunks_here] = stage
    counts, alike = np.unique(every.reshape(pp, -1), axis=0, return_inverse=True)
    names = np.broadcast_arrays(np.arange(kinds)[:, None], alike.reshape(-1)[stage_of], of_kinds)
    distinct, which = np.unique(np.stack([name.ravel() for name in names]), axis=1, return_inverse=True)
    of_kinds_of_pass = np.ascontiguousarray(counts.reshape(-1, kinds, len(device)).swapaxes(0, 1))
    return StagePasses(of_kinds_of_pass, of_kinds_of_pass.sum(axis=0), distinct, which.reshape(-1))


@lru_cache(maxsize=4096)
def _differ(split: Split, pp: int, chunks: int, stage_map: StageMap) -> bool:
    """Whether some chunks have other layers than others."""
    every = split.of_kinds(pp, chunks, stage_map).reshape(pp * chunks, -1)
    return bool((every != every[0]).any())


@lru_cache(maxsize=64)
def _shares(split: Split, pipeline: tuple[int, int, StageMap], kinds: int) -> tuple[FloatColumn, FloatColumn, Positions]:
    """How often each distinct pass spends what, and which of them each of the ``kinds * pp * chunks`` passes is, by kind and place.

    Args:
        pipeline: pp, chunks of a stage, and the stage map.
        kinds: how many kinds of passes there are: forward and backward alone, or those of split backward passes too.

    Returns:
        ``(n_distinct, n_parts)`` on the device, ``ChunkPasses``'s ends and sends, then its layers; ``(n_distinct, 2)`` on the host, a
        layer's launches and a micro-batch's, a third of them for each of forward pass, input and weight gradient
        (``_launched_split``); ``(n_passes,)``.
    """
    pp, chunks, stage_map = pipeline
    places, count = stage_map.places(pp, chunks), pp * chunks
    of_kinds = np.empty((count, split.kinds))
    of_kinds[places] = split.of_kinds(pp, chunks, stage_map)
    layers = of_kinds.sum(axis=1)
    ahead, back = (_crosses(pipeline, towards) for towards in (True, False))
    device, of_layers = np.zeros((KINDS, count, AROUND)), np.zeros((KINDS, count, split.kinds, OF_LAYER))
    of_layers[FORWARD, ..., LAYER_FORWARD] = of_kinds
    device[FORWARD, 0, LOOK_UP] = device[FORWARD, -1, HEAD] = 1.0
    device[FORWARD, :, SENT], device[FORWARD, :, LAUNCHED] = ahead, 1.0
    for kind in (BACKWARD, INPUT):
        of_layers[kind, ..., LAYER_BACKWARD] = of_kinds
        device[kind, 0, LOOK_UP_BACKWARD] = device[kind, -1, HEAD_BACKWARD] = 1.0
        device[kind, :, SENT], device[kind, :, LAUNCHED] = back, 1.0
    of_layers[INPUT, ..., LAYER_WEIGHTS] = -of_kinds
    of_layers[WEIGHTS, ..., LAYER_WEIGHTS] = of_layers[WEIGHTS, ..., LAYER_BESIDE] = of_kinds
    launches = np.stack([THIRDS[:, None] * layers, np.broadcast_to(THIRDS[:, None] / chunks, (KINDS, count))], axis=2)
    every = np.concatenate([device, of_layers.reshape(KINDS, count, -1), launches], axis=2)[:kinds].reshape(kinds * count, -1)
    shares, kind_of = np.unique(every, axis=0, return_inverse=True)
    return np.ascontiguousarray(shares[:, :-2]), shares[:, -2:], kind_of.reshape(-1)


def _crosses(pipeline: tuple[int, int, StageMap], ahead: bool) -> FloatColumn:
    """1 for each place of the model from which a micro-batch goes to another rank, ``(pp * chunks,)``: ``ahead`` or back."""
    pp, chunks, stage_map = pipeline
    crosses = np.zeros(pp * chunks)
    for stage, chunks_here in enumerate(stage_map.places(pp, chunks).tolist()):
        for chunk, place in enumerate(chunks_here):
            crosses[place] = bool(stage_map.peer(stage, chunk, pp, chunks, ahead))
    return crosses
