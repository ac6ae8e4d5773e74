"""RAPID-LLM's hardware YAML (``tech_param``) as an option of ``hw``, with what it says of software, layout and backend."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rapid_dse.config.hardware import PRECISION_BYTES
from rapid_dse.config.units import shortened, to_si
from rapid_dse.imports.nearest_chip import nearest_chip
from rapid_dse.imports.reader import Imported, Reader, Rules

KIND = "RAPID-LLM hardware YAML"
FORMATS = {name: size for name, size in PRECISION_BYTES.items() if not name.startswith("int")}  # bytes of a number
AS_TENSOR = "as_tensor_format"
TOPOLOGIES = {
    "ring": "ring",
    "fc": "fully_connected",
    "fullyconnected": "fully_connected",
    "switch": "switch",
    "mesh": "mesh",
    "torus": "torus",
    "mesh2d": "mesh",
    "kingmesh2d": "mesh",
    "torus2d": "torus",
    "superpod": "fat_tree",
    "fattree": "fat_tree",
}
FLAT = ("mesh2d", "kingmesh2d", "torus2d")  # of two dimensions
_PREFIX = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_QUANTITY = re.compile(r"([0-9.eE+-]+)\s*([KMGTkmgt]?)i?(B|b|bit|bps)(?:/s)?")

_TILES = "tiles and reuse follow from the sizes of the memories"
_LEAVES = "ranks fill a dimension in order; leaf switches hold up to 32, and nothing is oversubscribed"
_LATENCY = "kernel_launch_overhead, which is longer, is what a small kernel takes"
LEFT: Rules = (
    (r"tech_param\.core\.(FMA_d[12]|dataflow)", _TILES),
    (r"tech_param\.(DRAM|SRAM-.*)\.latency", _LATENCY),
    (r"tech_param\.SRAM-(L1|R)\.dynamic_energy_per_bit", "hw.energy.flop holds what operands take from registers and shared memory"),
    (r"tech_param\.network\..*", "network.dimensions says it"),
    (r"memory_hierarchy\..*", "the order registers, L1, L2, DRAM is the only one that is priced"),
    (r"network\.dimensions\.\d+\.(id|label)", "a name"),
    (r"network\.dimensions\.\d+\.topology\.(optimize_2dmap|superpod_variant|leaf_.*|spine_.*)", _LEAVES),
    (r"network\.dimensions\.\d+\.collective_override.*", "algorithms are NCCL's choice, or the backend's own"),
    (r"execution_backend\.astra\.(collectives|collective_override)\..*", "algorithms are NCCL's choice, or the backend's own"),
    (r"execution_backend\.astra\.sys_options\..*", "chunks, queues and delays are those of the backend, as docs/backends.md has them"),
    (r"execution_backend\.astra\.backend", "the engine here is built in; backend.engine=astrasim runs ASTRA-sim"),
    (r"sw_param\.precision\.(stats|grad_microbatch)", "what a step keeps of it is in software.optimizer_bytes and gradient_dtype"),
    (r"sw_param\.h2d_bandwidth", "nothing is offloaded to the host"),
    (r"inference\.kvcache_type", "the KV cache is in the GPU's memory"),
    (r"(parallelism|scheduling_param)\.auto", "the layout is the one that the file has; sweep others with -m"),
    (r"parallelism\.inference\..*", "of inference; the run is training"),
    (r"parallelism\.train\..*", "of training; the run is inference"),
)  # fmt: skip


def read_hardware(tree: Mapping[str, Any], name: str, source: str, home: Path) -> Imported:
    """The file as an option of ``hw``; what it says of software, layout, network and backend is under ``run``.

    Args:
        home: holds ``conf/``, from whose nearest chip comes what the file leaves open.

    Raises:
        ValueError: one line: a key that is missing, or a value that is none of its key's.
    """
    from rapid_dse.imports.rapid_legacy import is_legacy, read_legacy

    reader = Reader(tree, source)
    if is_legacy(tree):
        return read_legacy(reader, name, home)
    numbers = _format(reader)
    chip = chip_of(_core(reader) | _memories(reader), numbers, home)
    chip |= {"name": name, "kernel_latency": reader.number("sw_param.kernel_launch_overhead", "hw.kernel_latency", 0.0)}
    chip["network"] = {"dimensions": [{**_open_network(), "energy": 0.0}]}
    run = {
        "software": software_of(reader, numbers),
        "precision": numbers,
        "layout": _layout(reader),
        "network": _network(reader),
        "faulty_links": _faults(reader),
        "backend": backend_of(reader),
    }
    reader.remarks.append(f"what the file leaves open (attention kernels, vector rates, idle power, price) is that of {chip.pop('base')}")
    reader.leave_rest(LEFT)
    return reader.imported("hw", KIND, chip | {"run": run})


def chip_of(given: Mapping[str, Any], numbers: str, home: Path) -> dict[str, Any]:
    """The chip: what the file gives, over the shipped chip that is nearest in peak and bandwidth; ``base`` is that one's name.

    ``given``: sms, tensor_cores, clock (Hz), rate (FLOP an SM and clock), capacity, bandwidth, energies and shares, and what is known of
    the other memories.
    """
    base = nearest_chip(home, given["rate"] * given["sms"] * given["clock"], given["bandwidth"])
    rates = dict.fromkeys(("bf16", "fp16") if FORMATS[numbers] == 2 else (numbers,), given["rate"])
    energy, chip = base["energy"], {key: value for key, value in base.items() if key not in ("gpus_per_node", "num_gpus")}
    chip |= {
        "base": base["name"],
        "sms": given["sms"],
        "tensor_cores_per_sm": given["tensor_cores"],
        "clock": given["clock"],
        "tensor_flop_per_sm_clock": {**base["tensor_flop_per_sm_clock"], **rates},
        "memory": {"capacity": given["capacity"], "usable": given["capacity"], "bandwidth": given["bandwidth"]},
        "efficiency": {"clock": 1.0, "sustained": 1.0, **given["efficiency"]},
        "energy": {**energy, **given["energy"], "flop": {**energy["flop"], **dict.fromkeys(rates, given["flop_energy"])}},
    }
    for level in ("registers", "shared_memory", "l2"):
        chip[level] = given.get(level, base[level])
    return chip


def _core(reader: Reader) -> dict[str, Any]:
    core = "tech_param.core"
    tensor_cores = reader.whole(f"{core}.num_mcu_per_bundle", "hw.tensor_cores_per_sm")
    rate = reader.number(f"{core}.nominal_flop_rate_per_mcu", "hw.tensor_flop_per_sm_clock")
    return {
        "sms": reader.whole(f"{core}.num_bundles", "hw.sms"),
        "tensor_cores": tensor_cores,
        "clock": reader.number(f"{core}.operating_frequency", "hw.clock"),
        "rate": rate * tensor_cores,
        "flop_energy": reader.number(f"{core}.nominal_energy_per_flop", "hw.energy.flop"),
        "tensor": reader.number(f"{core}.util", "hw.efficiency.tensor", 1.0),
    }


def _memories(reader: Reader) -> dict[str, Any]:
    """Capacities are binary, as the makers' are; rates are decimal."""
    memories: dict[str, Any] = {}
    for part, ours in (("SRAM-R", "registers"), ("SRAM-L1", "shared_memory"), ("SRAM-L2", "l2")):
        shares = 1.0 if ours == "l2" else reader.number(f"tech_param.{part}.util", f"hw.{ours}.bandwidth", 1.0)
        size = size_of(reader, f"tech_param.{part}.size", f"hw.{ours}.size")
        memories[ours] = {"size": size, "bandwidth": shares * rate_of(reader, f"tech_param.{part}.bandwidth", f"hw.{ours}.bandwidth")}
    return memories | {
        "capacity": size_of(reader, "tech_param.DRAM.size", "hw.memory.capacity, all of it usable"),
        "bandwidth": rate_of(reader, "tech_param.DRAM.bandwidth", "hw.memory.bandwidth"),
        "efficiency": {
            "tensor": reader.number("tech_param.core.util", "hw.efficiency.tensor", 1.0),
            "memory": reader.number("tech_param.DRAM.util", "hw.efficiency.memory", 1.0),
            "l2": reader.number("tech_param.SRAM-L2.util", "hw.efficiency.l2", 1.0),
        },
        "energy": {
            "hbm": 8 * reader.number("tech_param.DRAM.dynamic_energy_per_bit", "hw.energy.hbm"),
            "l2": 8 * reader.number("tech_param.SRAM-L2.dynamic_energy_per_bit", "hw.energy.l2"),
        },
    }


def size_of(reader: Reader, path: str, into: str) -> float:
    """Bytes: ``80 GB`` is 80 · 2^30, as makers of memory mean it."""
    return _quantity(reader, path, reader.take(path, into), 1024.0)


def rate_of(reader: Reader, path: str, into: str) -> float:
    """Bytes a second: ``1986 GB`` is 1,986 · 10^9, ``300 Gb`` an eighth of 300 · 10^9."""
    return _quantity(reader, path, reader.take(path, into), 1000.0)


def _quantity(reader: Reader, path: str, value: Any, base: float) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _QUANTITY.fullmatch(str(value).strip())
    if value is None or match is None:
        raise ValueError(f"{reader.name}: {path}={shortened(value)}: expected a quantity, such as 80 GB")
    number, prefix, unit = match.groups()
    return to_si(number, "bytes") * base ** _PREFIX[prefix.upper()] / (1.0 if unit == "B" else 8.0)


def _format(reader: Reader) -> str:
    path = "sw_param.precision.tensor_format"
    precision = str(reader.take(path, "workload.precision", "bf16")).lower()
    if precision not in FORMATS:
        raise ValueError(f"{reader.name}: {path}={precision}: not a precision here; allowed: {', '.join(FORMATS)}")
    return precision


def software_of(reader: Reader, numbers: str) -> dict[str, Any]:
    """Keys of ``software``, and of ``parallel`` what the file has under software."""
    part, software = "sw_param.precision", dict[str, Any]()
    full = reader.take("sw_param.full_recomputation", "parallel.recompute")
    if full is not None:
        software["parallel.recompute"] = "full" if full else "none"
    software["parallel.zero"] = reader.whole("sw_param.dp_zero_stage", "parallel.zero", 0)
    when = reader.take("sw_param.dp_microbatch", "software.reduce_each_micro_batch")
    if when is not None:
        software["software.reduce_each_micro_batch"] = when != "last_mb"
    for theirs, ours in (("gradients", "gradient_dtype"), ("grad_communication", "reduce_dtype")):
        name = _dtype(reader, f"{part}.{theirs}", f"software.{ours}", numbers)
        if name in ("bf16", "fp16", "fp32"):
            software[f"software.{ours}"] = name
    states = _dtype(reader, f"{part}.optimizer_states", "software.optimizer_bytes", numbers)
    if states is not None:
        software["software.optimizer_bytes"] = 2.0 * FORMATS[states] + _bytes(reader, f"{part}.master_parameters", numbers)
    cache = _dtype(reader, f"{part}.kv_cache", "workload.kv_precision, of inference", numbers)
    if cache is not None:
        software["kv_precision"] = cache
    weights = reader.get(f"{part}.parameters", default=AS_TENSOR)
    if weights in (AS_TENSOR, numbers):
        reader.take(f"{part}.parameters", "workload.precision")
    else:
        reader.leave(f"{part}.parameters", "weights are kept as workload.precision has them")
    if reader.get("sw_param.const_mem_offset") is not None:
        software["software.context"] = size_of(reader, "sw_param.const_mem_offset", "software.context")
    for theirs, ours in (("tp_overlap", "tp_overlap"), ("cp_overlap", "cp_overlap")):
        if reader.get(f"network.overlap.{theirs}") is not None:
            software[f"software.{ours}"] = reader.number(f"network.overlap.{theirs}", f"software.{ours}")
    if reader.get("network.overlap.tp_sp_overlap") is not None:
        software["tp_sp_overlap"] = reader.number("network.overlap.tp_sp_overlap", "software.tp_overlap under sequence parallelism")
    return software


def _bytes(reader: Reader, path: str, numbers: str) -> float:
    """Bytes of a number that a key gives by itself, or by the name of its format; 0 where it is missing."""
    if isinstance(reader.get(path), str) and reader.get(path).lower() in (AS_TENSOR, *FORMATS):
        return float(FORMATS[_dtype(reader, path, "software.optimizer_bytes", numbers) or numbers])
    return reader.number(path, "software.optimizer_bytes", 0.0)


def _dtype(reader: Reader, path: str, into: str, numbers: str) -> str | None:
    dtype = reader.take(path, into)
    if dtype is None or dtype == AS_TENSOR:
        return numbers if dtype is not None else None
    if isinstance(dtype, int | float) and not isinstance(dtype, bool):  # bytes of a number
        same = [name for name in (numbers, "fp32", "bf16", "fp8") if FORMATS[name] == dtype]
        dtype = same[0] if same else dtype
    if dtype not in FORMATS:
        raise ValueError(f"{reader.name}: {path}={shortened(dtype)}: not a precision here; allowed: {AS_TENSOR}, {', '.join(FORMATS)}")
    return str(dtype)


def _layout(reader: Reader) -> dict[str, Any]:
    part = "parallelism"
    layout: dict[str, Any] = {key: reader.degree(f"{part}.{key}", f"parallel.{key}") for key in ("tp", "cp", "pp")}
    layout["micro_batches"] = reader.degree(f"{part}.mb", "parallel.micro_batch_size = batch / dp / mb")
    layout["sequence_parallel"] = bool(reader.take(f"{part}.tp_sp", "parallel.sequence_parallel", False))
    split = reader.take(f"{part}.train.tp_ep", "parallel.etp: null where true, else 1", True)
    layout["experts_split"] = bool(split)
    layout["train"] = {
        "dp": reader.degree(f"{part}.train.dp", "parallel.dp, times ep"),
        "ep": reader.degree(f"{part}.train.ep", "parallel.ep"),
    }
    layout["inference"] = {
        "dp": reader.degree(f"{part}.inference.replica_count", "parallel.dp of inference"),
        "ep": reader.degree(f"{part}.inference.moe_dp", "parallel.attention_dp of inference"),
    }
    return layout


def _open_network() -> dict[str, Any]:
    return {"topology": "switch", "size": None, "bandwidth": 1e9, "latency": 0.0, "utilization": 1.0}


def _network(reader: Reader) -> list[dict[str, Any]]:
    """The dimensions, inner to outer; ``size`` auto is what the parallelisms on them come to."""
    listed = reader.get("network.dimensions")
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{reader.name}: network.dimensions={shortened(listed)}: expected a list of dimensions")
    dimensions = []
    for at in range(len(listed)):
        part = f"network.dimensions.{at}"
        kind = str(reader.take(f"{part}.topology.type", f"hw.{part}.topology")).lower()
        if kind not in TOPOLOGIES:
            raise ValueError(f"{reader.name}: {part}.topology.type={kind}: not known; allowed: {', '.join(TOPOLOGIES)}")
        speeds = reader.get(f"{part}.topology.bandwidth")
        if isinstance(speeds, list):  # of a leaf, and of the links above it
            reader.take(f"{part}.topology.bandwidth", f"hw.{part}.bandwidth, the first")
            speed = _quantity(reader, f"{part}.topology.bandwidth", speeds[0] if speeds else None, 1000.0)
        else:
            speed = rate_of(reader, f"{part}.topology.bandwidth", f"hw.{part}.bandwidth")
        size = reader.take(f"{part}.size", f"hw.{part}.size", "auto")
        dimensions.append(
            {
                "topology": TOPOLOGIES[kind],
                "flat": kind in FLAT,
                "size": None if size == "auto" else reader.whole(f"{part}.size", f"hw.{part}.size"),
                "bandwidth": speed,
                "latency": reader.number(f"{part}.topology.latency", f"hw.{part}.latency", 0.0),
                "utilization": reader.number(f"{part}.topology.util", f"hw.{part}.utilization", 1.0),
                "energy": 8 * reader.number(f"{part}.topology.energy_per_bit", f"hw.{part}.energy", 0.0),
                "parallelisms": _names(reader, f"{part}.parallelisms"),
            }
        )
    return dimensions


def _names(reader: Reader, path: str) -> list[str]:
    names = reader.take(path, "parallel.order", [])
    if not isinstance(names, list) or not set(map(str, names)) <= {"tp", "cp", "ep", "dp", "pp"}:
        raise ValueError(f"{reader.name}: {path}={shortened(names)}: expected some of tp, cp, ep, dp, pp")
    return list(map(str, names))


def _faults(reader: Reader) -> list[list[float]]:
    links = reader.take("network.faulty_links", "hw.network.faulty_links", [])
    if not isinstance(links, list) or not all(isinstance(link, list) and len(link) == 3 for link in links):
        raise ValueError(
            f"{reader.name}: network.faulty_links={shortened(links)}: expected a list of [device, device, share of bandwidth left]"
        )
    return links


def backend_of(reader: Reader) -> str:
    """The backend: ``model: astra`` runs in its mode, anything else in closed form."""
    model = str(reader.take("execution_backend.model", "backend", "analytical")).lower()
    if model != "astra":
        reader.leave("execution_backend.astra", "of event-driven runs; the file asks for closed forms")
        return "analytical"
    mode = str(reader.take("execution_backend.astra.mode", "backend", "hybrid"))
    allowed = ("hybrid", "full_astrasim_hierarchical", "full_astrasim_flattened")
    if mode not in allowed:
        raise ValueError(f"{reader.name}: execution_backend.astra.mode={mode}: not known; allowed: {', '.join(allowed)}")
    return mode
