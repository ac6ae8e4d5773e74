"""A small simulation of PyTorch's caching allocator under the tensors of nanotron's layers, for tests of what gathers hold."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

MIB = 2**20


@dataclass(eq=False)
class MemoryBlock:
    """A piece of a segment of device memory; ``before`` and ``behind`` are its neighbours there."""

    address: int
    size: int
    free: bool = False
    before: MemoryBlock | None = None
    behind: MemoryBlock | None = None


@dataclass
class CachingAllocator:
    """Best fit among free blocks, split and merged (c10/cuda/CUDACachingAllocator.cpp); segments are never given back.

    Attributes:
        late: launches by which the host is ahead of the device: after so many more a freed block that another stream has used may be used
            again. ``launches`` go with each allocation.
    """

    late: float
    launches: float = 1.0
    reserved: int = 0
    _count: float = 0.0
    _free: list[tuple[int, int, MemoryBlock]] = field(default_factory=list)
    _waiting: list[tuple[float, MemoryBlock]] = field(default_factory=list)

    def take(self, size: float) -> MemoryBlock:
        self._count += self.launches
        while self._waiting and self._waiting[0][0] <= self._count:
            self._merge(self._waiting.pop(0)[1])
        wanted = (int(size) + 511) // 512 * 512
        place = bisect.bisect_left(self._free, (wanted, 0))
        if place < len(self._free):
            block = self._free.pop(place)[2]
        else:
            segment = 20 * MIB if wanted < 10 * MIB else (wanted + 2 * MIB - 1) // (2 * MIB) * 2 * MIB
            block = MemoryBlock(self.reserved, segment)
            self.reserved += segment
        if block.size - wanted > MIB:
            rest = MemoryBlock(block.address + wanted, block.size - wanted, True, block, block.behind)
            if block.behind:
                block.behind.before = rest
            block.behind, block.size = rest, wanted
            bisect.insort(self._free, (rest.size, rest.address, rest))
        block.free = False
        return block

    def give(self, block: MemoryBlock, recorded: bool = False) -> None:
        """Frees a block; ``recorded``: another stream has used it (``Tensor.record_stream``)."""
        if recorded:
            self._waiting.append((self._count + self.late, block))
        else:
            self._merge(block)

    def _merge(self, block: MemoryBlock) -> None:
        for near in (block.before, block.behind):
            if near and near.free:
                self._free.pop(bisect.bisect_left(self._free, (near.size, near.address)))
                first, second = (near, block) if near is block.before else (block, near)
                first.size, first.behind = first.size + second.size, second.behind
                if second.behind:
                    second.behind.before = first
                block = first
        block.free = True
        bisect.insort(self._free, (block.size, block.address, block))


LAUNCHES = 45.0  # of an eager layer's forward pass: some 30 kernels, products in three parts around each rank's own, four collectives
ALLOCATIONS = 18  # of a layer's pass below, forward as backward
KEPT = 24  # of what a layer makes, in shards of the stream: norms and their inputs 4, queries 1, keys and values 2, attention 1, MLP 16


@dataclass
class StageTensors:
    """What a stage's layers allocate under tensor parallelism, for a gated MLP four times as wide as the stream; gathers are recorded.

    Attributes:
        stream: bytes of a micro-batch's whole stream; ``shard`` of a rank's part; ``weights``: of a square matrix of a rank.
    """

    allocator: CachingAllocator
    stream: float
    shard: float
    weights: float

    def gathered(self, makes: float) -> MemoryBlock:
        """A product of the gathered sequence: what it gives, in shards."""
        whole = self.allocator.take(self.stream)
        made = self.allocator.take(makes * self.shard)
        self.allocator.give(whole, recorded=True)
        return made

    def chain(self, *shards: float) -> MemoryBlock:
        """Tensors each of which is made of the one before it, which goes."""
        last = self.allocator.take(shards[0] * self.shard)
        for size in shards[1:]:
            made = self.allocator.take(size * self.shard)
            self.allocator.give(last)
            last = made
        return last

    def scattered(self) -> MemoryBlock:
        """A product whose whole sums are scattered, and the residual sum."""
        whole = self.allocator.take(self.stream)
        part = self.allocator.take(self.shard)
        self.allocator.give(whole)
        total = self.allocator.take(self.shard)
        self.allocator.give(part)
        return total

    def forward(self, layers: int) -> list[list[MemoryBlock]]:
        """The tensors that each layer keeps."""
        self.allocator.launches, kept = LAUNCHES / ALLOCATIONS, []
        for _ in range(layers):
            norm, projected = self.chain(1), self.gathered(3)
            self.allocator.give(projected)
            keys, queries, attended = self.chain(3, 2), self.chain(1), self.chain(1)
            total, second = self.scattered(), self.chain(1)
            mlp = [self.gathered(8), self.chain(4), self.chain(4)]
            kept.append([norm, keys, queries, attended, total, second, *mlp, self.scattered()])
        return kept

    def backward(self, kept: list[list[MemoryBlock]]) -> None:
        """Each layer's gradients, after which what it kept goes; twice as many launches."""
        self.allocator.launches, gradients = 2 * LAUNCHES / ALLOCATIONS, []
        for layer in reversed(kept):
            for tensors, weights in ((layer[6:9], 12), (layer[:6], 4)):
                for gathers in (1, 2):  # of the gradient of what was scattered; of the input, and the whole gradient of it
                    whole = [self.allocator.take(self.stream) for _ in range(gathers)]
                    made = self.chain(4, 8) if weights == 12 else self.chain(1, 3)
                    gradients.append(self.allocator.take(weights / 2 * self.weights))
                    for block in whole:
                        self.allocator.give(block, recorded=True)
                    self.allocator.give(made)
                for block in tensors:
                    self.allocator.give(block)
            self.allocator.give(layer[9])
        for block in gradients:
            self.allocator.give(block)


def copies_beyond_kept(late: float, tp: int, layers: int, in_flight: int, micro_batches: int = 16) -> float:
    """Copies of the whole stream that a stage of one-forward-one-backward reserves beyond what its layers keep: 8,192 tokens, 4,096
    wide."""
    stream = 2.0 * 8192 * 4096
    allocator = CachingAllocator(late)
    stage = StageTensors(allocator, stream, stream / tp, 2.0 * 4096 * 4096 / tp)
    held = [stage.forward(layers) for _ in range(in_flight - 1)]
    for _ in range(micro_batches - in_flight + 1):
        held.append(stage.forward(layers))
        stage.backward(held.pop(0))
    for kept in held:
        stage.backward(kept)
    return allocator.reserved / stream - KEPT / tp * layers * in_flight
