"""Inference priced in closed form: from a scenario and a table of engines to result columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import added
from rapid_dse.config.scenario import Scenario
from rapid_dse.cost.energy import gpu_energy, site_energy
from rapid_dse.device import operator_model
from rapid_dse.interconnect import closed_form
from rapid_dse.model.architecture import head_matrix_parameters, matrix_parameters
from rapid_dse.model.shapes import mean_context
from rapid_dse.parallel.engines import NOT_GIVEN, Degrees, Engines
from rapid_dse.parallel.layouts import POOLS, Layouts
from rapid_dse.simulate.inference.crowds import Load
from rapid_dse.simulate.inference.distinct_steps import AskedEngines, Between, Costs, costs
from rapid_dse.simulate.inference.joined_engines import joined
from rapid_dse.simulate.inference.passes import EnginePass
from rapid_dse.simulate.inference.pools import ALONE, Handover, Pools
from rapid_dse.simulate.inference.serving import Engine, Served
from rapid_dse.simulate.results import REQUEST_COSTS, Priced

FloatColumn = NDArray[np.float64]
BoolColumn = NDArray[np.bool_]

ROUNDS_SENT = 10.0  # prompts that benchmarks send for each request under way: a closed loop's where its row does not say
CUT = ("tp", "attention_dp", "cp", "pp", "ep", "etp")


@dataclass(frozen=True)
class System:
    """What comes of a system of engines, ``(n_rows,)`` each: how a request fares, the engines that it decodes on and those of its prompt
    (the same but in pools), and how many such systems there are."""

    served: Served
    engine: Engine
    prompts: Engine
    replicas: FloatColumn

    @property
    def step(self) -> EnginePass:
        """A decode step by what takes it."""
        return self.served.step.all_of(self.engine.decode_pass)

    @property
    def prefill(self) -> EnginePass:
        """The pass that takes a prompt by what takes it."""
        return self.served.prefill.all_of(self.prompts.prefill_pass)

    @property
    def has_room(self) -> BoolColumn:
        """Whether the cache holds one whole request, and that of a pool of prompts its prompt."""
        decoding, prompts = self.engine.costs.room, self.prompts.costs.room
        whole, prompt = decoding.cache >= decoding.ended, prompts.cache >= prompts.prompt
        return np.asarray(whole[self.engine.kind] & prompt[self.prompts.kind])


def price(scenario: Scenario, layouts: Layouts) -> Priced:
    """Prices legal, resolved engines.

    Returns:
        result columns, ``(n_layouts,)`` each, SI units.

    Raises:
        ValueError: where the network has no closed form, or the chip lacks the precision.
    """
    assert isinstance(layouts, Engines)
    if not scenario.model.of_kind.decodes:
        from rapid_dse.simulate.inference import one_pass  # with what prices training: where a model runs as in training

        return request_costs(scenario, layouts, *one_pass.price_batches(scenario, layouts))
    return served(scenario, layouts, prepare(scenario, layouts))


def price_together(tables: Sequence[tuple[Scenario, Engines]]) -> list[Priced]:
    """``price`` of tables of models that decode, whose scenarios differ in nothing but the lengths of their requests.

    Raises:
        ValueError: as ``price``.
    """
    alike: dict[Hashable, list[int]] = {}
    for at, (scenario, layouts) in enumerate(tables):
        kinds = (layouts.batch_size > 0, layouts.request_rate > 0, layouts.concurrency > 0)
        of_load = (scenario.workload.lengths[1] > 1, *(bool(rows.any()) for rows in kinds))
        alike.setdefault(at if layouts.pooled.any() else of_load, []).append(at)
    ready, priced = prepare_together(tables), dict[int, Priced]()
    for places in alike.values():
        several, ends = [(*tables[at], ready[at]) for at in places], np.cumsum([len(tables[at][1]) for at in places]).tolist()
        whole = served(*several[0]) if len(several) == 1 else _served_together(several)
        priced |= {at: whole.part(slice(end - len(tables[at][1]), end)) for at, end in zip(places, ends, strict=True)}
    return [priced[at] for at in range(len(tables))]


def _served_together(tables: Sequence[tuple[Scenario, Engines, list[PreparedEngines]]]) -> Priced:
    """Results of engines without pools whose passes are priced, one table behind the other."""
    scenario, layouts = tables[0][0], Engines.concatenate([layouts for _, layouts, _ in tables])
    engine = joined([Engine(own, part.costs[0], part.kinds[0]) for own, _, (part,) in tables])
    system = System(engine.serve(load_of(layouts)), engine, engine, _busy(layouts))
    flops = np.repeat([_flops(own) for own, _, _ in tables], [len(table) for _, table, _ in tables])
    return _results(scenario, layouts, system, flops)


@dataclass(frozen=True)
class PreparedEngines:
    """Rows of a table (``rows``, positions) that all have pools, or all have none, with what their engines cost alone: of a prefill pool
    and of a decode pool, or twice the same; ``kinds``: which of these each row has; ``handover`` from pool to pool beside other traffic."""

    rows: NDArray[np.int64]
    costs: tuple[Costs, Costs]
    kinds: tuple[NDArray[np.intp], NDArray[np.intp]]
    handover: Handover = ALONE


def prepare(scenario: Scenario, layouts: Engines) -> list[PreparedEngines]:
    """Prices the passes of all ways that the engines are cut: what a fit of latencies needs once.

    Raises:
        ValueError: where the network has no closed form, or the chip lacks the precision.
    """
    return prepare_together([(scenario, layouts)])[0]


def prepare_together(tables: Sequence[tuple[Scenario, Engines]]) -> list[list[PreparedEngines]]:
    """``prepare`` of tables whose scenarios differ in nothing but the lengths of their requests: their passes are priced as one table."""
    hw = tables[0][0].hw
    closed_form.require_closed_form(hw.network)
    parts = [(table, *part) for table, (scenario, layouts) in enumerate(tables) for part in _asked_of(scenario, layouts)]
    priced = iter(costs([asked for _, _, several, _ in parts for asked in several], operator_model(hw)) if parts else ())
    engines: list[list[PreparedEngines]] = [[] for _ in tables]
    for table, rows, several, kinds in parts:
        own = [next(priced) for _ in several]
        engines[table].append(PreparedEngines(rows, (own[0], own[-1]), (kinds[0], kinds[-1])))
    return engines


def _asked_of(scenario: Scenario, layouts: Engines) -> Iterator[tuple[NDArray[np.int64], list[AskedEngines], list[NDArray[np.intp]]]]:
    """Rows without pools, and rows with pools, where there are any: the engines or pools asked for, and each row's kind of these."""
    for rows, pools in ((np.flatnonzero(~layouts.pooled), (None,)), (np.flatnonzero(layouts.pooled), POOLS)):
        if len(rows):
            table = layouts.take(rows) if len(rows) < len(layouts) else layouts
            most = _most(scenario, table, load_of(table))
            alike = [_alike(table, pool) for pool in pools]
            yield rows, [AskedEngines(scenario, cut, most) for cut, _ in alike], [kind for _, kind in alike]


def served(scenario: Scenario, layouts: Engines, ready: list[PreparedEngines]) -> Priced:
    """Results of engines whose passes are priced."""
    tables = [layouts.take(part.rows) if len(part.rows) < len(layouts) else layouts for part in ready]
    priced = [_results(scenario, table, system(scenario, table, part), _flops(scenario)) for table, part in zip(tables, ready, strict=True)]
    if len(priced) == 1:
        return priced[0]
    return Priced.concatenate(priced).take(np.argsort(np.concatenate([part.rows for part in ready])))


def system(scenario: Scenario, layouts: Engines, ready: PreparedEngines) -> System:
    """How requests fare on the engines of each row."""
    load, replicas = load_of(layouts), _busy(layouts)
    engine = Engine(scenario, ready.costs[-1], ready.kinds[-1])
    if layouts.pooled.any():
        prompts = Engine(scenario, ready.costs[0], ready.kinds[0])
        workers = (layouts.prefill_workers.astype(np.float64), layouts.decode_workers.astype(np.float64))
        return System(Pools(scenario, (prompts, engine), workers, ready.handover).serve(load), engine, prompts, replicas)
    return System(engine.serve(load), engine, engine, replicas)


def _alike(layouts: Engines, pool: str | None) -> tuple[Degrees, NDArray[np.intp]]:
    """The ways that the engines of the rows are cut, or those of a pool, and which of these each row has."""
    first, kind = layouts.alike.by(*(name if pool is None or name == "cp" else f"{pool}_{name}" for name in CUT))
    return layouts.degrees(pool).take(first), kind


def load_of(layouts: Engines) -> Load:
    """What each engine that has anything to do is asked for: its share of the system's load."""
    replicas, asked = _busy(layouts), _asked(layouts)
    sent = np.where((layouts.num_prompts == 0) & (layouts.concurrency > 0), ROUNDS_SENT * layouts.concurrency, layouts.num_prompts)
    return Load(asked / replicas, layouts.request_rate / replicas, sent / replicas, layouts.batch_size > 0)


def _asked(layouts: Engines) -> FloatColumn:
    """Requests under way at a time as they are asked for, but no more than are sent; infinite: as many as run."""
    under_way = np.where(layouts.batch_size > 0, layouts.batch_size, layouts.concurrency)
    least = np.minimum(*(np.where(number > 0, number, np.inf) for number in (under_way, layouts.num_prompts)))
    return np.where(under_way > 0, least, np.inf)


def _busy(layouts: Engines) -> FloatColumn:
    """Systems that have anything to do: no more than there are requests at a time; those of an open loop find any of them."""
    sent = np.where((layouts.num_prompts > 0) & (layouts.request_rate == 0), layouts.num_prompts, np.inf)
    return np.minimum(layouts.dp, np.minimum(_asked(layouts), sent))


def _most(scenario: Scenario, layouts: Engines, load: Load) -> float:
    """The most sequences of an attention rank that any row may have."""
    ranks = layouts.attention_dp * layouts.pp
    asked = np.where(np.isfinite(load.concurrency), load.concurrency / ranks, float(scenario.software.serving.max_num_seqs))
    return float(asked.max(initial=1.0))


def _results(scenario: Scenario, layouts: Engines, system: System, flops: FloatColumn | float) -> Priced:
    """The result columns; ``flops``: of a request."""
    fared, generated = system.served, system.engine.later + 1.0
    rate = fared.rate * system.replicas
    tokens = rate * generated
    static = layouts.batch_size != NOT_GIVEN
    memory = _memory(system, static)
    ttft = fared.queue + fared.first
    times = _times(system) if system.engine.decodes else _prefill_times(system, static)
    step = fared.tpot if system.engine.decodes else added(times.values())
    of_gpus = _energy(scenario, layouts, system, rate)
    peak = added(memory.values())
    zero, absent = np.zeros(len(layouts)), np.full(len(layouts), np.nan)
    priced = Priced(
        step_time_s=step,
        tokens_per_s=tokens,
        tokens_per_s_per_gpu=tokens / layouts.num_gpus,
        mfu=rate * flops / (layouts.num_gpus * scenario.hw.peak_flops(scenario.stored_precision)),
        fits=peak <= scenario.hw.memory.usable,
        peak_memory_bytes=peak,
        **{f"memory_{name}_bytes": memory.get(name, zero) for name in _MEMORY},
        **{f"time_{name}_s": times.get(name, zero) for name in _TIMES},
        ttft_s=ttft,
        tpot_s=fared.tpot,
        request_latency_s=fared.life,
        requests_per_s=rate,
        running_requests=np.where(system.has_room, np.minimum(fared.running, fared.capacity), 0.0)
        * (system.replicas * np.maximum(1, layouts.decode_workers)),
        **dict.fromkeys((*REQUEST_COSTS, "train_time_s", "train_cost_usd", "train_energy_j", "goodput"), absent),
    )
    return request_costs(scenario, layouts, priced, of_gpus, generated)


def request_costs(
    scenario: Scenario, layouts: Layouts, priced: Priced, of_gpus: FloatColumn, generated: FloatColumn | float | None = None
) -> Priced:
    """The results with what a request costs and takes, from the joules of all GPUs for one; ``generated``: its tokens, None: those that the
    scenario has, of a model that decodes nothing its length."""
    work, rate = scenario.workload, priced.requests_per_s
    tokens = generated if generated is not None else work.lengths[1] if scenario.model.of_kind.decodes else work.seq_len
    joules = site_energy(scenario.cluster, scenario.hw, of_gpus, 1.0 / rate, layouts.num_gpus)
    dollars = scenario.hw.price / 3600 * layouts.num_gpus / rate
    return replace(
        priced,
        energy_j=joules,
        energy_j_per_token=joules / tokens,
        power_w_per_gpu=of_gpus * rate / layouts.num_gpus,
        cost_usd=dollars,
        usd_per_million_tokens=dollars / tokens * 1e6,
    )


_MEMORY = ("parameters", "gradients", "optimizer", "activations", "kv_cache", "gathered", "buffers", "framework")
_TIMES = ("compute", "tp", "cp", "ep", "pp", "dp", "bubble", "optimizer", "host", "prefill")


def _times(system: System) -> dict[str, FloatColumn]:
    """The terms of a token: those of the step that it shares with as many as the step gives, and the wait on others' prefill."""
    served, share = system.served, 1.0 / system.served.tokens
    terms = {name: column * share for name, column in _terms(served.step, system.engine.decode_pass).items()}
    return {**terms, "bubble": served.bubble * share, "host": served.host * share, "prefill": served.wait}


def _prefill_times(system: System, static: BoolColumn) -> dict[str, FloatColumn]:
    """The terms of a request that generates one token: of the pass that takes its prompt, of the server and the host that launches it; the
    rest of ttft it waits for others' prompts, and in pools for its cache's transfer. No server admits a ``static`` batch."""
    served, prompts = system.served, system.prompts
    terms = _terms(served.prefill, prompts.prefill_pass)
    waits = np.maximum(0.0, served.queue + served.first - added(terms.values()))
    server = np.where(static, 0.0, prompts.scenario.software.serving.admission_latency)
    host = np.minimum(waits, server + served.prefill.of(prompts.prefill_total + prompts.prefill_late - prompts.prefill_pass.total))
    return {**terms, "host": host, "prefill": waits - host}


def _terms(where: Between, passes: EnginePass) -> dict[str, FloatColumn]:
    """A pass by term; most have some that no engine has."""
    tables = {name: getattr(passes, name) for name in ("compute", "tp", "cp", "ep", "pp")}
    return {name: where.of(table) if table.any() else np.zeros_like(where.share) for name, table in tables.items()}


def _memory(system: System, static: BoolColumn) -> dict[str, FloatColumn]:
    """Bytes of the worst GPU, of the worse of two pools; the cache is what the running requests need, or all that there is where they fill
    it.

    Of a static batch all requests have all of their tokens in the last step. In a loop one is at its end while the others are where they
    are on average. A pool of prompts has those of a pass.
    """
    own, served = system.engine, system.served
    room, running = own.costs.room, np.ceil(served.running / own.cut.attention_dp)
    ended = room.ended[own.kind]
    looped = np.minimum(room.a_request[own.kind] * (running - 1.0) + ended, room.cache[own.kind])
    columns = _memory_columns(own, np.where(static, ended * running, np.maximum(looped, ended)))
    if system.prompts is own:
        return columns
    room, kind = system.prompts.costs.room, system.prompts.kind
    a_pass = room.prompt[kind] * np.ceil(served.together / system.prompts.cut.attention_dp)
    other = _memory_columns(system.prompts, np.maximum(np.minimum(a_pass, room.cache[kind]), room.prompt[kind]))
    worse = added(other.values()) > added(columns.values())
    return {name: np.where(worse, other[name], columns[name]) for name in columns}


def _memory_columns(engine: Engine, cache: FloatColumn) -> dict[str, FloatColumn]:
    """Bytes of an engine's GPU, of whose cache so many are in use."""
    room, kind = engine.costs.room, engine.kind
    return {
        "parameters": room.weights[kind],
        "activations": room.activations[kind],
        "kv_cache": cache,
        "framework": room.buffers[kind],
    }


def _flops(scenario: Scenario) -> float:
    """FLOP of a request's matrix products: each token's but the last once through the layers, attention over what came before, and the
    head once a token that is generated."""
    model, (prompt, generated) = scenario.model, scenario.workload.lengths
    tokens = prompt * (1 - scenario.workload.prefix_hit) + generated - 1
    width = model.num_attention_heads * model.attention_head_dim
    windows = Counter(model.windows)
    seen = sum(layers * mean_context(window, prompt + generated) for window, layers in windows.items()) / windows.total()
    attention = 4.0 * model.num_hidden_layers * width * seen
    head = head_matrix_parameters(model)
    return tokens * (2.0 * (matrix_parameters(model) - head) + attention) + generated * 2.0 * head


def _energy(scenario: Scenario, layouts: Engines, system: System, rate: FloatColumn) -> FloatColumn:
    """Joules of a request on all GPUs: the work of its passes, and idle power for as long as the GPUs take for a request."""
    hw, served, engine = scenario.hw, system.served, system.engine
    steps = engine.later / served.tokens / np.maximum(1.0, served.running / engine.cut.pp)  # a request's share of its engine's
    step, prefill = served.step.of(engine.decode_pass.joules), served.prefill.of(system.prompts.prefill_pass.joules)
    return gpu_energy(hw, steps * step + prefill / served.together, layouts.num_gpus / rate)
