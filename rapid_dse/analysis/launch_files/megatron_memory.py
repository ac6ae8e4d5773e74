"""What Megatron Core runs again and what it puts into the host's memory, as Megatron-LM's arguments and Megatron Bridge's recipes say."""

from __future__ import annotations

from typing import Any

from rapid_dse.analysis.launch_files.field_table import CHUNKS, Entry, FieldsRead, LaunchedRun, TwoWays
from rapid_dse.analysis.launch_files.megatron_core import Spell
from rapid_dse.config.recompute_entries import entries, named

MODULES = ("core_attn", "layernorm", "mla_up_proj", "mlp", "moe", "moe_act")  # recompute_modules, as far as they are modelled


def recomputation(spell: Spell) -> Entry:
    """Modes of recomputation, and what each repeats; behind the lines of stages, whose chunks have their layers counted one by one."""
    return TwoWays(lambda run: _write_recompute(run, spell), lambda fields: _read_recompute(fields, spell))


def _write_recompute(run: LaunchedRun, spell: Spell) -> dict[str, Any]:
    mode, layers, vpp = run["parallel.recompute"], run["parallel.recompute_layers"], run.count("parallel.vpp")
    if mode == "none":
        return {}
    said = {spell("recompute_granularity"): mode}
    if mode == "selective":
        modules = _words(run["parallel.recompute_modules"])
        return said | ({spell("recompute_modules"): modules} if modules else {})
    if layers is not None and layers % vpp == 0:  # of each chunk
        return said | {spell("recompute_method"): "block", spell("recompute_num_layers"): layers // vpp}
    return said | {spell("recompute_method"): "uniform", spell("recompute_num_layers"): 1}


def _words(modules: str | None) -> list[str]:
    """A sum of modules by Megatron Core's names; none where some is not its."""
    words = [next((word for word in MODULES if entries()[word] == entries()[module]), "") for module in named(modules)] if modules else []
    return words if all(words) else []


def _read_recompute(fields: FieldsRead, spell: Spell) -> dict[str, Any]:
    mode = fields.take(spell("recompute_granularity"))
    if fields.flag(spell("recompute_activations")):
        mode = "selective"
    if fields.flag(spell("checkpoint_activations")):
        mode = "full"
    method, count = fields.take(spell("recompute_method")), fields.number(spell("recompute_num_layers"))
    modules = fields.take(spell("recompute_modules"))
    if mode not in (None, "full", "selective"):
        fields.notes.append(f"{spell('recompute_granularity')}={mode}: has no counterpart here")
        return {}
    said: dict[str, Any] = {"parallel.recompute": mode or "none"}
    if mode == "full" and method == "block" and count:
        chunks = len(fields.keys.get(CHUNKS, ())) // max(1, fields.keys.get("parallel.pp", 1))
        said["parallel.recompute_layers"] = count * max(chunks, fields.keys.get("parallel.vpp", 1))
    if mode == "selective" and modules:
        words = modules if isinstance(modules, list) else str(modules).split()
        known = [word for word in words if word in MODULES]
        if len(known) < len(words):
            fields.notes.append(f"{spell('recompute_modules')}={' '.join(words)}: taken as {' '.join(known) or 'core_attn'}")
        said["parallel.recompute_modules"] = "+".join(sorted(known)) if known and known != ["core_attn"] else None
    return said


def offloading(spell: Spell, whole: bool) -> Entry:
    """What lies in the host's memory: optimizer states by share; activations and weights of so many layers, which are shares of all.

    ``whole``: whether what lies there has fields (cpu_offloading_weights, cpu_offloading_activations). Megatron-LM's arguments have the
    number of layers alone (--cpu-offloading-num-layers), whose activations it is.
    """

    def write(run: LaunchedRun) -> dict[str, Any]:
        share, layers = run["parallel.offload_optimizer"], run.count("model.num_hidden_layers")
        said = {spell("optimizer_cpu_offload"): True, spell("optimizer_offload_fraction"): share} if share > 0 else {}
        activations, weights = run["parallel.offload_activations"], run["parallel.offload_weights"]
        count = round(max(activations, weights) * layers)
        if not count or any(stored_share not in (0, count / layers) for stored_share in (activations, weights)) or (weights and not whole):
            return said
        said[spell("cpu_offloading_num_layers")] = count
        if whole:
            said |= {spell("cpu_offloading"): True}
            said |= {spell("cpu_offloading_weights"): True} if weights else {}
            said |= {spell("cpu_offloading_activations"): False} if not activations else {}
        return said

    def read(fields: FieldsRead) -> dict[str, Any]:
        said: dict[str, Any] = {}
        fraction = fields.real(spell("optimizer_offload_fraction"), default=1.0)
        if fields.flag(spell("optimizer_cpu_offload")):
            said["parallel.offload_optimizer"] = fraction
        count, layers = fields.number(spell("cpu_offloading_num_layers"), default=0), fields.keys.get("model.num_hidden_layers")
        switched, weights, activations = True, False, True
        if whole:
            switched, weights = fields.flag(spell("cpu_offloading")), fields.flag(spell("cpu_offloading_weights"))
            activations = str(fields.take(spell("cpu_offloading_activations"), default=True)).lower() != "false"
        if not count or not switched:
            return said
        if not layers:
            fields.notes.append(f"{spell('cpu_offloading_num_layers')}={count}: is a share of the model's layers; give parallel.offload_*")
            return said
        share = min(1.0, count / layers)
        said |= {"parallel.offload_activations": share} if activations else {}
        return said | ({"parallel.offload_weights": share} if weights else {})

    return TwoWays(write, read)
