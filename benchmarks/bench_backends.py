"""What the event-driven backends take: each in processes of its own, start and compiled engine from the disk included; medians.

    python benchmarks/bench_backends.py

The first run after a change of the engine compiles it (about 20 s, once) before anything is timed.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

LAYOUT = "hw.num_gpus=1024 model=llama3_1_70b parallel.tp=8 parallel.pp=8 workload.global_batch_size=256"
TARGETS = {"hybrid": (0.5, None), "full_astrasim_hierarchical": (1.0, None), "full_astrasim_flattened": (20.0, 2.0)}
REPEATS = {"hybrid": 5, "full_astrasim_hierarchical": 5, "full_astrasim_flattened": 1}
POOLS = (  # 48 GPUs: prompts on two engines of 8, tokens on one of 32
    "hw=h200 model=deepseek_v3 workload=inference workload.precision=fp8 hw.num_gpus=48 software=sglang software.enforce=false "
    "parallel.prefill.tp=8 parallel.prefill.ep=8 parallel.prefill.workers=2 parallel.decode.tp=1 parallel.decode.attention_dp=32 "
    "parallel.decode.ep=32 parallel.decode.workers=1 workload.concurrency=1024"
)
SERVED = {  # systems by what they are, with the seconds that a row may take on any backend
    "Llama-3.1 70B on 8 H100, tp 4, pp 2, 64 requests": (
        "model=llama3_1_70b workload=inference hw.num_gpus=8 parallel.tp=4 parallel.pp=2 workload.concurrency=64",
        1.5,
    ),
    "DeepSeek-V3 on 48 H200, pools": (POOLS, 3.0),
}
SWEEP = (
    "-m hw.num_gpus=512 model=llama3_1_70b parallel.tp=all parallel.pp=all parallel.micro_batch_size=1,2,4 "
    "search.top=20 search.refine_backend=hybrid"
)
TIMED = """
import json, resource, sys, time
from rapid_dse.sweep.overrides import read
from rapid_dse.sweep.space import single
from rapid_dse.events.backends import price
trial = single(read(sys.argv[1:]))
start, worked = time.perf_counter(), time.process_time()
priced = price(trial.scenario, trial.layouts)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps([time.perf_counter() - start, time.process_time() - worked, peak, float(priced.step_time_s[0])]))
"""


def trial(backend: str, layout: str = LAYOUT) -> list[float]:
    """Seconds of pricing, those of the processor, bytes at the peak, and the step's seconds, in a new process."""
    command = [sys.executable, "-c", TIMED, *layout.split(), f"backend={backend}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(figure) for figure in json.loads(done.stdout)]


def sweep(refine: int) -> float:
    """Seconds of a sweep into an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        arguments: Sequence[str] = [*SWEEP.split(), f"search.results_dir={folder}", f"search.refine={refine}"]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "rapid_dse", *arguments], capture_output=True, check=True)
        return time.perf_counter() - start


def served() -> int:
    """Prints what rows of inference take on each backend, and how many take too long."""
    missed = 0
    for name, (layout, limit) in SERVED.items():
        print(name)
        for backend in TARGETS:
            took, worked, peak, token = (
                statistics.median(figures) for figures in zip(*(trial(backend, layout) for _ in range(3)), strict=True)
            )
            missed += took > limit
            print(f"{backend:<28}{took:8.2f}{limit:8.1f}{worked:8.2f}{peak / 1e9:8.2f}{'':8}{token:10.5f}")
    return missed


def main() -> int:
    """Prints each figure beside its target; 1 where one is missed."""
    os.environ["RAPID_ASTRA_CACHE_MODE"] = "NO_CACHE"
    trial("hybrid")  # compiles the engine where it has to
    missed = 0
    print("Llama-3.1 70B on 1,024 H100, tp 8, pp 8, dp 16, 16 micro-batches")
    print(f"{'backend':<28}{'s':>8}{'must':>8}{'cpu s':>8}{'GB':>8}{'must':>8}{'step s':>10}")
    for backend, (seconds, memory) in TARGETS.items():
        runs = [trial(backend) for _ in range(REPEATS[backend])]
        took, worked, peak, step = (statistics.median(figures) for figures in zip(*runs, strict=True))
        missed += took > seconds or (memory is not None and peak > memory * 1e9)
        limit = f"{memory:8.1f}" if memory else " " * 8
        print(f"{backend:<28}{took:8.2f}{seconds:8.1f}{worked:8.2f}{peak / 1e9:8.2f}{limit}{step:10.3f}")
    missed += served()
    plain, refined = (statistics.median(sweep(refine) for _ in range(3)) for refine in (0, 20))
    missed += refined - plain > 5.0
    print(f"top 20 refined on hybrid: {refined - plain:.2f} s more than the sweep's {plain:.2f} s (must: 5.0)")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
