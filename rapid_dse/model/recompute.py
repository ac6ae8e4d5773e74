"""What a layer keeps for its backward pass and what it runs again there: from entries of ``config/recompute``, and what follows from them.

What autograd needs and does not keep is made again: by the step that makes it, from what that step reads, which is made again itself where
it is not kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rapid_dse.common.remembered import remembered
from rapid_dse.config.recompute_entries import FULL, RecomputeEntry, entries, named
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software import Software
from rapid_dse.config.software.expert_settings import ExpertSettings
from rapid_dse.config.software.kernel_settings import KernelSettings
from rapid_dse.config.software.memory_settings import MemorySettings
from rapid_dse.model.architecture import LayerKind, architecture_of
from rapid_dse.model.layers.part import Part, Tensor
from rapid_dse.model.shapes import ONE

CORE = "core"  # the step of the attention kernel


@dataclass(frozen=True)
class Recomputation:
    """What one kind of layer keeps and runs again, as shares from 0 to 1.

    Attributes:
        kept: of each of the layer's tensors, in order; ``as_made``: they are kept as steps gave them, with no 8-bit copies in their place.
        firsts: beside that, of what the first of each two products gives (``Tensor.first``).
        seconds: of the second of each two products (``MatMul.second``), beside ``products``.
        products: of the forward pass of each product, in order; ``small``: of each small kernel.
        core: of the attention kernel, with the transfers of ring attention.
        gathers, scatters: of what each part gathers before it, and scatters or reduces after it.
        dispatched, combined: of the transfers to the experts, and back.
    """

    kept: tuple[float, ...]
    as_made: bool
    firsts: float
    seconds: float
    products: tuple[float, ...]
    small: tuple[float, ...]
    core: float
    gathers: tuple[float, ...]
    scatters: tuple[float, ...]
    dispatched: float
    combined: float

    @property
    def exchanges(self) -> bool:
        """Whether any transfer runs again beside ring attention's."""
        return any(share > 0 for share in (*self.gathers, *self.scatters, self.dispatched, self.combined))


@remembered(64)
def selective(scenario: Scenario) -> tuple[Recomputation, ...]:
    """What selective recomputation does in a layer of each kind."""
    chosen = named(scenario.parallel.recompute_modules or scenario.software.memory.selective_recompute)
    return tuple(_of(kind, scenario.software, chosen) for kind in architecture_of(scenario).kinds)


@remembered(64)
def full(scenario: Scenario) -> tuple[Recomputation, ...]:
    """What full recomputation does in a layer of each kind."""
    return tuple(_of(kind, scenario.software, (FULL,)) for kind in architecture_of(scenario).kinds)


@remembered(64)
def nothing(scenario: Scenario) -> tuple[Recomputation, ...]:
    """What is kept in a layer of each kind where nothing runs again."""
    return tuple(_of(kind, scenario.software, ()) for kind in architecture_of(scenario).kinds)


def without_effect(scenario: Scenario) -> list[str]:
    """The modules that ``parallel.recompute_modules`` names and no layer of the model has."""
    chosen, none = scenario.parallel.recompute_modules, nothing(scenario)
    kinds = architecture_of(scenario).kinds
    return [
        name
        for name in (named(chosen) if chosen else ())
        if all(_of(kind, scenario.software, (name,)) == kept for kind, kept in zip(kinds, none, strict=True))
    ]


def _of(kind: LayerKind, software: Software, names: tuple[str, ...]) -> Recomputation:
    return _entry_parts(kind, names, software.kernels, software.memory, software.experts)


@lru_cache(maxsize=512)
def _entry_parts(
    kind: LayerKind, names: tuple[str, ...], kernels: KernelSettings, memory: MemorySettings, experts: ExpertSettings
) -> Recomputation:
    return recomputation(kind, _software_of(kernels, memory, experts), [entries()[name] for name in names])


@remembered(16)
def _software_of(kernels: KernelSettings, memory: MemorySettings, experts: ExpertSettings) -> Software:
    """A profile of these parts, on which alone depends what a layer makes."""
    return Software(name="", kernels=kernels, memory=memory, experts=experts)


def recomputation(kind: LayerKind, software: Software, chosen: Sequence[RecomputeEntry]) -> Recomputation:
    """What a sum of entries keeps and runs again in a layer: what any forgets is not kept, what any runs again runs again."""
    tensors = kind.made(ONE, software)
    kept = [
        min((_kept(entry, part, tensor, first=not at) for entry in chosen), default=float(tensor.kept))
        for at, (part, tensor) in enumerate(tensors)
    ]
    again = _following(kind, tensors, kept) if all(entry.reruns is None for entry in chosen) else {}
    for entry in chosen:
        for name, share in _named_by(kind, software, entry):
            again[name] = max(again.get(name, 0.0), share)
    products = [again.get(product.name, 0.0) for product in kind.products(ONE)]
    if software.memory.recompute_stops_early and any(entry.reruns is not None and "all" in entry.reruns for entry in chosen):
        products[-1] = 0.0
    return Recomputation(
        kept=tuple(kept),
        as_made=any(entry.keeps is not None for entry in chosen),
        firsts=min([entry.keeps.get("first_products", 0.0) for entry in chosen if entry.keeps is not None], default=0.0),
        seconds=max([(entry.reruns or {}).get("second_products", 0.0) for entry in chosen], default=0.0),
        products=tuple(products),
        small=tuple(again.get(kernel.name, 0.0) for kernel in kind.small_kernels(ONE, software)),
        core=again.get(CORE, 0.0) * software.memory.recomputes_attention,
        gathers=tuple(_of_part(part, again, "_gather") for part in kind.parts),
        scatters=tuple(_of_part(part, again, "_scatter") for part in kind.parts),
        dispatched=again.get("expert_dispatch", 0.0),
        combined=again.get("expert_combine", 0.0),
    )


def _kept(entry: RecomputeEntry, part: Part, tensor: Tensor, first: bool) -> float:
    """The share of a tensor that an entry keeps; ``first``: it is the layer's input."""
    if entry.keeps is None:
        return 0.0 if _listed(part, tensor.name, entry.forgets) else 1.0 * tensor.kept
    words = {"input": first, "products": tensor.product}
    return max((share for name, share in entry.keeps.items() if words.get(name) or _listed(part, tensor.name, (name,))), default=0.0)


def _following(kind: LayerKind, tensors: Sequence[tuple[Part, Tensor]], kept: Sequence[float]) -> dict[str, float]:
    """What runs again, by share, since what it makes is needed and not kept: from the last step back to the first."""
    shares = {tensor.name: share for (_, tensor), share in zip(tensors, kept, strict=True)}
    missing = {tensor.name: 1.0 - share for (_, tensor), share in zip(tensors, kept, strict=True) if tensor.kept}
    again: dict[str, float] = {}
    for step in reversed([step for part in kind.parts for step in part.steps()]):
        share = max(missing.get(name, 0.0) for name in step.makes)
        again[step.name] = max(again.get(step.name, 0.0), share)
        missing[step.reads] = max(missing.get(step.reads, 0.0), share * (1.0 - shares.get(step.reads, 0.0)))
    return again


def _named_by(kind: LayerKind, software: Software, entry: RecomputeEntry) -> Iterator[tuple[str, float]]:
    """Steps that an entry names itself, with the share of them that runs again."""
    also = () if software.memory.recompute_stops_early else entry.also_reruns
    products, small = ({part.name for part in part} for part in (kind.products(ONE), kind.small_kernels(ONE, software)))
    for part in kind.parts:
        for step in part.steps():
            words = {"all": True, "products": step.name in products, "small": step.name in small}
            shares = [share for name, share in (entry.reruns or {}).items() if words.get(name) or _listed(part, step.name, (name,))]
            if shares or _listed(part, step.name, also):
                yield step.name, max(shares, default=1.0)


def _listed(part: Part, name: str, listed: Sequence[str]) -> bool:
    """Whether a tensor or step of a part is among names, of which some have the part's class before them."""
    return name in listed or f"{part.family}.{name}" in listed


def _of_part(part: Part, again: Mapping[str, float], ending: str) -> float:
    """The share of a part's transfer of one kind, by the end of its name."""
    return max((again.get(step.name, 0.0) for step in part.steps() if step.name.endswith(ending)), default=0.0)
