"""What reads classes off one token of an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapid_dse.config.software import Software
from rapid_dse.model.layers.end import End, Logits
from rapid_dse.model.layers.part import PartParameters, SmallKernel, norm_parameters
from rapid_dse.model.shapes import FloatColumn, MatMul, MicroBatch
from rapid_dse.parallel.layouts import IntColumn


@dataclass(frozen=True)
class Classifier(End):
    """The last norm, of all tokens, and a product of one token of each image with the classes, if there are any.

    Each tensor-parallel rank holds it whole, so that the rank with that token computes the loss.
    """

    def parameters(self, shape: MicroBatch) -> PartParameters:
        classes = self.model.num_classes
        return PartParameters(added=classes * (self.model.hidden_size + 1), norms=norm_parameters(self.model, self.model.hidden_size))

    def weights(self, tp: IntColumn) -> FloatColumn:
        one = self.parameters(MicroBatch.single())
        return np.full(len(tp), one.added + one.norms)

    def products(self, shape: MicroBatch) -> list[MatMul]:
        if not self.model.num_classes:
            return []
        images = shape.micro_batch_size.astype(float)
        return [
            MatMul(
                "head", images, np.full_like(images, self.model.num_classes), np.full_like(images, self.model.hidden_size), sixteen_bit=True
            )
        ]

    def small_kernels(self, shape: MicroBatch, software: Software) -> list[SmallKernel]:
        stream = shape.norm_tokens * self.model.hidden_size
        return [SmallKernel("last_norm", 2 * stream, 3 * stream)]

    def operations(self) -> float:
        """Norm and product."""
        return 2.0 if self.model.num_classes else 1.0

    def logits(self, shape: MicroBatch) -> Logits:
        """A row an image."""
        classes = np.full(len(shape.tp), float(self.model.num_classes))
        return Logits(shape.micro_batch_size * (classes > 0).astype(float), classes, classes)
