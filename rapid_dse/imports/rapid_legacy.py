"""RAPID-LLM's older hardware YAML: a technology model of areas, power and links, from which rates follow.

Bundles are the core's area over an MCU's; the clock is the one that is given, else the MCU's power over what its operations take; HBM's
bandwidth is its links' at its clock; a network's bandwidth is what its power moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rapid_dse.imports.rapid_hardware import FORMATS, KIND, LEFT, backend_of, chip_of, size_of, software_of
from rapid_dse.imports.reader import Imported, Reader, Rules

_AREAS = "areas and voltages of a technology model: the sizes and rates of registers, shared memory and L2 are those of the nearest chip"
_FLAGS = "which network a parallelism is on follows from the order tp, cp, dp, pp and the devices of a node"
LEGACY_LEFT: Rules = (
    (r"tech_param\.network\..*", "power and the energy of a bit give the bandwidth"),
    *LEFT,
    (r"tech_param\.(core|DRAM|SRAM-.*)\..*|area_breakdown\..*|power_breakdown\.(L2|L1|reg_mem|core|DRAM)|perimeter_breakdown\..*", _AREAS),
    (r"system_hierarchy\.(inter_derate|intra_derate|.*_inter)", _FLAGS),
    (r"sw_param\.precision\.(mixed_precision|param_storage_mode)", "weights are kept as workload.precision has them"),
)


def is_legacy(tree: Mapping[str, Any]) -> bool:
    """Whether the file has the older layout."""
    return "scheduling_param" in tree or "system_hierarchy" in tree


def read_legacy(reader: Reader, name: str, home: Path) -> Imported:
    """The file as an option of ``hw``; ``ValueError`` where a key is missing or wrong."""
    numbers = str(reader.take("sw_param.precision.tensor_format", "workload.precision", "bf16")).lower()
    if numbers not in FORMATS:
        raise ValueError(f"{reader.name}: sw_param.precision.tensor_format={numbers}: not a precision here; allowed: {', '.join(FORMATS)}")
    chip = chip_of(_core(reader) | _memory(reader), numbers, home)
    chip |= {"name": name, "kernel_latency": reader.number("sw_param.kernel_launch_overhead", "hw.kernel_latency", 0.0)}
    if reader.get("power_breakdown.TDP") is not None:
        chip["energy"] = {**chip["energy"], "tdp": reader.number("power_breakdown.TDP", "hw.energy.tdp")}
    chip["network"] = {
        "dimensions": [{"topology": "switch", "size": None, "bandwidth": 1e9, "latency": 0.0, "utilization": 1.0, "energy": 0.0}]
    }
    run = {
        "software": software_of(reader, numbers),
        "precision": numbers,
        "layout": _layout(reader),
        "network": _network(reader),
        "faulty_links": [],
        "backend": backend_of(reader),
    }
    reader.remarks.append(f"what the file leaves open (the sizes and rates of caches, vector rates, price) is that of {chip.pop('base')}")
    reader.leave_rest(LEGACY_LEFT)
    return reader.imported("hw", f"{KIND}, older layout", chip | {"run": run})


def _core(reader: Reader) -> dict[str, Any]:
    core = "tech_param.core"
    rate = reader.positive(f"{core}.nominal_flop_rate_per_mcu", "hw.tensor_flop_per_sm_clock")
    joules = reader.positive(f"{core}.nominal_energy_per_flop", "hw.energy.flop")
    units = reader.degree(f"{core}.num_mcu_per_bundle", "hw.tensor_cores_per_sm")
    if reader.get(f"{core}.num_bundles") is not None:
        bundles = reader.whole(f"{core}.num_bundles", "hw.sms")
    else:
        area = reader.number("area_breakdown.core", "hw.sms, over the area of an MCU")
        bundles = int(area / reader.positive(f"{core}.operating_area_per_mcu", "hw.sms, as the core's area over it") / units + 1e-9)
    clock = next((key for key in ("operating_frequency", "nominal_frequency") if reader.get(f"{core}.{key}") is not None), None)
    if clock is not None:
        hertz = reader.number(f"{core}.{clock}", "hw.clock")
    else:
        hertz = reader.number(f"{core}.nominal_power_per_mcu", "hw.clock, over the power of an operation a second") / (joules * rate)
    return {"sms": bundles, "tensor_cores": units, "clock": hertz, "rate": rate * units, "flop_energy": joules}


def _memory(reader: Reader) -> dict[str, Any]:
    part = "tech_param.DRAM"
    if reader.get(f"{part}.num_stacks") is not None:
        stacks = reader.whole(f"{part}.num_stacks", "hw.memory.capacity and bandwidth")
    else:
        room = reader.number("area_breakdown.device_area_budget", "stacks of HBM")
        room -= reader.number("area_breakdown.proc_chip_area_budget", "stacks of HBM")
        stacks = int(room / reader.positive(f"{part}.area_per_stack", "stacks of HBM"))
    key = next(
        (key for key in ("operating_frequency", "nominal_frequency") if reader.get(f"{part}.{key}") is not None), "operating_frequency"
    )
    links = stacks * reader.whole(f"{part}.num_links_per_stack", "hw.memory.bandwidth")
    capacity = stacks * size_of(reader, f"{part}.stack_capacity", "hw.memory.capacity, all of it usable")
    return {
        "capacity": capacity,
        "bandwidth": links * reader.number(f"{part}.{key}", "hw.memory.bandwidth") / 8,
        "efficiency": {
            "tensor": reader.number("tech_param.core.util", "hw.efficiency.tensor", 1.0),
            "memory": reader.number(f"{part}.util", "hw.efficiency.memory", 1.0),
            "l2": reader.number("tech_param.SRAM-L2.util", "hw.efficiency.l2", 1.0),
        },
        "energy": {
            "hbm": 8 * reader.number(f"{part}.dynamic_energy_per_bit", "hw.energy.hbm"),
            "l2": 8 * reader.number("tech_param.SRAM-L2.dynamic_energy_per_bit", "hw.energy.l2"),
        },
    }


def _layout(reader: Reader) -> dict[str, Any]:
    part = "scheduling_param"
    layout: dict[str, Any] = {key: reader.degree(f"{part}.{key}", f"parallel.{key}") for key in ("tp", "cp", "pp")}
    if reader.get(f"{part}.pp") is None:
        layout["pp"] = reader.degree(f"{part}.lp", "parallel.pp")  # layer parallelism, as it was called first
    layout["micro_batches"] = reader.degree(f"{part}.mb", "parallel.micro_batch_size = batch / dp / mb")
    layout["sequence_parallel"] = bool(reader.take(f"{part}.tp_sp", "parallel.sequence_parallel", False))
    degree = {"dp": reader.degree(f"{part}.dp", "parallel.dp"), "ep": 1}
    return layout | {"train": degree, "inference": degree}


def _network(reader: Reader) -> list[dict[str, Any]]:
    """Two dimensions: the devices of a node, and the nodes."""
    devices = reader.whole("system_hierarchy.num_devices_per_node", "hw.gpus_per_node", 1)
    nodes = reader.whole("system_hierarchy.num_nodes", "hw.network.dimensions.1.size", 1)
    inside, outside = _dimension(reader, "intra_node", 0, devices), _dimension(reader, "inter_node", 1, nodes)
    if inside["bandwidth"] <= 0:
        reader.remarks.append("the network of a node has no power; its bandwidth is that between nodes")
        inside["bandwidth"] = outside["bandwidth"]
    return [inside, outside]


def _dimension(reader: Reader, part: str, at: int, size: int) -> dict[str, Any]:
    tech, key = f"tech_param.network.{part}", f"hw.network.dimensions.{at}"
    topology = str(reader.take(f"network_topology.{part}", f"{key}.topology", "ring")).lower()
    if topology not in ("ring", "mesh", "torus", "switch", "fc"):
        raise ValueError(f"{reader.name}: network_topology.{part}={topology}: not known; allowed: ring, mesh, torus, switch, fc")
    joules = reader.positive(f"{tech}.energy_per_bit", f"{key}.energy")
    watts = reader.number(f"power_breakdown.network.{part}", f"{key}.bandwidth, over the energy of a bit")
    return {
        "topology": {"fc": "fully_connected"}.get(topology, topology),
        "flat": False,
        "size": size,
        "bandwidth": watts / joules / 8,
        "latency": reader.number(f"{tech}.latency", f"{key}.latency", 0.0),
        "utilization": reader.number(f"{tech}.util", f"{key}.utilization", 1.0),
        "energy": 8 * joules,
        "parallelisms": [],
    }
