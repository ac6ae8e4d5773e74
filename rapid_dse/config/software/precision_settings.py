"""The data types of gradients, optimizer states and fp8 products in a framework."""

from typing import Annotated, Literal

from pydantic import Field

from rapid_dse.config.effects import TRAINED, Only, Where
from rapid_dse.config.model_kinds import NOT_SERVED
from rapid_dse.config.parts import SchemaPart

FP8 = Only(Where("workload.precision", ("fp8",)))
CAST = Only(Where("workload.precision", ("fp8", "fp4")))
Recipe = Literal["delayed", "tensorwise", "rowwise", "blockwise", "mxfp8", "tensorwise + fp8 all-gather"]
Dtype = Literal["fp32", "bf16", "fp16"]


class PrecisionSettings(SchemaPart):
    """Data types, and who casts to 8 bits."""

    fp8_recipe: Annotated[Recipe, FP8, NOT_SERVED] = "tensorwise"  # how fp8 operands are scaled
    # Who casts. transformer_engine (all but rowwise scaling and gathers in fp8, which are torchao's own): 8-bit copies of weights and of
    # their transposes stay all step long, and inputs of products are kept in 8 bits; torchao: operands are cast at each use. Scales are of
    # tensors, of rows, of tiles of 128 (blockwise: DeepSeek-V3, arXiv 2412.19437, section 3.3), or of 32 elements (mxfp8, in hardware).
    # Under fp4 (NVFP4: blocks of 16 elements, in hardware) there is one recipe, Transformer Engine's.
    fp8_library: Annotated[Literal["transformer_engine", "torchao"], FP8, NOT_SERVED] = "transformer_engine"
    # Transformer Engine's fp8 parameters: weights of products stay in 8 bits, with their transposes, and have no 16-bit copies.
    fp8_parameters: Annotated[bool, CAST, TRAINED] = False
    # Passes over both operands that an fp8 product costs (cast, transpose, amax), each 2 bytes read and 1 written an element.
    fp8_cast_passes: Annotated[float, Field(ge=0, le=6), CAST, NOT_SERVED] = 1.0
    gradient_dtype: Annotated[Dtype, TRAINED] = "fp32"  # of the gradient that is kept and reduced
    reduce_dtype: Annotated[Dtype | None, TRAINED] = None  # of the gradient on the wire; null: gradient_dtype
    # FSDP: under ZeRO 3 the shards are the fp32 master weights, of which gathers make 16-bit copies; else 16-bit shards stay beside them.
    master_shards: Annotated[bool, TRAINED] = False
    zero_quantized_weights: Annotated[bool, TRAINED] = False  # ZeRO++'s qwZ: ZeRO 3 gathers weights in 8 bits
    # ZeRO++'s qgZ: gradients go in 4 bits, by all-to-alls within nodes and across them.
    zero_quantized_gradients: Annotated[bool, TRAINED] = False
    # A parameter: master weight and two moments, 4 bytes each. 8: moments of 16 bits; 6: a 16-bit master copy too; 4: no master weight.
    optimizer_bytes: Annotated[float, Field(ge=0, le=16), TRAINED] = 12.0

    @property
    def master_bytes(self) -> float:
        """Bytes a parameter of the master weight among the optimizer's states: what they have beyond two moments of 16 bits, at most 4."""
        return min(4.0, max(0.0, self.optimizer_bytes - 4.0))

    @property
    def keeps_fp8(self) -> bool:
        """Whether weights and activations are kept in 8 bits where products run in fp8."""
        return self.fp8_library == "transformer_engine" and self.fp8_recipe in ("delayed", "tensorwise", "blockwise", "mxfp8")
