"""What gathers along the sequence hold of layers that the host has launched and the device has not come to."""

from __future__ import annotations

from typing import Any

import pytest
from caching_allocator import copies_beyond_kept
from trials import layouts, scenario

from rapid_dse.config.cluster import Cluster
from rapid_dse.config.scenario import Scenario
from rapid_dse.model.architecture import split_of
from rapid_dse.parallel.stages import stages
from rapid_dse.simulate.memory import peak_memory

AHEAD = 20.0
MODEL = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 8192}
STREAM = 2.0 * 4096 * 2048  # bytes of one sequence's stream in 16 bits


def job(slowdown: float = 1.0, **settings: Any) -> Scenario:
    model = {f"model__{name}": value for name, value in MODEL.items()}
    even = {"software__fragmentation": 1.0, "software__pipeline_split": "even", "software__working_copies": 0.0}
    of = scenario("h100", "llama3_1_8b", software="nanotron", workload__seq_len=4096, **model, **(even | settings))
    return of.model_copy(update={"cluster": Cluster(name="mine", host_slowdown=slowdown)})


def held(row: dict[str, Any], slowdown: float = 1.0, stage: str = "first", **settings: Any) -> float:
    """Copies of one micro-batch's whole stream that a stage holds for layers ahead of the device."""
    row = {"num_gpus": 64, "tp": 8, "sequence_parallel": True, "recompute": "none", "zero": 0, "micro_batch_size": 1} | row
    row |= {"schedule": "1f1b" if row.get("pp", 1) > 1 else "none"}
    with_queue, without = (job(slowdown, software__layers_ahead=ahead, **settings) for ahead in (AHEAD, 0.0))
    of = layouts(row)
    places = stages(split_of(job()), of).alone(stage)
    bytes_of = [float(peak_memory(each, of, places).activations[0]) for each in (with_queue, without)]
    return (bytes_of[0] - bytes_of[1]) / (STREAM * row["micro_batch_size"])


# Layers ahead on a stage: of the micro-batches of a step where hosts are free to run ahead, else those that a stage of a pipeline launches
# while it waits to send. A layer's forward pass gathers two streams, of which each rank has an eighth.
FREE = [({"global_batch_size": 8}, 16), ({"global_batch_size": 16}, 20), ({"pp": 4, "global_batch_size": 8}, 16)]
SLOW = [({"global_batch_size": 16}, 0), ({"pp": 2}, 0), ({"pp": 4}, 4 * 2), ({"pp": 8}, 2 * 6), ({"pp": 8, "global_batch_size": 4}, 2 * 2)]


@pytest.mark.parametrize(("row", "layers"), FREE)
def test_a_host_runs_ahead_by_the_devices_queue_or_the_whole_step(row: dict[str, Any], layers: int) -> None:
    assert held(row) == pytest.approx(layers * 2 * (1 + 1 / 8))


@pytest.mark.parametrize(("row", "layers"), SLOW)
def test_hosts_that_wait_for_each_other_run_ahead_in_pipelines_alone(row: dict[str, Any], layers: int) -> None:
    """At pp 4 the first stage holds four micro-batches: the first has gone on, the second waits to be sent, two more are launched."""
    assert held({"global_batch_size": 64} | row, slowdown=5.6) == pytest.approx(layers * 2 * (1 + 1 / 8))


def test_the_last_stages_of_slow_hosts_send_nothing() -> None:
    assert held({"pp": 8, "global_batch_size": 64}, slowdown=5.6, stage="last") == 0.0


def test_hosts_of_one_node_are_not_slowed_down() -> None:
    assert held({"num_gpus": 8, "global_batch_size": 16}, slowdown=5.6) == pytest.approx(AHEAD * 2 * (1 + 1 / 8))


@pytest.mark.parametrize("row", [{"tp": 1, "sequence_parallel": False}, {"sequence_parallel": False}])
def test_without_sequence_parallelism_nothing_is_gathered(row: dict[str, Any]) -> None:
    assert held({"global_batch_size": 64} | row) == 0.0


def test_what_a_layer_works_on_is_held_once() -> None:
    """Two copies of the whole stream, whatever the pipeline."""
    row = {"num_gpus": 64, "tp": 8, "pp": 4, "schedule": "1f1b", "sequence_parallel": True, "recompute": "none", "zero": 0}
    of = layouts(row | {"micro_batch_size": 2, "global_batch_size": 64})
    places = stages(split_of(job()), of).alone("first")
    more, less = (peak_memory(job(software__working_copies=copies), of, places).activations[0] for copies in (3.0, 1.0))
    assert more - less == pytest.approx(2 * 2 * STREAM)


# tp, layers of a stage, micro-batches in flight
STAGES = [(8, 18, 2), (8, 9, 4), (16, 5, 8), (8, 16, 1), (16, 32, 1)]


@pytest.mark.parametrize(("tp", "layers", "in_flight"), STAGES)
def test_a_simulated_allocator_holds_as_much(tp: int, layers: int, in_flight: int) -> None:
    """Where the device keeps up, what a layer works on; where it is 1,024 launches late, what CUDA's queue holds, more than the gathers of
    the profile's layers: backward passes have three times the gathers in twice the launches, which the closed form leaves out."""
    memory = scenario("h100", "llama3_1_8b", software="nanotron").software.memory
    beside, late = (copies_beyond_kept(launches, tp, layers, in_flight) for launches in (5.0, 1024.0))
    assert beside == pytest.approx(memory.fragmentation * memory.working_copies, abs=1.2)
    ahead = memory.fragmentation * memory.layers_ahead * 2 * (1 + 1 / tp)
    assert 0.7 < ahead / (late - beside) < 1.0
