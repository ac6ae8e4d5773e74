"""The launch options of frameworks as their own packages define them: names, and a parser that takes or refuses a file.

Each function runs within the stand-ins (``stand_ins.py``) with a package's own modules, and gives the names of its fields and what parses
a written file, which raises where the framework's own parser refuses it.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import subprocess
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class Defined(NamedTuple):
    """Names of fields, and what raises ``ValueError`` for a file that the framework's parser refuses."""

    fields: set[str]
    parse: Callable[[str], None]


class Package(NamedTuple):
    """Where a framework's options are defined: distributions with versions, modules that are run, and the function that asks them."""

    requirements: tuple[str, ...]
    real: tuple[str, ...]
    define: Callable[[Path], Defined]


class _Strict(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise ValueError(message)


def commands(script: str, *programs: str) -> list[list[str]]:
    """The arguments that a script gives these programs, by running it with bash: each program only tells what it was given."""
    tells = "".join(f"{name}() {{ printf '%s\\0' {name} \"$@\"; printf '\\n'; }}\n" for name in programs)
    places = {"MODEL": "a/model", "MASTER_ADDR": "node-0"}
    done = subprocess.run(["bash", "-eu", "-c", tells + script], env=places, capture_output=True, text=True, check=True)
    return [line.split("\0")[:-1] for line in done.stdout.splitlines()]


def _names(*parsers: argparse.ArgumentParser) -> set[str]:
    return {name for parser in parsers for name in parser._option_string_actions if name.startswith("--")}


def megatron_lm(_: Path) -> Defined:
    """``add_megatron_arguments`` with pretrain_gpt.py's parser, which takes no abbreviations."""
    from megatron.training.arguments import add_megatron_arguments

    parser = _Strict(allow_abbrev=False)
    add_megatron_arguments(parser)

    def parse(text: str) -> None:
        (given,) = commands(text, "torchrun")
        parser.parse_args(given[given.index("pretrain_gpt.py") + 1 :])

    return Defined(_names(parser), parse)


def vllm(_: Path) -> Defined:
    """vllm serve's parser, and that of vllm bench serve."""
    from vllm.benchmarks.serve import add_cli_args
    from vllm.entrypoints.openai.cli_args import make_arg_parser
    from vllm.utils import FlexibleArgumentParser

    class Strict(FlexibleArgumentParser):  # type: ignore[misc,valid-type]
        error = _Strict.error

    serve, bench = Strict(), Strict()
    serve.add_argument("model_tag", nargs="?")  # as entrypoints/cli/serve.py adds it
    make_arg_parser(serve)
    add_cli_args(bench)

    def parse(text: str) -> None:
        for _, *given in commands(text, "vllm"):
            parser, rest = (bench, given[2:]) if given[:2] == ["bench", "serve"] else (serve, given[1:])
            parser.parse_args(rest)

    return Defined(_names(serve, bench), parse)


def sglang(root: Path) -> Defined:
    """The server's parser, and the one that bench_serving.py makes where it is run."""
    from sglang.srt.server_args import ServerArgs

    server, bench = _Strict(allow_abbrev=False), _Strict(allow_abbrev=False)
    ServerArgs.add_cli_args(server)
    tree = ast.parse((root / "sglang" / "bench_serving.py").read_text())
    main = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'")
    from sglang.bench_serving import ASYNC_REQUEST_FUNCS, LoRAPathAction

    known = {"ASYNC_REQUEST_FUNCS": ASYNC_REQUEST_FUNCS, "LoRAPathAction": LoRAPathAction, "parser": bench}
    calls = [node for node in main.body if ast.unparse(node).startswith("parser.add_argument(")]
    exec(compile(ast.Module(calls, []), "bench_serving.py", "exec"), known)  # its calls of add_argument alone

    def parse(text: str) -> None:
        for _, _, module, *given in commands(text, "python"):
            (bench if module == "sglang.bench_serving" else server).parse_args(given)

    return Defined(_names(server, bench), parse)


def torchtitan(_: Path) -> Defined:
    """``ConfigManager`` on the dataclasses of ``JobConfig``."""
    from torchtitan.config.job_config import JobConfig
    from torchtitan.config.manager import ConfigManager

    def parse(text: str) -> None:
        found = ConfigManager._dict_to_dataclass(ConfigManager.__new__(ConfigManager), JobConfig, tomllib.loads(text))
        _check_types(found)

    return Defined(set(_walk(JobConfig)), parse)


def nanotron(_: Path) -> Defined:
    """The dataclasses of ``Config``; nanotron has dacite refuse names that are no fields and values of other types."""
    from nanotron.config.config import Config

    def parse(text: str) -> None:
        given = yaml.safe_load(text)
        given["parallelism"].pop("recompute_layer", None)  # nanotron's repository has it since; the list says so
        _take(Config, given, "")

    return Defined(set(_walk(Config)), parse)


def nemo(_: Path) -> Defined:
    """Megatron Bridge's ``ConfigContainer``, onto which a file's values are merged; its model is GPTModelProvider or MLAModelProvider."""
    from megatron.bridge.models.gpt_provider import GPTModelProvider
    from megatron.bridge.models.mla_provider import MLAModelProvider
    from megatron.bridge.training.config import ConfigContainer
    from megatron.bridge.training.mixed_precision import MIXED_PRECISION_RECIPES

    def parse(text: str) -> None:
        given = yaml.safe_load(text)
        if isinstance(given.get("mixed_precision"), str) and given["mixed_precision"] not in MIXED_PRECISION_RECIPES:
            raise ValueError(f"mixed_precision={given['mixed_precision']} is none of its recipes")
        _take_one((GPTModelProvider, MLAModelProvider), given.pop("model"), "model.")
        _take(ConfigContainer, given, "")

    return Defined({*_walk(ConfigContainer), *_walk(GPTModelProvider, "model."), *_walk(MLAModelProvider, "model.")}, parse)


def llm_foundry(_: Path) -> Defined:
    """``TrainConfig``, which refuses other keys, ``MPTConfig``'s arguments and composer's ``FSDPConfig``."""
    import inspect

    from composer.utils.parallelism import FSDPConfig
    from llmfoundry.models.mpt.configuration_mpt import MPTConfig
    from llmfoundry.utils.config_utils import TrainConfig

    inner = {"model": set(inspect.signature(MPTConfig.__init__).parameters) - {"self", "kwargs"} | {"name"}}
    inner["fsdp_config"] = {each.name for each in dataclasses.fields(FSDPConfig)}
    fields = {each.name for each in dataclasses.fields(TrainConfig)}

    def parse(text: str) -> None:
        given = yaml.safe_load(text)
        wrong = [*(given.keys() - fields), *(f"{name}.{key}" for name, own in inner.items() for key in given.get(name, {}).keys() - own)]
        if wrong:
            raise ValueError(f"no such fields: {', '.join(wrong)}")
        FSDPConfig(**given.get("fsdp_config", {}))

    return Defined({*fields, *(f"{name}.{key}" for name, own in inner.items() for key in own)}, parse)


def deepspeed(root: Path) -> Defined:
    """Its pydantic models of zero_optimization and tensor_parallel, which refuse other keys; elsewhere it looks keys up by constants."""
    from deepspeed.module_inject.auto_ep_presets.base import AutoEPConfig
    from deepspeed.runtime.tensor_parallel.config import TPTrainingConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    runtime = root / "deepspeed" / "runtime"
    top = _constants(runtime / "constants.py") | _constants(runtime / "config.py")
    top |= {"zero_optimization", "tensor_parallel", "activation_checkpointing"}
    checkpointing = _constants(runtime / "activation_checkpointing" / "config.py")
    models = {"zero_optimization": DeepSpeedZeroConfig, "tensor_parallel": TPTrainingConfig}

    def parse(text: str) -> None:
        given = json.loads(text)
        wrong = [*(given.keys() - top), *(given.get("activation_checkpointing", {}).keys() - checkpointing)]
        wrong += [key for name in ("fp16", "bf16") for key in given.get(name, {}).keys() - top]
        if wrong:
            raise ValueError(f"no such keys: {', '.join(wrong)}")
        for name, model in {**models, "expert_parallel": AutoEPConfig}.items():
            model(**given.get(name, {}))

    names = {f"{name}.{key}" for name, model in models.items() for key in model.model_fields}
    names |= {f"expert_parallel.{each.name}" for each in dataclasses.fields(AutoEPConfig)}
    names |= {f"activation_checkpointing.{key}" for key in checkpointing}
    return Defined({*top, *names, *(f"{name}.enabled" for name in ("fp16", "bf16"))}, parse)


def _constants(path: Path) -> set[str]:
    """The texts that a module's constants stand for."""
    tree = ast.parse(path.read_text())
    values = (node.value for node in tree.body if isinstance(node, ast.Assign))
    return {
        value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value.isidentifier()
    }


def _walk(kind: Any, prefix: str = "") -> Iterator[str]:
    """Names of a dataclass's fields and of those below, with dots."""
    hints = _hints(kind)
    for each in dataclasses.fields(kind):
        yield f"{prefix}{each.name}"
        for inner in _dataclasses(hints.get(each.name)):
            yield from _walk(inner, f"{prefix}{each.name}.")


def _hints(kind: Any) -> Mapping[str, Any]:
    found: dict[str, Any] = {each.name: each.type for each in dataclasses.fields(kind)}
    try:
        return found | typing.get_type_hints(kind)
    except (NameError, TypeError):  # of stand-ins
        return found


def _dataclasses(hint: Any) -> list[Any]:
    """The dataclasses that a field may hold."""
    if dataclasses.is_dataclass(hint):
        return [hint]
    return [inner for part in typing.get_args(hint) for inner in _dataclasses(part)]


def _take(kind: Any, given: Mapping[str, Any], where: str) -> None:
    """Raises ``ValueError`` for a key that is no field, or a value that is none of its type's."""
    hints = _hints(kind)
    for key, value in given.items():
        if key not in {each.name for each in dataclasses.fields(kind)}:
            raise ValueError(f"{where}{key}: {kind.__name__} has no such field")
        inner = _dataclasses(hints[key])
        if isinstance(value, Mapping) and inner and "_target_" not in value:
            _take_one(inner, value, f"{where}{key}.")
        elif not _fits(value, hints[key]):
            raise ValueError(f"{where}{key}={value!r}: {hints[key]}")


def _take_one(kinds: Sequence[Any], given: Mapping[str, Any], where: str) -> None:
    """As of ``_take``, of a field that may hold one of several."""
    wrong = []
    for kind in kinds:
        try:
            return _take(kind, given, where)
        except ValueError as error:
            wrong.append(str(error))
    raise ValueError("; ".join(wrong))


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; of types that are no plain ones all are."""
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    parts = typing.get_args(hint)
    if parts and typing.get_origin(hint) not in (list, dict, tuple, set):
        return any(_fits(value, part) for part in parts)
    if hint in (int, float, str, bool, type(None)):
        return isinstance(value, (int, float) if hint is float else hint) and (hint is bool or not isinstance(value, bool))
    return True


def _check_types(found: Any) -> None:
    hints = _hints(type(found))
    for each in dataclasses.fields(found):
        value = getattr(found, each.name)
        if dataclasses.is_dataclass(value):
            _check_types(value)
        elif not _fits(value, hints[each.name]):
            raise ValueError(f"{each.name}={value!r}: {hints[each.name]}")


_MEGATRON = (
    *("megatron.training.arguments", "megatron.training.argument_utils", "megatron.training.config*", "megatron.training.models"),
    *("megatron.training.models.gpt", "megatron.training.models.base", "megatron.training.models.hybrid"),
    *("megatron.core.transformer.transformer_config", "megatron.core.model_parallel_config", "megatron.core.transformer.enums"),
    *("megatron.core.enums", "megatron.core.transformer.cuda_graph_config", "megatron.core.optimizer.optimizer_config"),
    *("megatron.core.distributed.distributed_data_parallel_config", "megatron.core.fault_injector"),
    *("megatron.core.quantization.quant_config", "megatron.core.rerun_state_machine"),
)
_BRIDGE = (
    *("megatron.bridge.training.config", "megatron.bridge.training.mixed_precision", "megatron.bridge.training.comm_overlap"),
    *("megatron.bridge.data.base", "megatron.core.datasets.gpt_dataset", "megatron.core.datasets.blended_megatron_dataset_config"),
    *("megatron.bridge.models.gpt_provider", "megatron.bridge.models.model_provider", "megatron.bridge.models.transformer_config"),
    "megatron.bridge.models.mla_provider",
)
_VLLM = (
    *("vllm.entrypoints.openai.cli_args", "vllm.engine.arg_utils", "vllm.config*", "vllm.utils", "vllm.envs", "vllm.benchmarks.serve"),
    *("vllm.benchmarks.datasets", "vllm.logger", "vllm.logging_utils*", "vllm.entrypoints.constants"),
    *("vllm.benchmarks.lib.endpoint_request_func",),
)
_DEEPSPEED = ("constants", "config_utils", "zero", "zero.config", "zero.offload_config", "tensor_parallel.config")
PACKAGES: dict[str, Package] = {
    "megatron_lm": Package(("megatron-core==0.19.2",), _MEGATRON, megatron_lm),
    "nemo": Package(("megatron-bridge==0.6.2", "megatron-core==0.19.2"), (*_MEGATRON, *_BRIDGE), nemo),
    "torchtitan": Package(("torchtitan==0.2.2",), ("torchtitan.config.job_config", "torchtitan.config.manager"), torchtitan),
    "deepspeed": Package(
        ("deepspeed==0.19.8",),
        ("deepspeed.module_inject.auto_ep_presets.base", *(f"deepspeed.runtime.{name}" for name in _DEEPSPEED)),
        deepspeed,
    ),
    "nanotron": Package(("nanotron==0.4",), ("nanotron.config*",), nanotron),
    "llm_foundry": Package(
        ("llm-foundry==0.22.0", "mosaicml==0.32.1"),
        ("llmfoundry.utils.config_utils", "llmfoundry.models.mpt.configuration_mpt", "composer.utils.parallelism"),
        llm_foundry,
    ),
    "vllm": Package(("vllm==0.11.0",), _VLLM, vllm),
    "sglang": Package(
        ("sglang==0.5.3",), ("sglang.srt.server_args", "sglang.srt.utils", "sglang.srt.utils.common", "sglang.bench_serving"), sglang
    ),
}
