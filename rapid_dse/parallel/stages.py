"""How a model's layers are split over pipeline stages, and which stages can be the slowest or the fullest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import FIRST, Positions, Shared, distinct
from rapid_dse.parallel.layouts import IntColumn, Layouts
from rapid_dse.parallel.schedules import STAGE_MAPS
from rapid_dse.parallel.schedules.stage_maps import LOOPED, StageMap

FloatColumn = NDArray[np.float64]

PACK = 4096  # pp, stage map and chunks as one number
EVERY = slice(None)  # all candidate stages
LEAST_KINDS = 2  # of inner stages, so that tables of the usual splits have rows alike: the first, two inner ones, the last


@dataclass(frozen=True)
class Split:
    """How a model's layers are dealt to pipeline stages.

    Attributes:
        rule: the framework's. ``megatron`` counts embedding and loss as a layer each where that makes the layers divide; ``balanced``
            gives each stage the same matrix parameters, the head's included, as nanotron does; ``even`` and whatever does not divide:
            the first stages get one more.
        order: the kind of each layer, a number from 0.
        weights: matrix parameters of a layer of each kind; ``head``: of the head.
        given: where it is not None, the layers of each stage as a user has them instead.
        behind: the kinds of layers that come behind all others, on the stage of the head, whatever the rule.
    """

    rule: str
    order: tuple[int, ...]
    weights: tuple[float, ...] = (1.0,)
    head: float = 0.0
    given: tuple[int, ...] | None = None
    behind: tuple[int, ...] = ()

    @property
    def kinds(self) -> int:
        """How many kinds of layers there are."""
        return len(self.weights)

    def layers(self, pp: int, chunks: int, stage_map: StageMap = LOOPED) -> list[int]:
        """Layers of each of ``pp`` stages, all their chunks together, but for those ``behind``."""
        return [sum(own) for own in self.chunks(pp, chunks, stage_map)]

    def chunks(self, pp: int, chunks: int, stage_map: StageMap = LOOPED) -> list[list[int]]:
        """Layers of each chunk of each stage, ``pp`` lists of so many ``chunks``, which lie as ``stage_map`` says; but for those
        ``behind``."""
        layers, count = len(self.order), pp * chunks
        if self.given is not None:
            assert len(self.given) == pp, "the rules of layouts leave no other pp"
            return [_dealt(own, chunks, stage == 0) for stage, own in enumerate(self.given)]
        if self.rule == "balanced" and pp > 1 and chunks == 1:
            return [[own] for own in self._balanced(pp)]
        if layers % count and self.rule == "megatron" and (layers + 2) % count == 0:
            layers_of_chunks = [(layers + 2) // count - (place == 0) - (place == count - 1) for place in range(count)]
        else:
            layers_of_chunks = [layers // count + (place < layers % count) for place in range(count)]
        return [[layers_of_chunks[place] for place in chunks_here] for chunks_here in stage_map.places(pp, chunks).tolist()]

    def kinds_of_chunks(self, pp: int, chunks: int, stage_map: StageMap = LOOPED) -> list[list[tuple[int, ...]]]:
        """The kind of each layer of each chunk of each stage, in the order in which a micro-batch passes them."""
        places, counts = stage_map.places(pp, chunks), self.chunks(pp, chunks, stage_map)
        at_place = np.empty(pp * chunks, np.int64)
        at_place[places] = counts
        ends = np.cumsum(at_place)
        at_places = [self.order[end - count : end] for end, count in zip(ends.tolist(), at_place.tolist(), strict=True)]
        at_places[-1] = (*at_places[-1], *self.behind)
        return [[at_places[place] for place in chunks_here] for chunks_here in places.tolist()]

    def of_kinds(self, pp: int, chunks: int, stage_map: StageMap = LOOPED) -> NDArray[np.int64]:
        """Layers of each kind in each chunk of each stage, ``(pp, chunks, n_kinds)``."""
        every = self.kinds_of_chunks(pp, chunks, stage_map)
        return np.array([[[kinds.count(kind) for kind in range(self.kinds)] for kinds in chunks_here] for chunks_here in every], np.int64)

    def _balanced(self, pp: int) -> list[int]:
        """Blocks are dealt out in order; a stage closes once the cost so far passes its share (nanotron, pipeline block assignment)."""
        costs = [self.weights[kind] for kind in self.order]
        share, counts, stage, spent = (sum(costs) + self.head) / pp, [0] * pp, 0, 0.0
        for cost in costs:
            counts[stage] += 1
            spent += cost
            if stage < pp - 1 and spent >= share * (stage + 1) * (1 - 1e-12):
                stage += 1
        return counts


def _dealt(layers: int, chunks: int, first: bool) -> list[int]:
    """A stage's layers over its chunks as evenly as they go: the first chunks get one more, on the first stage, whose first chunk also
    has the embedding, the last ones."""
    counts = [layers // chunks + (chunk < layers % chunks) for chunk in range(chunks)]
    return counts[::-1] if first else counts


@dataclass(frozen=True)
class Stages:
    """The stages of each layout that can be the slowest or the fullest: ``(n_candidates, n_layouts)``.

    They are the first stage, one for each mix of layers that inner stages have (the fullest first), and the last. In every schedule an
    earlier stage holds no fewer micro-batches whole than a later one, so that among inner stages of equal layers the earliest stands
    for all, or the ``latest`` where delayed weight gradients need more than what is kept whole; that one is also the one that others wait
    for. A layout with fewer candidates than the others of its table has its second one several times. At pp = 1 all are the same stage.

    Attributes:
        position: the stage's place, from 0.
        layers: of the stage; ``of_kinds`` those of each kind, ``(n_kinds, n_candidates, n_layouts)``.
        latest: place of the latest stage that it stands for; ``before`` layers are on the stages ahead of that one.
        ahead: how many inner stages like each inner candidate, that is with the same layers, lie ahead of each candidate's
            latest, ``(n_candidates, n_candidates - 2, n_layouts)``; ``behind``: how many lie behind it.
    """

    position: NDArray[np.int64]
    layers: NDArray[np.int64]
    latest: NDArray[np.int64]
    before: NDArray[np.int64]
    has_embedding: NDArray[np.bool_]
    has_head: NDArray[np.bool_]
    ahead: NDArray[np.int64]
    behind: NDArray[np.int64]
    of_kinds: NDArray[np.int64]

    def alone(self, end: Literal["first", "last"]) -> Stages:
        """The first stage alone, or the last one, with which no times of others can be found."""
        only = slice(0, 1) if end == "first" else slice(-1, None)
        columns = {f.name: getattr(self, f.name)[only] for f in fields(self) if f.name != "of_kinds"}
        return Stages(**columns, of_kinds=self.of_kinds[:, only])

    def of_layout(self, layout: int) -> tuple[Stages, NDArray[np.intp]]:
        """The candidates of one layout, ``(n_candidates, 1)``, without those that stand there twice; and which of them those are."""
        places = self.position[:, layout].tolist()
        last = len(places) - 1 if places[-1] else 0
        chosen = np.array([*(at for at, place in enumerate(places[:last]) if places.index(place) == at), last])
        inner, here = chosen[1:-1] - 1, slice(layout, layout + 1)
        columns = {f.name: getattr(self, f.name)[chosen, here] for f in fields(self) if f.name not in ("ahead", "behind", "of_kinds")}
        ahead, behind = (column[chosen[:, None], inner, here] for column in (self.ahead, self.behind))
        return Stages(**columns, ahead=ahead, behind=behind, of_kinds=self.of_kinds[:, chosen, here]), chosen


@dataclass(frozen=True)
class CandidateStages:
    """Those of one split, as ``Stages`` has them; lists of ``n_candidates``."""

    position: list[int]
    layers: list[int]
    latest: list[int]
    before: list[int]
    ahead: list[list[int]]
    behind: list[list[int]]
    of_kinds: list[tuple[int, ...]]


Mix = tuple[int, ...]  # layers of each kind


def mixes_of(stages: Sequence[Mix]) -> list[Mix]:
    """The mixes of layers that inner stages have, each once, the largest first."""
    return sorted(set(stages[1:-1]), key=lambda mix: (sum(mix), mix), reverse=True)


def packed(layouts: Layouts) -> IntColumn:
    """What a layout's split depends on as one number, ``(n_layouts,)``: pp, the chunks of a stage, and its stage map."""
    number: IntColumn = (layouts.pp * PACK + layouts.chunks) * len(STAGE_MAPS) + layouts.stage_map
    return number


def unpacked(number: int) -> tuple[int, int, StageMap]:
    """pp, chunks of a stage, stage map of what ``packed`` gives."""
    rest, code = divmod(number, len(STAGE_MAPS))
    pp, chunks = divmod(rest, PACK)
    return pp, chunks, STAGE_MAPS[code]


def stages(split: Split, layouts: Layouts) -> Stages:
    """The candidate stages of each layout; each distinct split is made once."""
    distinct, where = np.unique(packed(layouts), return_inverse=True)
    splits = [_mixes(split, *unpacked(key)) for key in distinct.tolist()]
    room = max([LEAST_KINDS, *(len(mixes_of(mixes)) for mixes in splits)])
    candidates = [_candidates(mixes, room) for mixes in splits]
    position, layers, latest, before, ahead, behind, of_kinds = (
        np.moveaxis(np.array([getattr(candidate, name) for candidate in candidates], np.int64), 0, -1)[..., where]
        for name in (f.name for f in fields(CandidateStages))
    )
    kinds = np.ascontiguousarray(of_kinds.swapaxes(0, 1))
    return Stages(position, layers, latest, before, position == 0, position == layouts.head_stage, ahead, behind, kinds)


@lru_cache(maxsize=4096)
def _mixes(split: Split, pp: int, chunks: int, stage_map: StageMap) -> tuple[Mix, ...]:
    """The mix of each stage."""
    return tuple(tuple(mix) for mix in split.of_kinds(pp, chunks, stage_map).sum(axis=1).tolist())


@lru_cache(maxsize=4096)
def _candidates(mixes: tuple[Mix, ...], kinds: int) -> CandidateStages:
    """The candidates of a split, with room for so many kinds of inner stages."""
    last, inner, counts = len(mixes) - 1, range(1, len(mixes) - 1), mixes_of(mixes)
    chosen = [next(stage for stage in inner if mixes[stage] == mix) for mix in counts]
    chosen = [0, *chosen, *(chosen[:1] or [0]) * (kinds - len(chosen)), last]
    latest = [
        max(stage_inside for stage_inside in inner if mixes[stage_inside] == mixes[stage]) if stage in inner else stage for stage in chosen
    ]
    alike = np.array([[stage in inner and mixes[stage] == mix for stage in range(len(mixes))] for mix in counts]).reshape(-1, last + 1)
    up_to = np.cumsum(alike, axis=1)
    ahead, behind = (up_to - alike)[:, latest].T.tolist(), (up_to[:, -1:] - up_to)[:, latest].T.tolist()
    room = [0] * (kinds - len(counts))
    return CandidateStages(
        position=chosen,
        layers=[sum(mixes[stage]) for stage in chosen],
        latest=latest,
        before=[sum(map(sum, mixes[:stage])) for stage in latest],
        ahead=[row + room for row in ahead],
        behind=[row + room for row in behind],
        of_kinds=[mixes[stage] for stage in chosen],
    )


def alike_in_stages(layouts: Layouts, names: Sequence[str], shared: Shared[Stages], only: slice = EVERY) -> tuple[Positions, Positions]:
    """As ``layouts.alike.by``, of what depends on some columns, ``pp`` among them, and on what the candidate stages have: splits into other
    chunks often leave the stages the same layers.

    Args:
        shared: the layouts' stages; ``only``: the candidates that count.
    """
    if len(layouts) == 1:
        return FIRST, FIRST
    first, kind = layouts.alike.by(*names, "chunks", "stage_map")
    rows, of_rows = layouts.alike.by(*names)
    parts = (shared.of.of_kinds[:, only], shared.of.layers[None, only], shared.of.has_embedding[None, only], shared.of.has_head[None, only])
    mixes = np.ascontiguousarray(np.concatenate(parts).reshape(-1, shared.of.layers.shape[-1]).T)
    numbers: dict[bytes, int] = {}
    mix = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in mixes], np.intp)
    merged, again = distinct([(of_rows.take(first), len(rows)), (mix.take(shared.kind.take(first)), len(numbers))])
    return first.take(merged), again.take(kind)
