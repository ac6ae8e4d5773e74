"""Inference of models that decode nothing on the event-driven backends: a batch's pass forward through all stages as a graph.

hybrid runs a layer of each kind and takes the sends between stages in closed form; hierarchical runs the layers, then the pipeline of them;
flattened every layer of every stage in one graph. A stage waits for its host as in
closed form, by what its device was found to take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rapid_dse.config.scenario import Scenario
from rapid_dse.events import artifacts, runs
from rapid_dse.events.attribution import exposed
from rapid_dse.events.backends import flattened, hierarchical, hybrid
from rapid_dse.events.layer_runs import LayerTimes, run_layers
from rapid_dse.events.layout_detail import LayoutDetail, one_layout, operators_of
from rapid_dse.events.machine import Machine
from rapid_dse.events.programs.coarse_pipeline import BlockPasses, Pass
from rapid_dse.events.programs.end_programs import EndWork
from rapid_dse.events.programs.script import After, Message, Script, Style
from rapid_dse.events.programs.stage_program import LayerNodes
from rapid_dse.events.programs.whole_step import LayerPasses
from rapid_dse.events.step_runs import boundary_of, stage_for
from rapid_dse.model.architecture import split_of
from rapid_dse.parallel.engines import Engines
from rapid_dse.simulate.arrangement import Arrangement
from rapid_dse.simulate.inference.one_pass import PassTimes, forward_ends, pass_times, passed, waits_for_host
from rapid_dse.simulate.inference.pricing import request_costs
from rapid_dse.simulate.layer_work import Block
from rapid_dse.simulate.results import TIME_TERMS, Priced
from rapid_dse.simulate.training import Prepared
from rapid_dse.trace.graph import Ints

if TYPE_CHECKING:
    from rapid_dse.events.one_by_one import Watch

CHECKS = {"hybrid": hybrid.check, "full_astrasim_hierarchical": hierarchical.check, "full_astrasim_flattened": flattened.check}
Found = tuple[dict[str, float], dict[str, runs.Run]]


def price_passes(scenario: Scenario, engines: Engines, watch: Watch | None, names: Sequence[str] | None) -> Priced:
    """Prices legal, resolved engines one by one.

    Raises:
        ValueError: what cannot run on this backend, with what to use instead, before anything runs.
    """
    runs.check_backend(scenario)
    layouts = engines.batches(scenario)
    rows = [layouts.take(np.array([row])) for row in range(len(layouts))]
    every = [one_layout(scenario, row, 0, *operators_of(scenario, row)) for row in rows]
    for one in every:
        CHECKS[scenario.backend.name](one)
    parts = []
    for number, one in enumerate(every):
        terms, done = _simulated(one)
        row = engines.take(np.array([number]))
        parts.append(request_costs(scenario, row, *passed(scenario, one.layout, _priced_of(one), _times(one, terms))))
        name = names[number] if names else None if len(every) == 1 else f"{number:03d}"
        artifacts.keep(scenario, done, name)
        if watch is not None:
            watch(done)
    return Priced.concatenate(parts)


def _priced_of(one: LayoutDetail) -> tuple[Prepared, Block, Arrangement]:
    return one.ready, one.block, one.arranged


def _simulated(one: LayoutDetail) -> Found:
    """Seconds of each term of a pass, the host's left out, and the runs that say so."""
    cluster, name = one.cluster(), one.scenario.backend.name
    if name == "full_astrasim_flattened":
        return _flattened(one, cluster)
    layers, kept = run_layers(one, cluster, (0, 0))
    if name == "hybrid":
        return _hybrid(one, layers), kept
    sent = {"embedding_forward": one.arranged.vocabulary.look_up, "head_forward": one.arranged.vocabulary.head_input}
    ends = {
        stage: Pass(stage.replace("_", " "), {"compute": seconds, "tp": float(sent[stage].seconds[0])})
        for stage, seconds in _ends(one).items()
    }
    part, places = cluster.part(cluster.rank[..., :1])
    stage = stage_for(one, part, places, one.experts)
    passes = BlockPasses(stage.style.labels, [layer.passes() for layer in layers], [0.0] * len(layers), layers[0].regather, ends)
    terms, done = _piped(one, stage, places, passes)
    return terms, kept | {"pipeline": done}


def _ends(one: LayoutDetail) -> dict[str, float]:
    """Seconds forward of what stands before and behind the layers, without a loss."""
    first, last = forward_ends(_priced_of(one))
    return {"embedding_forward": float(first[0]), "head_forward": float(last[0])}


def _flattened(one: LayoutDetail, cluster: Machine) -> Found:
    stage = stage_for(one, cluster, cluster.rank, one.experts)
    seconds, around = _ends(one), one.around
    head = replace(around.head, forward=seconds["head_forward"])
    ends: EndWork = replace(around, embedding=seconds["embedding_forward"], head=head, reductions=0)
    terms, done = _piped(one, stage, cluster.rank, LayerPasses(one.works, ends))
    return terms, {"pass": done}


def _hybrid(one: LayoutDetail, layers: Sequence[LayerTimes]) -> dict[str, float]:
    terms = dict.fromkeys(TIME_TERMS, 0.0)
    for kind in (kind for stage in _kinds(one) for kind in stage):
        for term, seconds in layers[kind].forward.items():
            terms[term] += seconds
    around = one.arranged.vocabulary.look_up + one.arranged.vocabulary.head_input
    terms["compute"] += sum(_ends(one).values())
    terms["tp"] += float(around.seconds[0])
    terms["pp"] += (one.degree("pp") - 1) * float(one.arranged.hop.seconds[0])
    return terms


def _kinds(one: LayoutDetail) -> list[list[int]]:
    """The kinds of the layers of each stage."""
    pp, chunks_a_stage = one.degree("pp"), one.degree("chunks") if one.degree("pp") > 1 else 1
    chunks = split_of(one.scenario).kinds_of_chunks(pp, chunks_a_stage, one.schedule.stage_map)
    return [[kind for chunk in chunks[stage] for kind in chunk] for stage in range(pp)]


def _piped(one: LayoutDetail, stage: runs.Stage, places: Ints, passes: LayerNodes) -> tuple[dict[str, float], runs.Run]:
    """A pass through all stages, one after the other: each stage's own terms; what is left of the run is the way between them."""
    kinds = _kinds(one)
    scripts = [_script(one, stage.style, number, kinds, passes) for number in range(len(kinds))]
    role = np.full(stage.cluster.topology.ranks, -1, np.int64)
    role[places] = np.arange(len(kinds))[:, None, None, None]
    done = runs.run(one.scenario, stage, scripts, role, "pass")
    terms = dict.fromkeys(TIME_TERMS, 0.0)
    for ranks in places.reshape(len(kinds), -1):
        slowest = int(ranks[done.result.finish_ns[ranks].argmax()])
        for term, seconds in exposed(done.traced, done.result, slowest).items():
            terms[term] += seconds * (term not in ("bubble", "pp"))
    unattributed = float(done.result.finish_ns.max()) / 1e9 - sum(terms.values())
    terms["pp" if len(kinds) > 1 else "compute"] += max(0.0, unattributed)
    return terms, done


def _script(one: LayoutDetail, style: Style, stage: int, kinds: Sequence[Sequence[int]], passes: LayerNodes) -> Script:
    """What a rank of a stage does in a pass."""
    script, boundary = Script(style), boundary_of(one)
    after: After = ()
    if stage > 0:
        after = passes.regather(script, script.receive((), "previous", boundary.size, "pp"))
    else:
        after = passes.end(script, after, "embedding_forward")
    for kind in kinds[stage]:
        after = passes.forward(script, after, kind, 1)
    if stage < len(kinds) - 1:
        script.send(after, "next", Message(boundary.size, boundary.seconds, "pp"))
    else:
        passes.end(script, after, "head_forward")
    return script


def _times(one: LayoutDetail, terms: dict[str, float]) -> PassTimes:
    """The closed form's account with the terms that were measured, and what the device then waits for its host."""
    closed = pass_times(one.scenario, one.layout, _priced_of(one), one.layers.of_kinds)
    tp, cp, pp = (np.array([terms[name]]) for name in ("tp", "cp", "pp"))
    rest = sum(seconds for name, seconds in terms.items() if name not in ("tp", "cp", "pp"))
    waits = waits_for_host(one.scenario, one.layout, np.array([rest]) + tp + cp)
    return replace(closed, compute=np.array([rest]), tp=tp, cp=cp, pp=pp, host=waits)
