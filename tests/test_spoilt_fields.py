"""Fields of launch files and of config.json with values that they cannot have: one clear line, or a note and a result, no traceback."""

from __future__ import annotations

import copy
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_launch_files import MODELS, composer, one

from rapid_dse.analysis.launch_files.exported import exported
from rapid_dse.analysis.launch_files.frameworks import FRAMEWORKS, read_file
from rapid_dse.analysis.launch_files.launched import launched
from rapid_dse.imports.file_options import read_option
from rapid_dse.sweep.places import home

ODD = (None, "abc", [], {}, -1, 1.5, True, float("inf"), 10**30, "")
TRIED = None if os.environ.get("HYPOTHESIS_PROFILE") == "fuzz" else 8  # of each framework; make fuzz tries every field with every value


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a document has a value that holds no others."""
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, dict | list) and value:
            yield from places(value, (*path, name))
        else:
            yield (*path, name)


def with_value(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(tree)
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return changed


def spoilt_documents(text: str, load: Callable[[str], Any], dump: Callable[[Any], str]) -> Iterator[str]:
    tree = load(text)
    comments = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    for path in places(tree):
        yield from (comments + dump(with_value(tree, path, odd)) for odd in ODD)


def spoilt_lines(text: str) -> Iterator[str]:
    """Of scripts and TOML: the last word of each line in turn."""
    lines = text.splitlines(keepends=True)
    for at, line in enumerate(lines):
        for odd in ODD:
            word = json.dumps(odd).strip('"') if not isinstance(odd, float) or odd != float("inf") else "inf"
            changed = re.sub(r"(=|\s)([^=\s]+)(\s*\\?\n)$", lambda match, word=word: f"{match[1]}{word}{match[3]}", line)
            if not line.startswith("#") and changed != line:
                yield "".join([*lines[:at], changed, *lines[at + 1 :]])


def spoilt(text: str, suffix: str) -> Iterator[str]:
    if suffix == ".yaml":
        return spoilt_documents(text, yaml.safe_load, yaml.safe_dump)
    return spoilt_documents(text, json.loads, json.dumps) if suffix == ".json" else spoilt_lines(text)


TRAINED = ("hw.num_gpus=64", "workload.global_batch_size=128", "workload.seq_len=4096")
SERVED = ("workload=inference", "hw.num_gpus=16", "parallel.tp=8", "workload.concurrency=64")
PIPELINES = ("megatron_lm", "nemo", "torchtitan", "nanotron")


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_field_with_a_value_that_it_cannot_have_is_one_line_or_a_note(name: str, tmp_path: Path) -> None:
    job = TRAINED if FRAMEWORKS[name].kind == "training" else SERVED
    degrees = ("parallel.pp=4", "parallel.tp=2") if name in PIPELINES else ()
    file = exported(one(f"model={MODELS[name][0]}", f"software={name}", *job, *degrees), FRAMEWORKS[name], composer())
    texts = list(spoilt(file.text, file.suffix))
    assert len(texts) > 50
    path = tmp_path / f"run{file.suffix}"
    for text in texts if TRIED is None else random.Random(name).sample(texts, TRIED):
        path.write_text(text)
        said = ""
        try:
            launched(read_file(path), ("hw.num_gpus=16",), composer())
        except ValueError as error:
            said = str(error)
        assert "\n" not in said, text
        assert len(said) <= 300, text


DOCUMENT = (
    "model:\n  name: mpt_causal_lm\n  d_model: 4096\n  n_layers: 32\n  n_heads: 32\n  vocab_size: 1000\n  expansion_ratio: {}\n"
    "max_seq_len: 2048\n"
)
SCRIPT = (
    "torchrun pretrain_gpt.py --num-layers 8 --hidden-size 1024 --num-attention-heads 16 --seq-length 1024 --max-position-embeddings 1024 "
    "--micro-batch-size 1 --global-batch-size 16 --vocab-size 1000 --pipeline-model-parallel-size {} --pipeline-model-parallel-layout {}\n"
)


@pytest.mark.parametrize(
    ("stages", "layout", "says"),
    [
        (4, "'Et|tL'", "deals the layers to 2 parts; allowed: as many, or a multiple of them, as its 4 stages"),
        (4, "'Et*1000000000|t|t|tL'", r"parallel\.stage_layers"),
        (2_000_000, "'Et|t|t|tL'", r"parallel\.pp=2000000; allowed: 1 to 1,048,576"),
    ],
    ids=["too few parts", "a part again and again", "more stages than there can be GPUs"],
)
def test_a_pipeline_that_cannot_be_is_refused(stages: int, layout: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "run.sh"
    path.write_text(SCRIPT.format(stages, layout))
    with pytest.raises(ValueError, match=says):
        launched(read_file(path), ("hw.num_gpus=16",), composer())


@pytest.mark.parametrize("value", ["", "abc", "[]", ".inf"])
def test_a_number_that_is_none_is_noted_and_the_framework_has_its_own(value: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(DOCUMENT.format(value))
    reading = read_file(path)
    assert reading.keys["model.intermediate_size"] == 4 * 4096  # MPTConfig: expansion_ratio = 4


CONFIGS = sorted((Path(__file__).parent / "data" / "hugging_face").glob("*.json"))
ODD_OF_CONFIGS = (*ODD, 0, [0, "a"], [None], {"a": 1}, 1e308, "x" * 500, [[1]], [1.5])


def test_a_field_of_a_config_that_it_cannot_have_is_one_line_or_a_model(tmp_path: Path) -> None:
    trees = [json.loads(path.read_text()) for path in CONFIGS]
    names = sorted({name for tree in trees for name in tree})
    path, drawn = tmp_path / "config.json", random.Random(0)
    for _ in range(20_000 if TRIED is None else 300):
        tree = drawn.choice(trees)
        place = drawn.choice([*places(tree), *((name,) for name in names)])
        path.write_text(json.dumps(with_value(tree, place, drawn.choice(ODD_OF_CONFIGS))))
        said = ""
        try:
            read_option("model", path, home())
        except ValueError as error:
            said = str(error)
        assert "\n" not in said, path.read_text()


@pytest.mark.parametrize("layers", [1.5, ["a"], [[0]], {"0": 1}, [1, 3]])
def test_dense_layers_of_experts_models_are_a_list_of_the_first(layers: object, tmp_path: Path) -> None:
    tree = json.loads((CONFIGS[0].parent / "qwen3_30b_a3b.json").read_text()) | {"mlp_only_layers": layers}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=r"dense layers between layers of experts \(mlp_only_layers\) are a kind that is not modelled"):
        read_option("model", path, home())
