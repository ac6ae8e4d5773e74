"""What a framework offers: the settings that its jobs can be launched with as it stands."""

from typing import Annotated, Literal

from pydantic import BeforeValidator

from rapid_dse.config.effects import TRAINED, Only, Where
from rapid_dse.config.fields import Frozen
from rapid_dse.config.hardware import KvPrecision, Precision
from rapid_dse.config.host_link import OFFLOADED, Offloaded
from rapid_dse.config.model_kinds import DECODED
from rapid_dse.config.recompute_entries import ModuleSum
from rapid_dse.config.schedule_names import PIPELINE_SCHEDULES, PipelineSchedule

SERVED = Only(Where("workload.kind", ("inference",)))
Zero = Literal[0, 1, 2, 3]
# YAML reads the bare words none and null alike.
Mode = Annotated[Literal["none", "selective", "full"], BeforeValidator(lambda value: "none" if value is None else value)]


class Offers(Frozen):
    """Lists of values that the framework's own options reach, each with its source in the profile's YAML.

    What a list lacks is no legal layout while ``software.enforce`` is on. A profile that names no list restricts nothing by it.
    """

    workloads: tuple[Literal["training", "inference"], ...] = ("training", "inference")  # what it runs
    # whether low-rank adapters can be trained beside frozen weights
    trainable: Annotated[tuple[Literal["full", "lora"], ...], TRAINED] = ("full", "lora")
    # Degrees that may be above 1, beside dp; etp: it may be other than tp, and of inference above 1 beside ep; pools: prefill and decode on
    # engines of their own.
    parallelisms: tuple[Literal["tp", "cp", "pp", "ep", "etp", "attention_dp", "pools"], ...] = (
        "tp", "cp", "pp", "ep", "etp", "attention_dp", "pools",
    )  # fmt: skip
    cp_kinds: Annotated[tuple[Literal["ring", "ulysses"], ...], TRAINED] = ("ring", "ulysses")  # ways of context parallelism
    cp_beside: Annotated[tuple[Literal["tp", "pp"], ...], TRAINED] = ("tp", "pp")  # degrees that may be above 1 where cp is
    # whether more ranks than key-value heads may trade heads, a head's copies among several (ulysses)
    cp_replicates_keys: Annotated[bool, TRAINED] = True
    schedules: Annotated[tuple[PipelineSchedule, ...], TRAINED] = PIPELINE_SCHEDULES  # of pipelines, pp > 1
    zero: Annotated[tuple[Zero, ...], TRAINED] = (0, 1, 2, 3)  # stages without pipelines, pp = 1
    zero_with_pipelines: Annotated[tuple[Zero, ...], TRAINED] = (0, 1, 2, 3)  # stages at pp > 1
    # stages whose shards may lie on a part of the data-parallel ranks (hybrid sharding)
    shard_group: Annotated[tuple[Zero, ...], TRAINED] = (1, 2, 3)
    # ZeRO++: a second copy of weights, weights in 8 bits, gradients in 4.
    zero_plus_plus: Annotated[tuple[Literal["hpz", "quantized_weights", "quantized_gradients"], ...], TRAINED] = (
        "hpz", "quantized_weights", "quantized_gradients",
    )  # fmt: skip
    sequence_parallel: Annotated[tuple[bool, ...], TRAINED] = (True, False)  # values where tp > 1
    recompute: Annotated[tuple[Mode, ...], TRAINED] = ("none", "selective", "full")  # recompute modes
    # What may lie in the host's memory (parallel.offload_*), at pp = 1 and at pp > 1.
    offload: Annotated[tuple[Offloaded, ...], TRAINED] = OFFLOADED
    offload_with_pipelines: Annotated[tuple[Offloaded, ...], TRAINED] = OFFLOADED  # the same at pp > 1
    # What selective recomputation may make again (parallel.recompute_modules); null: every entry of config/recompute.
    recompute_modules: Annotated[tuple[ModuleSum, ...] | None, TRAINED] = None
    recompute_layers: Annotated[bool, TRAINED] = True  # whether full recomputation may be of some layers of a stage alone
    # recompute modes beside software.expert_overlap
    recompute_with_overlap: Annotated[tuple[Mode, ...], TRAINED] = ("none", "selective", "full")
    # whether experts' exchanges may overlap (software.expert_overlap) in stages of one chunk at pp > 1
    overlap_without_chunks: Annotated[bool, TRAINED] = True
    precisions: tuple[Precision, ...] = ("bf16", "fp16", "fp8", "tf32", "fp32", "fp4", "int8", "int4")  # precisions of matrix products
    # Of inference: models whose attention may have copies (attention_dp) that share the other layers, dense ones and those with experts.
    attention_dp_of: Annotated[tuple[Literal["dense", "experts"], ...], SERVED, DECODED] = ("dense", "experts")
    # Of inference: precisions of the KV cache that may be asked for (workload.kv_precision); fp4 on chips that multiply 4-bit floats.
    kv_precisions: Annotated[tuple[KvPrecision, ...], SERVED, DECODED] = ("fp32", "bf16", "fp16", "fp8", "fp4", "int8", "int4")
