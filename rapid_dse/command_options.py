"""What ``python -m rapid_dse`` takes beside overrides: its own options, Hydra's, and what stands for those that have no meaning here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FLAGS = {
    "-m": "multirun",
    "--multirun": "multirun",
    "--json": "json",
    "--resolve": "resolve",
    "--version": "version",
    "--trust": "trust",
    "-h": "help",
    "--help": "help",
}
# Options that may have a word behind them, and the words; the first is meant where there is none.
WORDS = {"--cfg": ("job", "hydra", "all"), "-c": ("job", "hydra", "all"), "--info": ("all", "config", "defaults", "searchpath")}
FOLDERS = ("--config-dir", "-cd")
# Hydra's options that have no meaning here, and what to write instead.
INSTEAD = {
    "--config-name": "the base is conf/config.yaml; put what NAME sets into sweeps/NAME.yaml and give +sweeps=NAME",
    "-cn": "the base is conf/config.yaml; put what NAME sets into sweeps/NAME.yaml and give +sweeps=NAME",
    "--config-path": "give --config-dir DIR, which adds a folder of options to those that are shipped",
    "-cp": "give --config-dir DIR, which adds a folder of options to those that are shipped",
    "--shell-completion": "there is none; --help lists groups, options and keys, and a wrong name is answered with the nearest",
    "-sc": "there is none; --help lists groups, options and keys, and a wrong name is answered with the nearest",
    "--hydra-help": "no job of Hydra's is started; --help says what there is",
    "--run": "leave it out: one trial is what there is without -m",
    "-r": "leave it out: one trial is what there is without -m",
    "--package": "every option has its group's place; leave it out",
    "-p": "every option has its group's place; leave it out",
    "--experimental-rerun": "give the overrides of the run: the same command goes on with a study",
}


@dataclass(frozen=True)
class Asked:
    """A command line, sorted.

    Attributes:
        what: help, version, cfg, info, multirun, or trial.
        overrides: the others, as they were written; those that options stand for come first.
        word: behind --cfg or --info.
        json: whether JSON is asked for.
    """

    what: str
    overrides: tuple[str, ...]
    word: str = ""
    json: bool = False


def asked(arguments: Sequence[str]) -> Asked:
    """Sorts a command line.

    Raises:
        ValueError: an option that there is not, with what to write instead where that is known.
    """
    flags: set[str] = set()
    words: dict[str, str] = {}
    first: list[str] = []
    overrides: list[str] = []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        name, equals, value = argument.partition("=")
        if argument in FLAGS:
            flags.add(FLAGS[argument])
        elif name in WORDS:
            words[name.lstrip("-").replace("c", "cfg", 1) if name == "-c" else name[2:]] = _word(name, value if equals else None, remaining)
        elif name in FOLDERS:
            first.append(_folder(name, value if equals else remaining.pop(0) if remaining else ""))
        elif name in INSTEAD:
            raise ValueError(f"{argument}: not an option here; {INSTEAD[name]}")
        elif argument.startswith("-") and not _is_override(argument):
            known = ", ".join([*FLAGS, *WORDS, *FOLDERS])
            raise ValueError(f"{argument}: no such option; allowed: {known}, and overrides as parallel.tp=8")
        else:
            overrides.append(argument)
    if "resolve" in flags and "cfg" not in words:
        raise ValueError("--resolve: goes with --cfg, whose values are resolved in any case; allowed: --cfg job --resolve")
    named = [*(flag for flag in ("help", "version") if flag in flags), *words, *(flag for flag in ("multirun",) if flag in flags)]
    chosen = named[0] if named else "trial"
    first += ["search.trust=true"] * ("trust" in flags)
    return Asked(chosen, (*first, *overrides), words.get(chosen, ""), "json" in flags)


def _is_override(argument: str) -> bool:
    return argument.startswith("-") and argument[1:2].isdigit()


def _word(name: str, given: str | None, words: list[str]) -> str:
    """The word behind an option; taken from what is left where it is one, else the first that there is."""
    if given is None and words and "=" not in words[0] and not words[0].startswith(("-", "+", "zip(")):
        given = words.pop(0)
    word = given if given is not None else WORDS[name][0]
    if word not in WORDS[name]:
        raise ValueError(f"{name} {word}: allowed: {', '.join(WORDS[name])}")
    if name in ("--cfg", "-c") and word != "job":
        raise ValueError(f"{name} {word}: no job of Hydra's is started, so that its own configuration says nothing; allowed: {name} job")
    return word


def _folder(name: str, folder: str) -> str:
    """The override that adds a folder to those in which Hydra looks for options."""
    if not folder or not Path(folder).is_dir():
        raise ValueError(f"{name} {folder}: no such folder; allowed: one that holds options, as model/mine.yaml")
    return f"hydra.searchpath=['file://{Path(folder).resolve()}']"
