"""What a model says of the lengths of its samples, which a workload then need not say, and may not say otherwise."""

from __future__ import annotations

from typing import Any

from rapid_dse.common.remembered import remembered
from rapid_dse.config.model import Model
from rapid_dse.config.run import Workload
from rapid_dse.config.software import Software

# What options of ``workload`` have, which stands for nothing that somebody set.
USUAL = {"seq_len": 8192, "global_batch_size": 1024, "prompt_len": 1024, "decode_len": 1024}
# What a framework's loop and its optimizer take of the host, of memory and of the step.
WITHOUT_LOOP = {
    **dict.fromkeys(("host_layer", "host_collective_layer", "host_micro_batch", "host_step"), 0.0),
    **dict.fromkeys(("optimizer_bytes", "extra_gradient_bytes"), 0.0),
    "matmul_efficiency": 1.0,  # nothing runs beside it
}
# ``software.launch_norm`` of steps that each need the last one: 256 steps of cuDNN's LSTM take 7.8 ms where the host launches for 8.7 ms
# and the device has 3 ms to do, and 11.6 ms where it has 6.
CHAINED = 3.0
# Of a load of requests, which a batch that runs forward once has none of.
OF_REQUESTS = (
    *("concurrency", "request_rate", "num_prompts", "length_spread", "kv_precision"),
    *("draft_tokens", "draft_acceptance", "prefix_hit"),
)


def with_lengths(model: Model, work: Workload) -> Workload:
    """The workload with the lengths that the model settles; of one that decodes the workload itself.

    Raises:
        ValueError: one line, where the workload says something else.
    """
    if model.of_kind.decodes:
        return work
    if not work.trains_all:
        raise ValueError(f"workload.trainable={work.trainable}: adapters are of transformers of text; allowed with {model.kind}: full")
    if work.packing != 1:
        raise ValueError(f"workload.packing={work.packing:g}: documents are packed into sequences of text; allowed with {model.kind}: 1")
    own: dict[str, Any] = {"seq_len": work.seq_len if model.sample_tokens is None else model.sample_tokens}
    if model.m is not None and work.kind == "training":
        own["global_batch_size"] = model.m
    if work.kind == "inference":
        own |= {"prompt_len": own["seq_len"], "decode_len": 1}
        for name in OF_REQUESTS:
            value = getattr(work, name)
            if value != Workload.model_fields[name].default:
                raise ValueError(
                    f"workload.{name}={value}: a model of the kind {model.kind} decodes nothing: a batch runs forward once; allowed: "
                    f"workload.batch_size"
                )
    for name, value in own.items():
        said = getattr(work, name)
        if said not in (USUAL[name], value):
            raise ValueError(f"workload.{name}={said}: {_because(model, name, value)}; leave it out")
    return work if all(getattr(work, name) == value for name, value in own.items()) else work.model_copy(update=own)


def with_loop(model: Model, work: Workload, software: Software) -> Software:
    """The profile as far as the framework runs: of a product by itself there is no loop, no optimizer and no state of one; where steps need
    each other, or the host each layer's routing, host and device wait for each other."""
    host = software.host
    if model.of_kind.chained and host.launch_norm is None:
        return _with_norm(software, CHAINED)
    counts = model.num_experts > 0 and work.kind == "training" and work.expert_capacity is None and host.cuda_graphs != "full_iteration"
    if counts and host.launch_norm is None and host.routing_norm is not None:
        return _with_norm(software, host.routing_norm)
    return software if model.of_kind.looped else _without_loop(software)


@remembered(64)
def _with_norm(software: Software, norm: float) -> Software:
    return software.model_copy(update={"launch_norm": norm})


@remembered(64)
def _without_loop(software: Software) -> Software:
    return software.model_copy(update=WITHOUT_LOOP)


def _because(model: Model, name: str, value: int) -> str:
    if name == "decode_len":
        return f"a model of the kind {model.kind} decodes nothing"
    if model.m is not None:
        return f"model.m={model.m} says how many rows there are"
    if model.sample_tokens is None:
        return f"workload.seq_len={value} says how long a sample is"
    return (
        f"an image of {model.image_size} pixels a side in patches of {model.patch_size} and {model.num_prefix_tokens} prefix tokens "
        f"are {value} tokens"
    )
