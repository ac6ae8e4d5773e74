"""How an inference framework schedules requests, and what its steps cost beside products, attention and transfers."""

from typing import Annotated, Literal

from pydantic import Field

from rapid_dse.config.effects import Only, Where
from rapid_dse.config.fields import Bytes, Count, Seconds, Share, ShareOrZero
from rapid_dse.config.measured_boxes import Architecture
from rapid_dse.config.model_kinds import DECODED
from rapid_dse.config.parts import SchemaPart

OF_INFERENCE = Only(Where("workload.kind", ("inference",)))
Latency = Annotated[Seconds, Field(le=1e-2), OF_INFERENCE, DECODED]


class ServingSettings(SchemaPart):
    """Scheduling, memory, and latencies; ``FREE_SERVING`` lists what measured runs may fit."""

    # prefill_first: waiting prompts run before decoding goes on; mixed: whole prompts share steps with decoding; chunked: prompts are cut
    # so that no step has more than max_batched_tokens.
    scheduler: Annotated[Literal["prefill_first", "mixed", "chunked"], OF_INFERENCE, DECODED] = "mixed"
    max_batched_tokens: Annotated[Count, OF_INFERENCE, DECODED] = 8192  # of a step
    max_num_seqs: Annotated[Count, OF_INFERENCE, DECODED] = 1024  # requests that run on an engine's attention rank at most
    # share of usable memory that it takes, or of what weights and workspace leave
    memory_fraction: Annotated[Share, OF_INFERENCE, DECODED] = 0.9
    # of what memory_fraction is a share: of all memory, or of what weights leave
    memory_fraction_of: Annotated[Literal["memory", "rest"], OF_INFERENCE, DECODED] = "memory"
    # Decode steps' attention. own: kernels made for it (XQA, FlashInfer, flash-decoding); shared: the kernel that prompts have, too.
    decode_attention: Annotated[Literal["own", "shared"], OF_INFERENCE, DECODED] = "own"
    # A layer of a decode step under CUDA graphs: its small kernels (norms, rotary embedding, cache writes, activation), what lies between.
    layer_latency: Latency = 1.5e-5
    # Generations of chips on which sums within a node are its own kernels, which read their peers' buffers; elsewhere they are NCCL's.
    # null: on all.
    fused_all_reduce: Annotated[tuple[Architecture, ...] | None, OF_INFERENCE, DECODED] = None
    # Its own kernels sum a pass of so many tokens at most in one shot, each rank reading all its peers' buffers, whatever else is faster;
    # 0: in one shot, two, or by NCCL, as is fastest.
    one_shot_tokens: Annotated[Annotated[int, Field(ge=0, le=100_000)], OF_INFERENCE, DECODED] = 0
    expert_latency: Latency = 3e-5  # what a layer of experts adds to that: router, sort, grouped launches
    collective_latency: Latency = 5e-6  # what each exchange of a layer takes beside its bytes: synchronisation of its ranks
    quantize_latency: Latency = 1e-6  # what a product of narrow operands adds: its input is scaled and cast
    step_latency: Latency = 5e-4  # the host at each step: scheduling, sampling, detokenising
    sequence_latency: Latency = 1e-5  # the host for each running sequence at each step
    # The host for a layer of experts of a pass of prompts, which no CUDA graph holds; as much again where attention is latent. No prompt is
    # done sooner; decode steps run meanwhile.
    expert_launch: Latency = 1.5e-3
    # What each step of a static batch waits for beside: a script's loop launches a step after it has read the last one's tokens.
    script_latency: Latency = 0.0
    # From a request's arrival until the engine has it, and until its first token is out: HTTP, tokenising, detokenising. A static batch
    # meets no server.
    admission_latency: Annotated[Annotated[Seconds, Field(le=10)], OF_INFERENCE, DECODED] = 2e-2
    # Share of others' prefill that decode steps wait for; the rest runs beside.
    decode_wait: Annotated[ShareOrZero, OF_INFERENCE, DECODED] = 1.0
    # Requests of one length that had their prompts together end together, and those that follow them come together. in_step: how far that
    # lasts, 0 to 1: where prompts run first (prefill_first), of all requests, which are one round; where whole prompts share steps (mixed),
    # of those that one step takes.
    in_step: Annotated[ShareOrZero, OF_INFERENCE, DECODED, Only(Where("software.scheduler", ("prefill_first", "mixed")))] = 0.5
    # So many prompts come together at least where they share steps with decoding (mixed, chunked), whatever a step takes.
    prompts_together: Annotated[
        Annotated[float, Field(ge=1, le=64)], OF_INFERENCE, DECODED, Only(Where("software.scheduler", ("mixed", "chunked")))
    ] = 1.5
    # Steps that prompts wait for each other where attention has several ranks, until each of these has one: without, a prompt's rank keeps
    # the others waiting at every layer. TensorRT-LLM: attention_dp_config.timeout_iters with enable_balance.
    attention_dp_wait: Annotated[Annotated[int, Field(ge=0, le=10_000)], OF_INFERENCE, DECODED] = 0
    # Speed of prefill against its kernels run alone.
    prefill_efficiency: Annotated[Annotated[float, Field(ge=0.2, le=1.5)], OF_INFERENCE, DECODED] = 0.96
    workspace: Annotated[Bytes, OF_INFERENCE, DECODED] = 2e9  # held on a GPU beside weights, cache and activations: CUDA graphs, NCCL
    # The KV cache has 8 bits where weights of products have at most 8, unless workload.kv_precision says otherwise.
    fp8_cache: Annotated[bool, OF_INFERENCE, DECODED] = False
    # A request starts when its prompt and all that it may generate have room in the cache; false: with room for its prompt, and on average
    # half of what it generates is there.
    reserves_whole_requests: Annotated[bool, OF_INFERENCE, DECODED] = False
