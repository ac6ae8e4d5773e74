"""What an engine's GPU holds: weights, cache, activations, workspace; and how many requests run in what is left."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.model.layers.embedding import padded_vocab
from rapid_dse.parallel.engines import Degrees
from rapid_dse.simulate.inference.passes import Lengths, all_products, drafting
from rapid_dse.simulate.inference.products import Product, dense_layers
from rapid_dse.simulate.inference.served_kernels import cache_a_rank
from rapid_dse.simulate.inference.widths import ACTIVATION, WEIGHT_BYTES, product_precision

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class Room:
    """Bytes of the worst GPU of an engine, ``(n,)`` each, and the requests that its cache holds.

    ``weights`` are all parameters; ``activations`` of the largest step; ``buffers`` what the framework holds beside; ``cache`` what is left
    for the KV cache under ``software.memory_fraction``; ``a_request`` what a request takes of it on average, with its ``prompt`` alone, and
    with its last token, of the longest (``ended``); ``requests``: how many run on an attention rank at most, at least 1.
    """

    weights: FloatColumn
    activations: FloatColumn
    buffers: FloatColumn
    cache: FloatColumn
    a_request: FloatColumn
    prompt: FloatColumn
    ended: FloatColumn
    requests: FloatColumn


def room(scenario: Scenario, cut: Degrees, lengths: Lengths | None = None) -> Room:
    """What each engine holds, whatever it is asked for; ``lengths``: of a request's prompt, and what is generated; None: the scenario's."""
    software, usable = scenario.software, scenario.hw.memory.usable
    weights, activations = weight_bytes(scenario, cut), activation_bytes(scenario, cut)
    buffers = np.full(len(cut.tp), software.serving.workspace)
    weights_and_buffers = weights + activations + buffers
    share = software.serving.memory_fraction
    kv_memory = np.maximum(
        0.0,
        share * (usable - weights_and_buffers) if software.serving.memory_fraction_of == "rest" else share * usable - weights_and_buffers,
    )
    prompt, generated = scenario.workload.lengths if lengths is None else lengths
    longest = (prompt + generated) * (1.0 + scenario.workload.length_spread)
    average = longest if software.serving.reserves_whole_requests else prompt + generated / 2.0
    a_request = request_bytes(scenario, cut, average)
    most = np.minimum(np.floor(kv_memory / a_request), float(software.serving.max_num_seqs))
    with_prompt, ended = (request_bytes(scenario, cut, tokens) for tokens in (prompt, longest))
    return Room(weights, activations, buffers, kv_memory, a_request, with_prompt, ended, np.maximum(1.0, most))


def request_bytes(scenario: Scenario, cut: Degrees, tokens: FloatColumn | float) -> FloatColumn:
    """Bytes of the cache of a GPU that a request of so many tokens takes.

    A stage of a pipeline has its layers' share, the last one the layer that makes drafts. Tokens that a window has passed are dropped.
    """
    model = scenario.model
    windows = Counter(model.windows)
    seen = sum(layers * np.minimum(tokens, window or np.inf) for window, layers in windows.items()) / windows.total()
    layers = np.ceil(model.num_hidden_layers / cut.pp)
    if scenario.workload.draft_tokens:
        layers = np.maximum(layers, model.num_hidden_layers // cut.pp + 1)
    return np.asarray(cache_a_rank(scenario, cut) * seen * layers / cut.cp)


def weight_bytes(scenario: Scenario, cut: Degrees) -> FloatColumn:
    """Bytes of a GPU's weights, of the stage that has most: those of its layers, and of embedding and head on the ends of a pipeline; where
    drafts are made, the last stage has the layer that makes them."""
    model, body = scenario.model, _layers_bytes(scenario, cut)
    layers = model.num_hidden_layers
    tables = np.where(cut.pp > 1, 1.0, 1.0 if model.tie_word_embeddings else 2.0)
    ends = tables * padded_vocab(model, cut.tp) / cut.tp * model.hidden_size * ACTIVATION
    stage = body * np.ceil(layers / cut.pp) / layers
    if scenario.workload.draft_tokens:
        stage = np.maximum(stage, body * (layers // cut.pp) / layers + _layers_bytes(drafting(scenario), cut))
    return np.asarray(stage + ends)


def _layers_bytes(scenario: Scenario, cut: Degrees) -> FloatColumn:
    """Bytes of the weights of all layers, on a GPU of a single stage."""
    model, ones = scenario.model, np.ones(len(cut.tp))
    dense, layers = dense_layers(model), model.num_hidden_layers
    bytes_: dict[str, FloatColumn] = {"attention": 0 * ones, "mlp": 0 * ones, "experts": 0 * ones}
    for product in all_products(scenario, cut, ones * 1e9, decoding=False):  # so many tokens that every expert is there
        bytes_[product.part] = bytes_[product.part] + _stored(scenario, product)
    count = {"attention": layers, "mlp": dense, "experts": layers - dense}
    return sum((bytes_[part] * count[part] for part in bytes_), 0 * ones)


def _stored(scenario: Scenario, product: Product) -> FloatColumn:
    matmul = product.matmul
    return np.asarray(matmul.batch * matmul.n * matmul.k * WEIGHT_BYTES[product_precision(scenario, product)])


def activation_bytes(scenario: Scenario, cut: Degrees) -> FloatColumn:
    """Bytes alive at the widest point of the largest step: the stream and its copy, and what goes into and comes out of the MLP's
    activation, or of the experts'; logits of all sequences that run."""
    model, software = scenario.model, scenario.software
    tokens = float(software.serving.max_batched_tokens)
    wide = model.intermediate_size
    if model.num_experts:
        wide = max(model.n_shared_experts * model.moe_intermediate_size, wide * (dense_layers(model) > 0))
    stream = tokens * ACTIVATION * (2.0 * model.hidden_size + 3.0 * wide / cut.wide * cut.attention_dp) + _routed(scenario, cut, tokens)
    logits = min(software.serving.max_num_seqs, tokens) * 4.0 * padded_vocab(model, cut.tp) / cut.tp
    return np.asarray(np.maximum(stream, logits))


def _routed(scenario: Scenario, cut: Degrees, tokens: float) -> FloatColumn:
    """Bytes of the experts' buffers: a row for each of the k copies of every token that reaches the stage, since they are there before it
    is known which of them stay on a rank. A row is a copy's input and output, and both halves and the result of the activation."""
    model = scenario.model
    if not model.num_experts:
        return np.zeros(len(cut.tp))
    narrow = min(ACTIVATION, WEIGHT_BYTES[scenario.workload.precision])
    rows = tokens * cut.attention_dp * model.num_experts_per_tok
    inside = (2.0 * ACTIVATION + narrow) * model.moe_intermediate_size / cut.etp
    return np.asarray(rows * ((ACTIVATION + narrow) * model.hidden_size + inside))
