"""Times kernels with PyTorch, on a GPU or on the CPU: the only module that imports it.

On a GPU a kernel's time is that of a CUDA graph of calls over operands that rotate through more memory than the L2 holds, so that it finds
nothing there; of what no graph takes (backward passes) that of a loop between events. On the CPU it is a loop's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from rapid_dse.analysis.measuring.timed_shapes import TimedAttention, TimedProduct, attentions, products, streams

COLD = "device time a call, CUDA graph of calls on rotating buffers (cold L2)"
LOOP = "events around a loop of calls on rotating buffers"
HOST = "host wall clock a call, no synchronisation"
ROTATED = 160e6  # bytes of operands that calls rotate through
MOST_SETS = 24
REPLAYS = 5
LEAST = 2e-3  # seconds that a graph or a loop takes at least
NEEDS = "measure needs PyTorch with a GPU: pip install 'rapid-dse[measure]' on a machine that has one"

Row = dict[str, Any]
Call = Callable[[], object]


def torch_on(device: str) -> Any:
    """PyTorch, where it can use the device.

    Raises:
        ValueError: one line, where PyTorch is not installed or sees no such device.
    """
    try:
        import torch
    except ImportError:
        raise ValueError(f"PyTorch is not installed: {NEEDS}, or --recorded FILE for kernels that were timed before") from None
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"PyTorch {torch.__version__} sees no GPU: {NEEDS}; allowed: --device cpu (times alone), or --recorded FILE")
    return torch


def first_line(error: BaseException) -> str:
    """What an error of PyTorch's says, without what follows of how it came about."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class KernelTimers:
    """Kernels of one device; each method yields rows as ``kernels.csv`` has them.

    Attributes:
        left_out: kernels that the device has no memory or no code for, with what PyTorch says of each.
    """

    def __init__(self, device: str, name: str) -> None:
        self.torch, self.device = torch_on(device), device
        self.small, self.left_out = device == "cpu", list[str]()
        if self.small:  # of several threads one may have to wait for another program
            self.torch.set_num_threads(1)
        self.common: Row = {"hw": name, "n_gpus": 1, "software": f"pytorch {self.torch.__version__}", "year": time.localtime().tm_year}

    def facts(self) -> Row:
        """What the driver says of the chip: name, SMs, bytes of memory and of L2."""
        if self.device == "cpu":
            return {"name": "cpu"}
        properties = self.torch.cuda.get_device_properties(0)
        memory = self.torch.cuda.mem_get_info(0)[1]
        return {
            "name": properties.name,
            "sms": properties.multi_processor_count,
            "memory": memory,
            "l2": getattr(properties, "L2_cache_size", 0),
        }

    def every(self) -> Iterator[Row]:
        """All kernels, kind by kind in turn, so that a budget that ends leaves some of each."""
        square = self._random(512, 512)
        for _ in range(20):  # the first kernels wait for libraries that are loaded, and for clocks
            self.torch.mm(square, square)
        shapes = [self.products(), self.attention(), self.streams(), self.launches()]
        while shapes:
            for rows in list(shapes):
                row = next(rows, None)
                if row is None:
                    shapes.remove(rows)
                else:
                    yield {**self.common, **row}

    def products(self) -> Iterator[Row]:
        """Matrix products that the device can do."""
        for shape in products(self.small):
            call = self._product(shape)
            if call is not None:
                width = {"fp8": 1, "tf32": 4, "fp32": 4}.get(shape.precision, 2)
                size = (shape.m * shape.k + shape.k * shape.n) * width + shape.m * shape.n * 2
                row = {"kind": "gemm", "precision": shape.precision, "m": shape.m, "n": shape.n, "k": shape.k, "layout": "forward"}
                yield from self._row({**row, "impl": "torch.mm"}, call, size)

    def attention(self) -> Iterator[Row]:
        """Causal attention, forward and backward."""
        for shape in attentions(self.small):
            size = 2 * shape.batch * shape.seq_len * shape.head_dim * 2 * (shape.heads + shape.kv_heads)
            row = {name: getattr(shape, name) for name in ("batch", "seq_len", "heads", "kv_heads", "head_dim")}
            row |= {"precision": "bf16", "v_head_dim": shape.head_dim, "causal": True}
            for impl, backend in self._attention_kernels():
                forward, backward = self._attention(shape, backend)
                yield from self._row({"kind": "attention_fwd", **row, "impl": impl}, forward, size)
                yield from self._row({"kind": "attention_bwd", **row, "impl": impl}, backward, size, graph=False)

    def streams(self) -> Iterator[Row]:
        """Kernels that read and write, element by element."""
        torch = self.torch
        calls = {"add": torch.add, "mul": torch.mul}
        for name, rows, columns in streams(self.small):
            operands = 3 if name in calls else 2
            size = operands * rows * columns * 2

            def make(name: str = name, rows: int = rows, columns: int = columns) -> Call:
                first, second, out = (self._random(rows, columns) for _ in range(3))
                if name in calls:
                    return lambda: calls[name](first, second, out=out)
                if name == "copy":
                    return lambda: out.copy_(first)
                if name == "relu":
                    return lambda: torch.relu(first)
                return lambda: torch.nn.functional.gelu(first)

            row = {"kind": name, "precision": "bf16", "m": rows, "n": columns, "bytes": size, "impl": "torch eager"}
            yield from self._row(row, make, size)

    def launches(self) -> Iterator[Row]:
        """What the host takes to launch a kernel."""
        first, second = self._random(16, 16), self._random(16, 16)
        calls: dict[str, Call] = {"mm": lambda: self.torch.mm(first, second), "add": lambda: self.torch.add(first, second)}
        for name, call in calls.items():
            for _ in range(100):
                call()
            self._wait()
            begin = time.perf_counter()
            for _ in range(1000):
                call()
            seconds = (time.perf_counter() - begin) / 1000
            self._wait()
            yield {"kind": f"host_launch:{name}", "precision": "bf16", "measured.time_s": seconds, "note": HOST}

    def _random(self, *shape: int, dtype: str = "bfloat16") -> Any:
        return self.torch.randn(*shape, device=self.device, dtype=getattr(self.torch, dtype))

    def _product(self, shape: TimedProduct) -> Callable[[], Call] | None:
        """What makes a call of a product on operands of its own; None where the device has no such mode."""
        torch, (m, n, k) = self.torch, (shape.m, shape.n, shape.k)
        if shape.precision == "fp8":
            if self.small or torch.cuda.get_device_capability(0) < (8, 9):
                return None

            def scaled() -> Call:
                one = torch.ones((), device=self.device)
                left_factor = torch.randn(m, k, device=self.device).to(torch.float8_e4m3fn)
                right = torch.randn(n, k, device=self.device).to(torch.float8_e4m3fn).t()
                return lambda: torch._scaled_mm(left_factor, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

            return scaled if m % 16 == 0 else None
        dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(shape.precision, "float32")
        precise = "high" if shape.precision == "tf32" else "highest"

        def plain() -> Call:
            torch.set_float32_matmul_precision(precise)
            left_factor, right = self._random(m, k, dtype=dtype), self._random(k, n, dtype=dtype)
            return lambda: torch.mm(left_factor, right)

        return plain

    def _attention_kernels(self) -> list[tuple[str, Any]]:
        if self.device == "cpu":
            return [("PyTorch", None)]
        backends = self.torch.nn.attention.SDPBackend
        return [("FlashAttention-2", backends.FLASH_ATTENTION), ("cuDNN", backends.CUDNN_ATTENTION)]

    def _attention(self, shape: TimedAttention, backend: Any) -> tuple[Callable[[], Call], Callable[[], Call]]:
        """What makes calls of attention forward, and backward."""
        torch = self.torch

        def operands(grad: bool) -> list[Any]:
            heads = (shape.heads, shape.kv_heads, shape.kv_heads)
            tensors = [self._random(shape.batch, count, shape.seq_len, shape.head_dim) for count in heads]
            return [tensor.requires_grad_(grad) for tensor in tensors]

        def attend(query: Any, key: Any, value: Any) -> Any:
            if backend is None:
                return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
            with torch.nn.attention.sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

        def forward() -> Call:
            given = operands(False)
            return lambda: attend(*given)

        def backward() -> Call:
            given = operands(True)
            out = attend(*given)
            gradient = torch.randn_like(out)
            return lambda: torch.autograd.grad(out, given, gradient, retain_graph=True)

        return forward, backward

    def _row(self, row: Row, make: Callable[[], Call], size: float, graph: bool = True) -> Iterator[Row]:
        """The row with its time; none where the device cannot run the kernel: no memory for it, no such kernel, no such mode."""
        try:
            yield {**row, **self._timed(make, size, graph)}
        except RuntimeError as error:  # PyTorch's, out of memory among them
            shape = " ".join(f"{name}={row[name]}" for name in ("precision", "m", "n", "k", "batch", "seq_len", "head_dim") if name in row)
            self.left_out.append(f"{row['kind']} {row['impl']} {shape}: {first_line(error)}")

    def _timed(self, make: Callable[[], Call], size: float, graph: bool = True) -> Row:
        """Seconds of a call of which ``make`` gives one on operands of its own, ``size`` bytes of them."""
        sets = 1 if self.small else max(2, min(MOST_SETS, int(ROTATED / max(size, 1.0)) + 1))
        calls = [make() for _ in range(sets)]
        for call in calls[:2] * 2:
            call()
        self._wait()
        if self.device == "cpu" or not graph:
            return {"measured.time_s": self._loop(calls), "note": LOOP, "reps": REPLAYS}
        return {"measured.time_s": self._graph(calls), "note": COLD, "reps": REPLAYS}

    def _loop(self, calls: list[Call]) -> float:
        """Seconds of a call in loops over all calls: the median, of a CPU the least."""

        def once(times: int) -> float:
            self._wait()
            begin = time.perf_counter()
            for _ in range(times):
                for call in calls:
                    call()
            self._wait()
            return (time.perf_counter() - begin) / times / len(calls)

        times = max(1, int(LEAST / max(once(1) * len(calls), 1e-9)))
        middle = min if self.small else statistics.median  # other programs share a CPU, and take of all but the least
        return middle([once(times) for _ in range(REPLAYS)])

    def _graph(self, calls: list[Call]) -> float:
        """Median seconds of a call in replays of a graph of all calls."""
        torch = self.torch
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for call in calls:
                call()
        self._wait()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        seconds: list[float] = []
        for _ in range(REPLAYS + 1):
            begin.record()
            graph.replay()
            end.record()
            self._wait()
            seconds.append(begin.elapsed_time(end) * 1e-3 / len(calls))
        return statistics.median(seconds[1:])

    def _wait(self) -> None:
        if self.device != "cpu":
            self.torch.cuda.synchronize()
