"""The Dask cluster that a study runs on: our own on this host, or somebody's by its address. Bound to loopback unless given."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dask
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, Status
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.system import MEMORY_LIMIT

from lowres.errors import BadInput
from lowres.files import located, shown
from lowres.records import RESULTS_VERSION

MEMORY_A_WORKER = 5e9  # what training the 135M model takes at most: no more workers than fit
PATIENCE = 20  # seconds until a scheduler that does not answer is given up


@dataclass
class Cluster:
    client: Client
    workers: int
    threads: int  # of each kernel
    gpus: tuple[str, ...] = ()  # by worker, of our own cluster
    resources: dict[str, float] | None = None  # what a run asks of a worker
    heal: Callable[[], None] = lambda: None  # to be called now and then


class IgnoreInterrupts(WorkerPlugin):
    """Ctrl-C reaches every process of a terminal; only the runner heeds it, and tells the workers what to do."""

    name = "lowres-ignore-interrupts"

    def setup(self, worker: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def gpus() -> tuple[str, ...]:
    """The GPUs of this host that we may use, told without torch."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return tuple(name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip() not in ("", "-1"))
    if not shutil.which("nvidia-smi"):
        return ()
    with suppress(OSError, subprocess.TimeoutExpired):
        listed = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=20)
        return tuple(listed.stdout.split()) if listed.returncode == 0 else ()
    return ()


def default_workers() -> int:
    """One a GPU; else one a core, as far as memory goes: measured, two workers of one thread do 19 to 40 % more on short text
    than one of two, and 0 to 7 % more on longer."""
    return len(gpus()) or max(1, min(CPU_COUNT, int(MEMORY_LIMIT // MEMORY_A_WORKER)))


@contextmanager
def own_cluster(workers: int, retries: int, folder: Path) -> Iterator[Cluster]:
    """Worker processes on this host with `folder` for their files, the cores split evenly."""
    for name in ("distributed", "tornado.application"):  # a killed worker is told in our own words
        logging.getLogger(name).setLevel(logging.CRITICAL)
    devices = gpus()
    settings = {
        "distributed.scheduler.allowed-failures": retries,
        "distributed.deploy.lost-worker-timeout": "5s",
        "temporary-directory": str(folder),
        "distributed.worker.profile.enabled": False,
        "distributed.admin.system-monitor.interval": "10s",
    }
    with dask.config.set(settings):
        local = LocalCluster(
            n_workers=0, threads_per_worker=1, processes=True, host="127.0.0.1", memory_limit=0, silence_logs=logging.CRITICAL,
            dashboard_address="127.0.0.1:0", local_directory=str(folder),
        )
        try:
            with Client(local, set_as_default=False) as client:
                client.register_plugin(IgnoreInterrupts())
                heal = partial(_heal, local, workers)
                _wait_for_workers(client, workers, heal)
                yield Cluster(client, workers, max(1, CPU_COUNT // workers), devices, heal=heal)
        finally:
            # Dask's watcher stumbles over a worker that was killed when the scheduler had forgotten it already (distributed#5407), and tells it
            # at the very end, when all is closed: no reason to fail a study.
            with suppress(KeyError):
                local.close()


def _heal(local: LocalCluster, workers: int) -> None:
    """Starts workers that are missing. Dask restarts one that was killed, but not one that was killed while it started."""
    async def mend() -> None:
        for name, nanny in list(local.workers.items()):
            if nanny.status in (Status.failed, Status.closed):
                del local.workers[name]
        local.scale(workers)

    local.loop.add_callback(mend)


def _wait_for_workers(client: Client, workers: int, heal: Callable[[], None]) -> None:
    for _ in range(6):
        heal()
        with suppress(TimeoutError):
            client.wait_for_workers(workers, timeout=10)
            return
    if not client.scheduler_info(n_workers=-1)["workers"]:
        raise RuntimeError("no worker process could be started in a minute")


@contextmanager
def given_cluster(address: str, outputs: Path) -> Iterator[Cluster]:
    """A running cluster, by `tcp://host:port` or the scheduler's file. Raises BadInput for one that cannot do the work."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    where = {"scheduler_file": str(located(address))} if located(address).is_file() else {"address": address}
    try:
        client = Client(**where, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise BadInput(f"--scheduler: no Dask scheduler answers at {address!r}: {error}") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=30)
        except TimeoutError:
            raise BadInput(f"--scheduler: the cluster at {address!r} has no workers") from None
        threads = _checked(client, outputs)
        details = client.scheduler_info(n_workers=-1)["workers"].values()
        with_gpu = all(worker.get("resources", {}).get("GPU") for worker in details)
        yield Cluster(client, sum(worker["nthreads"] for worker in details), threads, resources={"GPU": 1} if with_gpu else None)


def _checked(client: Client, outputs: Path) -> int:
    """Every worker has the project, this version of it, and sees the outputs. Returns the threads that each run may use."""
    outputs.mkdir(parents=True, exist_ok=True)
    token = outputs / f".seen-{secrets.token_hex(4)}"
    token.touch()

    def look(place: str) -> dict[str, Any]:  # sent by value: a worker without the project could not look it up
        import os

        try:
            from dask.system import CPU_COUNT

            from lowres.files import located
            from lowres.records import RESULTS_VERSION
            from lowres.scheduling import execute  # noqa: F401
        except ImportError as error:
            return {"error": f"does not have the project installed ({error})"}
        seen = located(place).is_file()
        return {"seen": seen, "place": str(located(place).parent), "version": RESULTS_VERSION, "cores": CPU_COUNT, "host": os.uname().nodename}

    try:
        answers = client.run(look, shown(token))
    finally:
        token.unlink(missing_ok=True)
    slots: dict[str, int] = {}
    running = client.scheduler_info(n_workers=-1)["workers"]
    for address, answer in answers.items():
        if "error" in answer:
            raise BadInput(f"--scheduler: the worker {address} {answer['error']}: every worker needs it, and a shared outputs folder")
        if not answer["seen"]:
            where = f"{shown(outputs)} (it looked in {answer['place']})"
            raise BadInput(f"--scheduler: the worker {address} does not see {where}: a shared folder is needed")
        if answer["version"] != RESULTS_VERSION:
            versions = f"RESULTS_VERSION {answer['version']}, here {RESULTS_VERSION}"
            raise BadInput(f"--scheduler: the worker {address} has another version of the project ({versions})")
        slots[answer["host"]] = slots.get(answer["host"], 0) + (running[address]["nthreads"] if address in running else 1)
    # The same count everywhere: it changes the last digits of results.
    return min(max(1, answer["cores"] // slots[answer["host"]]) for answer in answers.values())
