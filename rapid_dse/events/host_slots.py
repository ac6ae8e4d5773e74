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


@dataclass(frozen=True)
class HostSlot:
    """Seconds of a micro-batch on a stage: of all on the device, ahead of the backward pass, of its weight gradients; of its launches."""

    device: float
    ahead: float
    gradients: float
    host: float

    def stalls(self, one: LayoutDetail) -> tuple[float, float, float]:
        """What the device waits for launches after its forward, its backward and its weights' pass: the closed forms' slot, with the waits
        that they have in each pass."""
        software = one.scenario.software
        return waits_of_passes(software, (self.ahead, self.gradients), self.device, self.host, one.schedule.directions_apart)

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
        third = self.host / 3
        if schedule.directions_apart:
            ahead, longer_ahead = _smoothed(software, self.ahead, third)
            back, longer_back = _smoothed(software, self.device - self.ahead, 2 * third)
            return (third * longer_ahead, third * longer_back, third * longer_back), (ahead, back, 0.0)
        more, longer = _smoothed(software, self.device, self.host)
        first = 0.0 if schedule.splits_backward else min(max(0.0, third * longer - self.ahead), more)
        return (third * longer,) * 3, (first, 0.0, more - first)


def _smoothed(software: Software, device: float, host: float) -> tuple[float, float]:
    more, longer = smoothed(software, np.array(device), np.array(host))
    return float(more), float(longer)


def host_slot(one: LayoutDetail, kinds: Sequence[int], stage: int, passes: PassSeconds) -> HostSlot:
    """That of a stage whose layers are of such kinds."""
    ahead, back = _passes(one, kinds, stage, passes)
    hops = _sends(one, stage)
    host = len(kinds) * float(host_layer_seconds(one.scenario, one.layout)[0]) + micro_batch_seconds(one.scenario)
    gradients = sum(one.works[kind].weight_gradient for kind in kinds)
    return HostSlot(ahead + back + hops, ahead + hops / 2, gradients, host)


def _passes(one: LayoutDetail, kinds: Sequence[int], stage: int, passes: PassSeconds) -> tuple[float, float]:
    """Seconds of a micro-batch's forward and backward pass on a stage's device, as graphs have them.

    There what ZeRO 2 and 3 move beside a pass hides behind all of it, whatever share the closed forms show: the longer of both counts. So
    no transfer that hides is taken for work of the device, which would leave less to wait for. The table's are waited for in line.
    """
    layers, tables, block = one.layers.of_kinds, one.layers.tables, one.layers.ends.added_to(one.block)
    first, last = stage == 0, stage == one.degree("head_stage")
    ends = first * _of(block.embedding) + last * _of(block.head_forward)
    ahead = sum(passes.layers[kind][0] for kind in kinds) + ends
    back = sum(passes.layers[kind][1] for kind in kinds) + first * passes.embedding + last * passes.head - ends
    table, table_back = first * _of(tables.embedding_forward), first * _of(tables.embedding_backward)
    if one.scenario.software.overlap.dp_overlap == 0 or not kinds:
        ahead += sum(_of(layers[kind].dp_forward) for kind in kinds) + last * _of(tables.head_forward)
        back += sum(_of(layers[kind].dp_backward) for kind in kinds) + last * _of(tables.head_backward)
        return ahead + table, back + table_back
    head = one.arranged.tables.head
    gathered = sum(_of(layers[kind].sharded.forward.seconds) for kind in kinds) + last * _of(head.forward.seconds)
    sent_back = sum(_of(layers[kind].sharded.backward.seconds) for kind in kinds) + last * _of(head.backward.seconds)
    return max(ahead, gathered) + table, max(back, sent_back) + table_back


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
