"""The frameworks whose launch files are written and read: one file and one line each."""

from __future__ import annotations

from pathlib import Path

from rapid_dse.analysis.launch_files.deepspeed import DEEPSPEED
from rapid_dse.analysis.launch_files.framework import LaunchFramework, LaunchReading
from rapid_dse.analysis.launch_files.llm_foundry import LLM_FOUNDRY
from rapid_dse.analysis.launch_files.megatron_lm import MEGATRON_LM
from rapid_dse.analysis.launch_files.nanotron import NANOTRON
from rapid_dse.analysis.launch_files.nemo import NEMO
from rapid_dse.analysis.launch_files.sglang import SGLANG
from rapid_dse.analysis.launch_files.tensorrt_llm import TENSORRT_LLM
from rapid_dse.analysis.launch_files.torchtitan import TORCHTITAN
from rapid_dse.analysis.launch_files.vllm import VLLM
from rapid_dse.common.bounded_files import require_file

_ALL = (MEGATRON_LM, NEMO, TORCHTITAN, DEEPSPEED, NANOTRON, LLM_FOUNDRY, VLLM, SGLANG, TENSORRT_LLM)
FRAMEWORKS: dict[str, LaunchFramework] = {framework.name: framework for framework in _ALL}


def framework(name: str, option: str) -> LaunchFramework:
    """The framework of a name.

    Raises:
        ValueError: where there is none; ``option`` is what gave the name.
    """
    if name not in FRAMEWORKS:
        raise ValueError(f"{option}={name}: no framework whose launch files are known; allowed: {', '.join(FRAMEWORKS)}")
    return FRAMEWORKS[name]


def of_profile(software: str) -> LaunchFramework | None:
    """The framework that an option of ``software`` is launched with."""
    return next((framework for framework in FRAMEWORKS.values() if software in framework.profiles), None)


def read_file(path: Path, name: str | None = None) -> LaunchReading:
    """What a launch file says, read as the framework of which it has the most fields.

    Raises:
        ValueError: where it is none of the forms, or no field is known; OSError where it cannot be read.
    """
    require_file(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is no text; allowed: a launch script, YAML, TOML or JSON") from None
    readable, wrong = [], []
    for candidate in [framework(name, "--framework")] if name else _candidates(path):
        try:
            readable.append(candidate.read(text))
        except ValueError as error:
            wrong.append(str(error))
    if not readable:
        raise ValueError(f"{path}: {wrong[0] if wrong else 'no framework has such files'}; allowed: a script, YAML, TOML or JSON")
    best = max(readable, key=lambda reading: reading.used)
    if not best.used:
        titles = ", ".join(framework.title for framework in _candidates(path))
        raise ValueError(f"{path}: has no field of {titles}; allowed: a launch file of one of them")
    return best


def _candidates(path: Path) -> list[LaunchFramework]:
    suffix = path.suffix.lower()
    named = [framework for framework in FRAMEWORKS.values() if suffix in framework.form.suffixes]
    return named or list(FRAMEWORKS.values())
