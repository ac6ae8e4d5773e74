"""A trial as the file that its framework is launched with."""

from __future__ import annotations

from dataclasses import dataclass

from rapid_dse.analysis.launch_files.field_table import LaunchedRun, written
from rapid_dse.analysis.launch_files.file_forms import mark_lines
from rapid_dse.analysis.launch_files.framework import LaunchFramework
from rapid_dse.analysis.launch_files.launched import Composer, unsaid
from rapid_dse.config.software import Software
from rapid_dse.parallel.offered import unoffered
from rapid_dse.sweep.portion import Portion

ABOUT = "# Model, batch, layout and precision of a row of rapid_dse; data, tokenizer, learning rate and checkpoints are yours."
_MACHINE = ("hw", "cluster")


@dataclass(frozen=True)
class LaunchFile:
    """A launch file, and what it leaves unsaid.

    Attributes:
        framework: whose it is.
        text: of the file.
        suffix: of its name.
        unsaid: overrides that its fields do not say; they stand in its comments where it has any.
        notes: sentences on what cannot be said, for whoever launches it.
    """

    framework: str
    text: str
    suffix: str
    unsaid: tuple[str, ...]
    notes: tuple[str, ...]


def exported(portion: Portion, framework: LaunchFramework, composer: Composer | None = None) -> LaunchFile:
    """Writes a trial as a launch file.

    Raises:
        ValueError: where the trial is no training.
    """
    scenario, layout, software = portion.scenario, portion.layouts, portion.choices["software"]
    if scenario.workload.kind != framework.kind:
        raise ValueError(f"workload={scenario.workload.kind}: {framework.title} is launched for {framework.kind}; allowed: a row of that")
    if not scenario.model.of_kind.decodes:
        raise ValueError(f"model={scenario.model.name}: launch files are of transformers of text; allowed: a row of such a model")
    own = software in framework.profiles
    fields = written(framework.table, LaunchedRun(scenario, layout, software))
    reading = framework.read(framework.form.text(fields, ()))
    chosen = dict(portion.choices) if own else {group: name for group, name in portion.choices.items() if group != "software"}
    composer = composer or Composer()
    missing = [text for text in unsaid(portion, reading, chosen, composer) if own or not text.startswith("software.")]
    text = framework.form.text(fields, [ABOUT, *mark_lines(missing)])
    notes = list(_notes(missing, framework))
    if not own:
        notes.append(f"the row was priced for software={software}: {framework.title} overlaps and fuses other things")
    launcher = scenario.software if own else composer.options_alone({**portion.choices, "software": framework.profiles[0]}).software
    notes += _lacks(portion, framework, launcher)
    return LaunchFile(framework.name, text, framework.form.suffixes[0], tuple(missing), tuple(notes))


def _lacks(portion: Portion, framework: LaunchFramework, launcher: Software) -> list[str]:
    """Settings of a row of training that its file has and the framework would refuse or pass over; ``launcher`` is its profile."""
    if framework.kind != "training":
        return []
    asked = portion.scenario.software.model_copy(update={"offers": launcher.offers})
    lacking = unoffered(portion.layouts, portion.scenario.model_copy(update={"software": asked}))
    return [f"{framework.title} does not offer {lack.named}; it offers {lack.instead}" for lack in lacking if lack.where.any()]


def _notes(missing: list[str], framework: LaunchFramework) -> list[str]:
    """What cannot be said in the framework's file: settings with where they are told instead."""
    notes = []
    for text in missing:
        key = text.split("=")[0]
        if key.split(".")[0] in _MACHINE and key != "hw.num_gpus":
            continue
        place = next((where for start, where in framework.elsewhere.items() if key.startswith(start)), None)
        notes.append(f"{text} cannot be said in this file" + (f": {place}" if place else ""))
    return notes


def fields_of(portion: Portion, framework: LaunchFramework) -> dict[str, object]:
    """The framework's fields of a trial, as its file has them."""
    return written(framework.table, LaunchedRun(portion.scenario, portion.layouts, portion.choices["software"]))
