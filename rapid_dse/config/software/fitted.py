"""Numbers of a framework's profile that measured runs may fit."""

from __future__ import annotations

from rapid_dse.config.free_parameters import FreeParameter

FREE: tuple[FreeParameter, ...] = (
    FreeParameter("elementwise_traffic", 2.0, 0.7, 6.0, "times fused traffic", "how many of the small kernels it fuses"),
    FreeParameter("matmul_efficiency", 0.95, 0.07, 1.1, "share", "its GEMM library's choice of kernels, and what runs beside them"),
    FreeParameter("fp8_cast_passes", 1.0, 0.4, 4.0, "passes", "whether casts, transposes and maxima are fused into neighbours"),
    FreeParameter("host_layer", 1e-3, 1.5e-3, 1e-2, "s", "Python and launch time of a layer"),
    FreeParameter("host_collective_layer", 2e-4, 5e-4, 1e-2, "s", "Python and launch time of a layer's collectives"),
    FreeParameter("host_micro_batch", 1e-3, 3e-3, 5e-2, "s", "Python time of a micro-batch"),
    FreeParameter("host_step", 1e-2, 2e-2, 0.5, "s", "data loading, logging, optimizer launches"),
    FreeParameter("dp_overlap", 0.8, 0.2, 1.0, "share", "bucketing and prefetch"),
    FreeParameter("scatter_overlap", 0.8, 0.3, 1.0, "share", "whether a reduce-scatter is queued behind the backward pass or beside it"),
    FreeParameter("parameter_gather_overlap", 0.3, 0.3, 1.0, "share", "prefetch of updated weights"),
    FreeParameter("overlap_slowdown", 0.0, 0.15, 1.0, "share", "how many SMs its collectives hold while kernels run"),
    FreeParameter("tp_overlap", 0.5, 0.2, 1.0, "share", "pipelining of tensor-parallel transfers with products"),
    FreeParameter("tp_backward_overlap", 0.2, 0.2, 1.0, "share", "input-gradient transfers beside weight gradients"),
    FreeParameter("pp_overlap", 0.5, 0.3, 1.0, "share", "asynchronous sends"),
    FreeParameter("send_receive", 2e-5, 1e-4, 1e-2, "s", "stream synchronisation around sends"),
    FreeParameter("gather_calls_per_layer", 0.0, 6.0, 20.0, "calls", "whether weights are gathered tensor by tensor"),
    FreeParameter("cp_overlap", 0.9, 0.1, 1.0, "share", "ring attention's transfers beside its kernels"),
    FreeParameter("optimizer_traffic", 34.0, 15.0, 200.0, "bytes a parameter", "fused or for-each optimizer"),
)

# What measured runs of inference may fit.
FREE_SERVING: tuple[FreeParameter, ...] = (
    FreeParameter("layer_latency", 1.5e-5, 1.5e-5, 3e-4, "s", "how many small kernels a layer has, and the gaps between them"),
    FreeParameter("expert_latency", 3e-5, 3e-5, 5e-4, "s", "router, sort and grouped products' launches"),
    FreeParameter("admission_latency", 2e-2, 3e-2, 1.0, "s", "its server, tokenizer and stream"),
    FreeParameter("sequence_latency", 1e-5, 1.5e-5, 1e-3, "s", "Python a running sequence"),
    FreeParameter("host_layer", 1e-3, 1e-3, 1e-2, "s", "launches of a layer of a prompt, times three"),
    FreeParameter("expert_launch", 1.5e-3, 1.5e-3, 1e-2, "s", "kernels that it launches for experts in prefill"),
    FreeParameter("script_latency", 5e-4, 3e-3, 1e-2, "s", "whether a static batch's loop runs ahead of the device"),
    FreeParameter("in_step", 0.4, 0.2, 1.0, "share", "how requests of one length drift apart"),
    FreeParameter("prompts_together", 2.0, 1.0, 16.0, "prompts", "how many of them come together"),
)

# What measured peaks of memory may fit.
FREE_MEMORY: tuple[FreeParameter, ...] = (
    FreeParameter("optimizer_bytes", 12.0, 1.0, 16.0, "bytes a parameter", "its optimizer's states and buckets"),
    FreeParameter("extra_gradient_bytes", 1.0, 1.5, 4.0, "bytes a parameter", "a second copy that micro-batches accumulate in"),
    FreeParameter("logit_bytes", 10.0, 3.0, 24.0, "bytes a logit", "fp32 copies that its loss makes"),
    FreeParameter("layers_ahead", 0.0, 20.0, 60.0, "layers", "how many kernels a layer is"),
    FreeParameter("activation_overhead", 1.0, 0.1, 3.0, "times the least", "what its modules save beyond need"),
    FreeParameter("working_copies", 1.0, 3.0, 8.0, "streams", "what a layer gathers and scatters at a time"),
    FreeParameter("context", 5e8, 1e9, 5e9, "bytes", "buffers that the allocator holds at all times"),
    FreeParameter("fragmentation", 1.05, 0.05, 1.6, "times live bytes", "how its tensors come and go"),
)
