"""What imported hardware and model files say of the run, together: values of keys beside the two groups.

RAPID-LLM's hardware file has the layout, the model file the batch: a micro-batch is batch / dp / mb. Its experts are an axis of their own,
so that dp here is dp · ep there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from rapid_dse.config.model_kinds import KINDS
from rapid_dse.config.run import ORDER
from rapid_dse.config.scenario import known_key

MOST_DIMENSIONS = 4  # of hw.network.dimensions
WITHOUT_FORM = ("mesh", "torus")
FIXED = "fully_connected"  # each of its links has a share of the bandwidth that its size tells

# Keys that the option of a group settles, by the group: where a command line names that option, it wins over the file.
OF_OPTION = {"backend.name": "backend"}

Run = Mapping[str, Any]
Values = dict[str, Any]


def settled_by(key: str) -> str | None:
    """The group whose option, where a command line names it, wins over what a file says of the key; None where the file does."""
    return "parallel" if key.startswith("parallel.") else OF_OPTION.get(key)


def values_of(hw: Run | None, model: Run | None, architecture: Mapping[str, Any], kind: str) -> tuple[Values, tuple[str, ...]]:
    """Values by dotted key, and what is said of them.

    Args:
        hw: what a hardware file says of the run; None where the hardware is none that was imported.
        model: what a model file says of it, likewise.
        architecture: the model, as the composed configuration has it.
        kind: of the workload, training or inference.
    """
    model = {**(model or {}), "kind": kind}
    values: Values = {}
    said: list[str] = []
    batch = _work(values, model)
    if hw:
        degrees = _degrees(hw, kind, architecture, said)
        _layout(values, hw, degrees, kind)
        _machine(values, hw, degrees, kind, said)
        of_kind = KINDS[architecture.get("kind") or "transformer"]
        if not of_kind.decodes:
            values.pop("workload.kv_precision", None)
        if not of_kind.streams and "parallel.sequence_parallel" in values:
            values["parallel.sequence_parallel"] = False
        if not of_kind.looped and kind == "training":
            values |= {"parallel.zero": 0, "parallel.recompute": "none"}
        if kind == "training" and batch is not None:
            _micro_batches(values, hw, model, degrees, said)
    return _known(values, said), tuple(said)


def _work(values: Values, model: Run) -> int | None:
    """The workload's own keys; the batch, where the model file has one."""
    batch: int | None = model.get("batch")
    if model.get("attention") is not None:
        values["software.attention"] = model["attention"]
    if model.get("expert_imbalance") is not None:
        values["workload.expert_imbalance"] = model["expert_imbalance"]
    if model.get("gemm_sharding") is not None:
        values["parallel.gemm_sharding"] = model["gemm_sharding"]
    if model["kind"] == "training":
        if batch is not None:
            values["workload.global_batch_size"] = batch
        if model.get("seq_len") is not None:
            values["workload.seq_len"] = model["seq_len"]
        return batch
    if batch is not None:
        values["workload.batch_size"] = batch
    if model.get("seq_len") is not None and model.get("decode_len") is None:
        values["workload.seq_len"] = model["seq_len"]
    elif model.get("seq_len") is not None:
        values["workload.decode_len"] = max(1, model["decode_len"])
        values["workload.prompt_len"] = max(1, model["seq_len"] - model["decode_len"])
    return batch


def _degrees(hw: Run, kind: str, architecture: Mapping[str, Any], said: list[str]) -> dict[str, int]:
    """tp, cp, pp, and dp and ep as axes of their own."""
    layout = hw["layout"]
    block = layout["train" if kind == "training" else "inference"]
    degrees = {name: int(layout[name]) for name in ("tp", "cp", "pp")} | {"dp": int(block["dp"]), "ep": int(block["ep"])}
    if degrees["ep"] > 1 and not architecture.get("num_experts"):
        said.append(f"ep={degrees['ep']}: the model has no experts; those GPUs hold further copies (dp)")
        degrees |= {"dp": degrees["dp"] * degrees["ep"], "ep": 1}
    shared_by = KINDS[architecture.get("kind") or "transformer"].shared_by
    for name in (axis for axis in ("cp", "pp") if axis not in shared_by and degrees[axis] > 1):
        said.append(f"{name}={degrees[name]}: the model is divided over {', '.join(shared_by)} alone; those GPUs hold further copies (dp)")
        degrees |= {"dp": degrees["dp"] * degrees[name], name: 1}
    return degrees


def _layout(values: Values, hw: Run, degrees: Mapping[str, int], kind: str) -> None:
    tp = degrees["tp"]
    values |= {f"parallel.{name}": degrees[name] for name in ("tp", "cp", "pp", "ep")}
    if kind == "training":  # dp is what the others leave
        values["parallel.sequence_parallel"] = hw["layout"]["sequence_parallel"] and tp > 1
    else:
        values["parallel.dp"] = degrees["dp"]
        values["parallel.attention_dp"] = degrees["ep"]
    if degrees["ep"] > 1 and not hw["layout"].get("experts_split", True):
        values["parallel.etp"] = 1
    values["hw.num_gpus"] = prod(degrees.values())
    software = dict(hw["software"])
    cache, shared = software.pop("kv_precision", None), software.pop("tp_sp_overlap", None)
    if kind == "inference":
        software = {key: value for key, value in software.items() if key.startswith("software.") and "gradient" not in key}
        values["workload.kv_precision"] = cache
    elif values["parallel.sequence_parallel"] and shared is not None:
        software["software.tp_overlap"] = shared
    values |= software
    values["software.enforce"] = False  # the file names no framework that would offer or refuse the layout
    values["workload.precision"] = hw["precision"]


def _machine(values: Values, hw: Run, degrees: Mapping[str, int], kind: str, said: list[str]) -> None:
    dimensions = network_of(hw["network"], degrees, kind)
    values["hw.network.dimensions"] = dimensions
    values["hw.gpus_per_node"] = (
        prod(dimension["size"] or 1 for dimension in dimensions[:-1]) if len(dimensions) > 1 else _only(dimensions[0], degrees)
    )
    if hw["faulty_links"]:
        values["hw.network.faulty_links"] = hw["faulty_links"]
    listed = dict.fromkeys(name for dimension in hw["network"] for name in dimension["parallelisms"])
    if listed:
        values["parallel.order"] = [*listed, *(name for name in ORDER if name not in listed)]
    values["backend.name"] = hw["backend"]
    open_forms = [dimension["topology"] for dimension in dimensions if dimension["topology"] in WITHOUT_FORM]
    if hw["backend"] == "analytical" and (open_forms or hw["faulty_links"]):
        values["backend.name"] = "hybrid"
        said.append(f"{open_forms[0] if open_forms else 'faulty_links'}: has no closed form; priced by backend=hybrid")
    values["cluster.hop_latency"] = 0.0  # the file's latencies are whole


def _only(dimension: Mapping[str, Any], degrees: Mapping[str, int]) -> int:
    return dimension["size"] or prod(degrees.values())


def network_of(network: Sequence[Run], degrees: Mapping[str, int], kind: str = "training") -> list[dict[str, Any]]:
    """Dimensions as ``hw.network`` has them, inner to outer.

    A dimension holds the parallelisms that are listed on it; one that lists none and has no size of its own holds nothing and is left
    out. Where experts have an axis of their own, which no order of the others gives, dimensions keep their lists; an engine's experts
    lie on its copies of attention, which are inside.
    """
    kept = [dimension for dimension in network if dimension["parallelisms"] or (dimension["size"] or 1) > 1] or [network[0]]
    own = kind == "training" and degrees["ep"] > 1 and degrees["cp"] == 1
    own = own and all(dimension["parallelisms"] and not dimension["flat"] for dimension in kept)
    dimensions: list[dict[str, Any]] = []
    for at, dimension in enumerate(kept):
        size = dimension["size"] or prod(degrees[name] for name in dimension["parallelisms"])
        part = {key: dimension[key] for key in ("topology", "bandwidth", "latency", "utilization", "energy")}
        if own:
            part["parallelisms"] = [name for name in dimension["parallelisms"] if degrees[name] > 1]
        sizes = _sides(size) if dimension["flat"] else [size]
        line = part["topology"] == "mesh" and size <= 2
        if line or (part["topology"] == "torus" and len(sizes) == 1):
            part["topology"] = "ring"  # which it is, and which has a closed form
        dimensions += [{**part, "size": side} for side in sizes]
        if at == len(kept) - 1 and dimension["size"] is None and dimension["topology"] != FIXED and not own and not line:
            dimensions[-1]["size"] = None
    if len(dimensions) > MOST_DIMENSIONS:
        raise ValueError(f"network.dimensions: {len(dimensions)} dimensions; allowed: up to {MOST_DIMENSIONS}")
    return dimensions


def _sides(size: int) -> list[int]:
    """The sides of a plane of so many places, as near to a square as they come; one where it is a line."""
    side = next(side for side in range(math.isqrt(size), 0, -1) if size % side == 0)
    return [size // side, side] if side > 1 else [size]


def _micro_batches(values: Values, hw: Run, model: Run, degrees: Mapping[str, int], said: list[str]) -> None:
    """Sequences of a micro-batch: batch / dp / mb; where that is no whole number, the nearest that divides (in ratio)."""
    batch, copies = int(model["batch"]), degrees["dp"] * degrees["ep"]
    wanted = int(hw["layout"]["micro_batches"]) * int(model.get("accumulation", 1))
    if batch % copies:
        return  # the rule of layouts says it
    share = batch // copies
    divisors = [size for size in range(1, share + 1) if share % size == 0]
    size = min(divisors, key=lambda size: (abs(math.log(size * wanted / share)), size))
    values["parallel.micro_batch_size"] = size
    if size * wanted != share:
        said.append(
            f"{share} sequences a copy do not divide into mb={wanted} micro-batches; priced with {share // size} of {size} "
            f"sequence{'s' * (size != 1)}"
        )


def _known(values: Values, said: list[str]) -> Values:
    """The values whose keys the schema has; of others it is said that they are not priced."""
    unknown = [key for key, value in values.items() if not known_key(key) and value not in (None, 1)]
    said += [f"{key}={values[key]} is not priced" for key in unknown]
    return {key: value for key, value in values.items() if known_key(key) and value is not None}
