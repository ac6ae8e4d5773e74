"""An option of a group that is a file: what it is, by its content, and what it holds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rapid_dse.common.bounded_files import require_file, yaml_of
from rapid_dse.config.units import shortened
from rapid_dse.imports.reader import RUN, Imported

GROUPS = ("hw", "model", "cluster", "software")  # whose options may be files
SUFFIXES = (".json", ".yaml", ".yml")


def is_file_option(group: str, option: str) -> bool:
    """Whether an option is a path and no name."""
    return group in GROUPS and ("/" in option or option.endswith(SUFFIXES))


def read_option(group: str, path: str | Path, home: Path) -> Imported:
    """The file as an option of the group.

    Args:
        home: the folder that holds ``conf/``, whose chips complete what a foreign hardware file leaves open.

    Raises:
        ValueError: one line: no such file, no mapping of keys, or nothing that the group takes; OSError where it cannot be read.
    """
    path = Path(path)
    label = f"{group}={path}"
    tree = read_tree(path, label)
    imported = _foreign(tree, path, home)
    if imported is None:
        if group == "model" and not {"hidden_size", "m"} & tree.keys() and "defaults" not in tree:
            raise ValueError(
                f"{label}: has no hidden_size; expected a Hugging Face config.json, RAPID-LLM's model YAML, or an option of model"
            )
        return Imported(group, f"option of {group}", {"name": _slug(path.stem), **tree}, {}, {})
    if imported.group != group:
        raise ValueError(f"{label}: is {imported.kind}; allowed: {imported.group}={path}")
    return imported


def read_foreign(path: str | Path, home: Path) -> Imported:
    """A file of another program, whichever group it belongs to.

    Raises:
        ValueError: one line, as ``read_option``; where it is no file of another program that is known here.
    """
    path = Path(path)
    imported = _foreign(read_tree(path, str(path)), path, home)
    if imported is None:
        raise ValueError(f"{path}: not known; allowed: a Hugging Face config.json (model_type), RAPID-LLM's hardware or model YAML")
    return imported


def kind_of_run(model: str) -> str | None:
    """The workload that a model file asks for, which RAPID-LLM's do; None where it asks for none, or cannot be read."""
    try:
        tree = read_tree(Path(model), model)
    except (ValueError, OSError):
        return None  # what is wrong with it is said where it is read
    kind = tree.get("model_param", tree.get(RUN))
    if isinstance(kind, dict) and str(kind.get("mode")).upper() == "GEMM":
        return "training" if kind.get("backward", True) else "inference"
    kind_named = kind.get("run_type", kind.get("kind")) if isinstance(kind, dict) else None
    return str(kind_named) if kind_named in ("training", "inference") else None


def read_tree(path: Path, label: str) -> dict[str, Any]:
    """The mapping in a JSON or YAML file; ``ValueError`` where there is none, named as ``label``."""
    if not path.exists():
        raise ValueError(f"{label}: no such file; allowed: a file that exists, or the name of an option")
    if path.is_dir():
        raise ValueError(f"{label}: is a folder; allowed: a file, such as {path / 'config.json'}")
    require_file(path, label)
    try:
        text = path.read_text(encoding="utf-8-sig")
        tree = json.loads(text) if path.suffix.lower() == ".json" else yaml_of(text)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{label}: cannot be read as {path.suffix[1:] or 'yaml'} ({reason})") from None
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ValueError(f"{label}: holds {shortened(tree)}; expected keys with values")
    return tree


def _foreign(tree: Mapping[str, Any], path: Path, home: Path) -> Imported | None:
    name = model_name(tree, path)
    if "model_type" in tree or "architectures" in tree:
        from rapid_dse.imports.hugging_face import read_config

        return read_config(tree, name, str(path))
    if "model_param" in tree:
        from rapid_dse.imports.rapid_model import read_model

        return read_model(tree, name, str(path))
    if "tech_param" in tree:
        from rapid_dse.imports.rapid_hardware import read_hardware

        return read_hardware(tree, name, str(path), home)
    return None


def model_name(tree: Mapping[str, Any], path: Path) -> str:
    """What an option of a file is called: as the file says, else after its folder where it is called config.json, else after the file."""
    said = tree.get("_name_or_path")
    if isinstance(said, str) and said.strip("./ "):
        return _slug(said.rstrip("/").rsplit("/", 1)[-1])
    stem = path.stem
    if stem.lower() == "config":
        return _slug(path.resolve().parent.name) or "config"
    return _slug(re.sub(r"[_.-]config$", "", stem)) or "imported"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").lower()
