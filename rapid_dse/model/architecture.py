"""A model as an ordered list of segments: the embedding, layers of one kind or several, the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

from rapid_dse.common.remembered import Remembered, remembered
from rapid_dse.config.model import Model
from rapid_dse.config.run import GemmSharding, Workload
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software import Software
from rapid_dse.model.compositions import FAMILIES
from rapid_dse.model.layers.end import End
from rapid_dse.model.layers.part import CoreAttention, GridMove, Part, PartParameters, SmallKernel, Tensor
from rapid_dse.model.layers.registry import part_of
from rapid_dse.model.shapes import ONE, FloatColumn, MatMul, MicroBatch
from rapid_dse.parallel.stages import Split

if TYPE_CHECKING:
    from rapid_dse.model.layers.adapted import Adapters

FEW = 48  # so many shapes at most whose work a kind of layer keeps
SHAPES = 12  # and so many results
Found = TypeVar("Found")


@dataclass(frozen=True)
class LayerKind:
    """A kind of layer: its parts in order, attention (or what mixes tokens in its place) and an MLP (or experts)."""

    name: str
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, model: Model, names: Sequence[str], adapters: Adapters | None = None) -> LayerKind:
        """That of parts by their names in the registry; ``adapters``: what alone is trained of them."""
        parts = tuple(part_of(model, name) for name in names)
        if adapters is not None:
            from rapid_dse.model.layers.adapted import Adapted  # where something is trained with them

            parts = tuple(Adapted(model, part, adapters) for part in parts)
        return cls(" + ".join(names), parts)

    def sharded(self, sharding: GemmSharding) -> LayerKind:
        """The same kind, its parts as ``parallel.gemm_sharding`` divides them."""
        return LayerKind(self.name, tuple(part.sharded(sharding) for part in self.parts))

    def moves(self, shape: MicroBatch) -> list[GridMove]:
        """What ranks of a grid exchange."""
        return [move for part in self.parts for move in part.moves(shape)]

    def parameters(self, shape: MicroBatch) -> Sequence[PartParameters]:
        """Parameters of each part on one rank."""
        return self._once("parameters", (shape,), lambda: [part.parameters(shape) for part in self.parts])

    def products(self, shape: MicroBatch) -> Sequence[MatMul]:
        """The matrix products of the forward pass on one rank, in order."""
        return self._once("products", (shape,), lambda: [product for part in self.parts for product in part.products(shape)])

    def attention(self, shape: MicroBatch) -> CoreAttention | None:
        """The attention kernel; None where none of its parts has one."""
        return next((core for part in self.parts if (core := part.attention(shape)) is not None), None)

    def small_kernels(self, shape: MicroBatch, software: Software) -> Sequence[SmallKernel]:
        """What its small kernels move, in order."""
        return self._once(
            "kernels", (shape, software), lambda: [kernel for part in self.parts for kernel in part.small_kernels(shape, software)]
        )

    def tensors(self, shape: MicroBatch, software: Software) -> Sequence[Tensor]:
        """What it makes of a micro-batch; the first is the layer's input."""
        return self._once("tensors", (shape, software), lambda: [tensor for _, tensor in self.made(shape, software)])

    def made(self, shape: MicroBatch, software: Software) -> Sequence[tuple[Part, Tensor]]:
        """The same, each with the part that makes it."""
        return self._once(
            "made", (shape, software), lambda: [(part, tensor) for part in self.parts for tensor in part.tensors(shape, software)]
        )

    def ring(self, shape: MicroBatch) -> FloatColumn | None:
        """Elements of keys and values that a context-parallel rank hands on; None where it hands nothing on."""
        return next((ring_exchange for part in self.parts if (ring_exchange := part.ring(shape)) is not None), None)

    @cached_property
    def copies(self) -> int:
        """Experts that each token is sent to; 0 in a dense layer."""
        return max(part.copies() for part in self.parts)

    @cached_property
    def _remembered(self) -> Remembered:
        return Remembered(SHAPES)

    def _once(self, what: str, objects: tuple[MicroBatch | Software, ...], find: Callable[[], Found]) -> Found:
        """What ``find`` gives, kept for the next who asks where the shapes, the first of the objects, are few."""
        shape = objects[0]
        assert isinstance(shape, MicroBatch)
        return find() if len(shape.tp) > FEW else self._remembered.once((what, *objects), find)


@dataclass(frozen=True)
class Segment:
    """``count`` parts or layers of one kind, one after the other."""

    kind: LayerKind
    count: int


@dataclass(frozen=True)
class Architecture:
    """A model's segments in order.

    ``kinds`` are the kinds of its layers, in the order in which they first occur; ``order`` the kind of each layer, of which the last
    ``predictions`` predict a token more each, behind the model's own.
    """

    embedding: End
    kinds: tuple[LayerKind, ...]
    order: tuple[int, ...]
    head: End

    @property
    def shares_ends(self) -> bool:
        """Whether tensor-parallel ranks share what stands around the layers, and exchange the stream there."""
        return self.embedding.shared and self.head.shared

    @property
    def predictions(self) -> int:
        """Layers that predict a token beside the next one."""
        return self.head.predictions

    def segments(self) -> Iterator[Segment]:
        """All of them, embedding and head among them."""
        yield Segment(LayerKind("embedding", (self.embedding,)), 1)
        for kind, layers in groupby(self.order):
            yield Segment(self.kinds[kind], len(list(layers)))
        yield Segment(LayerKind("head", (self.head,)), 1)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Layers of each kind."""
        return tuple(self.order.count(kind) for kind in range(len(self.kinds)))


@remembered(64)
def architecture_of(scenario: Scenario) -> Architecture:
    """The segments of a scenario's model, as they are trained."""
    adapters, ahead = adapters_of(scenario.workload), predictions_of(scenario.model, scenario.workload)
    return architecture(scenario.model, adapters, ahead, scenario.parallel.gemm_sharding)


def predictions_of(model: Model, work: Workload) -> int:
    """Layers that predict a token beside the next one: they are trained, and serve no requests."""
    return model.num_nextn_predict_layers if work.kind == "training" else 0


def adapters_of(work: Workload) -> Adapters | None:
    """The adapters that are trained in place of the weights; None where the weights are."""
    if work.trains_all:
        return None
    from rapid_dse.model.layers.adapted import Adapters

    return Adapters(work.lora_rank, work.lora_targets)


def architecture(model: Model, adapters: Adapters | None = None, predictions: int = 0, sharding: GemmSharding = "row") -> Architecture:
    """The segments of a model; ``adapters``: what alone is trained of it; ``predictions``: layers behind it that predict a token more;
    ``sharding``: how a product of its own is divided."""
    return _architecture(model, adapters, predictions, sharding)


@lru_cache(maxsize=256)
def _architecture(model: Model, adapters: Adapters | None, predictions: int, sharding: GemmSharding) -> Architecture:
    family, frozen = FAMILIES[model.kind], adapters is not None
    names = [family.layer(model, layer) for layer in range(model.num_hidden_layers)]
    names += [("next_token", *names[-1])] * predictions
    distinct = list(dict.fromkeys(names))
    kinds = tuple(LayerKind.of(model, kind, adapters).sharded(sharding) for kind in distinct)
    head = replace(family.last(model, frozen), predictions=predictions)
    return Architecture(family.first(model, frozen), kinds, tuple(distinct.index(name) for name in names), head)


def active_parameters(kind: LayerKind) -> float:
    """Parameters of the matrices of a layer that multiply a token; of routed experts those that it is sent to."""
    many = 2**20  # tokens, so that no expert has less than one
    shape = replace(ONE, seq_len=many)
    return float(sum(product.flops[0] for product in kind.products(shape)) / (2 * many))


@remembered(256)
def matrix_parameters(model: Model, predictions: int = 0) -> float:
    """Parameters of the matrices that multiply a token: layers and head, look-up excluded; of routed experts those it is sent to.
    ``predictions``: tokens beside the next one that are predicted."""
    kinds = architecture(model, predictions=predictions)
    layers = sum(count * active_parameters(kind) for count, kind in zip(kinds.counts, kinds.kinds, strict=True))
    return float(layers + _multiplied(kinds.head, model.sample_tokens or 1))


@remembered(256)
def head_matrix_parameters(model: Model) -> float:
    """Those of ``matrix_parameters`` that the head has."""
    return _multiplied(architecture(model).head, model.sample_tokens or 1)


def _multiplied(end: End, tokens: int) -> float:
    """Parameters of an end that multiply a token, on average over a sample of so many tokens."""
    return float(end.flops(MicroBatch.single(tokens))[0] / (2 * tokens))


@remembered(256)
def model_flops_per_token(model: Model, work: Workload) -> float:
    """Forward and backward FLOP a token that count for MFU: 6 a matrix parameter, 4 a frozen one, and of causal attention half.

    Source: Chowdhery et al., PaLM (arXiv 2204.02311), appendix B, with the causal half counted; of frozen weights Megatron Bridge's count
    for LoRA, which leaves out their gradients.
    """
    ahead = predictions_of(model, work)
    kinds, attention = architecture(model, predictions=ahead), 0.0
    for count, kind in zip(kinds.counts, kinds.kinds, strict=True):
        core = kind.attention(ONE)
        if core is not None:
            attention += 12.0 * count * float(core.heads[0]) * core.mean_dim * core.context(work.document_len)
    frozen = 0.0 if work.trains_all else matrix_parameters(model, ahead)
    looked_up = 6.0 * _multiplied(kinds.embedding, work.seq_len)
    return 6.0 * trained_matrix_parameters(model, work) + 4.0 * frozen + looked_up + attention


def trained_matrix_parameters(model: Model, work: Workload) -> float:
    """Those of the matrices that multiply a token which have gradients: all, or the adapters'."""
    adapters, ahead = adapters_of(work), predictions_of(model, work)
    if adapters is None:
        return matrix_parameters(model, ahead)
    plain, adapted = architecture(model, predictions=ahead), architecture(model, adapters, ahead)
    more = (active_parameters(kind) - active_parameters(frozen) for kind, frozen in zip(adapted.kinds, plain.kinds, strict=True))
    return sum(count * kind for count, kind in zip(adapted.counts, more, strict=True))


@remembered(64)
def split_of(scenario: Scenario) -> Split:
    """How a scenario's pipelines deal out its model's layers."""
    model, rule = scenario.model, scenario.software.pipeline.pipeline_split
    return split_by_rule(model, rule, scenario.parallel.stage_layers, predictions_of(model, scenario.workload))


@lru_cache(maxsize=256)
def split_by_rule(model: Model, rule: str, given: tuple[int, ...] | None = None, predictions: int = 0) -> Split:
    """How a framework's rule, or a user's own split, deals out a model's layers; ``predictions``: those behind them."""
    kinds = architecture(model, predictions=predictions)
    weights = tuple(map(active_parameters, kinds.kinds))
    order, behind = kinds.order[: model.num_hidden_layers], kinds.order[model.num_hidden_layers :]
    return Split(rule, order, weights, _multiplied(kinds.head, model.sample_tokens or 1), given, behind)
