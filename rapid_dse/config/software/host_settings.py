"""What the host costs a training job: Python, and the launching of kernels."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from rapid_dse.config.effects import TRAINED, Only, Where
from rapid_dse.config.fields import Seconds
from rapid_dse.config.model_kinds import NOT_SERVED
from rapid_dse.config.parts import SchemaPart

CudaGraphs = Literal["none", "modules", "full_iteration"]


class HostSettings(SchemaPart):
    """Host times of a layer, a micro-batch and a step, and how the host's time and the device's make one."""

    # Host time of a dense layer's forward and backward for a micro-batch, its launches included; of other layers in proportion to how many
    # kernels they launch.
    host_layer: Seconds = 1e-3
    # Share of the host's time for a layer's forward pass that it takes where no gradients are recorded.
    host_without_gradients: Annotated[float, Field(gt=0, le=1), Only(Where("workload.kind", ("inference",)))] = 1.0
    # A kernel that a library launches by its own loop (cuDNN's of recurrent layers).
    host_library_launch: Annotated[Seconds, Only(Where("model.kind", ("lstm",)))] = 3.4e-6
    # Pace of the CPUs that the host's times of layers and micro-batches were taken on (hw.launch_pace): on others they are in proportion;
    # null: they hold on any.
    host_pace: Annotated[Annotated[float, Field(ge=0.1, le=10)] | None, NOT_SERVED] = None
    host_collective_layer: Annotated[Seconds, NOT_SERVED] = 2e-4  # what tensor-parallel collectives add to that
    host_micro_batch: Annotated[Seconds, NOT_SERVED] = 1e-3  # host time of a micro-batch
    # How the host's time for a micro-batch and the device's make one: null: the host runs far ahead, and the longer one counts; a number p:
    # each waits for the other kernel by kernel, and both count, (hostᵖ + deviceᵖ)^(1/p).
    launch_norm: Annotated[Annotated[float, Field(ge=1, le=20)] | None, NOT_SERVED] = None
    # The same where rows are routed: in each layer the host waits for the counts of rows before it launches the experts' products, so
    # that it cannot run ahead. null: it does not wait. Where counts are known ahead (workload.expert_capacity), or stay on the device
    # (a graph of the whole step), launch_norm holds.
    routing_norm: Annotated[Annotated[float, Field(ge=1, le=20)] | None, Only(Where("model.num_experts")), TRAINED] = None
    # Where offloaded optimizer states are stepped. cpu: gradients go to the host, whose cores step the states beside them, and new weights
    # come back (DeepSpeed's ZeRO-Offload, Megatron's hybrid optimizer, FSDP2's CPUOffloadPolicy); streamed: states go through the GPU.
    offload_step: Annotated[Literal["cpu", "streamed"], Only(Where("parallel.offload_optimizer"))] = "cpu"
    # What is captured in CUDA graphs, which the device runs without the host: nothing; modules: attention, norms and router of each layer,
    # whose shapes are known ahead (routed experts' are not; of a decode step all but attention); full_iteration: the whole step.
    cuda_graphs: Annotated[CudaGraphs, BeforeValidator(lambda value: "none" if value is None else value)] = "none"
    # Checkpoints are copied to the host's memory and written from there beside the next steps (Megatron Core's --async-save, PyTorch's
    # async_save); else the job waits for the write.
    async_checkpoint: Annotated[bool, Only(Where("workload.train_tokens"))] = False
    host_step: Annotated[Seconds, TRAINED] = 1e-2  # data loading, logging, the optimizer's launches: exposed once a step
