"""How long a stage waits for its host: the launches of its passes beside what the device has to do in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.software import Software
from rapid_dse.events.layer_quantities import seconds_alone
from rapid_dse.events.layout_detail import LayoutDetail, PassSeconds
from rapid_dse.events.programs.stage_work import ChunkLaunches
from rapid_dse.parallel.schedules.schedule import Schedule
from rapid_dse.simulate.host_launches import micro_batch_seconds
from rapid_dse.simulate.slots import host_layer_seconds, smoothed, waits_of_passes

FloatColumn = NDArray[np.float64]
BothPasses = tuple[float, float]  # seconds forward and backward


@dataclass(frozen=True)
class HostSlot:
    """Seconds of a micro-batch on a stage.

    Attributes:
        in_line: what its passes compute, and the transfers that they wait for in line.
        beside_passes: what ZeRO 2 and 3 move beside each of them, one after the other. Graphs hide it behind all of the pass, whatever
            share the closed forms show.
        gradients: its weight gradients, part of the backward pass.
        host: its launches.
    """

    in_line: BothPasses
    beside_passes: BothPasses
    gradients: float
    host: float

    def stalls(self, one: LayoutDetail) -> tuple[float, float, float]:
        """What the device waits for launches in its forward, its backward and its weights' pass: the closed forms' slot of what stands in
        line, with the waits that they have in each pass. What moves beside passes moves beside waits too, and does not count."""
        software, (ahead, back) = one.scenario.software, self.in_line
        return waits_of_passes(software, (ahead, self.gradients), ahead + back, self.host, one.schedule.directions_apart)

    def launches(self, one: LayoutDetail, chunks: Sequence[Sequence[int]]) -> tuple[ChunkLaunches, ...]:
        """``StageWork.launches`` of each chunk, whose layers are of such kinds."""
        if self.host <= 0:
            return ()
        host, late = self._by_pass(one.scenario.software, one.schedule)
        layer, micro_batch = float(host_layer_seconds(one.scenario, one.layout)[0]), micro_batch_seconds(one.scenario)
        shares = [(len(kinds) * layer + micro_batch / len(chunks)) / self.host for kinds in chunks]
        return tuple(ChunkLaunches(*(tuple(share * whole for whole in seconds) for seconds in (host, late))) for share in shares)

    def _by_pass(self, software: Software, schedule: Schedule) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Seconds of the launches of each of ``PASSES``, a third of all, and what each takes longer on the device (``smoothed``).

        A forward pass that is shorter than its launches takes longer first, as in ``waits_of_passes``: so a step ends with its launches.
        """
        third, (ahead, back) = self.host / 3, map(max, self.in_line, self.beside_passes)
        if schedule.directions_apart:
            late, longer = _smoothed(software, ahead, third)
            late_back, longer_back = _smoothed(software, back, 2 * third)
            return (third * longer, third * longer_back, third * longer_back), (late, late_back, 0.0)
        more, longer = _smoothed(software, ahead + back, self.host)
        first = 0.0 if schedule.splits_backward else min(max(0.0, third * longer - ahead), more)
        return (third * longer,) * 3, (first, 0.0, more - first)


def _smoothed(software: Software, device: float, host: float) -> tuple[float, float]:
    more, longer = smoothed(software, np.array(device), np.array(host))
    return float(more), float(longer)


def host_slot(one: LayoutDetail, kinds: Sequence[int], stage: int, passes: PassSeconds) -> HostSlot:
    """That of a stage whose layers are of such kinds."""
    layers, tables, block = one.layers.of_kinds, one.layers.tables, one.layers.ends.added_to(one.block)
    first, last, hops = stage == 0, stage == one.degree("head_stage"), _sends(one, stage)
    hides = one.scenario.software.overlap.dp_overlap > 0 and len(kinds) > 0
    ends = first * _of(block.embedding) + last * _of(block.head_forward)
    ahead = sum(passes.layers[kind][0] for kind in kinds) + ends + first * _of(tables.embedding_forward) + hops / 2
    back = sum(passes.layers[kind][1] for kind in kinds) + first * passes.embedding + last * passes.head - ends
    back += first * _of(tables.embedding_backward) + hops / 2
    beside_passes = (0.0, 0.0)
    if hides:
        head, sharded = one.arranged.tables.head, [layers[kind].sharded for kind in kinds]
        gathered = sum(_of(layer.forward.seconds) for layer in sharded) + last * _of(head.forward.seconds)
        beside_passes = gathered, sum(_of(layer.backward.seconds) for layer in sharded) + last * _of(head.backward.seconds)
    else:
        ahead += sum(_of(layers[kind].dp_forward) for kind in kinds) + last * _of(tables.head_forward)
        back += sum(_of(layers[kind].dp_backward) for kind in kinds) + last * _of(tables.head_backward)
    host = len(kinds) * float(host_layer_seconds(one.scenario, one.layout)[0]) + micro_batch_seconds(one.scenario)
    return HostSlot((ahead, back), beside_passes, sum(one.works[kind].weight_gradient for kind in kinds), host)


def _of(column: FloatColumn) -> float:
    """A column's only value."""
    return float(np.ravel(column)[0])


def _sends(one: LayoutDetail, stage: int) -> float:
    """Seconds for which a micro-batch's sends and their launches hold up a stage."""
    pp, chunks, software = one.degree("pp"), one.degree("chunks"), one.scenario.software
    if pp == 1:
        return 0.0
    hides = software.overlap.pp_overlap if one.schedule.overlaps_sends else 0.0
    sends = float(one.schedule.stage_map.sends(np.array(stage), np.array(pp), np.array(chunks)))
    in_line = sends * seconds_alone(one.arranged.transfers.pp_hop) * (hides == 0)
    return in_line + 2.0 * chunks * (1 - hides) * software.pipeline.send_receive
