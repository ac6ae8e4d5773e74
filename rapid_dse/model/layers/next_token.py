"""What stands before a layer that predicts one token more: DeepSeek-V3's multi-token prediction (arXiv 2412.19437, section 2.2).

The stream of the model's last layer and the look-up of the token that follows are normalised each, put side by side and projected back
to the stream's width; a layer like the model's last one follows, then a norm and the model's own head (``End.predictions``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapid_dse.config.software import Software
from rapid_dse.model.layers.part import Exchanged, ForwardStep, Part, PartParameters, SmallKernel, Tensor, norm_parameters
from rapid_dse.model.shapes import MatMul, MicroBatch


@dataclass(frozen=True)
class NextToken(Part):
    """Two norms, the projection of both streams to one, and the norm ahead of the head."""

    def parameters(self, shape: MicroBatch) -> PartParameters:
        wide = self.model.hidden_size
        return PartParameters(products=2 * wide * wide / shape.tp, norms=3 * norm_parameters(self.model, wide))

    def products(self, shape: MicroBatch) -> list[MatMul]:
        """Megatron Core's eh_proj, divided by columns."""
        wide = np.full_like(shape.tokens, self.model.hidden_size)
        return [MatMul("next_token_projection", shape.tokens, wide / shape.tp, 2 * wide)]

    def small_kernels(self, shape: MicroBatch, software: Software) -> list[SmallKernel]:
        """Three norms; the look-up, and both streams copied side by side."""
        stream = shape.norm_tokens * self.model.hidden_size
        return [SmallKernel("next_token_norms", 6 * stream, 9 * stream), SmallKernel("next_token_joined", 6 * stream, 6 * stream)]

    def steps(self) -> tuple[ForwardStep, ...]:
        return (
            ForwardStep("next_token_norms", "next_token_streams", ("next_token_normed",)),
            ForwardStep("next_token_joined", "next_token_normed", ("next_token_input",)),
            ForwardStep("next_token_gather", "next_token_input", ("next_token_gathered",)),
            ForwardStep("next_token_projection", "next_token_gathered", ("attention_norm_input",)),
        )

    def tensors(self, shape: MicroBatch, software: Software) -> list[Tensor]:
        """Both streams, as they come and side by side."""
        stream = shape.norm_tokens * self.model.hidden_size
        return [Tensor("next_token_streams", 2 * stream), Tensor("next_token_input", 2 * stream, "input")]

    def exchanged(self) -> tuple[Exchanged, ...]:
        """What the look-up leaves each rank is scattered or reduced, the two streams are gathered, and so are the columns of what comes of
        them: as much as around two halves of a layer (Megatron Core's MultiTokenPredictionLayer)."""
        return Exchanged(), Exchanged()


PART = NextToken
