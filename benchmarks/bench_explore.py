"""Figures of the local page, printed: opening a study of a million rows, then filters, points and a lasso over it.

python benchmarks/bench_explore.py [FOLDER]      (FOLDER keeps the study, and has it the next time)
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rapid_dse.explorer import study_views
from rapid_dse.explorer.study_shelf import Shelf
from rapid_dse.explorer.web_answers import Asking, WebAnswer
from rapid_dse.sweep.overrides import read
from rapid_dse.sweep.quiet import priced_study

STUDY = "million"
LARGE = ("+sweeps=llama3_1_405b_16384gpus", f"hw.price={','.join(str(2 + step / 8) for step in range(9))}")
LASSO = ";".join(f"{20 + 30 * x},{(20 + 100 * y) * 2**30}" for x, y in ((0, 0), (1, 0), (1.2, 0.5), (1, 1), (0.4, 1.2), (0, 1)))
QUERIES = {
    "fits": {"q": "fits"},
    "three terms": {"q": "hw=b200 tp>=8 step_time_s<20"},
    "texts": {"q": "recompute=full schedule!=1f1b"},
    "a choice": {"c.hw": "h100", "q": "'peak_memory_bytes<=70 GiB'"},
    "inside what was measured": {"q": "inside"},
    "by another column": {"by": "mfu"},
    "a lasso": {"lasso": LASSO},
}


def main() -> None:
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name))


def measure(folder: Path) -> None:
    """Prices the study where it is not there, and times the page's views of it."""
    if not (folder / STUDY).is_dir():
        priced_study(read([*LARGE, f"search.study={STUDY}", f"search.results_dir={folder}"]), lambda _: None)
    shelf = Shelf(folder)
    print(
        f"first answer, files read: {timed(lambda: study_views.study_page(shelf, asking({}))):.2f} s of {len(shelf.opened(STUDY)):,} rows"
    )
    for name, query in QUERIES.items():
        first, again = (timed(lambda query=query: study_views.rows_part(shelf, asking(query))) for _ in range(2))
        points = timed(lambda query=query: study_views.points_part(shelf, asking(query)))
        print(f"{name}: rows {first:.3f} s, again {again:.3f} s; points {points:.3f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def asking(query: dict[str, str]) -> Asking:
    """A query on the study."""
    return Asking({"study": STUDY, **query})


def timed(view: Callable[[], WebAnswer]) -> float:
    """Seconds that a view takes."""
    start = time.perf_counter()
    view()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
