"""What autograd keeps of one layer and one micro-batch on a rank: tensor by tensor, and by what is computed again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import added
from rapid_dse.config.hardware import NARROW_BYTES
from rapid_dse.config.scenario import Scenario
from rapid_dse.device.contract import UNFUSED
from rapid_dse.model.architecture import architecture_of
from rapid_dse.model.layers.part import Number, Tensor
from rapid_dse.model.recompute import Recomputation, full, nothing, selective
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.parallel.layouts import RECOMPUTE_SELECTIVE, Layouts
from rapid_dse.simulate.operator_times import compute_bytes
from rapid_dse.simulate.recomputed import whole_layers
from rapid_dse.simulate.ulysses import kept_tensors

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class LayerTensors:
    """What one layer of one micro-batch makes on a rank, under a scenario that says how wide each tensor is.

    ``outputs_kept``: how often attention's output is kept, ``(n_layouts,)``: once for its kernel and for the product behind it, or twice
    where it is traded with other ranks between them.
    """

    scenario: Scenario
    tensors: tuple[Tensor, ...]
    outputs_kept: FloatColumn | float = 1.0

    @classmethod
    def of(cls, scenario: Scenario, layouts: Layouts) -> tuple[LayerTensors, ...]:
        """Those of a layer of each kind of each layout."""
        return layouts.alike.remembered.once((cls, scenario), lambda: cls._of(scenario, layouts))

    @classmethod
    def _of(cls, scenario: Scenario, layouts: Layouts) -> tuple[LayerTensors, ...]:
        shape = MicroBatch.of(layouts, scenario.workload)
        kinds = architecture_of(scenario).kinds
        traded = np.where(layouts.cp > 1, 2.0, 1.0) if scenario.cp_kind == "ulysses" else 1.0
        return tuple(cls(scenario, kept_tensors(scenario, kind, shape), traded) for kind in kinds)

    def outputs(self) -> FloatColumn:
        """Bytes of what products give, and of the gradients of that."""
        return compute_bytes(self.scenario) * added([tensor.elements for tensor in self.tensors if tensor.product])

    def inputs(self) -> FloatColumn:
        """Bytes of what products read, which weight gradients need."""
        widths = self._widths(False)
        read = [tensor for tensor in self.tensors if tensor.width in ("input", "core_input") and tensor.kept]
        return added([widths[tensor.width] * tensor.elements for tensor in read])

    def kept(self, by: Recomputation) -> FloatColumn:
        """Bytes that autograd keeps for the backward pass."""
        fused = self.scenario.attention_kernel not in UNFUSED
        widths = self._widths(by.as_made)
        shares = [share * (1.0 - fused * tensor.core) for share, tensor in zip(by.kept, self.tensors, strict=True)]
        kept = added([share * (widths[tensor.width] * tensor.elements) for share, tensor in zip(shares, self.tensors, strict=True)])
        firsts = [by.firsts * tensor.first * tensor.elements for tensor in self.tensors if tensor.product]
        return kept + compute_bytes(self.scenario) * added(firsts)

    def _widths(self, as_made: bool) -> dict[str, Number]:
        """Bytes of an element that is kept, by kind of tensor.

        Transformer Engine keeps its fp8 copies of inputs, beside attention's own 16-bit output; torchao keeps the 16-bit inputs and casts
        them again. ``as_made``: before such a copy.
        """
        width = compute_bytes(self.scenario)
        narrow = self.scenario.narrow if self.scenario.keeps_narrow and not as_made else None
        widths: dict[str, Number] = {"activation": width, "input": width, "core_input": width * self.outputs_kept, "byte": 1, "fp32": 4}
        if narrow:
            widths |= {"input": NARROW_BYTES[narrow], "core_input": NARROW_BYTES[narrow] + width}
        return widths


def weight_gradient_bytes(scenario: Scenario, layouts: Layouts) -> tuple[FloatColumn, ...]:
    """Bytes that the weight gradients of a layer of each kind need of one micro-batch, ``(n_layouts,)`` each: inputs of products,
    gradients of their outputs.

    M_W of Qi et al. (arXiv 2401.10241, section 3.1): 32 bytes a token and hidden unit of a GPT.
    """
    return tuple(made.inputs() + made.outputs() for made in LayerTensors.of(scenario, layouts))


def layer_activations(scenario: Scenario, layouts: Layouts, mean: bool = True) -> tuple[FloatColumn, ...]:
    """Bytes that autograd keeps for a layer of each kind of one micro-batch, by the layout's recomputation, ``(n_layouts,)`` each: in the
    mean over a stage's layers, or of one that runs again where some do."""
    overhead, whole = scenario.software.memory.activation_overhead, whole_layers(scenario, layouts)
    whole, chosen = whole if mean else np.ceil(whole), layouts.recompute == RECOMPUTE_SELECTIVE
    none = nothing(scenario)
    some, every = selective(scenario) if chosen.any() else none, full(scenario) if whole.any() else none
    modes = zip(LayerTensors.of(scenario, layouts), kept_of_all(scenario, layouts), some, every, strict=True)

    def of_kind(made: LayerTensors, partly: FloatColumn, some: Recomputation, all_: Recomputation) -> FloatColumn:
        if chosen.any():
            partly = np.where(chosen, made.kept(some) * overhead, partly)
        return partly + whole * (made.kept(all_) - partly) if whole.any() else partly

    return tuple(of_kind(*mode) for mode in modes)


def kept_of_all(scenario: Scenario, layouts: Layouts) -> tuple[FloatColumn, ...]:
    """The same where nothing runs again, whatever the layout's recomputation."""
    return layouts.alike.remembered.once((kept_of_all, scenario), lambda: _kept_of_all(scenario, layouts))


def _kept_of_all(scenario: Scenario, layouts: Layouts) -> tuple[FloatColumn, ...]:
    modes = zip(LayerTensors.of(scenario, layouts), nothing(scenario), strict=True)
    return tuple(made.kept(none) * scenario.software.memory.activation_overhead for made, none in modes)
