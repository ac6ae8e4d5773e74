"""Passes at a grid of batches, for every distinct way that a table's engines are cut: what serving interpolates in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software.serving_settings import ServingSettings
from rapid_dse.device import OperatorModel
from rapid_dse.parallel.engines import Degrees
from rapid_dse.simulate.inference.engine_memory import Room, room
from rapid_dse.simulate.inference.passes import EnginePass, PassWork, drafted_work, prefill_parts, prefilled, through_stages
from rapid_dse.simulate.inference.prompts import WHOLE, Chunks, PromptColumns, Prompts, chunks_of

FloatColumn = NDArray[np.float64]
IntColumn = NDArray[np.int64]

FINEST = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # batches; from there on steps of half an octave
FINEST_PARTS = (1.0, 4.0, 16.0, 64.0)  # of a batch: attention's ranks are powers of two
MOST_PLACES = 16_384  # multiples of such a part: a table that stays in cache


@dataclass(frozen=True)
class StepGrid:
    """What a pass takes alone at each of ``batches`` (ascending, ``(n_batches,)``), or several that follow each other, those of each length
    of ``chunks`` together: columns of ``works`` are ``(n_batches, n_kinds)``.

    ``scale``: what a backend found of it over what the closed forms have, by column of ``EnginePass`` (or ``compute``, all kernels),
    ``(n_batches, 1)`` each.
    """

    batches: FloatColumn
    works: tuple[PassWork, ...]
    chunks: tuple[Chunks, ...] = (WHOLE,)
    scale: Mapping[str, FloatColumn] = field(default_factory=dict)

    @property
    def work(self) -> PassWork:
        """Of passes of all lengths."""
        first, *others = self.works
        return sum(others, first)

    def passes(self, serving: ServingSettings, efficiency: float = 1.0) -> EnginePass:
        """The passes as the framework runs them, after one another through the stages."""
        times = through_stages(self.works, self.chunks, serving, efficiency)
        factors = {name: factor for name, factor in self.scale.items() if name != "compute"}
        if "compute" in self.scale:
            factors |= dict.fromkeys(("products", "attention", "small", "experts"), self.scale["compute"])
        return replace(times, **{name: getattr(times, name) * factor for name, factor in factors.items()})

    def most(self, kind: IntColumn) -> FloatColumn | float:
        """The largest batch of the grid, for rows of these kinds."""
        return float(self.batches[-1])

    def at(self, kind: IntColumn, batch: FloatColumn) -> Between:
        """Where a batch lies between the grid's, for rows of these kinds."""
        # np.clip takes several times as long as both bounds by themselves, of which a row of its own has a few dozen
        inside = np.minimum(np.maximum(batch, self.batches[0]), self.batches[-1])
        places, kinds = self._places, self.works[0].products.shape[1]
        place = places.of(inside)
        below = places.below.take(place, mode="clip") + kind
        share = (inside - places.batch.take(place, mode="clip")) * places.a_batch.take(place, mode="clip")
        return Between(below, below + kinds, share, 1.0 - share)

    @cached_property
    def _places(self) -> Places:
        return places_in(self.batches, self.works[0].products.shape[1])


@dataclass(frozen=True)
class Places:
    """Where batches lie in a grid, ``(n_places,)`` each; a batch has the place of its number of ``parts`` (0: that which a search of the
    batches between the grid's ends gives).

    Where the grid's ``batch`` ``below`` it begins in a flattened table, and how much nearer to the next one a batch more is (``a_batch``).
    """

    parts: float
    between: FloatColumn
    below: IntColumn
    batch: FloatColumn
    a_batch: FloatColumn

    def of(self, inside: FloatColumn) -> IntColumn:
        """The place of each batch, none beyond the grid's ends."""
        return np.ceil(inside * self.parts).astype(np.intp) if self.parts else self.between.searchsorted(inside)


def places_in(batches: FloatColumn, kinds: int) -> Places:
    """By whole multiples of a part of one batch, of which all batches of the grid are: a search takes several times as long as looking them
    up; or by a search, where these would be too many."""
    parts, highest = 0.0, batches[1:]
    for finest in FINEST_PARTS:
        multiples = batches * finest
        if multiples[-1] > MOST_PLACES:
            break
        if (multiples == np.rint(multiples)).all():
            parts, highest = finest, np.arange(multiples[-1] + 1) / finest
            break
    lower = batches[1:-1].searchsorted(highest)
    return Places(parts, batches[1:-1], lower * kinds, batches.take(lower), (1.0 / np.diff(batches)).take(lower))


@dataclass(frozen=True)
class Between:
    """Positions in a flattened grid, below and above, the share of the way between them, and what is left of it, ``(n_rows,)`` each."""

    below: IntColumn
    above: IntColumn
    share: FloatColumn
    rest: FloatColumn

    def of(self, table: FloatColumn) -> FloatColumn:
        """The table's value for each row; at either end that one's to the last bit."""
        flat = table.reshape(-1)
        between: FloatColumn = flat.take(self.below) * self.rest + flat.take(self.above) * self.share
        return between

    def all_of(self, passes: EnginePass) -> EnginePass:
        """Each column's value for each row."""
        return EnginePass(*(self.of(getattr(passes, field.name)) for field in fields(passes)))


@dataclass(frozen=True)
class Costs:
    """What engines of each kind cost, ``(n_kinds,)``: decode steps by the sequences of an attention rank, prefill by the prompts that one
    pass of them takes on it; ``together``: the most ``prompts`` in a pass."""

    cut: Degrees
    room: Room
    decode: StepGrid
    prefill: StepGrid
    together: FloatColumn
    prompts: Prompts


def batches_to(most: float) -> FloatColumn:
    """A grid of batches from 1 to at least ``most``."""
    batches = [float(batch) for batch in FINEST if batch < most]
    batches = batches or [1.0]
    while batches[-1] < most or len(batches) < 2:
        batches.append(
            batches[-1] * (1.5 if np.log2(batches[-1]) % 1 == 0 else 4 / 3) if batches[-1] >= FINEST[-1] else float(_next(batches[-1]))
        )
    return np.array(batches)


def _of_some_ranks(cut: Degrees) -> FloatColumn:
    """Shares of attention's ranks that have a prompt where not all have one: halves of halves, to one rank of any engine."""
    return np.array([2.0**-power for power in range(int(np.ceil(np.log2(cut.attention_dp.max(initial=1)))), 0, -1)])


def _next(batch: float) -> int:
    return next(size for size in FINEST if size > batch)


@dataclass(frozen=True)
class AskedEngines:
    """Engines whose passes are asked for: how each kind of them is cut, and the ``most`` sequences of an attention rank."""

    scenario: Scenario
    cut: Degrees
    most: float

    @cached_property
    def prompts(self) -> Prompts:
        """Prompts of one pass."""
        return prompts_of(self.scenario)

    @property
    def together(self) -> float:
        """The most prompts in a pass."""
        return max(1.0, self.scenario.software.serving.max_batched_tokens / self.prompts.queries)

    @property
    def decoding(self) -> FloatColumn:
        """The grid of sequences that decode, and of those with the prompts of a pass, which are no more than requests."""
        most = max(1.0, self.most)
        return batches_to(most + min(most, self.together))

    @property
    def of_prompts(self) -> FloatColumn:
        """The grid of prompts in a pass."""
        return np.append(_of_some_ranks(self.cut), batches_to(self.together))


def costs(every: Sequence[AskedEngines], device: OperatorModel) -> list[Costs]:
    """What engines cost whose scenarios differ in nothing but the lengths of their requests: all are priced as one table."""
    rooms = _rooms(every)
    decodes = _grids(every, [asked.decoding for asked in every], _decoding(every, device))
    prefills: dict[int, StepGrid] = {}
    for count in {len(asked.prompts.chunks) for asked in every}:  # passes of as many lengths are priced together
        places = [place for place, asked in enumerate(every) if len(asked.prompts.chunks) == count]
        alike = [every[place] for place in places]
        prefills |= zip(places, _grids(alike, [asked.of_prompts for asked in alike], _prefilling(alike, device)), strict=True)
    return [
        Costs(
            cut=asked.cut,
            room=rooms[at],
            decode=decodes[at],
            prefill=replace(prefills[at], chunks=asked.prompts.chunks),
            together=np.full(len(asked.cut.tp), asked.together),
            prompts=asked.prompts,
        )
        for at, asked in enumerate(every)
    ]


Priced: TypeAlias = Callable[[Degrees, FloatColumn, IntColumn], tuple[PassWork, ...]]  # of kinds, their batches, and whose they are


def _decoding(every: Sequence[AskedEngines], device: OperatorModel) -> Priced:
    """Prices decode steps."""
    scenario, lengths = every[0].scenario, _lengths(every)
    return lambda kinds, rows, of: (drafted_work(scenario, kinds, rows, device, (lengths[0].take(of), lengths[1].take(of))),)


def _prefilling(every: Sequence[AskedEngines], device: OperatorModel) -> Priced:
    """Prices passes that compute prompts, of as many lengths each."""
    scenario, asked_prompts = every[0].scenario, [asked.prompts for asked in every]

    def priced(kinds: Degrees, rows: FloatColumn, of: IntColumn) -> tuple[PassWork, ...]:
        prompts = PromptColumns.of(asked_prompts, of)
        return prefilled(scenario, kinds, prefill_parts(scenario, kinds, rows, prompts, device), prompts)

    return priced


def _lengths(every: Sequence[AskedEngines]) -> tuple[FloatColumn, FloatColumn]:
    """Tokens of a request's prompt, and those generated."""
    prompts, generated = np.array([asked.scenario.workload.lengths for asked in every], np.float64).T
    return prompts, generated


def _rooms(every: Sequence[AskedEngines]) -> list[Room]:
    """What engines hold."""
    sizes = [len(asked.cut.tp) for asked in every]
    prompts, generated = (lengths.repeat(sizes) for lengths in _lengths(every))
    bytes_held = room(every[0].scenario, Degrees.concatenate([asked.cut for asked in every]), (prompts, generated))
    columns = np.array([getattr(bytes_held, f.name) for f in fields(bytes_held)])
    return [Room(*own) for own in np.split(columns, np.cumsum(sizes)[:-1], axis=1)]


def prompts_of(scenario: Scenario) -> Prompts:
    """The mean prompt, less what a cache of prefixes has of it, in as many passes as its tokens take."""
    work = scenario.workload
    prompt, _ = work.lengths
    queries = max(1.0, prompt * (1.0 - work.prefix_hit))
    return Prompts(queries, float(prompt), chunks_of(queries, float(scenario.software.serving.max_batched_tokens)))


def _grids(every: Sequence[AskedEngines], batches: Sequence[FloatColumn], priced: Priced) -> list[StepGrid]:
    """The passes of each one's engines at its batches, all priced as one table."""
    kinds, grids = [len(asked.cut.tp) for asked in every], []
    sizes = [count * len(own) for count, own in zip(kinds, batches, strict=True)]
    starts = np.cumsum(kinds) - kinds
    at = [np.tile(np.arange(start, start + count), len(own)) for start, count, own in zip(starts, kinds, batches, strict=True)]
    cuts = Degrees.concatenate([asked.cut for asked in every]).take(np.concatenate(at))
    rows = np.concatenate([own.repeat(count) for count, own in zip(kinds, batches, strict=True)])
    tables = [work.table for work in priced(cuts, rows, np.arange(len(every)).repeat(sizes))]
    ends = np.cumsum(sizes).tolist()
    for count, own, size, end in zip(kinds, batches, sizes, ends, strict=True):
        works = (PassWork(*table[:, end - size : end].reshape(-1, len(own), count)) for table in tables)
        grids.append(StepGrid(own, tuple(works)))
    return grids
