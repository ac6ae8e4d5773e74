"""How a model's layers are split over pipeline stages, and which stages can be the slowest or the fullest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.model import Model
from rapid_dse.layouts import IntColumn
from rapid_dse.model.operators import matrix_parameters

FloatColumn = NDArray[np.float64]

CANDIDATES = 4  # first stage, earliest fullest inner stage, earliest other inner stage, last stage


@dataclass(frozen=True)
class Stages:
    """The stages of each layout that can be the slowest or the fullest: ``(CANDIDATES, n_layouts)``.

    In every schedule an earlier stage holds no fewer micro-batches whole than a later one, so that among inner stages of equal layer
    count the earliest stands for all, or the last where delayed weight gradients need more than what is kept whole. The ``latest`` of
    them is also the one that others wait for, with ``before`` layers on the stages ahead of it. At pp = 1 the four are the same stage.
    """

    position: NDArray[np.int64]
    layers: NDArray[np.int64]
    latest: NDArray[np.int64]
    before: NDArray[np.int64]
    has_embedding: NDArray[np.bool_]
    has_head: NDArray[np.bool_]

    def first(self) -> Stages:
        """The first stage alone."""
        return Stages(self.position[:1], self.layers[:1], self.latest[:1], self.before[:1], self.has_embedding[:1], self.has_head[:1])


def split_layers(model: Model, rule: str, pp: int, vpp: int) -> list[int]:
    """Layers of each of ``pp`` stages, all their ``vpp`` chunks together.

    ``megatron`` counts embedding and loss as a layer each where that makes the layers divide; ``balanced`` gives each stage the
    same matrix parameters, the head's included, as nanotron does; ``even`` and whatever does not divide: the first stages get one more.
    """
    return [sum(chunks) for chunks in split_chunks(model, rule, pp, vpp)]


def split_chunks(model: Model, rule: str, pp: int, vpp: int) -> list[list[int]]:
    """Layers of each chunk of each stage, ``pp`` lists of ``vpp``, by the rules of ``split_layers``."""
    layers, chunks = model.num_hidden_layers, pp * vpp
    if rule == "balanced" and pp > 1 and vpp == 1:
        return [[count] for count in _balanced(model, pp)]
    if layers % chunks and rule == "megatron" and (layers + 2) % chunks == 0:
        counts = [(layers + 2) // chunks - (chunk == 0) - (chunk == chunks - 1) for chunk in range(chunks)]
    else:
        counts = [layers // chunks + (chunk < layers % chunks) for chunk in range(chunks)]
    return [counts[stage::pp] for stage in range(pp)]


def _balanced(model: Model, pp: int) -> list[int]:
    """Blocks are dealt out in order; a stage closes once the cost so far passes its share (nanotron, pipeline block assignment)."""
    head = float(model.hidden_size * model.vocab_size)
    layer = (matrix_parameters(model) - head) / model.num_hidden_layers
    share, counts, stage, spent = (model.num_hidden_layers * layer + head) / pp, [0] * pp, 0, 0.0
    for _ in range(model.num_hidden_layers):
        counts[stage] += 1
        spent += layer
        if stage < pp - 1 and spent >= share * (stage + 1) * (1 - 1e-12):
            stage += 1
    return counts


def stages(model: Model, rule: str, pp: IntColumn, vpp: IntColumn) -> Stages:
    """The candidate stages of each layout; the split itself is made once a distinct (pp, vpp)."""
    packed = pp * 4096 + vpp
    distinct, where = np.unique(packed, return_inverse=True)
    tables = [_candidates(split_layers(model, rule, int(key) // 4096, int(key) % 4096)) for key in distinct]
    position, layers, latest, before = (np.array([table[i] for table in tables], np.int64).T[:, where] for i in range(4))
    return Stages(position, layers, latest, before, position == 0, position == pp - 1)


def _candidates(layers: list[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    last, inner = len(layers) - 1, range(1, len(layers) - 1)
    fullest = max(inner, key=lambda stage: layers[stage], default=0)
    other = next((stage for stage in inner if layers[stage] != layers[fullest]), fullest)
    chosen = [0, fullest, other, last]
    alike = [max((each for each in inner if layers[each] == layers[stage]), default=stage) if stage in inner else stage for stage in chosen]
    return chosen, [layers[stage] for stage in chosen], alike, [sum(layers[:stage]) for stage in alike]
