"""What `evaluate` takes a row, printed: tables of every kind of run in which each row has dimensions of its own, so that no two share a
scenario. ``make bench``, or ``python benchmarks/bench_evaluate.py --beside CHECKOUT``, which times both checkouts turn by turn."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).parent.parent
SEED = 1
Row = dict[str, Any]

# Times one table in a process of its own: CPU, s, of start-up and imports, of the first evaluation and of the fastest of some more.
TIMED = """
import sys, time
from rapid_dse import evaluate
begun = time.process_time()
def once():
    start = time.process_time()
    evaluate.run([sys.argv[1], "--out", sys.argv[2], "--keep-going", "--json"])
    return time.process_time() - start
first = once()
print("CPU", begun, first, min(once() for _ in range(int(sys.argv[3]))))
"""


def training(draw: np.random.Generator) -> Row:
    """A dense transformer on 64 GPUs."""
    heads = 8 * int(draw.integers(2, 12))
    tp, pp = _one(draw, 1, 2, 4, 8), _one(draw, 1, 2, 4)
    return {
        "hw": _one(draw, "h100", "a100"), "hw.num_gpus": 64, "model": "llama", "model.hidden_size": 128 * heads,
        "model.num_attention_heads": heads, "model.num_key_value_heads": 8, "model.num_hidden_layers": 4 * int(draw.integers(4, 25)),
        "model.intermediate_size": 256 * int(draw.integers(16, 120)), "model.vocab_size": 1000 * int(draw.integers(32, 200)),
        "workload.seq_len": _one(draw, 2048, 4096, 8192), "workload.global_batch_size": 512, "parallel.tp": tp, "parallel.pp": pp,
        "parallel.micro_batch_size": _one(draw, 1, 2),
    }  # fmt: skip


def experts(draw: np.random.Generator) -> Row:
    """A mixture of experts on 64 GPUs."""
    layers = {"parallel.pp": 1, "parallel.ep": _one(draw, 2, 4, 8), "software": "nemo"}
    own = {"model.num_experts": 8 * int(draw.integers(1, 17)), "model.num_experts_per_tok": _one(draw, 2, 4, 8)}
    return training(draw) | layers | own | {"model.moe_intermediate_size": 128 * int(draw.integers(4, 60))}


def inference(draw: np.random.Generator) -> Row:
    """Requests to a dense transformer on up to 8 GPUs."""
    tp, row = _one(draw, 1, 2, 4, 8), training(draw)
    model = {key: value for key, value in row.items() if key == "hw" or key.startswith("model")}
    lengths = {"workload.prompt_len": 64 * int(draw.integers(1, 64)), "workload.decode_len": 32 * int(draw.integers(1, 32))}
    load = {_one(draw, "workload.batch_size", "workload.concurrency"): int(draw.integers(1, 257)), "parallel.tp": tp, "hw.num_gpus": tp}
    return {"software": _one(draw, "vllm", "tensorrt_llm"), "workload": "inference"} | model | lengths | load


def vision(draw: np.random.Generator) -> Row:
    """Training or one pass of a vision transformer on 8 GPUs."""
    heads = int(draw.integers(3, 33))
    row = {
        "hw": _one(draw, "h100", "h200"), "hw.num_gpus": 8, "model": "vit_base", "model.hidden_size": 64 * heads,
        "model.num_attention_heads": heads, "model.num_key_value_heads": heads, "model.num_hidden_layers": int(draw.integers(6, 49)),
        "model.intermediate_size": 256 * heads, "model.image_size": 16 * int(draw.integers(8, 33)), "software": "pytorch",
    }  # fmt: skip
    return row | _one(draw, {"workload.global_batch_size": 256, "parallel.micro_batch_size": 32}, _served(draw))


def recurrent(draw: np.random.Generator) -> Row:
    """Training or one pass of a stack of long short-term memory on 8 GPUs."""
    row = {
        "hw": _one(draw, "h100", "h200"), "hw.num_gpus": 8, "model": "lstm", "model.hidden_size": 64 * int(draw.integers(4, 64)),
        "model.num_hidden_layers": int(draw.integers(1, 9)), "model.vocab_size": int(draw.integers(0, 50000)), "software": "pytorch",
        "workload.seq_len": int(draw.integers(16, 1024)),
    }  # fmt: skip
    return row | _one(draw, {"workload.global_batch_size": 512, "parallel.micro_batch_size": 64}, _served(draw))


def product(draw: np.random.Generator) -> Row:
    """One distributed matrix product, trained or served."""
    tp = _one(draw, 1, 4, 8)
    sizes = {f"model.{side}": 256 * int(draw.integers(4, 128)) for side in "mnk"}
    sharding = {"parallel.gemm_sharding": _one(draw, "row", "column", "2d"), "parallel.tp": tp, "hw.num_gpus": tp}
    return {"hw": _one(draw, "h100", "h200"), "model": "gemm", "workload": _one(draw, "training", "inference")} | sizes | sharding


def _served(draw: np.random.Generator) -> Row:
    return {"workload": "inference", "workload.batch_size": 8 * int(draw.integers(1, 33))}


def _one(draw: np.random.Generator, *choices: Any) -> Any:
    return choices[int(draw.integers(len(choices)))]


KINDS: dict[str, Callable[[np.random.Generator], Row]] = {
    "training": training, "experts": experts, "inference": inference, "vit": vision, "lstm": recurrent, "gemm": product
}  # fmt: skip


def table(kind: str, n_rows: int, seed: int = SEED) -> pd.DataFrame:
    """A table of cases of one kind, each with dimensions of its own."""
    draw = np.random.default_rng(seed)
    return pd.DataFrame([KINDS[kind](draw) for _ in range(n_rows)])


def cpu_seconds(checkout: Path, cases: Path, out: Path, repeats: int) -> list[float]:
    """CPU, s, that a checkout takes for a table: start-up, the first evaluation in a process, the fastest of some after it."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", TIMED, str(cases), str(out), str(repeats)]
    done = subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.splitlines()[-1].split()[1:]]


def compare(cases: Path, checkouts: Sequence[Path], rounds: int, repeats: int, folder: Path) -> list[list[float]]:
    """The least of what each checkout takes, turn by turn; says so where two give other results."""
    outs = [folder / f"{cases.stem}_{place}.parquet" for place in range(len(checkouts))]
    found = [[cpu_seconds(checkout, cases, out, repeats) for checkout, out in zip(checkouts, outs, strict=True)] for _ in range(rounds)]
    results = [pd.read_parquet(out).drop(columns=["key", "elapsed_s"]) for out in outs]
    for other, checkout in zip(results[1:], checkouts[1:], strict=True):
        if not other.equals(results[0]):
            print(f"{cases.stem:>22}: {checkout} has other results than {checkouts[0]}")
    return [list(map(min, zip(*(one[place] for one in found), strict=True))) for place in range(len(checkouts))]


def main() -> None:
    """Prints ms of CPU a row, of each table and checkout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, by commas")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3, help="processes a checkout and table")
    parser.add_argument("--repeats", type=int, default=2, help="evaluations a process, after the first")
    parser.add_argument("--beside", type=Path, action="append", default=[], help="another checkout, timed turn by turn")
    parser.add_argument("--cases", type=Path, action="append", default=[], help="a table of one's own, timed too")
    options = parser.parse_args()
    checkouts = [*(path.resolve() for path in options.beside), ROOT]
    with tempfile.TemporaryDirectory() as name:
        tables = {kind: Path(name) / f"{kind}.csv" for kind in options.only.split(",") if kind}
        for kind, path in tables.items():
            table(kind, options.rows).to_csv(path, index=False)
        for path in (*tables.values(), *(path.resolve() for path in options.cases)):
            n_rows = len(pd.read_csv(path, low_memory=False))
            took = compare(path, checkouts, options.rounds, options.repeats, Path(name))
            for checkout, (start, first, again) in zip(checkouts, took, strict=True):
                whole, once, more = (1e3 * seconds / n_rows for seconds in (start + first, first, again))
                print(
                    f"{path.stem:>22}, {n_rows:>5} rows: {more:6.2f} ms of CPU a row, the first time in a process {once:6.2f}, "
                    f"with start-up {whole:6.2f} ({checkout})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
