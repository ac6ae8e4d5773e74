"""The kernels that a framework calls and what they fuse."""

from typing import Annotated, Literal

from pydantic import Field

from rapid_dse.config.effects import TRAINED, Only, Where
from rapid_dse.config.hardware import FlashKernelName
from rapid_dse.config.model_kinds import NOT_SERVED
from rapid_dse.config.parts import SchemaPart

LibraryGeneration = Literal["early", "current"]
SILENT = Only(Where("model.dropout", (None,)))
COMPLEX = Only(Where("model.position_embedding", ("rope",)))
UNFUSED = Only(Where("software.attention", ("unfused",)), Where("hw.attention_kernels", ((),)))


class KernelSettings(SchemaPart):
    """Which kernels compute attention, products, loss, norms and the optimizer, and how much each moves."""

    attention: Literal["flash", "unfused"] = "flash"  # flash: one kernel that keeps no scores; unfused: products and a softmax
    # Behind attention=flash: the fused kernels that the framework can call. The chip's preferred one of them runs; where it has none of
    # them, attention is unfused. ``flash_kernel`` names one that must run: a chip that lacks it is refused.
    flash_kernels: tuple[FlashKernelName, ...] = ("flash2", "ck")
    flash_kernel: FlashKernelName | None = None  # the attention kernel; null: the chip's, by flash_kernels
    # Whose speed fused attention has. early: libraries of 2023 and 2024 (FlashAttention 2.0, cuDNN to 9.1, PyTorch to 2.4); current: of
    # 2025 and 2026 (PyTorch 2.11 with its FlashAttention-2, cuDNN 9.19).
    library_generation: Annotated[LibraryGeneration, Only(Where("software.attention", ("flash",)))] = "current"
    fused_softmax: Annotated[bool, UNFUSED] = True  # behind attention=unfused: scale, mask and softmax are one kernel
    eager: bool = False  # every operation is a kernel of its own, and the host launches as many as there are
    # Sums of biases' gradients are kernels of their own (PyTorch's autograd), and so is what joins the gradients of a projection that was
    # split; false: products do both (cuBLASLt's epilogues, Transformer Engine).
    gradient_sums: Annotated[bool, NOT_SERVED] = False
    fused_rotary: Annotated[bool, TRAINED] = True  # autograd keeps no rotated copy of queries and keys
    # Queries and keys are turned as complex numbers of 32 bits, which compilers leave to kernels of their own. Those that have norms
    # (model.qk_norm) are turned as real numbers, like any elementwise operation (torchtitan's Qwen3).
    complex_rotary: Annotated[bool, COMPLEX, Only(Where("model.qk_norm", (False,)))] = False
    fused_activation: Annotated[bool, TRAINED] = True  # autograd keeps no activated gate beside the MLP's inputs
    # The loss over the vocabulary. whole: fp32 copies of all logits and of their gradient beside the 16-bit ones; in_place: of the logits
    # alone, a copy that turns into their softmax and their gradient (Megatron Core); fused: one kernel that overwrites the logits with
    # their gradient; chunked: head and loss run chunk after chunk, and only one chunk's logits are alive.
    loss: Annotated[Literal["whole", "in_place", "fused", "chunked"], NOT_SERVED] = "whole"
    dropout: Annotated[bool, SILENT, TRAINED] = False  # whether dropout runs in the training of a model that does not say (model.dropout)
    # Times the HBM bytes of fully fused norms, residuals, rotary embedding and activation: 1 is one kernel for each, eager PyTorch 2 to 4.
    elementwise_traffic: Annotated[float, Field(ge=0.5, le=8), NOT_SERVED] = 2.0
    # Speed of matrix products in the framework against the same shapes run alone: other kernels' cache and power, stream switches.
    matmul_efficiency: Annotated[float, Field(ge=0.5, le=1.2), NOT_SERVED] = 0.95
    # Products of weight gradients add to a 32-bit gradient in place (Megatron's fused accumulation); false: they write one of 16 bits.
    fused_accumulation: Annotated[bool, TRAINED] = True
    # 16-bit gradients of each micro-batch are added to those of 32 bits by kernels of their own, behind its backward pass.
    accumulates_apart: Annotated[bool, TRAINED, Only(Where("software.fused_accumulation", (False,)))] = False
    # Under ZeRO 3 gathered weights are copied from the gather's buffer into each parameter before each pass; and where each backward pass
    # reduces gradients, they are copied into the buffer that is reduced, in the type that is reduced.
    copies_gathered: Annotated[bool, TRAINED] = False
    copies_gradients: Annotated[bool, TRAINED] = False  # whether gradients are copied into buckets
    # Under sequence parallelism each gather and scatter of the stream copies it: activations are (batch, sequence, hidden), and NCCL joins
    # along the first axis. Megatron's are (sequence, batch, hidden), and need none.
    copies_sequence: Annotated[bool, TRAINED] = False
    # Queries, keys and values, and the halves of a gate, each have a product of their own, so that gradients of their input are summed.
    # Under sequence parallelism those are of whole sequences, which elementwise_traffic does not tell. none: products are joint; copied: a
    # compiled kernel sums what it copies for the reduction; added: further gradients are added one by one.
    separate_projections: Annotated[Literal["none", "copied", "added"], TRAINED] = "none"
    cp_balanced: Annotated[bool, TRAINED] = True  # ring attention deals the sequence out in zigzag, so that causal work is even
    # With states of 12 bytes; other states change it in proportion to what a fused optimizer moves, 34 bytes with 12: the states read and
    # written, a 32-bit gradient read by clipping and by the step, the 16-bit weight written.
    optimizer_traffic: Annotated[float, Field(ge=8, le=200), TRAINED] = 34.0  # HBM bytes a parameter of clipping and the optimizer's step

    @property
    def sums_apart(self) -> bool:
        """Whether kernels of their own add gradients to sums: products that add in place leave none to add."""
        return self.accumulates_apart and not self.fused_accumulation
