"""``python -m rapid_dse``: one trial, or with ``-m`` a sweep."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rapid_dse.command import guarded
from rapid_dse.command_options import Asked, asked

if TYPE_CHECKING:
    from rapid_dse.events.runs import Run
    from rapid_dse.sweep.portion import Portion

HELP = """\
rapid_dse: what training or serving a model takes on a cluster, before anyone rents it

  python -m rapid_dse hw=h100 model=llama3_1_70b parallel.tp=8 parallel.pp=2      one trial: time, memory, energy, cost
  python -m rapid_dse -m hw=h100 parallel.tp=1,8,64                               a sweep over every combination
  python -m rapid_dse -m hw=h100,a100 model=llama3_1_8b,llama3_1_70b 'parallel.tp=1,2,4,8' 'parallel.pp=range(1,5)'
  python -m rapid_dse -m parallel=all hw.num_gpus=512                             every legal layout
  python -m rapid_dse -m parallel.tp=all parallel.pp=2,4                          every legal tp
  python -m rapid_dse -m +sweeps=llama3_1_70b_512xh100                            a sweep that a file in sweeps/ describes
  python -m rapid_dse -m model=./config.json parallel=all                         a Hugging Face model, or RAPID-LLM's YAML
  python -m rapid_dse.evaluate CASES --out RESULTS                                a table in, a table out (see its --help)

options
  -m, --multirun    sweep; results go to results/<study>/*.parquet, the best are listed
  --cfg job         print the composed configuration as YAML, price nothing
  --info            where options come from, and which are chosen
  --config-dir DIR  a further folder of options (model/mine.yaml)
  --json            print one JSON value in place of text (docs/json.md)
  --trust           sweep files and options may choose storage, folders and programs, and read the environment
  --version         print the version
  -h, --help        print this

groups (one option each; several, with commas, in a sweep)
{groups}
keys (key=value; in a sweep also 1,2,4, range(start,stop[,step]), 'zip(a=1,2;b=3,4)', for groups glob(llama3*), for parallel.* all)
  hw        num_gpus gpus_per_node sms memory.bandwidth memory.usable operator_model network.dimensions.<i>.bandwidth …
  model     hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size vocab_size …
  workload  seq_len global_batch_size precision (bf16, fp16, fp8, fp4, tf32, fp32) packing trainable (full, lora) lora_rank lora_targets
            of inference: prompt_len decode_len length_spread batch_size concurrency request_rate num_prompts kv_precision prefix_hit
            draft_tokens draft_acceptance, and precision=int8, int4 (weights alone)
  parallel  tp cp cp_kind (ring, ulysses) dp (auto) pp ep etp vpp zero (auto, 0 to 3) shard_group sequence_parallel micro_batch_size
            of inference: tp cp dp pp ep etp attention_dp prefill.* decode.* (of both: tp pp attention_dp etp ep workers)
            order stage_layers offload_activations offload_optimizer offload_weights (shares)
            recompute (auto, none, selective, full) recompute_modules (layernorm+moe_act) recompute_layers  schedule ({schedules})
  software  offers.* enforce (false: price what the framework does not offer, too)
            attention (flash, unfused) loss (whole, fused, chunked) async_tp fp8_recipe gradient_dtype …
  backend   engine network streams artifacts.timeline …
  search    study n_trials sampler jobs top best_per each constraints headroom …        debug     hw_snapshots
  Quantities take units: hw.memory.bandwidth='3.35 TB/s'. --cfg lists all keys with their values.

exit codes: 0; 2 where an input is wrong or one trial's layout is illegal; 130 after Ctrl-C; 143 after SIGTERM
"""


def main() -> int:
    """Entry point of the console script; the exit code."""
    return guarded(run, sys.argv[1:])


def run(arguments: Sequence[str]) -> int:
    """Does what the command line says.

    Raises:
        ValueError: one line, where the command line or the configuration is wrong.
    """
    request = asked(arguments)
    if request.what == "help":
        return _help()
    if request.what == "version":
        return _version(request.json)
    if request.what == "cfg":
        return _configuration(request)
    if request.what == "info":
        return _info(request)
    if request.what == "multirun":
        return _sweep(request)
    return _trial(request.overrides, request.json)


def _version(as_json: bool) -> int:
    from rapid_dse import __version__

    print(json.dumps({"version": __version__}) if as_json else __version__)
    return 0


def _help() -> int:
    from rapid_dse.sweep.places import home

    lines, columns = list[str](), shutil.get_terminal_size().columns
    for group, folder in {
        **{g: f"conf/{g}" for g in ("hw", "cluster", "model", "parallel", "software", "backend", "search")},
        "+sweeps": "sweeps",
    }.items():
        names = sorted(path.stem for path in (home() / folder).glob("*.yaml"))
        listed = f"  {group + '=':<11}{' '.join(names)}"
        lines += [f"{line}\n" for line in textwrap.wrap(listed, columns, subsequent_indent=" " * 13, break_on_hyphens=False)]
    from rapid_dse.config.schedule_names import PIPELINE_SCHEDULES

    print(HELP.format(groups="".join(lines), schedules=", ".join(PIPELINE_SCHEDULES)), end="")
    return 0


def _configuration(request: Asked) -> int:
    import yaml

    from rapid_dse.sweep.overrides import read
    from rapid_dse.sweep.space import plan

    portions = plan(read(request.overrides)).portions
    if len(portions) > 1:
        raise ValueError(f"--cfg: {len(portions)} configurations are swept; allowed: one")
    tree = portions[0].scenario.model_dump(mode="json")
    print(json.dumps(tree) if request.json else yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), end="\n" * request.json)
    return 0


def _info(request: Asked) -> int:
    """Where options come from, and which are chosen."""
    from rapid_dse.sweep.information import information

    told = information(request.overrides)
    kept = told if request.word == "all" else {request.word: told[request.word]}
    if request.json:
        print(json.dumps(kept))
        return 0
    for title, lines in kept.items():
        print(f"{title}:")
        for line in lines if isinstance(lines, list) else [f"{key}: {value}" for key, value in lines.items()]:
            print(f"  {line}")
    return 0


def _trial(overrides: Sequence[str], as_json: bool) -> int:
    from rapid_dse.sweep.one_trial import illegal, priced_row
    from rapid_dse.sweep.overrides import read
    from rapid_dse.sweep.space import single

    given = read(overrides)
    portion = single(given)
    if portion.rule[0] >= 0:
        raise ValueError(illegal(portion, overrides))
    from rapid_dse.sweep import idle

    for line in [*idle.of_trial(given, portion.scenario), *idle.of_files([portion])]:
        print(line, file=sys.stderr)
    if as_json:
        print(json.dumps(priced_row(portion), allow_nan=False))
        return 0
    return _report(portion, overrides)


def _report(portion: Portion, overrides: Sequence[str]) -> int:
    """Prices the trial and prints its report."""
    from rapid_dse.analysis.trial import show
    from rapid_dse.events.backends import price
    from rapid_dse.simulate.results import refused, unlawful
    from rapid_dse.sweep.console import console

    runs: dict[str, Run] = {}
    scenario, names = portion.scenario, _artifacts(portion)
    priced = price(scenario, portion.layouts, None if scenario.backend.name == "analytical" else runs.update, names)
    for text, _ in refused(scenario, portion.layouts, priced):
        raise ValueError(f"{' '.join(overrides)}: {text}")
    for law, _ in unlawful(priced):
        raise ValueError(f"{' '.join(overrides)}: {law}")
    out = console(highlight=False, soft_wrap=True)
    show(out, portion, priced)
    if runs:
        from rapid_dse.analysis.links import busiest_links

        out.print(busiest_links(runs), markup=False)
    if names:
        from rapid_dse.events.artifacts import folder_of

        folder = folder_of(scenario, names[0])
        out.print(f"artifacts in {folder}" if folder.is_dir() else "no artifacts: closed forms leave a timeline alone", markup=False)
    return 0


def _artifacts(portion: Portion) -> list[str] | None:
    """The folder of the trial's artifacts, where it leaves any: its key, as the row of a sweep would have it."""
    if not portion.scenario.backend.artifacts.wanted:
        return None
    from rapid_dse.sweep import identity

    return identity.texts(portion.scenario, portion.layouts)


def _sweep(request: Asked) -> int:
    """Hands the overrides to Hydra, which hands them to this project's sweeper.

    What Hydra cannot say is priced without it, and so is what names the program's own files alone, which need no Hydra.
    """
    from rapid_dse.sweep import idle
    from rapid_dse.sweep.overrides import read
    from rapid_dse.sweep.own_files import all_own

    given = read(request.overrides)
    if request.json:
        from rapid_dse.sweep.summary import summarized

        summary, code = summarized(given, _complain)
        print(json.dumps(summary, allow_nan=False))
        return code
    _complain(idle.of_hydra(given))
    if given.paired or (all_own(given.options) and not given.hydra):
        from rapid_dse.sweep.quiet import shown_study

        return shown_study(given, _complain)
    from rapid_dse.sweep.compose import multirun

    return multirun(request.overrides)


def _complain(lines: Sequence[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
