"""What each pipeline stage that may be the slowest spends on a micro-batch, and what the stages around it spend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import Positions, added, rows_of, summed
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software import Software
from rapid_dse.parallel.layouts import IntColumn, Layouts
from rapid_dse.parallel.schedules.schedule import Slots
from rapid_dse.parallel.stages import Stages
from rapid_dse.simulate.communication import nodes_of
from rapid_dse.simulate.host_launches import host_pace, layer_launches, library_seconds, micro_batch_seconds
from rapid_dse.simulate.layer_work import Block
from rapid_dse.simulate.recomputed import whole_layers

FloatColumn = NDArray[np.float64]
NODE = 8  # tensor-parallel ranks that ``cluster.host_slowdown`` is told of

IDLE_FORWARD = 1 / 3  # share of a slot that is its forward pass where a stage computes nothing: the host's, as in the graphs of stages


def host_layer_seconds(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """Seconds in which the host launches a layer's forward and backward pass for a micro-batch, ``(n_layouts,)``."""
    software = scenario.software
    collective = np.where(layouts.tp > 1, software.host.host_collective_layer, 0.0)
    # Full recomputation launches the forward pass again, half of what the host does for a layer.
    again = 1.0 + 0.5 * whole_layers(scenario, layouts)
    launched = layer_launches(scenario, layouts)
    recorded = 1.0 if scenario.workload.kind == "training" else software.host.host_without_gradients
    of_framework = software.host.host_layer * launched * recorded + collective * (launched > 0)
    seconds: FloatColumn = (of_framework + library_seconds(scenario)) * (again * host_pace(scenario))
    if scenario.cluster.host_slowdown == 1:
        return seconds
    slow = np.where(nodes_of(scenario.hw, layouts) > 1, scenario.cluster.host_slowdown * layouts.tp / NODE, 1.0)
    return seconds * np.maximum(1.0, slow)


def launched_slot(software: Software, device: NDArray[np.float64], host: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds that a micro-batch takes with ``device`` seconds of work that the host launches in ``host`` seconds; same shape."""
    if software.host.launch_norm is None:
        return np.maximum(device, host)
    longer, shorter = np.maximum(device, host), np.minimum(device, host)
    share = shorter / np.where(longer > 0, longer, 1.0)
    slot: NDArray[np.float64] = longer * (1.0 + share**software.host.launch_norm) ** (1.0 / software.host.launch_norm)
    return slot


def waits_in_pass(part: NDArray[np.float64], left: NDArray[np.float64], launches: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds that one of a slot's three passes (forward, input gradient, weight gradient) waits for its launches; same shape.

    Each pass has a third of the launches, and cannot end before its own are done, as far as the device waits for the host at all. So where
    the host sets the pace, the passes keep their shares of the slot however fast the device is.

    Args:
        part: the pass's seconds on the device; ``left``: what the device waits in the whole slot and no other pass has; ``launches``: the
            host's seconds for the whole slot.
    """
    return np.clip(launches / 3 - part, 0.0, np.maximum(0.0, left))


def launched_passes(software: Software, device: Sequence[FloatColumn], host: Sequence[FloatColumn]) -> list[FloatColumn]:
    """Seconds that a slot's forward and its backward pass last, whose sum is ``launched_slot``'s of both; same shapes.

    Neither ends before its launches are done. The host runs ahead from pass to pass, so that what single passes take longer than their
    launches, the slot does not take in full: all lose the same share of it. So no pass gets longer where the device gets faster.

    Args:
        device: seconds of each pass there; ``host``: of its launches.
    """
    alone = [launched_slot(software, part, own) for part, own in zip(device, host, strict=True)]
    longer = [each - own for each, own in zip(alone, host, strict=True)]
    spared = added(alone) - launched_slot(software, added(device), added(host))
    share = share_of(np.maximum(0.0, spared), added(longer))
    return [each - share * more for each, more in zip(alone, longer, strict=True)]


def share_of(part: FloatColumn, every: FloatColumn) -> FloatColumn:
    """``part / every``, none of nothing."""
    return np.divide(part, every, out=np.zeros_like(part), where=every > 0)


def waits_of_passes(software: Software, parts: tuple[float, float], device: float, host: float) -> tuple[float, float, float]:
    """How one slot's waits for the host are dealt out to its forward pass, its input gradient's and its weight gradient's.

    Args:
        parts: seconds of the forward pass and of weight gradients; ``device`` of the whole slot, which the host launches in ``host``.
    """
    left, launches = launched_slot(software, np.array(device), np.array(host)) - device, np.array(host)
    first = waits_in_pass(np.array(parts[0]), left, launches)
    third = waits_in_pass(np.array(parts[1]), left - first, launches) * (parts[1] > 0)
    return float(first), float(left - first - third), float(third)


@dataclass(frozen=True)
class StageSlots:
    """What the candidate stages take for a micro-batch, s, ``(n_candidates, n_layouts)`` each.

    Attributes:
        whole: of the slot, of which the device has ``device``; ``forward`` and ``weights`` (gradients) are parts of it.
        before: the slots of all stages ahead of it, ``after`` of those behind it.
        found: the stages; ``pp`` and ``chunks`` of each layout, ``(n_layouts,)``.
    """

    whole: FloatColumn
    device: FloatColumn
    forward: FloatColumn
    weights: FloatColumn
    before: FloatColumn
    after: FloatColumn
    found: Stages
    pp: IntColumn
    chunks: IntColumn

    def of(self, rows: Positions, micro_batches: IntColumn, delayed: bool) -> Slots:
        """The slots of the layouts at ``rows``, as schedules take them.

        Args:
            micro_batches: of a step, ``(n_rows,)``.
            delayed: whether the schedule runs weight gradients later than the backward pass; only then are their sums filled.
        """
        whole, forward, weights, before, after = (
            each.take(rows, axis=1) for each in (self.whole, self.forward, self.weights, self.before, self.after)
        )
        latest = self.found.latest.take(rows, axis=1)
        behind = self.pp.take(rows) - 1 - latest
        forward_before, weights_before, weights_after = NO_SUM, NO_SUM, NO_SUM
        if delayed:
            found = rows_of(self.found, rows)
            forward_before, weights_before = before_each(found, forward), before_each(found, weights)
            weights_after = after_each(found, behind, weights)
        return Slots(
            whole=whole,
            forward=forward,
            weights=weights,
            before=before,
            after=after,
            forward_before=forward_before,
            weights_before=weights_before,
            weights_after=weights_after,
            weights_first=weights[0],
            position=latest,
            behind=behind,
            chunks=self.chunks.take(rows),
            micro_batches=micro_batches,
        )


NO_SUM = np.zeros((1, 1))


def before_each(found: Stages, of: FloatColumn) -> FloatColumn:
    """The sum of what stages take over all stages ahead of each candidate, ``(n_candidates, n_layouts)``, from what the candidates do."""
    return np.where(found.latest > 0, of[0] + _inner_sum(found.ahead, of), 0.0)


def after_each(found: Stages, behind: IntColumn, of: FloatColumn) -> FloatColumn:
    """The same over the stages behind each, of which there are ``behind``."""
    return np.where(behind > 0, of[-1] + _inner_sum(found.behind, of), 0.0)


def _inner_sum(counts: NDArray[np.int64], of: FloatColumn) -> FloatColumn:
    """What so many inner stages of each kind take together, ``(n_candidates, n_layouts)``; ``counts`` as ``Stages.ahead``."""
    return sum((counts[:, kind] * of[1 + kind] for kind in range(counts.shape[1])), np.zeros(of.shape))


Passes = tuple[FloatColumn, FloatColumn]  # seconds forward and backward


def stage_slots(
    scenario: Scenario, layouts: Layouts, block: Block, found: Stages, layers: Sequence[Passes], sends: NDArray[np.float64]
) -> StageSlots:
    """The candidate stages' slots.

    A slot is as long as the device computes and transfers, or as the host takes to launch it (``launched_slot``). A stage without layers
    passes on what it receives, which takes the sends and the host's time for a micro-batch.

    Args:
        layers: seconds of the passes of a layer of each kind, exposed transfers included, ``(n_layouts,)`` each.
        sends: seconds of a micro-batch's sends on each candidate, ``(n_candidates, n_layouts)``.
    """
    forward, backward = (summed(found.of_kinds, [passes[way] for passes in layers]) for way in (0, 1))
    gradients = summed(found.of_kinds, [layer.weight_gradient for layer in block.layers])
    ahead = found.has_embedding * block.embedding + found.has_head * block.head_forward
    behind_layers = found.has_embedding * block.embedding_backward + found.has_head * block.head_backward
    computing = forward + backward + ahead + behind_layers
    device = computing + sends
    launches = found.layers * host_layer_seconds(scenario, layouts) + micro_batch_seconds(scenario)
    whole = launched_slot(scenario.software, device, launches)
    # of the sends, one goes ahead for each that comes back
    ahead_of, waits = np.where(computing > 0, forward + ahead + sends / 2, device * IDLE_FORWARD), whole - device
    ahead_lasts, _ = launched_passes(scenario.software, [ahead_of, device - ahead_of], [launches / 3, launches * (2 / 3)])
    late = waits_in_pass(gradients, waits - waits_in_pass(ahead_of, waits, launches), launches)
    return StageSlots(
        whole=whole,
        device=device,
        forward=ahead_lasts,
        weights=np.where(found.layers > 0, gradients + late, 0.0),
        before=before_each(found, whole),
        after=after_each(found, layouts.pp - 1 - found.latest, whole),
        found=found,
        pp=layouts.pp,
        chunks=layouts.chunks,
    )
