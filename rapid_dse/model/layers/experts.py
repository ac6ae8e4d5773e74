"""A mixture of experts: a router, shared experts that see every token, and routed experts that see those sent to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapid_dse.config.software import Software
from rapid_dse.model.layers.expert_bias import bias_kernels
from rapid_dse.model.layers.mlp import activated, mlp_kernels, mlp_products, mlp_projections
from rapid_dse.model.layers.part import Exchanged, ForwardStep, Part, PartParameters, SmallKernel, Tensor, norm_parameters
from rapid_dse.model.layers.permutation import padding_kernels, permutation_kernels
from rapid_dse.model.shapes import FloatColumn, MatMul, MicroBatch

ROUTER_PASSES = 4  # over the router's logits in fp32: softmax and choice read and write them


@dataclass(frozen=True)
class Experts(Part):
    """Norm, router and experts; each routed expert is split over ``etp`` ranks, which all see its tokens, shared ones over tp.

    Shared experts are one MLP, ``n_shared_experts`` times as wide as a routed one.
    """

    def parameters(self, shape: MicroBatch) -> PartParameters:
        model, inward, shared = self.model, mlp_projections(self.model), self._shared_width(shape)
        mine, wide = model.num_experts / shape.ep, model.moe_intermediate_size / shape.etp
        return PartParameters(
            products=model.hidden_size * shared * (inward + 1),
            biases=inward * shared if model.linear_bias else 0.0,
            norms=norm_parameters(model, model.hidden_size),
            added=model.hidden_size if model.linear_bias and model.n_shared_experts else 0,
            router=model.hidden_size * model.num_experts,
            experts=model.hidden_size * wide * (inward + 1) * mine,
            expert_biases=(model.hidden_size + inward * wide) * mine if model.linear_bias else 0.0 * mine,
        )

    def products(self, shape: MicroBatch) -> list[MatMul]:
        """The rank's routed experts are one grouped product; tokens are spread evenly over the experts, as balancing losses have it
        (Fedus et al., arXiv 2101.03961, section 2.2)."""
        model, tokens, local = self.model, shape.tokens, shape.norm_tokens
        mine, wide = model.num_experts / shape.ep, model.moe_intermediate_size / shape.etp
        experts, hidden = np.full_like(local, model.num_experts), np.full_like(local, model.hidden_size)
        shared = mlp_products("shared", model, tokens, self._shared_width(shape)) if model.n_shared_experts else []
        routed = np.maximum(1.0, self.rows(shape) / mine)
        return [
            MatMul("router", local, experts, hidden, sixteen_bit=True, cut=None),
            *shared,
            *mlp_products("expert", model, routed, wide, mine, routed=True),
        ]

    def small_kernels(self, shape: MicroBatch, software: Software) -> list[SmallKernel]:
        """Beside norm, residual and activation what takes tokens to their experts and back: the router's softmax and choice in fp32, a
        copy of each token for each of its experts, sorting what has arrived by expert and back where a rank has several, the weighted
        sum."""
        model = self.model
        alone = mlp_kernels(model, shape, self._wide(shape), software)
        logits = shape.norm_tokens * model.num_experts * 4.0 * ROUTER_PASSES
        rows, wide = self.rows(shape), self.rows(shape) * (model.moe_intermediate_size / shape.etp)
        permuting = permutation_kernels(model, shape, rows, software.experts, logits)
        filling = padding_kernels(model, shape, rows, software.experts)
        return [*alone, *permuting, *filling, *bias_kernels(model, software, rows, wide)]

    def steps(self) -> tuple[ForwardStep, ...]:
        shared = (ForwardStep("shared_up", "router_input", ("up",)), ForwardStep("shared_down", "down_input", ("expert_made",)))
        up, down = ((expert,) if self.model.n_shared_experts else () for expert in shared)
        return (
            ForwardStep("mlp_norm", "mlp_norm_input", ("router_input",)),
            ForwardStep("router", "router_input", ("router_logits",)),
            ForwardStep("routing", "router_logits", ("router_probabilities",)),
            ForwardStep("spread", "router_input", ("expert_rows",)),
            ForwardStep("expert_dispatch", "expert_rows", ("expert_arrived",)),
            ForwardStep("mlp_gather", "expert_arrived", ("expert_gathered",)),
            ForwardStep("expert_padding", "expert_gathered", ("expert_input",)),
            ForwardStep("expert_up", "expert_input", ("up",)),
            *up,
            ForwardStep("activation", "up", ("down_input", "activation_copy")),
            ForwardStep("expert_down", "down_input", ("expert_made",)),
            *down,
            ForwardStep("mlp_scatter", "expert_made", ("expert_scattered",)),
            ForwardStep("expert_combine", "expert_scattered", ("expert_output",)),
            ForwardStep("weighted_sum", "expert_output", ("experts_summed",)),
            ForwardStep("mlp_residual", "experts_summed", ("mlp_mask",)),
        )

    def tensors(self, shape: MicroBatch, software: Software) -> list[Tensor]:
        """Beside an MLP's: the rows of a rank's experts, logits and probabilities of the router, and the rows that come back to be
        weighted and summed."""
        model = self.model
        stream, routed = shape.norm_tokens * model.hidden_size, self.rows(shape) * model.hidden_size
        returned = np.where(shape.gathers_rows, routed / shape.etp, routed)
        mask = [Tensor("mlp_mask", stream, "byte")] if self.model.drops_out(software.kernels.dropout) else []
        return [
            Tensor("mlp_norm_input", stream),
            Tensor("router_input", stream, "input"),
            Tensor("router_probabilities", 2 * shape.norm_tokens * model.num_experts, "fp32"),
            Tensor("expert_input", routed, "input"),
            *activated(model, self._wide(shape), software),
            Tensor("expert_output", returned, product=True, kept=software.experts.expert_weighting == "output"),
            *mask,
        ]

    def exchanged(self) -> tuple[Exchanged, ...]:
        """Routed rows are gathered when they have arrived from other ranks, in 16 bits, since they are sorted and cast after it, and
        scattered before they go back, beside what the shared experts exchange (Megatron Core's all-to-all dispatcher, which keeps what
        it has gathered); where ranks have the same tokens partial sums travel back, and one reduction ends the layer."""
        routed = Exchanged(routed=True, cast=False, again=False)
        return (routed, Exchanged(reduced=False)) if self.model.n_shared_experts else (routed,)

    def copies(self) -> int:
        return self.model.num_experts_per_tok

    def rows(self, shape: MicroBatch) -> FloatColumn:
        """Rows that the busiest rank's experts see: of all tokens of the ranks that share them, one for each of a token's experts."""
        mine = np.where(shape.same_tokens, 1 / shape.ep, np.where(shape.gathers_rows, shape.etp, 1))
        return shape.norm_tokens * self.model.num_experts_per_tok * mine * shape.expert_load

    def _shared_width(self, shape: MicroBatch) -> FloatColumn:
        """Width of a rank's part of the shared experts."""
        return self.model.n_shared_experts * self.model.moe_intermediate_size / shape.tp

    def _wide(self, shape: MicroBatch) -> FloatColumn:
        """Elements of one projection: of routed and shared experts together."""
        return self.rows(shape) * (self.model.moe_intermediate_size / shape.etp) + shape.tokens * self._shared_width(shape)


PART = Experts
