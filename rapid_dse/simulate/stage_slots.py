"""What each pipeline stage that may be the slowest spends on a micro-batch, and what the stages around it spend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import added, summed
from rapid_dse.config.software import Software
from rapid_dse.parallel.layouts import IntColumn
from rapid_dse.parallel.schedules import SCHEDULE_CLASSES
from rapid_dse.parallel.schedules.schedule import Slots
from rapid_dse.parallel.stages import Stages
from rapid_dse.simulate.layer_kinds import MicroBatchTimes
from rapid_dse.simulate.pipeline_blocks import PipelineBlock
from rapid_dse.simulate.slots import Passes, launched_passes, launched_slot

FloatColumn = NDArray[np.float64]

IDLE_FORWARD = 1 / 3  # share of a slot that is its forward pass where a stage computes nothing: the host's, as in the graphs of stages
NO_SUM = np.zeros((1, 1))


@dataclass(frozen=True)
class StageSlots:
    """What the candidate stages take for a micro-batch, s, ``(n_candidates, n_layouts)`` each.

    Attributes:
        whole: of the slot, of which the device has ``device``; its host launches it in ``launches``.
        ahead: on the device before the stage's backward pass.
        first: seconds that the first stage's layers take forward and backward, ``(n_layouts,)`` each (``_first_stage_passes``).
    """

    whole: FloatColumn
    device: FloatColumn
    launches: FloatColumn
    ahead: FloatColumn
    first: Passes

    def of_schedule(
        self, software: Software, block: PipelineBlock, times: MicroBatchTimes, size: tuple[IntColumn, IntColumn, IntColumn]
    ) -> Slots:
        """The slots as schedules take them.

        Args:
            block: the layouts, of whose micro-batches ``times`` are.
            size: pp and chunks of their pipelines, micro-batches of a step, columns that broadcast.
        """
        schedule, stages, (pp, chunks, micro_batches) = SCHEDULE_CLASSES[block.schedule], block.stages, size
        behind = pp - 1 - stages.latest
        shares = [self.launches / 3, self.launches * (2 / 3)]
        forward, _ = launched_passes(software, [self.ahead, self.device - self.ahead], shares, schedule.directions_apart)
        weights = forward_before = weights_before = weights_after = NO_SUM
        if schedule.splits_backward:
            weights = self._weights(software, summed(stages.of_kinds, times.weights))
            forward_before, weights_before = before_each(stages, forward), before_each(stages, weights)
            weights_after = after_each(stages, behind, weights)
        return Slots(
            whole=self.whole,
            forward=forward,
            weights=weights,
            before=before_each(stages, self.whole),
            after=after_each(stages, behind, self.whole),
            forward_before=forward_before,
            weights_before=weights_before,
            weights_after=weights_after,
            weights_first=weights[0],
            position=stages.latest,
            behind=behind,
            chunks=chunks,
            micro_batches=micro_batches,
        )

    def _weights(self, software: Software, gradients: FloatColumn) -> FloatColumn:
        """Seconds of a slot that its weight gradients, which take so long on the device, add to the other two passes."""
        return np.maximum(0.0, self.whole - launched_slot(software, self.device - gradients, self.launches * (2 / 3)))


def before_each(stages: Stages, of: FloatColumn) -> FloatColumn:
    """The sum of what stages take over all stages ahead of each candidate, ``(n_candidates, n_layouts)``, from what the candidates do."""
    return np.where(stages.latest > 0, of[0] + _inner_sum(stages.ahead, of), 0.0)


def after_each(stages: Stages, behind: IntColumn, of: FloatColumn) -> FloatColumn:
    """The same over the stages behind each, of which there are ``behind``."""
    return np.where(behind > 0, of[-1] + _inner_sum(stages.behind, of), 0.0)


def _inner_sum(counts: NDArray[np.int64], of: FloatColumn) -> FloatColumn | float:
    """What so many inner stages of each kind take together, ``(n_candidates, n_layouts)``; ``counts`` as ``Stages.ahead``."""
    kinds = range(counts.shape[1])
    return summed(counts.swapaxes(0, 1), [of[1 + kind] for kind in kinds]) if kinds else 0.0


def stage_slots(
    software: Software, stages: Stages, times: MicroBatchTimes, around: tuple[NDArray[np.float64], float], apart: bool
) -> StageSlots:
    """The candidate stages' slots.

    A slot is as long as the device computes and transfers, or as the host takes to launch it (``launched_slot``). A stage without layers
    passes on what it receives, which takes the sends and the host's time for a micro-batch.

    Args:
        times: what a micro-batch takes of layers and ends.
        around: seconds of a micro-batch's sends on each candidate, ``(n_candidates, n_layouts)``, and of its launches beside the layers'.
        apart: whether all passes one way follow each other (``Schedule.directions_apart``).
    """
    sends, launched = around
    forward, backward = summed(stages.of_kinds, times.forward), summed(stages.of_kinds, times.backward)
    ahead = stages.has_embedding * times.embedding + stages.has_head * times.head_forward
    behind_layers = stages.has_embedding * times.embedding_backward + stages.has_head * times.head_backward
    computing = forward + backward + ahead + behind_layers
    device = computing + sends
    launches = stages.layers * times.host + launched
    # of the sends, one goes ahead for each that comes back
    ahead_of = np.where(computing > 0, forward + ahead + sends / 2, device * IDLE_FORWARD)
    shares = [launches / 3, launches * (2 / 3)]
    if apart:  # two passes add up to what the device takes, or to less by what is lost in rounding
        whole = np.maximum(device, added(launched_passes(software, [ahead_of, device - ahead_of], shares, True)))
    else:
        whole = launched_slot(software, device, launches)
    first = _first_stage_passes(software, ahead[0], (forward[0], backward[0]), (device[0], launches[0]), apart)
    return StageSlots(whole, device, launches, ahead_of, first)


def _first_stage_passes(
    software: Software, ahead: FloatColumn, passes: Passes, slot: tuple[FloatColumn, FloatColumn], apart: bool
) -> Passes:
    """Seconds that the layers of the first stage take forward and backward for a micro-batch, ``(n_layouts,)`` each.

    Each lasts at least as long as the host launches it (``launched_passes``).

    Args:
        ahead: seconds of what runs ahead of the layers, and of the head there; ``passes`` of the layers.
        slot: seconds of a micro-batch there on the device, and of its launches; ``apart`` as ``launched_passes`` has it.
    """
    (forward, backward), (device, launches) = passes, slot
    first, second = launched_passes(software, [forward + ahead, device - forward - ahead], [launches / 3, launches * (2 / 3)], apart)
    return np.maximum(0.0, first - ahead), np.maximum(0.0, second - (device - forward - ahead - backward))
