"""``python -m rapid_dse``: one trial, or with ``-m`` a sweep."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rapid_dse.command import guarded

if TYPE_CHECKING:
    from rapid_dse.events.runs import Run
    from rapid_dse.sweep.portion import Portion

HELP = """\
rapid_dse: what a training run takes on a cluster, before anyone rents it

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
  --cfg             print the composed configuration as YAML, price nothing
  --version         print the version
  -h, --help        print this

groups (one option each; several, with commas, in a sweep)
{groups}
keys (key=value; in a sweep also 1,2,4, range(start,stop[,step]), and for parallel.* the word all)
  hw        num_gpus gpus_per_node sms memory.bandwidth memory.usable operator_model network.dimensions.<i>.bandwidth …
  model     hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size vocab_size …
  workload  seq_len global_batch_size precision (bf16, fp16, fp8, tf32, fp32)
  parallel  tp cp dp (auto) pp ep etp vpp zero (auto, 0 to 3) shard_group sequence_parallel micro_batch_size order stage_layers
            offload_activations offload_optimizer offload_weights (shares)
            recompute (auto, none, selective, full)  schedule ({schedules})
  software  offers.* enforce (false: price what the framework does not offer, too)
            attention (flash, unfused) loss (whole, fused, chunked) async_tp fp8_recipe gradient_dtype …
  backend   engine network streams artifacts.timeline …
  search    study n_trials sampler jobs top best_per each constraints headroom …        debug     hw_snapshots
  Quantities take units: hw.memory.bandwidth='3.35 TB/s'. --cfg lists all keys with their values.

exit codes: 0; 2 where an input is wrong or one trial's layout is illegal; 130 after Ctrl-C; 143 after SIGTERM
"""

FLAGS = {"-m": "multirun", "--multirun": "multirun", "--cfg": "cfg", "--version": "version", "-h": "help", "--help": "help"}


def main() -> int:
    """Entry point of the console script; the exit code."""
    return guarded(run, sys.argv[1:])


def run(arguments: Sequence[str]) -> int:
    """Does what the command line says.

    Raises:
        ValueError: one line, where the command line or the configuration is wrong.
    """
    flags = [argument for argument in arguments if argument.startswith("-")]
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    for flag in flags:
        if flag not in FLAGS:
            raise ValueError(f"{flag}: no such option; allowed: {', '.join(FLAGS)}, and overrides as parallel.tp=8")
    asked = {FLAGS[flag] for flag in flags}
    if "help" in asked:
        return _help()
    if "version" in asked:
        from rapid_dse import __version__

        print(__version__)
        return 0
    if "cfg" in asked:
        return _configuration(overrides)
    return _sweep(overrides) if "multirun" in asked else _trial(overrides)


def _help() -> int:
    from rapid_dse.sweep.places import home

    lines = []
    for group, folder in {
        **{g: f"conf/{g}" for g in ("hw", "cluster", "model", "parallel", "software", "backend", "search")},
        "+sweeps": "sweeps",
    }.items():
        names = sorted(path.stem for path in (home() / folder).glob("*.yaml"))
        lines.append(f"  {group + '=':<11}{' '.join(names)}\n")
    from rapid_dse.config.schedule_names import PIPELINE_SCHEDULES

    print(HELP.format(groups="".join(lines), schedules=", ".join(PIPELINE_SCHEDULES)), end="")
    return 0


def _configuration(overrides: Sequence[str]) -> int:
    import yaml

    from rapid_dse.sweep.overrides import read
    from rapid_dse.sweep.space import plan

    portions = plan(read(overrides)).portions
    if len(portions) > 1:
        raise ValueError(f"--cfg: {len(portions)} configurations are swept; allowed: one")
    print(yaml.safe_dump(portions[0].scenario.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="")
    return 0


def _trial(overrides: Sequence[str]) -> int:
    from rapid_dse.sweep.overrides import read
    from rapid_dse.sweep.space import single

    given = read(overrides)
    portion = single(given)
    if portion.rule[0] >= 0:
        raise ValueError(_illegal(portion.reasons[int(portion.rule[0])], overrides))

    from rapid_dse.analysis.trial import show
    from rapid_dse.events.backends import price
    from rapid_dse.simulate.inference.pricing import refused
    from rapid_dse.simulate.results import unlawful
    from rapid_dse.sweep import idle
    from rapid_dse.sweep.console import console

    for line in [*idle.of_trial(given, portion.scenario), *idle.of_files([portion])]:
        print(line, file=sys.stderr)
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


def _illegal(reason: str, overrides: Sequence[str]) -> str:
    # A rule between layout keys names none of the values; one between others does.
    return reason if "=" in reason or not overrides else f"{' '.join(overrides)}: {reason}"


def _sweep(overrides: Sequence[str]) -> int:
    """Hands the overrides to Hydra, which hands them to this project's sweeper."""
    from rapid_dse.sweep import idle
    from rapid_dse.sweep.compose import multirun
    from rapid_dse.sweep.overrides import read

    for line in idle.of_hydra(read(overrides)):
        print(line, file=sys.stderr)
    return multirun(overrides)


if __name__ == "__main__":
    sys.exit(main())
