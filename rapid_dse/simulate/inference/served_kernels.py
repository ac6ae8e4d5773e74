"""What the kernels of a pass cost one rank: products with narrow weights, attention over a cache, all-reduces of small messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import added
from rapid_dse.config.hardware import PRECISION_BYTES, WEIGHTS_ALONE, Hardware
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software.expert_settings import ExpertProducts
from rapid_dse.cost.energy import ATTENTION_ROWS, attention_energy, moved_energy, product_energy
from rapid_dse.device import AttentionCall, AttentionKernel, AttentionSizes, OperatorModel
from rapid_dse.device.contract import UNFUSED
from rapid_dse.device.tiled import SMALLEST
from rapid_dse.interconnect import transfer
from rapid_dse.interconnect.transfer import Transfer
from rapid_dse.model.layers.attention import local_kv_heads
from rapid_dse.parallel.engines import Degrees
from rapid_dse.parallel.span import Span
from rapid_dse.simulate.communication import effective_network
from rapid_dse.simulate.inference.products import Product
from rapid_dse.simulate.inference.widths import ACTIVATION, CACHE_BYTES, WEIGHT_BYTES, cache_numbers, cache_precision, product_precision
from rapid_dse.simulate.operator_times import distinct_seconds

FloatColumn = NDArray[np.float64]
IntColumn = NDArray[np.int64]

LATENT_ROWS = 64.0  # rows of queries that a block of the latents' decode kernel holds (FlashMLA)
LATENT_EFFICIENCY = 0.6  # share of the tensor cores' rate that such a kernel reaches (FlashMLA: 580 of 989 TFLOP/s on an H800)
FP32_SOFTMAX = 28.0  # bytes of a 16-bit score: scaled, widened, its softmax in fp32, which reads a row twice, narrowed, a kernel each
# What a cast of a product's input takes beside its bytes, in casts to fp8, which norms and activations do in passing. NVFP4 has a scale
# for each 16 numbers, found by a kernel of its own: a layer of Llama 70B on B200 takes 6 us more for four products than its bytes say.
CASTS = {"fp8": 1.0, "fp4": 2.5}
# Of HBM's rate, at which a product of 4-bit floats reads its weights and scales: 4.1 to 4.7 TB/s under TensorRT-LLM, 4.7 to 5.3 under
# SGLang and 5.6 to 6.0 under vLLM, where bf16 reads 5.7 to 6.8, on B200, B300, GB200 and GB300 (products of 4,096 to 16,384 with 8 rows;
# aiconfigurator-core). Experts' grouped kernels keep bf16's rate.
FP4_STREAM = 0.84
# Rows of the tiles of experts' grouped kernels, least and most: about an expert's mean rows. How many an expert has differs from one to the
# next, so that on average half a tile of each is padding.
EXPERT_TILES = (16.0, 128.0)
# Tensor cores that multiply no 4-bit floats take no scales of blocks of weights (``model.fp8_block_scales``): sums of 128 products are
# scaled and added outside of them. Of fp8's rate experts' grouped kernels keep no more than so much then: on H100 and H200
# 410 to 540 TFLOP/s under TensorRT-LLM, 700 under SGLang, 560 under vLLM, with one scale a tensor 730 to 870; other products 1,070, 1,200
# and 1,150 for 1,200 (aiconfigurator-core 0.12, 16,384 tokens).
BLOCK_SCALED_RATE = {"routed": 0.5, "plain": 0.74}
# FLOP a clock and SM that grouped kernels of experts reach at most where they widen 4-bit weights on the way to the tensor cores, by the
# workload's precision: Marlin's of int4 910 on A100, 1,030 on H100 and H200, 980 on B200, since its instructions are those of Ampere;
# MXFP4's on Hopper 1,550 under TensorRT-LLM, 1,050 under SGLang, 2,300 under vLLM (aiconfigurator-core 0.12, 8,192 tokens and more).
WIDENED_EXPERTS = {"int4": 1000.0, "fp4": 1550.0}
MADE_FOR_DECODING: tuple[AttentionKernel, ...] = ("cudnn", "ck", "triton")
ONE_SHOT, TWO_SHOT = 1.0, 2.0  # rounds of a fused all-reduce: each rank reads all buffers; or reads its share of all, then all shares


@dataclass(frozen=True)
class KernelCost:
    """Seconds, FLOP, HBM bytes and joules, ``(n,)`` each; of products also how many of them cast their input to a narrow type, and how
    many such casts take as long as theirs do (``waits``: ``CASTS``)."""

    seconds: FloatColumn
    flops: FloatColumn
    hbm_bytes: FloatColumn
    joules: FloatColumn
    casts: int = 0
    waits: float = 0.0

    def times(self, share: FloatColumn | float) -> KernelCost:
        """So many times the same."""
        return KernelCost(self.seconds * share, self.flops * share, self.hbm_bytes * share, self.joules * share, self.casts, self.waits)

    def __add__(self, other: KernelCost) -> KernelCost:
        """This, then the other."""
        seconds, flops, hbm_bytes, joules = (
            getattr(self, name) + getattr(other, name) for name in ("seconds", "flops", "hbm_bytes", "joules")
        )
        return KernelCost(seconds, flops, hbm_bytes, joules, self.casts + other.casts, self.waits + other.waits)


def price_products(scenario: Scenario, products: Sequence[Product], device: OperatorModel, *, decoding: bool) -> KernelCost:
    """The products of a layer one after the other; each distinct shape is priced once.

    Prefill is as training: products hold less than in short benchmarks (``hw.efficiency.sustained``), since they draw the chip's power.
    Those of a decode step do so for the share of their time in which the tensor cores are busy.
    """
    return price_groups(scenario, [products], device, decoding=decoding)[0]


def price_groups(scenario: Scenario, groups: Sequence[Sequence[Product]], device: OperatorModel, *, decoding: bool) -> list[KernelCost]:
    """``price_products`` of several groups of products, all of one number of rows: those that run alike are priced together."""
    run: dict[tuple[str, ExpertProducts], list[Product]] = {}
    counts: list[dict[tuple[str, ExpertProducts], int]] = []
    for products in groups:
        counts.append({})
        for product in products:
            form = scenario.software.experts.expert_products if product.matmul.routed else "streams"
            way = product_precision(scenario, product), form
            run.setdefault(way, []).append(product)
            counts[-1][way] = counts[-1].get(way, 0) + 1
    columns = {way: iter(_product_columns(scenario, several, way, device, decoding)) for way, several in run.items()}
    return [_kernel_cost({way: [next(columns[way]) for _ in range(count)] for way, count in own.items()}) for own in counts]


def _kernel_cost(columns: Mapping[tuple[str, ExpertProducts], Sequence[FloatColumn]]) -> KernelCost:
    """What products cost one after the other; ``columns`` of each by the precision that it runs in, ``(4, n_rows)``."""
    seconds, flops, hbm_bytes, joules = added([added(several) for several in columns.values()])
    cast = [(len(several), CASTS.get(precision, 0.0)) for (precision, _), several in columns.items()]
    casts, waits = sum(count * (wait > 0) for count, wait in cast), sum(count * wait for count, wait in cast)
    return KernelCost(seconds, flops, hbm_bytes, joules, casts, waits)


def _product_columns(
    scenario: Scenario, products: Sequence[Product], way: tuple[str, ExpertProducts], device: OperatorModel, decoding: bool
) -> FloatColumn:
    """Seconds, FLOP, HBM bytes and joules of products of one precision and form, ``(n_products, 4, n_rows)``."""
    hw, (precision, form) = scenario.hw, way
    rows = len(products[0].matmul.m)
    shapes = np.empty((4, len(products), rows))
    for place, product in enumerate(products):
        matmul = product.matmul
        for axis, size in enumerate((matmul.m, matmul.n, matmul.k, matmul.batch)):
            shapes[axis, place] = size
    m, n, k, batch = shapes.reshape(4, -1)
    arithmetic, routed = hw.arithmetic(precision), np.repeat([product.matmul.routed for product in products], rows)
    padded = m + routed * np.clip(m, *EXPERT_TILES) / 2 if form == "streams" else m
    cost = distinct_seconds(device, np.stack([padded, n, k, batch], axis=1), form, arithmetic)
    weights, rate = batch * n * k * WEIGHT_BYTES[precision], hw.memory.bandwidth * hw.efficiency.memory
    if precision in WEIGHTS_ALONE:  # the kernel reads narrow weights: what HBM's time of wide ones has no longer
        wide = 2.0 * batch * n * k / rate
        cost = cost - (wide - weights / rate) * np.minimum(1.0, wide / cost) ** 4
    cost = _beside_tensor_cores(scenario, precision, cost, 2.0 * batch * padded * n * k, routed)
    if arithmetic == "fp4":
        bare = weights * PRECISION_BYTES["fp4"] / WEIGHT_BYTES["fp4"]
        cost = cost + _scales_read(routed, weights, bare, (cost - hw.kernel_latency) * rate) / rate
    work = 2.0 * batch * m * n * k
    cost = slowed(hw, cost, work, arithmetic) if decoding else cost / hw.efficiency.sustained
    hbm_bytes = weights + 2.0 * batch * m * (n + k)
    spent = product_energy(hw, arithmetic, work) + moved_energy(hw, hbm_bytes)
    if precision in WEIGHTS_ALONE:  # once on the chip, they are 16 bits wide
        spent = spent + (2.0 * batch * n * k - weights) * hw.energy.l2
    return np.stack([column.reshape(len(products), rows) for column in (cost, work, hbm_bytes, spent)], axis=1)


def _beside_tensor_cores(
    scenario: Scenario, precision: str, seconds: FloatColumn, work: FloatColumn, routed: NDArray[np.bool_]
) -> FloatColumn:
    """Seconds of products with such weights, of so many FLOP, where scales or widening keep the tensor cores waiting; ``seconds`` where
    nothing does."""
    hw = scenario.hw
    if precision == "int4":
        widened = hw.kernel_latency + work / (WIDENED_EXPERTS[scenario.workload.precision] * hw.sms * hw.clock)
        return np.where(routed, np.maximum(seconds, widened), seconds)
    if precision == "fp8" and scenario.model.scaled_in_blocks and "fp4" not in hw.precisions:
        rate = hw.peak_flops("fp8") * hw.efficiency.clock * hw.efficiency.tensor
        share = np.where(routed, BLOCK_SCALED_RATE["routed"], BLOCK_SCALED_RATE["plain"])
        return np.maximum(seconds, hw.kernel_latency + work / (rate * share))
    return seconds


def _scales_read(routed: NDArray[np.bool_], weights: FloatColumn, bare: FloatColumn, streamed: FloatColumn) -> FloatColumn:
    """Bytes as which scales count beside 4-bit weights, where these set the pace.

    Args:
        routed: products of experts; weights: bytes with scales; bare: without; streamed: bytes that HBM gives in a product's time without
            them, its start left out.
    """
    return np.asarray((weights / np.where(routed, 1.0, FP4_STREAM) - bare) * np.minimum(1.0, bare / streamed) ** 4)


def slowed(hw: Hardware, seconds: FloatColumn, work: FloatColumn, precision: str) -> FloatColumn:
    """Seconds of a decode step's kernels of so many FLOP under sustained load, which lowers the clock for the share of their time in which
    the tensor cores are busy: HBM keeps its pace."""
    busy = np.minimum(1.0, work / hw.peak_flops(precision) / seconds)
    return np.asarray(seconds * (1.0 + (1.0 / hw.efficiency.sustained - 1.0) * busy))


def over_windows(scenario: Scenario, priced: Callable[[Scenario], KernelCost]) -> KernelCost:
    """Attention of the mean layer of a model whose layers have windows of several lengths, or some none; ``priced``: of a scenario in
    which all layers have one."""
    windows = Counter(scenario.model.windows)
    if len(windows) == 1:
        return priced(scenario)
    sums = []
    for window, layers in windows.items():
        alike = scenario.model.model_copy(update={"sliding_window": window, "layer_types": None})
        sums.append(priced(scenario.model_copy(update={"model": alike})).times(layers / windows.total()))
    return sum(sums[1:], sums[0])


def decode_kernel(scenario: Scenario) -> AttentionKernel:
    """The kernel of a decode step's attention.

    One that is made for decoding pads a block of queries to one instruction's rows; its speed is taken for that of cuDNN's, or of the
    nearest such kernel that is built for the chip.
    """
    built = [kernel for kernel in MADE_FOR_DECODING if kernel in scenario.hw.attention_kernels]
    own = scenario.software.serving.decode_attention == "own" and scenario.attention_kernel not in UNFUSED
    return built[0] if own and built else scenario.attention_kernel


def prefill_attention(
    scenario: Scenario,
    cut: Degrees,
    sequences: FloatColumn,
    queries: FloatColumn | float,
    keys: FloatColumn | float,
    device: OperatorModel,
) -> KernelCost:
    """Causal attention of one layer over prompts: ``sequences`` of them on a rank, of whose ``keys`` tokens the last ``queries`` are
    computed."""
    model = scenario.model
    heads, kv_heads, width, value = _heads(scenario, cut, absorbed=False)
    shared = np.maximum(1.0, queries / cut.cp)
    sizes = AttentionSizes(sequences, heads, kv_heads, shared, keys, width, value, model.sliding_window)
    kernel, generation = scenario.attention_kernel, scenario.software.kernels.library_generation
    call = AttentionCall(kernel=kernel, precision=_attention_precision(scenario), generation=generation)
    seconds = device.attention(sizes, call) / scenario.hw.efficiency.sustained
    seen = _seen(keys, queries, model.sliding_window)
    flops = 2.0 * sequences * heads * shared * seen * (width + value)
    hbm_bytes = 2.0 * sequences * (heads * shared * 2 + kv_heads * keys) * (width + value) / 2
    joules = attention_energy(scenario.hw, _attention_precision(scenario), kernel, flops) + moved_energy(scenario.hw, hbm_bytes)
    return KernelCost(seconds, flops, hbm_bytes, joules)


def _seen(keys: FloatColumn | float, queries: FloatColumn | float, window: int | None) -> FloatColumn:
    """Keys that a query sees on average where ``queries`` end a sequence of ``keys``."""
    positions = np.linspace(keys - queries, keys, 33, axis=-1)
    return np.asarray(np.ascontiguousarray(np.minimum(positions + 0.5, window or np.inf)).mean(axis=-1))


def decode_attention(
    scenario: Scenario, cut: Degrees, rows: FloatColumn, context: FloatColumn | float, queries: float, device: OperatorModel
) -> KernelCost:
    """Attention of one layer of a decode step: ``rows`` sequences on a rank, each with ``queries`` new tokens that see ``context`` keys."""
    model = scenario.model
    keys = np.minimum(context, model.sliding_window or np.inf)
    kept = np.maximum(1.0, keys / cut.cp)  # ranks of cp each hold a share of the keys
    heads, kv_heads, width, value = _heads(scenario, cut, absorbed=True)
    cached = rows * kept * cache_a_rank(scenario, cut)
    flops = 2.0 * rows * heads * queries * kept * (width + value)
    precision = cache_precision(scenario)
    known = scenario.hw.precisions
    arithmetic = precision if precision in known and precision in ("fp8", "bf16", "fp16") else scenario.hw.arithmetic("int8")
    kernel, together = decode_kernel(scenario), queries * heads / kv_heads  # rows that share keys
    multiplied = flops * np.ceil(together / ATTENTION_ROWS) * ATTENTION_ROWS / together
    joules = attention_energy(scenario.hw, arithmetic, kernel, multiplied) + moved_energy(scenario.hw, cached)
    if model.kv_lora_rank and scenario.attention_kernel in UNFUSED:
        return KernelCost(_unfused_latents(scenario, heads * queries, rows, kept, device), flops, cached, joules)
    if model.kv_lora_rank:
        return KernelCost(_latent_decode(scenario, heads * queries, rows, kept, cached), flops, cached, joules)
    call = AttentionCall(kernel=kernel, precision=arithmetic, generation=scenario.software.kernels.library_generation)
    seconds = device.attention(AttentionSizes(rows, heads, kv_heads, queries, kept, width, value), call)
    if CACHE_BYTES[precision] != CACHE_BYTES.get(arithmetic, 2.0):  # narrow numbers are widened on their way, wide ones narrowed
        saved = (
            cached * (CACHE_BYTES[arithmetic] / CACHE_BYTES[precision] - 1) / (scenario.hw.memory.bandwidth * scenario.hw.efficiency.memory)
        )
        seconds = np.maximum(seconds - saved, seconds * 0.25)
    if kernel in MADE_FOR_DECODING:
        return KernelCost(slowed(scenario.hw, seconds, multiplied, arithmetic), flops, cached, joules)
    return KernelCost(seconds / scenario.hw.efficiency.sustained, flops, cached, joules)  # padded to a prompt's rows: products bind it


def _latent_decode(scenario: Scenario, queries: FloatColumn, rows: FloatColumn, keys: FloatColumn, cached: FloatColumn) -> FloatColumn:
    """Absorbed latent attention: all heads of a rank share each latent, which is read once; blocks split the keys over the SMs.

    Kernels for tensor cores with a memory of their own multiply latents of 8 bits as they are; others widen them. Of 128 heads on a B200
    TensorRT-LLM's take 0.6 of the time that 16 bits would (256 sequences of 8,192 tokens; aiconfigurator-core), on an H200 0.9.
    """
    hw, model = scenario.hw, scenario.model
    latent, rotary = model.kv_lora_rank or 0, model.qk_rope_head_dim or 0
    padded = np.ceil(queries / LATENT_ROWS) * LATENT_ROWS
    own = "fp8" if hw.tensor_memory and cache_precision(scenario) == "fp8" else scenario.hw.arithmetic("int8")
    busy = np.minimum(1.0, rows * np.maximum(1.0, keys / 256) / hw.sms)
    compute = 2.0 * rows * padded * keys * (2 * latent + rotary) / (hw.peak_flops(own) * LATENT_EFFICIENCY * busy)
    memory = cached / (hw.memory.bandwidth * hw.efficiency.memory)
    return np.asarray(np.maximum(compute, memory) + 2 * hw.kernel_latency)


def _unfused_latents(scenario: Scenario, queries: FloatColumn, rows: FloatColumn, keys: FloatColumn, device: OperatorModel) -> FloatColumn:
    """The same by two batched products, with the scores in HBM between them and their softmax in fp32."""
    model = scenario.model
    latent, rotary = model.kv_lora_rank or 0, model.qk_rope_head_dim or 0
    wide = scenario.hw.arithmetic("int8")  # 16 bits, whichever the chip has
    scores = device.gemm(queries, keys, latent + rotary, batch=rows, precision=wide)
    scores = scores + device.gemm(queries, latent, keys, batch=rows, precision=wide)
    softmax = device.elementwise(rows * queries * keys * FP32_SOFTMAX) + 3 * SMALLEST * scenario.hw.kernel_latency
    return np.asarray(scores + softmax, dtype=np.float64)


def cache_a_rank(scenario: Scenario, cut: Degrees) -> FloatColumn:
    """Bytes of the cache that a token leaves on a tensor-parallel rank in one layer; latents are whole on each."""
    model, width = scenario.model, CACHE_BYTES[cache_precision(scenario)]
    if model.kv_lora_rank:
        return np.full(len(cut.tp), cache_numbers(model) * width)
    return np.asarray(2.0 * local_kv_heads(model, cut.tp) * model.attention_head_dim * width)


def _heads(scenario: Scenario, cut: Degrees, absorbed: bool) -> tuple[FloatColumn, FloatColumn, float, float]:
    """Query heads, key heads, and widths of a key and a value, of a rank."""
    model = scenario.model
    heads = model.num_attention_heads / cut.tp
    if not model.kv_lora_rank:
        return heads, local_kv_heads(model, cut.tp), float(model.attention_head_dim), float(model.attention_head_dim)
    rotary = model.qk_rope_head_dim or 0
    if absorbed:
        return heads, np.ones_like(heads), float(model.kv_lora_rank + rotary), float(model.kv_lora_rank)
    return heads, heads, float((model.qk_nope_head_dim or 0) + rotary), float(model.v_head_dim or model.attention_head_dim)


def _attention_precision(scenario: Scenario) -> str:
    precision = scenario.workload.precision
    return precision if precision in ("fp32", "tf32", "bf16", "fp16") else scenario.hw.arithmetic("int8")


@dataclass(frozen=True)
class OwnSum:
    """A sum by a framework's own kernel, ``(n,)`` each.

    Seconds in ``one`` shot and in ``two``, infinite where it has none; whether it is taken in one whatever else is faster (``fixed``);
    ``least``: seconds of the largest that is, below which no larger one takes, and ``limit``, bytes of that one (0: none is).
    """

    one: FloatColumn
    two: FloatColumn
    fixed: NDArray[np.bool_]
    least: FloatColumn
    limit: float

    def shortest(self, library: FloatColumn) -> FloatColumn:
        """Seconds of the sum, where NCCL takes so long."""
        fastest = np.minimum(library, np.minimum(self.one, self.two))
        return np.where(self.fixed, self.one, np.maximum(fastest, self.least))


def small_all_reduce(scenario: Scenario, size: FloatColumn, span: Span) -> Transfer:
    """Sums ``size`` bytes over a group: NCCL's best, or within a node the framework's own kernel, which reads its peers' buffers over
    NVLink: all of them at once (one shot), or its share of them and then the others' shares (two shots), on the chips that it is built for
    (``fused_all_reduce``); of a pass of at most ``one_shot_tokens`` in one shot, whatever else is faster. The latency of its
    synchronisation is the framework's (``collective_latency``)."""
    library = transfer.all_reduce(size, span, effective_network(scenario))
    seconds = _own_sum(scenario, size, span).shortest(library.seconds)
    return Transfer(seconds, library.sent, np.minimum(library.busy, seconds))


def shots_of_sum(scenario: Scenario, size: FloatColumn, span: Span) -> tuple[NDArray[np.int64], FloatColumn]:
    """In how many shots a framework's own kernel takes such a sum, ``(n,)``: 1 or 2; 0 where NCCL is faster; and of how many bytes, less
    than all where a larger sum is taken to last as long as the largest in one shot."""
    own = _own_sum(scenario, size, span)
    library = transfer.all_reduce(size, span, effective_network(scenario)).seconds
    fastest = np.minimum(library, np.minimum(own.one, own.two))
    short = own.fixed | (fastest < own.least)
    shots = np.where(library < np.minimum(own.one, own.two), 0, np.where(own.one < own.two, 1, 2))
    return np.where(short, 1, shots), np.where(short & ~own.fixed, own.limit, size)


def _own_sum(scenario: Scenario, size: FloatColumn, span: Span) -> OwnSum:
    """The framework's own kernel; it has none beyond a node, and on chips that it is not built for."""
    inner, ranks, serving = effective_network(scenario).dimensions[0], span.members[0], scenario.software.serving
    rate = inner.bandwidth * inner.utilization

    def one_shot(bytes_: FloatColumn | float) -> FloatColumn:
        return np.asarray(bytes_ * (ranks - 1) / rate + ONE_SHOT * inner.latency)

    two = 2.0 * size * (ranks - 1) / ranks / rate + TWO_SHOT * inner.latency
    built = serving.fused_all_reduce
    inside = (span.size <= ranks) & (ranks > 1) & (built is None or scenario.hw.architecture in built)
    limit = float(serving.one_shot_tokens * scenario.model.hidden_size * ACTIVATION)
    return OwnSum(
        one=np.where(inside, one_shot(size), np.inf),
        two=np.where(inside, two, np.inf),
        fixed=inside & (size <= limit),
        least=np.where(inside & (limit > 0), one_shot(limit), 0.0),
        limit=limit,
    )


def exchange(scenario: Scenario, sent: FloatColumn, gathered: FloatColumn, span: Span, ep: IntColumn) -> Transfer:
    """Takes tokens to the ranks of their experts, or back: a gather of all ranks' tokens (``gathered`` bytes), or where experts lie on more
    ranks (``ep``) than a token has of them an all-to-all of ``sent`` bytes a rank, if that is faster."""
    network = effective_network(scenario)
    routed, whole = transfer.all_to_all(sent, span, network), transfer.all_gather(gathered, span, network)
    return transfer.either(_by_gathers(scenario, routed, whole, ep), whole, routed)


def exchanges_by_gathers(scenario: Scenario, sent: FloatColumn, gathered: FloatColumn, span: Span, ep: IntColumn) -> NDArray[np.bool_]:
    """Whether tokens are gathered."""
    network = effective_network(scenario)
    return _by_gathers(scenario, transfer.all_to_all(sent, span, network), transfer.all_gather(gathered, span, network), ep)


def _by_gathers(scenario: Scenario, routed: Transfer, whole: Transfer, ep: IntColumn) -> NDArray[np.bool_]:
    """On no more ranks than a token has experts nearly every rank needs every token, and frameworks gather them: TensorRT-LLM has no
    all-to-all there (``select_alltoall_method_type``), vLLM's default are gathers (``allgather_reducescatter``)."""
    return np.asarray((ep <= scenario.model.num_experts_per_tok) | (routed.seconds > whole.seconds))
