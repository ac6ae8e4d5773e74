"""What recomputation keeps and runs again, as data: a file of ``config/recompute/`` each, told apart by names of tensors and kernels.

A mode of ``parallel.recompute`` is a sum of them: none has none of them, full the entry of that name, selective those of
``parallel.recompute_modules``, or what the framework's profile says (``software.selective_recompute``).
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from rapid_dse.config.fields import Frozen

FOLDER = Path(__file__).parent / "recompute"
FULL = "full"

ShareKept = Annotated[float, Field(ge=0, le=1)]


class RecomputeEntry(Frozen):
    """One entry. Tensors and kernels have the names that the parts of layers give them (``model/layers``), for one part alone with its
    class before them (``experts.down_input``).

    Attributes:
        names: under which it is asked for; none: the file's.
        forgets: tensors that are made again, where autograd would keep them.
        keeps: in its place, all that is kept, by share, as it was made: tensors, ``input`` (of the layer), ``products`` (what these give),
            ``first_products`` (what the first of each two gives, by their order in the layer).
        also_reruns: kernels and transfers that run again although nothing needs what they give, since a module runs to its end; not where
            recomputation stops early (``software.recompute_stops_early``).
        reruns: what runs again by share, where that does not follow from what is not kept: kernels and transfers, ``products``,
            ``second_products`` (the second of each two), ``small`` (kernels), ``all``.
    """

    names: tuple[str, ...] = ()
    forgets: tuple[str, ...] = ()
    keeps: Mapping[str, ShareKept] | None = None
    also_reruns: tuple[str, ...] = ()
    reruns: Mapping[str, ShareKept] | None = None


def entries() -> Mapping[str, RecomputeEntry]:
    """All entries by name."""
    return _entries_of(FOLDER)


@cache
def _entries_of(folder: Path) -> Mapping[str, RecomputeEntry]:
    import yaml

    entries: dict[str, RecomputeEntry] = {}
    for path in sorted(folder.glob("*.yaml")):
        entry = RecomputeEntry.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        entries |= dict.fromkeys(entry.names or (path.stem,), entry)
    return entries


def module_names() -> tuple[str, ...]:
    """The names that a sum may have: all but the whole layer's."""
    return tuple(name for name in entries() if name != FULL)


def named(text: str) -> tuple[str, ...]:
    """The entries that a sum names, such as layernorm+moe_act, each once.

    Raises:
        ValueError: where one does not exist.
    """
    parts = tuple(dict.fromkeys(part.strip() for part in text.split("+")))
    for part in parts:
        if part not in module_names():
            raise ValueError(f"{part!r} is no module; expected {', '.join(module_names())}, or a sum such as layernorm+moe_act")
    return parts


def _in_order(text: str) -> str:
    return "+".join(sorted(named(text)))


ModuleSum = Annotated[str, AfterValidator(_in_order)]  # of entries, in alphabetical order
