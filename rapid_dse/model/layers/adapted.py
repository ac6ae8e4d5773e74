"""A part whose weights are frozen, with low-rank adapters beside some of its products (LoRA: Hu et al., arXiv 2106.09685).

Beside y = x · W an adapter adds x · A · B, of which A has ``rank`` columns and B as many rows. W has no gradient, so that its input is
needed by nothing in the backward pass, unless an adapter reads it too.

Ranks that share a product share its adapter: both of its matrices are divided among them, and what A gives is summed over them, or put
together, before B takes it (Megatron Bridge's ParallelLinearAdapter; one reduction stands for either, since it is narrow). Beside a product
that is cut by rows B is cut by columns, which are gathered: as wide as the stream. Adapters stay in 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from rapid_dse.config.lora_names import ALL_LINEAR
from rapid_dse.config.software import Software
from rapid_dse.model.layers.part import CoreAttention, Exchanged, ForwardStep, Number, Part, PartParameters, SmallKernel, Tensor
from rapid_dse.model.shapes import ONE, FloatColumn, MatMul, MicroBatch


@dataclass(frozen=True)
class Adapters:
    """What low-rank adapters there are: their rank, and the modules that they stand beside (``workload.lora_targets``)."""

    rank: int
    targets: tuple[str, ...]

    def modules_beside(self, product: MatMul) -> Iterator[tuple[str, Number]]:
        """The modules of a product that have an adapter each, with the share of its columns that each gives."""
        if product.megatron in self.targets:
            yield product.megatron, 1.0
        yield from ((name, share) for name, share in product.modules if name in self.targets or ALL_LINEAR in self.targets)


@dataclass(frozen=True)
class Adapter:
    """One adapter: its two products, and the name of its module in the part."""

    name: str
    of: MatMul
    first: MatMul
    second: MatMul

    @classmethod
    def modules_beside(cls, product: MatMul, module: tuple[str, Number], rank: int, shape: MicroBatch) -> Adapter:
        """That of a module of a product: x · A, and what comes of that times B."""
        name, wide, narrow = f"{product.name}.{module[0]}", product.n * module[1], np.full_like(product.m, rank)
        ranks = 1 if product.cut is None else shape.etp if product.routed else shape.tp
        first, second = (narrow / ranks, wide) if product.cut == "columns" else (narrow, wide / ranks)
        usual = replace(product, sixteen_bit=True, modules=(), megatron="", second=0.5, adapts=product.name)
        return cls(
            name,
            product,
            replace(usual, name=f"{name}.lora_A", n=first),
            replace(usual, name=f"{name}.lora_B", n=second, k=narrow),
        )

    @property
    def parameters(self) -> Number:
        """Those of both matrices on one rank."""
        return self.of.batch * (self.first.n * self.first.k + self.second.n * self.second.k)


@dataclass(frozen=True)
class Adapted(Part):
    """``part`` with ``adapters``, which alone are trained."""

    part: Part
    adapters: Adapters

    @property
    def family(self) -> str:
        return self.part.family

    def adapters_of(self, shape: MicroBatch) -> list[Adapter]:
        """Its adapters, in the order of the products that they stand beside."""
        return [
            Adapter.modules_beside(product, module, self.adapters.rank, shape)
            for product in self.part.products(shape)
            for module in self.adapters.modules_beside(product)
        ]

    def parameters(self, shape: MicroBatch) -> PartParameters:
        none = np.zeros(len(shape.tp))
        dense, routed = (
            sum((adapter.parameters for adapter in self.adapters_of(shape) if adapter.of.routed == of), none) for of in (False, True)
        )
        return replace(self.part.parameters(shape), adapters=dense, expert_adapters=routed, frozen=True)

    def products(self, shape: MicroBatch) -> list[MatMul]:
        """Those of the part, each followed by those of its adapters."""
        adapters = self.adapters_of(shape)
        return [
            one
            for product in self.part.products(shape)
            for one in (
                replace(product, frozen=True),
                *(one for adapter in adapters if adapter.of.name == product.name for one in (adapter.first, adapter.second)),
            )
        ]

    def attention(self, shape: MicroBatch) -> CoreAttention | None:
        return self.part.attention(shape)

    def small_kernels(self, shape: MicroBatch, software: Software) -> list[SmallKernel]:
        """Beside the part's, what adds an adapter's output to its product's, and backward its input's gradient."""
        return [
            *self.part.small_kernels(shape, software),
            *(
                SmallKernel(f"{adapter.name}.lora_sum", 3 * _rows(adapter.of) * adapter.second.n, 3 * _rows(adapter.of) * adapter.of.k)
                for adapter in self.adapters_of(shape)
            ),
        ]

    def steps(self) -> tuple[ForwardStep, ...]:
        adapters = self.adapters_of(ONE)
        return tuple(
            one
            for step in self.part.steps()
            for one in (step, *(one for adapter in adapters if adapter.of.name == step.name for one in _steps(adapter.name, step)))
        )

    def tensors(self, shape: MicroBatch, software: Software) -> list[Tensor]:
        """The part's, of which inputs of products are kept where an adapter reads them, and what each adapter's first product gives."""
        adapters = self.adapters_of(shape)
        read = {self._source(adapter.of.name) for adapter in adapters}
        return [
            *(
                tensor if tensor.width != "input" or tensor.name in read else replace(tensor, kept=False)
                for tensor in self.part.tensors(shape, software)
            ),
            *(Tensor(f"{adapter.name}.lora_A", _rows(adapter.of) * float(self.adapters.rank), product=True) for adapter in adapters),
        ]

    def _source(self, product: str) -> str:
        """The tensor that a product reads, before it is gathered."""
        steps = self.part.steps()
        read = next(step.reads for step in steps if step.name == product)
        return next((step.reads for step in steps if read in step.makes and step.name.endswith("_gather")), read)

    def exchanged(self) -> tuple[Exchanged, ...]:
        """The part's, whose input is gathered again where an adapter's weight gradient reads it, what each adapter's products pass on
        between them, and the columns of the second one that are put together beside a product of rows."""
        adapters_exchanged = [adapter.of for adapter in self.adapters_of(ONE) if adapter.of.cut is not None]
        again = any(of.cut == "columns" and not of.routed for of in adapters_exchanged)
        narrow = (Exchanged(routed=of.routed, low_rank=self.adapters.rank, again=False) for of in adapters_exchanged)
        wide = (Exchanged(routed=of.routed, again=False, cast=False, alone=True) for of in adapters_exchanged if of.cut == "rows")
        return (*(replace(exchanged, again=exchanged.again and again) for exchanged in self.part.exchanged()), *narrow, *wide)

    def ring(self, shape: MicroBatch) -> FloatColumn | None:
        return self.part.ring(shape)

    def copies(self) -> int:
        return self.part.copies()

    def token_state(self, shape: MicroBatch) -> FloatColumn:
        return self.part.token_state(shape)

    def remembered(self, tokens: int) -> int:
        return self.part.remembered(tokens)


def _rows(product: MatMul) -> FloatColumn:
    """Rows of a product's input, of all that are in one kernel."""
    return product.batch * product.m


def _steps(name: str, step: ForwardStep) -> tuple[ForwardStep, ...]:
    """What runs of an adapter beside a product's step."""
    return (
        ForwardStep(f"{name}.lora_A", step.reads, (f"{name}.lora_A",)),
        ForwardStep(f"{name}.lora_B", f"{name}.lora_A", (f"{name}.lora_B",)),
        ForwardStep(f"{name}.lora_sum", f"{name}.lora_B", step.makes),
    )
