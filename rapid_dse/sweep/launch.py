"""Jobs over processes of one machine, or over a cluster's through Dask or Ray: the same joblib code."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rapid_dse.common import long_work

if TYPE_CHECKING:
    from joblib import Parallel

T = TypeVar("T")
R = TypeVar("R")

_RETRIES = 3  # workers that die under a batch before the batch is given up
_CONNECT_SECONDS = 30
_WATCH_SECONDS = 0.5


class RunAll(Protocol):
    """Runs a function on each item; results as they finish, each with its item's position."""

    def __call__(self, function: Callable[[T], R], items: Sequence[T]) -> Generator[tuple[int, R]]: ...


def cores(jobs: int) -> int:
    """How many processes search.jobs stands for: -1 is every core that this process may use; 0 and 1 are this process."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return usable if jobs < 0 else max(1, jobs)


def here(function: Callable[[T], R], items: Sequence[T]) -> Generator[tuple[int, R]]:
    """One item after another, in this process."""
    for at, item in enumerate(items):
        yield at, function(item)


@contextmanager
def launcher(name: str, jobs: int, address: str | None = None) -> Iterator[RunAll]:
    """What runs jobs: processes that stay until the end.

    Args:
        name: loky (this machine), dask or ray.
        jobs: processes on this machine; with an address the cluster decides.
        address: a Dask scheduler's or a Ray cluster's; None starts one on this machine.

    Raises:
        ValueError: where Dask or Ray is not installed or does not answer.
    """
    if name == "loky" and address is not None:
        raise ValueError(f"search.launcher_address={address}: loky has none; allowed: search.launcher=dask or ray")
    if name == "loky" and cores(jobs) <= 1:
        yield here
        return
    with ExitStack() as stack:
        n_jobs = cores(jobs)
        if name == "dask":
            n_jobs = stack.enter_context(_dask(cores(jobs), address))
        elif name == "ray":
            stack.enter_context(_ray(cores(jobs), address))
            n_jobs = -1
        yield _Jobs(name, n_jobs)


class _Jobs:
    """joblib on one backend."""

    def __init__(self, backend: str, n_jobs: int) -> None:
        self._backend, self._n_jobs = backend, n_jobs

    def __call__(self, function: Callable[[T], R], items: Sequence[T]) -> Generator[tuple[int, R]]:
        """As ``RunAll``; what a worker that died had is run again.

        Raises:
            Exception: what ``function`` raised; BrokenExecutor where workers keep dying.
        """
        unanswered, deaths = dict(enumerate(items)), _deaths(self._backend)  # imported ahead: a signal may break an import off
        for attempt in range(_RETRIES):
            try:
                with closing(self._once(function, unanswered)) as answers:
                    for at, result in answers:
                        unanswered.pop(at)
                        yield at, result
                return
            except deaths as error:
                if attempt == _RETRIES - 1:
                    raise BrokenExecutor(" ".join(str(error).split())) from None

    def _once(self, function: Callable[[T], R], items: dict[int, T]) -> Generator[tuple[int, R]]:
        from joblib import delayed, parallel_config

        at_start = {"initializer": end_with, "initargs": (os.getpid(),)} if self._backend == "loky" else {}
        with parallel_config(backend=self._backend, n_jobs=self._n_jobs, **at_start):
            parallel = _parallel(self._backend)
        with deaf_children():
            placed = delayed(_placed_and_told if self._backend == "loky" and long_work.told() else _placed)
            placed_answers = parallel(placed(function, at, item) for at, item in list(items.items()))
        if isinstance(placed_answers, list):
            yield from placed_answers
            return
        try:
            for answer in placed_answers:  # noqa: UP028 yield from would close joblib's generator before the lines below can
                yield answer
        finally:
            with deaf_children(), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that results are thrown away: after Ctrl-C they are
                placed_answers.close()


def _deaths(backend: str) -> tuple[type[Exception], ...]:
    """What tells that a worker's process is gone."""
    if backend == "dask":
        from distributed.scheduler import KilledWorker

        return (KilledWorker,)
    if backend == "ray":
        from ray.exceptions import RayActorError, WorkerCrashedError

        return (RayActorError, WorkerCrashedError)
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    return (TerminatedWorkerError,)


def _parallel(backend: str) -> Parallel:
    from joblib import Parallel

    # Ray's backend of joblib hands over nothing until all is done.
    return Parallel(return_as="list" if backend == "ray" else "generator_unordered", batch_size=1, max_nbytes=None)


def _placed(function: Callable[[Any], Any], at: int, item: Any) -> tuple[int, Any]:
    return at, function(item)


def _placed_and_told(function: Callable[[Any], Any], at: int, item: Any) -> tuple[int, Any]:
    """As ``_placed``; what takes long says on standard error, which workers have in common, how far it has come."""
    with long_work.listening():
        return at, function(item)


def end_with(driver: int) -> None:
    """Lets this process end when its driver is gone: one that was killed stops no workers, and theirs would run for minutes."""

    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end with the driver").start()


@contextmanager
def _dask(n_workers: int, address: str | None) -> Iterator[int]:
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise ValueError("search.launcher=dask: Dask is not installed; allowed: pip install 'rapid-dse[dask]', or loky") from None
    make_cluster: Any = LocalCluster
    make_client: Any = Client
    with ExitStack() as stack:
        target: Any = address
        if address is None:
            target = stack.enter_context(make_cluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=None))
        try:
            client = stack.enter_context(make_client(target, timeout=_CONNECT_SECONDS))
            client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
        except (OSError, ValueError, TimeoutError) as error:
            text = " ".join(str(error).split())
            raise ValueError(
                f"search.launcher_address={address}: no Dask cluster answers there ({text}); allowed: tcp://host:port"
            ) from None
        yield max(1, sum(client.ncores().values()))


@contextmanager
def _ray(n_workers: int, address: str | None) -> Iterator[None]:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError:
        raise ValueError("search.launcher=ray: Ray is not installed; allowed: pip install 'rapid-dse[ray]', or loky") from None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            ray.init(num_cpus=n_workers, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"search.launcher_address={address}: no Ray cluster answers there ({text}); allowed: auto, or host:port") from None
    try:
        register: Any = register_ray
        register()
        yield
    finally:
        ray.shutdown()


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that start in here never see Ctrl-C: the terminal sends it to all, and only this process shall answer.

    An ignored signal stays ignored across exec, so not even an import in a worker can be interrupted with a traceback.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
