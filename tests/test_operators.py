"""What work a transformer is: shapes, parameters and FLOP, counted again by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from trials import layouts, priced, scenario

from rapid_dse.config import Model
from rapid_dse.config.run import Workload
from rapid_dse.device import operator_model
from rapid_dse.model.architecture import architecture, matrix_parameters, model_flops_per_token
from rapid_dse.model.layers.attention import local_kv_heads
from rapid_dse.model.layers.embedding import padded_vocab
from rapid_dse.model.parameters import count
from rapid_dse.model.shapes import MatMul, MicroBatch, mean_context
from rapid_dse.simulate.attention_times import attention_flops
from rapid_dse.simulate.layer_work import distinct_shapes
from rapid_dse.simulate.operator_times import elementwise_bytes, operators

NAMED = ("llama2_7b", "llama2_70b", "llama3_1_8b", "llama3_1_70b", "llama3_1_405b", "gpt3_175b")


def shape(tp: int = 1, cp: int = 1, micro_batch: int = 1, sequence_parallel: bool = False, seq_len: int = 8192) -> MicroBatch:
    return MicroBatch(
        np.array([tp]), np.array([cp]), np.array([1]), np.array([tp]), np.array([micro_batch]), np.array([sequence_parallel]), seq_len
    )


def layer_matmuls(model: Model, of: MicroBatch) -> list[MatMul]:
    """The products of the model's only kind of layer."""
    (kind,) = architecture(model).kinds
    return kind.products(of)


def changed(model: Model, **changes: object) -> Model:
    return Model.model_validate(model.model_dump() | changes)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("seq_len", [2048, 8192, 131072])
def test_model_flops_are_six_a_parameter_and_attention(name: str, seq_len: int) -> None:
    """6·N·D and, causal attention at half, 6·L·s·h a token: N all parameters but the look-up's, the head's included."""
    model = scenario(model=name).model
    counted = count(model)
    n = counted.total - counted.embedding - counted.positions + (counted.embedding if model.tie_word_embeddings else 0)
    attention = 6 * model.num_hidden_layers * seq_len * model.num_attention_heads * model.attention_head_dim
    assert model_flops_per_token(model, Workload(seq_len=seq_len)) == pytest.approx(6 * n + attention, rel=0.01)


def test_matrices_of_llama_8b_by_hand() -> None:
    model = scenario(model="llama3_1_8b").model
    layer = 4096 * 4096 * 2 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    assert matrix_parameters(model) == 32 * layer + 4096 * 128256


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize(("tp", "cp", "micro_batch"), [(1, 1, 1), (2, 1, 4), (8, 1, 2), (4, 2, 1), (8, 4, 3)])
def test_ranks_together_do_the_models_work(name: str, tp: int, cp: int, micro_batch: int) -> None:
    """Products of all tensor- and context-parallel ranks are those of the layer, each once (no KV head is replicated here)."""
    of = scenario(model=name)
    model, one = of.model, shape(tp, cp, micro_batch)
    per_layer = sum(float((2 * each.m * each.n * each.k)[0]) for each in layer_matmuls(model, one))
    tokens = micro_batch * 8192
    matrices = (matrix_parameters(model) - model.hidden_size * model.vocab_size) / model.num_hidden_layers
    assert per_layer * tp * cp == pytest.approx(2 * tokens * matrices)
    width = model.num_attention_heads * model.attention_head_dim
    assert float(attention_flops(architecture(model).kinds[0].attention(one), one)[0]) * tp * cp == pytest.approx(2 * tokens * 8192 * width)
    (head,) = architecture(model).head.products(one)
    assert float((head.m * head.n * head.k)[0]) * tp * cp == tokens * model.hidden_size * float(padded_vocab(model, one.tp)[0])


def test_the_vocabulary_is_padded_to_whole_shares() -> None:
    gpt = scenario(model="gpt3_175b").model
    assert padded_vocab(gpt, np.array([1, 2, 8, 16])).tolist() == [50304, 50432, 51200, 51200]  # 50,257, Megatron's padding


def test_kv_heads_are_replicated_where_tp_exceeds_them() -> None:
    model = scenario(model="llama3_1_70b").model  # 8 key-value heads
    assert local_kv_heads(model, np.array([1, 4, 8, 16, 64])).tolist() == [8, 2, 1, 1, 1]
    qkv = layer_matmuls(model, shape(tp=16))[0]
    assert float(qkv.n[0]) == (64 / 16 + 2) * 128
    eight, sixteen = priced(scenario(model="llama3_1_70b"), {"tp": 8, "pp": 2}, {"tp": 16}).memory_parameters_bytes
    layer = 8192 * 128 * (2 * 4 + 2 * 1) + 3 * 8192 * 28672 / 16 + 2 * 8192
    assert sixteen == pytest.approx(2 * (80 * layer + 2 * 8192 * 129024 / 16))  # 128,256 padded to a multiple of 2,048
    assert eight > sixteen * 0.9


def test_heads_may_be_wider_than_the_stream() -> None:
    """head_dim ≠ hidden / heads (as in Qwen 3, Gemma): projections follow the heads."""
    model = changed(scenario(model="llama3_1_8b").model, head_dim=256)
    qkv, output, *_ = layer_matmuls(model, shape(tp=2))
    assert (float(qkv.n[0]), float(qkv.k[0])) == ((16 + 2 * 4) * 256, 4096)
    assert (float(output.n[0]), float(output.k[0])) == (4096, 16 * 256)
    wider = matrix_parameters(model) - matrix_parameters(scenario(model="llama3_1_8b").model)
    assert wider == 32 * 4096 * 128 * (2 * 32 + 2 * 8)


@pytest.mark.parametrize(("window", "seq_len"), [(None, 4096), (1, 1000), (1024, 4096), (3000, 4096), (4096, 4096), (9999, 4096)])
def test_context_of_a_sliding_window_is_counted_key_by_key(window: int | None, seq_len: int) -> None:
    model = changed(scenario().model, sliding_window=window)
    seen = sum(min(query + 1, window or seq_len) for query in range(seq_len)) / seq_len
    assert mean_context(window, seq_len) == pytest.approx(seen, abs=0.5)
    width = model.num_attention_heads * model.attention_head_dim
    attention = model_flops_per_token(model, Workload(seq_len=seq_len)) - 6 * matrix_parameters(model)
    assert attention == pytest.approx(12 * model.num_hidden_layers * width * mean_context(window, seq_len), rel=1e-6)


@pytest.mark.parametrize("software", ["megatron_lm", "torchtitan"])
def test_a_window_makes_attention_faster_with_and_without_context_parallelism(software: str) -> None:
    """A window of an eighth leaves 3,840 of the 16,384 keys that a query sees on average; the kernels gain at least twice."""
    seconds = {}
    for window in (None, 4096, 32768):
        of = scenario(software=software, model__sliding_window=window, workload__seq_len=32768)
        table, _ = distinct_shapes(layouts({"cp": 1}, {"cp": 4}), Workload(seq_len=32768))
        seconds[window] = operators(of, table, operator_model(of.hw)).layers[0].attention_forward
    assert (seconds[4096] < 0.5 * seconds[None]).all()
    np.testing.assert_allclose(seconds[32768], seconds[None])


def test_glue_by_hand() -> None:
    """Bytes of fused passes over a layer of Llama 8B with tp 4: with sequence parallelism the stream is shared too."""
    of = scenario(model="llama3_1_8b")
    tokens, stream = 2 * 8192, 2 * 8192 * 4096 * 2
    rotary, wide = tokens * 128 * (8 + 2) * 2, tokens * 3584 * 2
    for sequence_parallel, shared in ((False, 1), (True, 4)):
        forward, backward = elementwise_bytes(of, architecture(of.model).kinds[0], shape(4, 1, 2, sequence_parallel))
        assert forward[0] == 10 * stream / shared + 2 * rotary + 3 * wide
        assert backward[0] == 10 * stream / shared + 2 * rotary + 5 * wide


def test_more_of_a_parallelism_is_never_more_work_a_rank() -> None:
    of = scenario(model="llama3_1_70b")
    device = operator_model(of.hw)
    for tp, cp in itertools.product((1, 2, 4, 8), (1, 2, 4)):
        table, where = distinct_shapes(
            layouts({"tp": tp, "cp": cp}, {"tp": tp * 2, "cp": cp}, {"tp": tp, "cp": cp * 2}), Workload(seq_len=8192)
        )
        found = operators(of, table, device)
        (layer,) = found.layers
        products = layer.matmul_seconds.sum(axis=(0, 1)) + found.head.seconds.sum(axis=0)
        seconds = (products + layer.attention_forward + layer.attention_backward)[where]
        assert seconds[1] < seconds[0]
        assert seconds[2] < seconds[0]


def test_gathered_shapes_are_those_of_each_layout() -> None:
    table = layouts(*({"tp": tp, "cp": cp, "micro_batch_size": b} for tp in (8, 1, 2) for cp in (2, 1) for b in (4, 1, 2)))
    distinct, where = distinct_shapes(table, Workload(seq_len=8192))
    for name in ("tp", "cp", "micro_batch_size", "sequence_parallel"):
        np.testing.assert_array_equal(getattr(distinct, name)[where], getattr(table, name))


@pytest.mark.parametrize(
    ("library", "recipe", "bytes_"),
    [
        # input (tokens x hidden) and output gradient (tokens x 14336 of the up projection's two halves) once each, 2 bytes read, 2 written
        ("transformer_engine", "delayed", 4 * 8192 * (4096 + 2 * 14336)),
        # the same, and 2 bytes more read to find the largest element first
        ("transformer_engine", "tensorwise", 6 * 8192 * (4096 + 2 * 14336)),
        # both operands of all three products, 2 read for the largest, 2 read and 1 written: input, weight; output gradient, weight; output
        # gradient, input
        ("torchao", "tensorwise", 5 * 2 * (8192 * 4096 + 8192 * 2 * 14336 + 4096 * 2 * 14336)),
        # weights come in 8 bits
        ("torchao", "tensorwise + fp8 all-gather", 5 * 2 * (8192 * 4096 + 8192 * 2 * 14336)),
        ("torchao", "rowwise", 4 * 3 * 2 * (8192 * 4096 + 8192 * 2 * 14336 + 4096 * 2 * 14336)),
    ],
)
def test_casts_of_an_fp8_product_by_hand(library: str, recipe: str, bytes_: float) -> None:
    """Llama 3.1 8B's gate and up projection, 8,192 tokens."""
    of = scenario(workload__precision="fp8", software__fp8_library=library, software__fp8_recipe=recipe)
    priced_alone = operators(of, shape(), operator_model(of.hw))
    names = [each.name for each in layer_matmuls(of.model, shape())]
    assert priced_alone.layers[0].cast_bytes[:, names.index("mlp_up"), 0].sum() == pytest.approx(bytes_)


@pytest.mark.parametrize(
    ("name", "bytes_"),
    [
        # forward an eighth of the tokens' input and the rank's weights, backward the rank's columns of the gradient and its weights, 5
        # bytes an element; both operands of the weight gradient are copied in 8 bits
        ("mlp_up", (5 * (8192 / 8 * 4096 + 3584 * 4096), 5 * (8192 * 3584 + 3584 * 4096), 2 * 8192 * (4096 + 3584))),
        # forward the rank's columns of the input, backward an eighth of the tokens' gradient
        ("mlp_down", (5 * (8192 * 1792 + 1792 * 4096), 5 * (8192 / 8 * 4096 + 1792 * 4096), 2 * 8192 * (4096 + 1792))),
    ],
)
def test_casts_before_a_gather_are_of_a_ranks_own_tokens(name: str, bytes_: tuple[float, float, float]) -> None:
    """Llama 3.1 8B on 8 tensor-parallel ranks under torchao's float8 tensor parallelism, which casts what it gathers before."""
    of = scenario(workload__precision="fp8", software__fp8_library="torchao", software__fp8_recipe="tensorwise")
    ranks = shape(tp=8, sequence_parallel=True)
    names = [product.name for product in layer_matmuls(of.model, ranks)]
    cast = operators(of, ranks, operator_model(of.hw)).layers[0].cast_bytes[:, names.index(name), 0]
    assert cast == pytest.approx(bytes_)


def test_separate_projections_are_products_of_their_own() -> None:
    """Llama 3.1 8B's 32 heads of queries and 8 of keys and of values, 128 wide, and the two halves of its gate of 14,336."""
    of = scenario(software__separate_projections="copied", software__fused_accumulation=False)
    device, tokens, hidden = operator_model(of.hw), 8192, 4096
    names = [product.name for product in layer_matmuls(of.model, shape())]
    seconds = operators(of, shape(), device).layers[0].matmul_seconds[:, :, 0]
    for name, columns in (("qkv", (4096, 1024, 1024)), ("mlp_up", (14336, 14336)), ("mlp_down", (4096,))):
        rows = 14336 if name == "mlp_down" else hidden
        sizes = [((tokens, wide, rows), (tokens, rows, wide), (wide, rows, tokens)) for wide in columns]
        expected = [sum(float(device.gemm(*one[direction], precision="bf16")) for one in sizes) for direction in range(3)]
        assert seconds[:, names.index(name)] * of.hw.efficiency.sustained == pytest.approx(expected)
