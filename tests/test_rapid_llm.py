"""RAPID-LLM's YAML: chip, network, layout and batch as its files have them, each key taken or listed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import program
import pytest
import yaml

import rapid_dse as rd
from rapid_dse.analysis.reasons.chosen import restored
from rapid_dse.config.scenario import Scenario
from rapid_dse.imports.file_options import read_foreign, read_option
from rapid_dse.imports.run_values import network_of, values_of
from rapid_dse.sweep.compose import composed, hydra_ready, scenario_of, value_at
from rapid_dse.sweep.places import home
from rapid_dse.sweep.space import Setting, layouts_of

SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "rapid_llm"


def memory(size: str, bandwidth: str, joules: str, util: float = 1) -> dict[str, Any]:
    return {"size": size, "bandwidth": bandwidth, "dynamic_energy_per_bit": joules, "latency": 0, "util": util}


def dimension(kind: str, bandwidth: str, parallelisms: list[str], size: Any = "auto", **more: Any) -> dict[str, Any]:
    topology = {"type": kind, "bandwidth": bandwidth, "latency": "5e-6", "energy_per_bit": "8e-12", "util": 1.0, **more}
    return {"id": "dim", "label": "x", "size": size, "topology": topology, "collective_override": {}, "parallelisms": parallelisms}


HARDWARE: dict[str, Any] = {
    "sw_param": {
        "full_recomputation": True,
        "kernel_launch_overhead": "9e-6",
        "dp_zero_stage": 1,
        "precision": {
            "tensor_format": "bf16",
            "parameters": "as_tensor_format",
            "gradients": "fp32",
            "grad_communication": "as_tensor_format",
            "optimizer_states": "fp32",
            "master_parameters": 4.0,
        },
        "h2d_bandwidth": -1,
        "const_mem_offset": "1 GB",
        "dp_microbatch": "last_mb",
    },
    "tech_param": {
        "core": {
            "operating_frequency": "1.41e9",
            "num_bundles": 108,
            "nominal_flop_rate_per_mcu": 512,
            "nominal_energy_per_flop": "1.8e-13",
            "num_mcu_per_bundle": 4,
            "FMA_d1": 8,
            "dataflow": "best",
            "util": 0.9,
        },
        "DRAM": memory("80 GB", "1986 GB", "4.5e-12", 0.8),
        "SRAM-L2": memory("40 MB", "7050 GB", "130e-15", 0.7),
        "SRAM-L1": memory("20736 KB", "18 TB", "130e-15", 0.5),
        "SRAM-R": memory("27 MB", "122 TB", "110e-15"),
    },
    "parallelism": {
        "tp": 2,
        "tp_sp": True,
        "cp": 1,
        "pp": 4,
        "mb": 4,
        "train": {"dp": 2, "ep": 1, "tp_ep": True},
        "inference": {"replica_count": 1, "moe_dp": 1},
    },
    "network": {
        "dimensions": [dimension("Ring", "100 GB", ["tp", "cp"]), dimension("Switch", "200 Gb", ["pp", "dp"])],
        "overlap": {"tp_overlap": 0.1, "tp_sp_overlap": 0.6, "cp_overlap": 0.2},
    },
    "execution_backend": {"model": "analytical", "astra": {"backend": "astra", "mode": "hybrid"}},
}
MODEL: dict[str, Any] = {
    "model_param": {
        "mode": "LLM",
        "run_type": "training",
        "tied_embeddings": False,
        "model_type": "llama",
        "global_batch_size": 64,
        "gradient_accumulation_steps": 1,
        "seq_len": 2048,
        "hidden_dim": 4096,
        "attention": {"attention_type": "gqa", "num_heads": 32, "kv_heads": 8, "use_flashattention": True, "attention_tile_size": 128},
        "moe": {"num_experts": 1, "top_k": 1, "moe_intermediate_size": 0},
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "num_layers": 32,
    }
}
# The same machine in the older layout: 108 = 435 mm² / 1.006 mm² / 4 MCUs; 1.41 GHz = 0.13 W / (1.8e-13 J · 512 FLOP a clock); 1.935 TB/s =
# 5 stacks · 1,024 links · 3.024 Gb/s / 8; 43.8 GB/s = 2.805 W / 8e-12 J a bit / 8.
LEGACY: dict[str, Any] = {
    "sw_param": {"kernel_launch_overhead": "9e-6", "dp_zero_stage": 2, "precision": {"tensor_format": "bf16", "mixed_precision": False}},
    "tech_param": {
        "core": {
            "nominal_flop_rate_per_mcu": 512,
            "nominal_energy_per_flop": "1.8e-13",
            "nominal_power_per_mcu": 0.13,
            "operating_area_per_mcu": 1.006,
            "num_mcu_per_bundle": 4,
            "util": 1.0,
        },
        "DRAM": {
            "num_stacks": 5,
            "operating_frequency": "3.024e9",
            "stack_capacity": "16 GB",
            "num_links_per_stack": 1024,
            "dynamic_energy_per_bit": "4.5e-12",
            "util": 1,
        },
        "SRAM-L2": {"dynamic_energy_per_bit": "130e-15", "bank_capacity": "32 KB", "util": 1},
        "network": {
            "intra_node": {"latency": "5e-6", "energy_per_bit": "8e-12", "util": 1},
            "inter_node": {"latency": "5e-6", "energy_per_bit": "13e-12", "util": 0.96},
        },
    },
    "area_breakdown": {"core": 435},
    "power_breakdown": {"TDP": 300, "network": {"intra_node": 2.805, "inter_node": 2.805}},
    "system_hierarchy": {"num_devices_per_node": 8, "num_nodes": 2, "dp_inter": False},
    "network_topology": {"inter_node": "ring", "intra_node": "ring"},
    "scheduling_param": {"auto": False, "dp": 4, "pp": 2, "mb": 2, "tp": 2, "tp_sp": True, "cp": 1},
    "execution_backend": {"model": "astra", "astra": {"mode": "hybrid"}},
}


def changed(tree: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy in which keys, dotted by ``__``, have other values."""
    found = copy.deepcopy(tree)
    for key, value in changes.items():
        *parents, last = key.split("__")
        node: Any = found
        for part in parents:
            node = node[int(part) if part.isdigit() else part]
        node[last] = value
    return found


def write(folder: Path, hardware: dict[str, Any] = HARDWARE, model: dict[str, Any] = MODEL) -> list[str]:
    """Both files, as arguments of the command."""
    (folder / "hw.yaml").write_text(yaml.safe_dump(hardware))
    (folder / "model.yaml").write_text(yaml.safe_dump(model))
    return [f"hw={folder}/hw.yaml", f"model={folder}/model.yaml"]


def scenario(folder: Path, hardware: dict[str, Any] = HARDWARE, model: dict[str, Any] = MODEL) -> Scenario:
    options = dict(each.split("=") for each in write(folder, hardware, model))
    with hydra_ready():
        found, broken = scenario_of(composed(options).tree)
    assert broken is None, broken
    return found


def layout(of: Scenario) -> dict[str, int]:
    found, rule, reasons, _ = layouts_of(Setting(of, None, {}, {}), {})
    assert rule[0] < 0, reasons[rule[0]]
    return {name: int(getattr(found, name)[0]) for name in ("num_gpus", "tp", "cp", "dp", "pp", "ep", "micro_batch_size", "zero")}


def test_the_chip_is_the_files(tmp_path: Path) -> None:
    hw = scenario(tmp_path).hw
    assert hw.peak_flops("bf16") == pytest.approx(108 * 4 * 512 * 1.41e9)  # 311.9 TFLOP/s, as NVIDIA publishes of the A100
    assert hw.memory.capacity == 80 * 2**30
    assert hw.memory.bandwidth == 1986e9
    assert (hw.l2.size, hw.registers.size, hw.shared_memory.size) == (40 * 2**20, 108 * 256 * 2**10, 108 * 192 * 2**10)
    assert hw.shared_memory.bandwidth == 0.5 * 18e12
    efficiency = hw.efficiency
    assert (efficiency.tensor, efficiency.memory, efficiency.l2, efficiency.clock, efficiency.sustained) == (0.9, 0.8, 0.7, 1, 1)
    assert hw.energy.hbm == pytest.approx(8 * 4.5e-12)
    assert hw.energy.flop["bf16"] == 1.8e-13
    assert hw.kernel_latency == 9e-6
    assert hw.attention_kernels == ("flash2", "cudnn", "flash1", "triton", "efficient")  # of the A100, which the file leaves open


def test_the_layout_and_the_batch_are_the_files(tmp_path: Path) -> None:
    found = scenario(tmp_path)
    # 64 sequences over 2 copies in 4 micro-batches: 8 each
    assert layout(found) == {"num_gpus": 16, "tp": 2, "cp": 1, "dp": 2, "pp": 4, "ep": 1, "micro_batch_size": 8, "zero": 1}
    assert found.parallel.sequence_parallel
    assert found.parallel.order == ("tp", "cp", "pp", "dp", "ep")
    assert (found.workload.global_batch_size, found.workload.seq_len, found.workload.precision) == (64, 2048, "bf16")
    software = found.software
    assert (software.kernels.attention, software.precision.gradient_dtype, software.precision.reduce_dtype) == ("flash", "fp32", "bf16")
    assert software.precision.optimizer_bytes == 2 * 4 + 4
    assert software.memory.context == 2**30
    assert (software.overlap.tp_overlap, software.overlap.cp_overlap) == (0.6, 0.2)  # under sequence parallelism tp_sp_overlap
    assert not software.overlap.reduce_each_micro_batch
    assert found.backend.name == "analytical"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sw_param__precision__optimizer_states": 4, "sw_param__precision__master_parameters": "fp32"}, 12.0),
        ({"sw_param__precision__optimizer_states": "as_tensor_format", "sw_param__precision__master_parameters": "as_tensor_format"}, 6.0),
        ({"sw_param__precision__optimizer_states": "fp32", "sw_param__precision__master_parameters": 0.0}, 8.0),
    ],
)
def test_bytes_of_the_optimizer_by_number_or_name(tmp_path: Path, changes: dict[str, Any], expected: float) -> None:
    assert value_at(scenario(tmp_path, changed(HARDWARE, **changes)), "software.optimizer_bytes") == expected


def test_quantities_in_other_words_and_levels_in_lists(tmp_path: Path) -> None:
    hardware = changed(HARDWARE, network__dimensions__1__topology__bandwidth="400 Gbps", tech_param__DRAM__bandwidth="1.986 TB/s")
    hardware["network"]["dimensions"].append(dimension("SuperPOD", ["50 GB", "100 GB"], [], 4, leaf_size=32))
    hardware["network"]["dimensions"][2]["topology"]["latency"] = ["1e-6", "2e-6"]
    hw = scenario(tmp_path, hardware).hw
    assert hw.network.dimensions[1].bandwidth == 50e9
    assert hw.memory.bandwidth == pytest.approx(1986e9)
    pod = hw.network.dimensions[2]
    assert (pod.topology, pod.size, pod.bandwidth, pod.latency) == ("fat_tree", 4, 50e9, 1e-6)


def test_faulty_links_are_derated(tmp_path: Path) -> None:
    hardware = changed(HARDWARE, execution_backend__model="astra", execution_backend__astra__mode="full_astrasim_flattened")
    hardware["parallelism"] |= {"pp": 1, "mb": 1}
    sound = program.done(tmp_path, *write(tmp_path, hardware), "--json")
    hardware["network"]["faulty_links"] = [[0, 1, 0.1]]
    faulty = program.done(tmp_path, *write(tmp_path, hardware), "--json")
    assert json.loads(faulty.out)["step_time_s"] > json.loads(sound.out)["step_time_s"]


def test_the_network_is_the_files(tmp_path: Path) -> None:
    found = scenario(tmp_path).hw
    inner, outer = found.network.dimensions
    assert (inner.topology, inner.size, inner.bandwidth, inner.latency) == ("ring", 2, 100e9, 5e-6)
    assert (outer.topology, outer.size, outer.bandwidth) == ("switch", None, 200e9 / 8)
    assert inner.energy == pytest.approx(64e-12)
    assert found.gpus_per_node == 2


@pytest.mark.parametrize(
    ("batch", "micro_batches", "accumulation", "size"),
    [(64, 4, 1, 8), (64, 4, 2, 4), (64, 1, 1, 32), (1024, 23, 1, 16), (2, 23, 1, 1)],  # 512 / 23 = 22.3: 16 is nearer than 32 in ratio
)
def test_micro_batches(tmp_path: Path, batch: int, micro_batches: int, accumulation: int, size: int) -> None:
    model = changed(MODEL, model_param__global_batch_size=batch, model_param__gradient_accumulation_steps=accumulation)
    found = scenario(tmp_path, changed(HARDWARE, parallelism__mb=micro_batches), model)
    assert layout(found)["micro_batch_size"] == size


def test_a_run_of_inference(tmp_path: Path) -> None:
    model = changed(MODEL, model_param__run_type="inference", model_param__seq_len=1024)
    model["model_param"]["decode_len"] = 256
    hardware = changed(HARDWARE, execution_backend__model="astra", parallelism__pp=1, parallelism__inference__replica_count=2)
    ended = program.done(tmp_path, *write(tmp_path, hardware, model))
    assert "prompts of 768 tokens, 256 generated" in ended.out
    assert "num_gpus=4 tp=2" in ended.out
    assert "backend=hybrid" in ended.out
    tree = json.loads(program.done(tmp_path, *write(tmp_path, hardware, model), "--cfg", "job", "--json").out)
    assert tree["workload"]["batch_size"] == 64  # of the whole system
    assert tree["software"]["name"] == "vllm"
    trained = program.run(tmp_path, *write(tmp_path, hardware, model), "workload=training")
    assert trained.code == 0, trained.err
    sweep = program.run(tmp_path, "-m", f"hw={tmp_path}/hw.yaml", f"model={tmp_path}/model.yaml,llama3_1_8b")
    assert "workload=inference beside it" in program.one_line(sweep)


def test_layers_need_not_divide(tmp_path: Path) -> None:
    assert layout(scenario(tmp_path, changed(HARDWARE, parallelism__pp=5)))["num_gpus"] == 20


def test_rows_of_a_sweep_over_its_hardware_are_composed_again(tmp_path: Path) -> None:
    files = write(tmp_path, changed(HARDWARE, parallelism__pp=5))
    program.done(tmp_path, "-m", *files, "parallel=all", "hw.num_gpus=8", "parallel.micro_batch_size=1", "search.study=s")
    best = rd.load(tmp_path / "results" / "s").best()[0]
    again = restored(best)
    assert again.key == best["key"]
    assert again.figures["step_time_s"] == pytest.approx(best.step_time_s, rel=1e-12)


def test_experts_are_an_axis_of_their_own(tmp_path: Path) -> None:
    experts = {"num_experts": 8, "top_k": 2, "moe_intermediate_size": 1024, "n_shared_experts": 0, "moe_layer_freq": 1}
    hardware = changed(HARDWARE, parallelism__train__ep=4, parallelism__tp=1, network__dimensions__0__parallelisms=["tp", "cp", "ep"])
    found = scenario(tmp_path, hardware, changed(MODEL, model_param__moe=experts | {"first_k_dense_replace": 0}))
    assert layout(found) == {"num_gpus": 32, "tp": 1, "cp": 1, "dp": 8, "pp": 4, "ep": 4, "micro_batch_size": 2, "zero": 1}
    inner, outer = found.hw.network.dimensions
    assert (inner.size, inner.parallelisms, outer.size, outer.parallelisms) == (4, ("ep",), 8, ("pp", "dp"))
    assert (found.model.num_experts, found.model.num_experts_per_tok) == (8, 2)
    full = changed(MODEL, model_param__moe=experts | {"first_k_dense_replace": 0}, model_param__seq_len=524288)
    ended = program.done(tmp_path, *write(tmp_path, hardware, full))  # changes that the network has no place for are left out
    assert "single change" in ended.out
    dense = scenario(tmp_path, hardware)  # without experts those GPUs hold copies
    assert layout(dense)["dp"] == 8
    assert layout(dense)["ep"] == 1


@pytest.mark.parametrize("mode", ["hybrid", "full_astrasim_hierarchical", "full_astrasim_flattened"])
def test_a_plane_runs_in_every_mode(mode: str, tmp_path: Path) -> None:
    """8 ranks of tp on 4 x 2 places: whichever mode, the same exchanges on the same links, and so nearly the same step."""
    plane = [dimension("Torus2D", "100 GB", ["tp", "cp", "ep"]), dimension("Ring", "25 GB", ["pp", "dp"])]
    hardware = changed(HARDWARE, network__dimensions=plane, parallelism__tp=8, parallelism__pp=1, parallelism__mb=1)
    hardware["execution_backend"] = {"model": "astra", "astra": {"mode": mode}}
    astra = rd.simulate(**dict(each.split("=") for each in write(tmp_path, hardware)))
    hardware["execution_backend"] = {"model": "analytical"}
    closed = rd.simulate(**dict(each.split("=") for each in write(tmp_path, hardware)))
    assert closed.row["backend"] == "hybrid"
    assert astra.row["backend"] == mode
    assert astra.step_time_s == pytest.approx(closed.step_time_s, rel=0.03)


def test_experts_beside_tensor_parallel_ranks_run_in_every_mode(tmp_path: Path) -> None:
    """2 ranks of tp and 4 groups of experts fill the first dimension: whichever mode, nearly the same step."""
    moe = {"num_experts": 8, "top_k": 2, "moe_intermediate_size": 1024, "n_shared_experts": 0, "moe_layer_freq": 1}
    seconds = []
    for mode in ("hybrid", "full_astrasim_hierarchical", "full_astrasim_flattened"):
        backend = {"model": "astra", "astra": {"mode": mode}}
        hardware = changed(HARDWARE, execution_backend=backend, parallelism__train={"dp": 1, "ep": 4, "tp_ep": True})
        hardware["network"]["dimensions"][0]["parallelisms"] = ["tp", "cp", "ep"]
        found = rd.simulate(**dict(each.split("=") for each in write(tmp_path, hardware, changed(MODEL, model_param__moe=moe))))
        assert (found.row["backend"], found.row["parallel.tp"], found.row["parallel.ep"]) == (mode, 2, 4)
        seconds.append(found.step_time_s)
    assert max(seconds) <= 1.05 * min(seconds)


def test_an_engine_of_experts_runs_in_every_mode(tmp_path: Path) -> None:
    """Its experts lie on the 4 copies of attention, which the first dimension holds beside tp."""
    moe = {"num_experts": 8, "top_k": 2, "moe_intermediate_size": 1024, "n_shared_experts": 0, "moe_layer_freq": 1}
    served = changed(MODEL, model_param__moe=moe, model_param__run_type="inference", model_param__decode_len=64)
    seconds = []
    for mode in ("analytical", "hybrid", "full_astrasim_hierarchical", "full_astrasim_flattened"):
        backend = {"model": "analytical" if mode == "analytical" else "astra", "astra": {"mode": mode}}
        hardware = changed(HARDWARE, execution_backend=backend, parallelism__inference={"replica_count": 1, "moe_dp": 4})
        hardware["network"]["dimensions"][0]["parallelisms"] = ["tp", "cp", "ep"]
        found = rd.simulate(**dict(each.split("=") for each in write(tmp_path, hardware, served)))
        assert [found.row[f"parallel.{name}"] for name in ("tp", "attention_dp", "ep", "pp")] == [2, 4, 4, 4]
        seconds.append(found.step_time_s)
    assert max(seconds) <= 1.2 * min(seconds)


def test_what_has_no_closed_form_is_priced_by_events_and_said(tmp_path: Path) -> None:
    for change in ({"network__dimensions__0__topology__type": "Mesh2D", "parallelism__tp": 4}, {"network__faulty_links": [[0, 1, 0.5]]}):
        ended = program.done(tmp_path, *write(tmp_path, changed(HARDWARE, **change)))
        assert "has no closed form; priced by backend=hybrid" in ended.err
        assert "backend=hybrid" in ended.out


@pytest.mark.parametrize(("backward", "axis"), [(True, "col"), (False, "col"), (False, "row")])
def test_a_product_says_by_itself_whether_it_is_trained(backward: bool, axis: str, tmp_path: Path) -> None:
    """Backward there are two further products as large as the first."""
    files = dict(each.split("=") for each in write(tmp_path, HARDWARE, {"model_param": KINDS["GEMM"][0] | {"gemm_shard_axis": axis}}))
    trained = rd.simulate(**files)
    files = dict(
        each.split("=")
        for each in write(tmp_path, HARDWARE, {"model_param": KINDS["GEMM"][0] | {"gemm_shard_axis": axis, "backward": backward}})
    )
    found = rd.simulate(**files)
    assert found.row["workload.kind"] == ("training" if backward else "inference")
    assert (found.step_time_s < trained.step_time_s) is not backward


def test_planes_are_two_rings_as_near_to_square_as_they_come() -> None:
    plane = {"topology": "torus", "flat": True, "size": None, "parallelisms": ["tp"], "bandwidth": 1e11}
    plane |= {"latency": 0.0, "utilization": 1.0, "energy": 0.0}
    sizes = {n: [each["size"] for each in network_of([plane], {"tp": n, "cp": 1, "ep": 1, "dp": 1, "pp": 1})] for n in (2, 12, 16, 7)}
    assert sizes == {2: [None], 12: [4, None], 16: [4, None], 7: [None]}
    lines = network_of([plane], {"tp": 7, "cp": 1, "ep": 1, "dp": 1, "pp": 1})
    assert [each["topology"] for each in lines] == ["ring"]  # a torus of one row
    pair = network_of([{**plane, "topology": "mesh"}], {"tp": 2, "cp": 1, "ep": 1, "dp": 1, "pp": 1})
    assert [(each["topology"], each["size"]) for each in pair] == [("ring", 2)]  # two places, one link either way
    fixed = network_of([{**plane, "size": 12}], {"tp": 12, "cp": 1, "ep": 1, "dp": 1, "pp": 1})
    assert [each["size"] for each in fixed] == [4, 3]


def test_the_older_layout(tmp_path: Path) -> None:
    found = scenario(tmp_path, LEGACY)
    hw = found.hw
    assert hw.sms == 108
    assert hw.clock == pytest.approx(1.41e9, rel=1e-3)
    assert hw.memory.bandwidth == pytest.approx(5 * 1024 * 3.024e9 / 8)
    assert hw.memory.capacity == 80 * 2**30
    assert [each.size for each in hw.network.dimensions] == [8, 2]
    assert hw.network.dimensions[0].bandwidth == pytest.approx(2.805 / 8e-12 / 8)
    assert hw.energy.tdp == 300
    assert layout(found) == {"num_gpus": 16, "tp": 2, "cp": 1, "dp": 4, "pp": 2, "ep": 1, "micro_batch_size": 8, "zero": 2}
    assert found.backend.name == "hybrid"
    first = {"auto": False, "dp": 4, "lp": 2, "mb": 2, "tp": 2, "tp_sp": True, "cp": 1}  # layer parallelism: pp as it was called first
    assert layout(scenario(tmp_path, changed(LEGACY, scheduling_param=first))) == layout(found)


def test_what_the_command_line_names_wins(tmp_path: Path) -> None:
    files = write(tmp_path, changed(HARDWARE, execution_backend__model="astra"))
    assert "backend=hybrid" in program.done(tmp_path, *files, "parallel.micro_batch_size=1").out
    fast = program.done(tmp_path, *files, "backend=analytical", "parallel.tp=1", "workload.seq_len=1024")
    assert "backend=analytical" in fast.out
    assert "tp=1 cp=1 dp=4 pp=4" in fast.out
    assert "1,024 tokens a sequence" in fast.out


def test_a_sweep_over_its_layouts(tmp_path: Path) -> None:
    program.done(tmp_path, "-m", *write(tmp_path), "parallel=all", "hw.num_gpus=8", "parallel.micro_batch_size=1")
    rows = program.rows(tmp_path)
    assert set(rows["parallel.pp"]) > {1, 2, 4}
    assert set(rows["backend"]) == {"analytical"}


@pytest.mark.parametrize(
    ("hardware", "model", "part"),
    [
        (changed(HARDWARE, tech_param__core__num_bundles="many"), MODEL, "tech_param.core.num_bundles='many'"),
        (changed(HARDWARE, tech_param__DRAM__size="80 lightyears"), MODEL, "tech_param.DRAM.size='80 lightyears'"),
        (changed(HARDWARE, network__dimensions=[]), MODEL, "network.dimensions=[]"),
        (changed(HARDWARE, network__dimensions__0__topology__type="Star"), MODEL, "topology.type=star"),
        (changed(HARDWARE, execution_backend__model="astra", execution_backend__astra__mode="x"), MODEL, "execution_backend.astra.mode=x"),
        (changed(HARDWARE, sw_param__precision__tensor_format="int3"), MODEL, "tensor_format=int3"),
        (changed(HARDWARE, parallelism__tp=3), MODEL, "tp must divide"),
        (HARDWARE, changed(MODEL, model_param__mode="RNN"), "model_param.mode=RNN"),
        (HARDWARE, changed(MODEL, model_param__attention__attention_type="linear"), "attention_type=linear"),
        (HARDWARE, changed(MODEL, model_param__hidden_dim=None), "model_param.hidden_dim is missing"),
        (HARDWARE, changed(MODEL, model_param__moe={"num_experts": 4, "moe_layer_freq": 2}), "moe_layer_freq=2"),
        (HARDWARE, HARDWARE, "is RAPID-LLM hardware YAML; allowed: hw="),
        (changed(HARDWARE, tech_param__DRAM__bandwidth="-5 GB"), MODEL, "its DRAM to -5e+09 bytes/s; expected both above 0"),
        (changed(HARDWARE, parallelism__train__dp=0), MODEL, "parallelism.train.dp=0: expected a whole number of at least 1"),
        (changed(LEGACY, tech_param__core__nominal_energy_per_flop=0), MODEL, "nominal_energy_per_flop=0: expected a number above 0"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_line(tmp_path: Path, hardware: dict[str, Any], model: dict[str, Any], part: str) -> None:
    ended = program.run(tmp_path, *write(tmp_path, hardware, model))
    assert ended.code == 2
    assert "Traceback" not in ended.err
    assert part in ended.err.strip().splitlines()[-1]


@pytest.mark.parametrize("tree", [HARDWARE, LEGACY, MODEL], ids=["hardware", "legacy", "model"])
def test_every_key_is_taken_or_listed(tmp_path: Path, tree: dict[str, Any]) -> None:
    known = changed(tree, **({"sw_param__what_is_this": 1} if "sw_param" in tree else {"model_param__what_is_this": 1}))
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(known))
    found = read_foreign(tmp_path / "file.yaml", home())

    def leaves(node: Any, prefix: str = "") -> set[str]:
        nested = isinstance(node, list) and dict in map(type, node)
        pairs = node.items() if isinstance(node, dict) else enumerate(node) if nested else ()
        inner = {leaf for key, value in pairs for leaf in leaves(value, f"{prefix}{key}.")}
        return inner or {prefix.removesuffix(".")}

    assert leaves(known) == {*found.taken, *found.not_taken}
    assert [key for key, why in found.not_taken.items() if why.startswith("not a key")] == [key for key in leaves(known) if "what" in key]


def test_importing_hardware_writes_an_option_that_is_the_file(tmp_path: Path) -> None:
    files = write(tmp_path)
    direct = program.done(tmp_path, *files).out
    program.done(tmp_path, "hw.yaml", "--out", "mine", module="rapid_dse.import_model")
    program.done(tmp_path, "model.yaml", "--out", "theirs", module="rapid_dse.import_model")
    assert program.done(tmp_path, "hw=mine", "model=theirs").out.splitlines()[1:] == direct.splitlines()[1:]


def test_shipped_models_ride_on_its_hardware(tmp_path: Path) -> None:
    write(tmp_path)
    assert "tp=2 cp=1 dp=2 pp=4" in program.done(tmp_path, "hw=./hw.yaml", "model=llama3_1_8b").out
    assert values_of(None, {"batch": 4, "seq_len": 8}, {}, "training")[0]["workload.global_batch_size"] == 4


@pytest.mark.skipif(not SHARED.is_dir(), reason="RAPID-LLM's own files are not beside the checkout")
def test_its_own_files(tmp_path: Path) -> None:
    paths = sorted(SHARED.glob("*.yaml"))
    hardware = [path for path in paths if "hw_" in path.name]
    assert len(paths) == 16
    for path in paths:
        group = "hw" if path in hardware else "model"
        found = read_option(group, path, home())
        assert not [key for key, why in found.not_taken.items() if why.startswith("not a key")], path.name
    for path in hardware:  # a torus has no closed form: that file asks for the event engine
        ended = program.done(tmp_path, f"hw={path}", f"model={SHARED / 'model_Llama2-7B.yaml'}")
        assert "step time" in ended.out
    for name, run in (("model_GEMM.yaml", "step time"), ("model_vit_base_inf.yaml", "time of a batch")):
        assert run in program.done(tmp_path, f"hw={SHARED / 'hw_a100_80GB.yaml'}", f"model={SHARED / name}").out


KINDS = {
    "GEMM": ({"mode": "GEMM", "M": 4096, "K": 8192, "N": 2048, "backward": True, "gemm_shard_axis": "row"}, "gemm", "step time"),
    "ViT": (
        {
            "mode": "ViT",
            "model_type": "vit",
            "run_type": "inference",
            "global_batch_size": 4,
            "hidden_dim": 768,
            "vocab_size": 1000,
            "intermediate_size": 3072,
            "num_layers": 12,
            "vision": {"image_size": 224, "patch_size": 16},
            "attention": {"attention_type": "mha", "num_heads": 12, "use_flashattention": False},
        },
        "vit",
        "time of a batch",
    ),
    "LSTM": (
        {
            "mode": "LSTM",
            "batch_size": 256,
            "hidden_dim": 1024,
            "num_layers": 2,
            "vocab_size": 32000,
            "seq_len": 64,
            "projection": 0,
            "num_gates": 4,
            "num_non_linear": 5,
            "num_add": 1,
        },
        "lstm",
        "step time",
    ),
}


@pytest.mark.parametrize("mode", KINDS)
def test_products_images_and_recurrences_go_through(mode: str, tmp_path: Path) -> None:
    tree, kind, shown = KINDS[mode]
    files = write(tmp_path, model={"model_param": tree})
    found = read_option("model", tmp_path / "model.yaml", home())
    assert found.option["kind"] == kind
    assert not [key for key, why in found.not_taken.items() if why.startswith("not a key")]
    ended = program.done(tmp_path, *files)
    assert shown in ended.out
