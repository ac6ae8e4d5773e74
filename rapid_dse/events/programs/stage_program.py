"""One pipeline stage's step as a program: its tasks in order, what it sends and receives, and the end of the step.

Gradients are reduced once, behind the last backward pass; ZeRO 1's and 2's gather of new weights opens the step, where the last one
left it; ZeRO 3 gathers a layer before each of its passes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from typing import Protocol

from rapid_dse.events.programs.script import GRADIENTS, MAIN, PIPELINE, After, Message, Script, joined
from rapid_dse.events.programs.stage_work import (
    FORWARDS,
    INPUTS,
    WEIGHT_GRADIENTS,
    Boundary,
    Kinds,
    Move,
    SharedWeights,
    StageWork,
    parts_of,
    same_kinds,
)
from rapid_dse.parallel.schedules.schedule import BACKWARD, FORWARD, FORWARD_BESIDE, INPUT, WEIGHTS, Task
from rapid_dse.parallel.schedules.stage_maps import LOOPED, StageMap

# A rank with one communication stream reduces gradients when nothing else is left to send: a reduction that is under way holds up
# every collective and message behind it, which costs more than it hides.

TIED = "tied tables"  # the group of a pipeline's two ends
FIRST_INPUT = "pp receive of the step's first micro-batch"  # the label of the receive that a stage's step may begin with

WAITING = "waiting for the host"
PIECES = 32  # calls that a step's gradients are reduced in, at most: more change nothing but the size of the graph


class LayerNodes(Protocol):
    """How a stage's layers become nodes; ``layers`` of one ``kind`` in a row. ``talks``: whether they have transfers of their own."""

    @property
    def talks(self) -> bool:
        """Whether the layers' nodes have transfers among them."""

    def forward(self, script: Script, after: After, kind: int, layers: int) -> After:
        """Their forward pass."""

    def backward(self, script: Script, after: After, run: tuple[int, int], weights: bool) -> After:
        """Their backward pass, with or without weight gradients; ``run``: their kind, and how many they are."""

    def weights(self, script: Script, after: After, kind: int, layers: int) -> After:
        """Their weight gradients alone."""

    def end(self, script: Script, after: After, name: str) -> After:
        """What stands before the first layer, after the last one or at the end of the step, by its name in ``ends.PASSES``."""

    def regather(self, script: Script, after: After) -> After:
        """What a tensor-parallel group does after it has received its shares of a boundary."""


@dataclass
class StageWriter:
    """Writes one stage's program, task by task.

    Attributes:
        tail: what the next task waits for.
        gathered: the gather of the next layer's weights, where one is on its way (ZeRO 3).
        started: whether the first task is written.
        launched: the last pass's launches, where the host has a timeline of its own; ``arrived``: what the next one's input comes with.
        reduced: reductions of gradients that have started; ``share_unreduced`` is the share of the gradients whose reduction has not.
    """

    script: Script
    work: StageWork
    passes: LayerNodes
    boundary: Boundary
    stage: int
    pp: int
    stage_map: StageMap = LOOPED
    tail: After = ()
    gathered: After = ()
    reduced: After = ()
    share_unreduced: float = 1.0
    gathers_left: deque[tuple[int, bool]] = field(default_factory=deque)
    opening: After = ()
    started: bool = False
    launched: After = ()
    arrived: After = ()

    @cached_property
    def places(self) -> list[int]:
        """The place in the model of each of the stage's chunks."""
        chunks: list[int] = self.stage_map.places(self.pp, self.chunks)[self.stage].tolist()
        return chunks

    @property
    def chunks(self) -> int:
        """Chunks of the stage."""
        return len(self.work.chunks)

    def _ends(self, task: Task) -> tuple[bool, bool]:
        """Whether the task's chunk is the model's first, and whether its last."""
        place = self.places[task.chunk]
        return place == 0, place == self.pp * self.chunks - 1

    def write(self, tasks: Sequence[Task]) -> After:
        """The whole step; returns its last nodes."""
        self._open(tasks)
        last_of = {task.chunk: number for number, task in enumerate(tasks) if task.kind in (BACKWARD, WEIGHTS)}
        for number, task in enumerate(tasks):
            last = last_of[task.chunk] == number
            backward = tasks[number - 1] if number and tasks[number - 1].kind == FORWARD_BESIDE else None
            self.script.at = task.micro_batch
            if task.kind == FORWARD:
                self._receive(task, ahead=False)
                self._forward(task)
                self._send(task, ahead=True)
            elif task.kind == WEIGHTS:
                self._weights(task, last)
            elif task.kind in (BACKWARD, INPUT):
                if backward:
                    self._receive(backward, ahead=False)
                self._receive(task, ahead=True)
                if backward:
                    self._forward(backward)
                self._backward(task, task.kind == BACKWARD, last)
                if backward:
                    self._send(backward, ahead=True)
                self._send(task, ahead=False)
            self.started = True
        self.script.at = -1
        return self._close()

    @property
    def _has_room(self) -> bool:
        """Whether a transfer that hides is in nobody's way."""
        return self.script.style.streams or not self.passes.talks

    @property
    def _reduces_early(self) -> bool:
        work = self.work
        return work.sent > 0 and work.dp_hidden > 0 and self._has_room and not work.scatters_layers

    def _open(self, tasks: Sequence[Task]) -> None:
        work, script = self.work, self.script
        self.tail = self.launched = script.compute((), work.host_step, "host: step", "host")
        if work.gathers_weights:
            hides = work.gather_hidden > 0 and self._has_room
            moves = [("ALL_GATHER", weights.group, weights.gathered, weights.gather) for weights in work.shared]
            done = self._over_groups(self.tail, moves, GRADIENTS if hides else MAIN)
            self.opening = done if hides else ()
            self.tail = self.tail if hides else done
            self.launched = self.tail
        if work.gathers_layers:
            for task in tasks:
                kinds = work.chunks[task.chunk]
                ordered = () if task.kind == WEIGHTS else kinds if task.kind == FORWARD else kinds[::-1]
                self.gathers_left.extend((kind, task.kind != FORWARD) for kind in ordered)
            if work.dp_hidden > 0:
                self._gather_ahead(self.tail)

    def _over_groups(self, after: After, moves: Sequence[Move], stream: int) -> After:
        """Collectives of the groups that share weights, one after the other."""
        for kind, group, size, seconds in moves:
            after = self.script.exchange(after, kind, group, Message(size, seconds, "dp", stream=stream))
        return after

    # ------------------------------------------------------------------ passes

    def _forward(self, task: Task) -> None:
        work, script, layers = self.work, self.script, self.work.chunks[task.chunk]
        first, last = self._ends(task)
        if first:
            self.tail = self._gather_table(work.embedding, self.tail, MAIN)
            self.tail = self.passes.end(script, self.tail, "embedding_forward")
        if self.opening:
            gathered_layers = min(len(layers), int(work.gather_hidden * work.count))
            self._layers(layers[:gathered_layers], FORWARD, True)
            self.tail, self.opening = joined(self.tail, self.opening), ()
            layers = layers[gathered_layers:]
        if last:
            self._to_the_head(layers)
        else:
            self._layers(layers, FORWARD, True)
        self._wait_for_host(task, FORWARDS)

    def _backward(self, task: Task, weights: bool, ends: bool) -> None:
        work, script, layers = self.work, self.script, self.work.chunks[task.chunk][::-1]
        first, last = self._ends(task)
        if last:
            self.tail = self.passes.end(script, self.tail, "head_backward")
            self._reduce_table(work.head, work.dp_hidden > 0)
        # without weight gradients nothing is there to be reduced
        if ends and weights and self._reduces_early and (script.style.streams or first):
            self._reduced_backward(layers, weights)
        else:
            self._layers(layers, BACKWARD, weights)
        if first:
            self.tail = self.passes.end(script, self.tail, "embedding_backward")
            self._reduce_table(work.embedding, False)
        self._wait_for_host(task, *parts_of(BACKWARD, weights))

    def _wait_for_host(self, task: Task, *passes: int) -> None:
        """What the device waits for the launches of some of a micro-batch's ``PASSES``.

        Where the host has a timeline of its own, it launches one pass after the other, each once its input has come from another stage, and
        the last of a pass while that sends what it gives: no pass is over, its message sent, before its launches are.
        """
        work, script = self.work, self.script
        if not self._has_timeline:
            if not self._one_by_one or passes == (WEIGHT_GRADIENTS,):
                self._stall(1 / self.chunks, passes)
            return
        launches = work.launches[task.chunk]
        host, late = (sum(seconds[part] for part in passes) for seconds in (launches.host, launches.late))
        sending = 0.0 if INPUTS not in passes and FORWARDS not in passes else min(host, self._sending(task, FORWARDS in passes))
        self.tail = script.compute(self.tail, late, WAITING, "host")
        self.launched = script.launch(joined(self.launched, self.arrived), host - sending)
        self.tail, self.arrived = joined(self.tail, self.launched), ()
        self.launched = script.launch(self.launched, sending)

    @property
    def _has_timeline(self) -> bool:
        """Whether the host launches beside the device."""
        return bool(self.work.launches) and self.script.style.streams

    def _stall(self, share: float, passes: Sequence[int]) -> None:
        """A share of the fixed waits of some passes."""
        self.tail = self.script.compute(self.tail, share * sum(self.work.stalls[part] for part in passes), WAITING, "host")

    def _to_the_head(self, layers: Kinds) -> None:
        """The last layers' forward passes and the head's, whose weights are asked for when the last layer starts."""
        work, ahead = self.work, 1 if self.work.head and self.work.dp_hidden > 0 and layers else 0
        self._layers(layers[: len(layers) - ahead], FORWARD, True)
        gathered = self._gather_table(work.head, self.tail, GRADIENTS if ahead else MAIN)
        self._layers(layers[len(layers) - ahead :], FORWARD, True)
        self.tail = self.passes.end(self.script, joined(self.tail, gathered), "head_forward")

    def _gather_table(self, table: SharedWeights | None, after: After, stream: int) -> After:
        """ZeRO 3's gather of embedding table or head."""
        if table is None:
            return after
        return self._over_groups(after, [("ALL_GATHER", table.group, table.layer_gathered, table.layer_gather)], stream)

    def _reduce_table(self, table: SharedWeights | None, hides: bool) -> None:
        """The reduction of the gradient of embedding table or head, beside what follows where it ``hides``."""
        if table is None:
            return
        done = self._over_groups(self.tail, table.layer_reduced(self.work.tree), GRADIENTS if hides else MAIN)
        if hides and done != self.tail:
            self.reduced = done  # reductions follow each other on their stream
        else:
            self.tail = done

    def _weights(self, task: Task, ends: bool) -> None:
        layers = self.work.chunks[task.chunk][::-1]
        for kind, count in same_kinds(layers):
            self.tail = self.passes.weights(self.script, self.tail, kind, count)
        self._wait_for_host(task, WEIGHT_GRADIENTS)
        if ends and self._reduces_early:
            self._reduce(self.work.share(layers), 1)

    def _layers(self, layers: Kinds, direction: int, weights: bool) -> None:
        """Some layers in a row, one by one where their weights are gathered or their gradients reduced each time."""
        work = self.work
        if not self._one_by_one:
            self._pass(layers, direction, weights)
            return
        for kind in layers:
            self._gather_layer(kind, direction == BACKWARD)
            self._pass((kind,), direction, weights)
            if not self._has_timeline:  # beside which the next layer's weights are gathered too
                self._stall(1 / work.count, parts_of(direction, weights))
            if direction == BACKWARD and work.scatters_layers:
                hides = work.dp_hidden > 0
                moves = [move for weights in work.layers[kind] for move in weights.layer_reduced(work.tree)]
                done = self._over_groups(self.tail, moves, GRADIENTS if hides else MAIN)
                if hides:
                    self.reduced = done  # reductions follow each other on their stream
                else:
                    self.tail = done

    @property
    def _one_by_one(self) -> bool:
        return self.work.count > 0 and (self.work.gathers_layers or self.work.scatters_layers)

    def _pass(self, layers: Kinds, direction: int, weights: bool) -> None:
        for kind, count in same_kinds(layers):
            if direction == FORWARD:
                self.tail = self.passes.forward(self.script, self.tail, kind, count)
            else:
                self.tail = self.passes.backward(self.script, self.tail, (kind, count), weights)

    def _gather_layer(self, kind: int, backward: bool) -> None:
        """The weights of the next pass: blocking, or asked for when the pass before it started."""
        work = self.work
        if not work.gathers_layers:
            return
        if work.dp_hidden == 0:
            self.tail = self._layer_gather((kind, backward), self.tail, MAIN)
            return
        self.tail = joined(self.tail, self.gathered)
        self._gather_ahead(self.tail)

    def _gather_ahead(self, after: After) -> None:
        if self.gathers_left:
            self.gathered = self._layer_gather(self.gathers_left.popleft(), after, GRADIENTS)

    def _layer_gather(self, of: tuple[int, bool], after: After, stream: int) -> After:
        """A layer's weights, of its kind, for its forward or its backward pass."""
        moves = [weights.gather_of(of[1]) for weights in self.work.layers[of[0]]]
        return self._over_groups(after, moves, stream)

    # --------------------------------------------------------------- gradients

    def _reduced_backward(self, layers: Kinds, weights: bool) -> None:
        """The last backward pass, whose gradients are reduced bucket by bucket as layers end, as early as the profile's share lets them."""
        work, share = self.work, self.work.share(layers)
        pieces = max(1, min(ceil(work.calls * share), len(layers), PIECES))
        earliest = ceil((1 - work.dp_hidden) * len(layers))
        due = [max(ceil((i + 1) * len(layers) / pieces), earliest) for i in range(pieces)]
        done = 0
        for at in sorted(set(due)):
            self._layers(layers[done:at], BACKWARD, weights)
            done = at
            count = due.count(at)
            self._reduce(share * count / pieces, count)
        self._layers(layers[done:], BACKWARD, weights)

    def _reduce(self, share: float, calls: int) -> None:
        """Starts the reduction of a share of the gradients beside what follows."""
        after, pieces = self.tail, 1 if self.script.style.ideal else calls
        self.share_unreduced -= share
        for _ in range(pieces):
            part = share / pieces
            self.reduced = joined(self.reduced, self._reduction(after, part, GRADIENTS))

    def _reduction(self, after: After, share: float, stream: int) -> After:
        work = self.work
        moves = [move for weights in work.shared for move in weights.reduced(work.scatters, work.tree, share)]
        return self._over_groups(after, moves, stream)

    def _close(self) -> After:
        """Waits for reductions under way, reduces the gradients that remain (a tied table's last), and updates the weights."""
        work, script = self.work, self.script
        self.tail = joined(self.tail, self.reduced)
        if work.sent > 0 and self.share_unreduced > 1e-9:
            pieces = 1 if script.style.ideal else min(work.calls, PIECES)
            for _ in range(pieces):
                self.tail = self._reduction(self.tail, self.share_unreduced / pieces, MAIN)
        self.tail = script.exchange(self.tail, "ALL_REDUCE", TIED, Message(work.tied, work.tied_reduce, "pp"))
        self.tail = self.passes.end(script, self.tail, "replicated_gradients")
        if not script.style.ideal:  # ideal links take the closed form's time, in which it is
            self.tail = script.compute(self.tail, work.wait, "waiting for other ranks", "dp")
        return script.compute(self.tail, work.optimizer, "optimizer", "optimizer")

    # --------------------------------------------------------------- boundaries

    def _peer(self, task: Task, ahead: bool) -> str:
        """The rank of the chunk at the next place or at the one before; "" where that is this rank or none."""
        return self.stage_map.peer(self.stage, task.chunk, self.pp, self.chunks, ahead)

    def _tag(self, task: Task, sender: int, backward: bool) -> int:
        return (task.micro_batch * self.pp * self.chunks + sender) * 2 + backward

    def _receive(self, task: Task, ahead: bool) -> None:
        """What the pass reads from the place ahead (gradients) or from the one before (activations)."""
        peer, place = self._peer(task, ahead), self.places[task.chunk]
        if peer:
            arrived = self.script.receive((), peer, self.boundary.size, "pp", self._tag(task, place + 1 if ahead else place - 1, ahead))
            if not self.started:
                self.script.label[arrived[0]] = self.script.style.labels.of(FIRST_INPUT, "pp")
            self.tail, self.arrived = self.passes.regather(self.script, joined(self.tail, arrived)), joined(self.arrived, arrived)

    def _launch(self) -> None:
        """What the host spends on a pass's messages, once a pass whether it sends, receives or both."""
        self.tail = self.script.compute(self.tail, self.boundary.host, "launching sends and receives", "pp")

    def _sending(self, task: Task, ahead: bool) -> float:
        """Seconds for which a pass's message and its launch hold up the device."""
        boundary, peer = self.boundary, self._peer(task, ahead)
        launch = boundary.host if peer or self._peer(task, not ahead) else 0.0
        return launch + (boundary.seconds if peer and not boundary.overlaps else 0.0)

    def _send(self, task: Task, ahead: bool) -> None:
        """What the pass gives to the place ahead (activations) or to the one before (gradients)."""
        boundary, script, peer = self.boundary, self.script, self._peer(task, ahead)
        if peer or self._peer(task, not ahead):
            self._launch()
        if not peer:
            return
        stream, tag = PIPELINE if boundary.overlaps else MAIN, self._tag(task, self.places[task.chunk], not ahead)
        sent = script.send(self.tail, peer, Message(boundary.size, boundary.seconds, "pp", tag, stream))
        self.tail = self.tail if boundary.overlaps else sent
