"""Which workers of a cluster may be given runs: those with this version of the project, its data and models, that see the outputs."""

from __future__ import annotations

import os
import pickle
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distributed import Client, Future

from lowres.files import BadInput, shown
from lowres.runs.records import RESULTS_VERSION

SAME = {"python": 2, "dask": 3, "distributed": 3}  # what is sent to a worker is theirs to read: so many parts of their versions must agree
LOST = "the connection to the Dask scheduler is lost; what is finished is kept: lowres run continues after it"
SETTLED, LONGEST_LOOK = 20.0, 600.0  # seconds: nobody waits longer for a worker who has others; and until that is told


@contextmanager
def connected() -> Iterator[None]:
    """Around what a scheduler is asked. Raises ConnectionError, whatever Dask raises where it has gone."""
    try:
        yield
    except OSError:
        raise ConnectionError(LOST) from None


def asked_of_workers() -> Callable[[str, bytes, Any], dict[str, Any]]:
    """What a worker is asked, as a function that goes to it by value: one without the project could not look it up."""

    def look(token: str, asked: bytes, version: int) -> dict[str, Any]:
        import os
        import pickle

        try:
            from dask.system import CPU_COUNT

            from lowres import locks
            from lowres.files import BadInput, located
            from lowres.runs.execute import execute  # noqa: F401
            from lowres.runs.process import elsewhere
            from lowres.runs.records import RESULTS_VERSION
        except ImportError as error:
            return {"fault": f"does not have the project installed ({error}): every worker needs it, and a shared outputs folder"}
        locks.sweep()  # what was killed there
        if not located(token).is_file():
            return {"fault": f"does not see {os.path.dirname(token)} (it looked in {located(token).parent}): a shared folder is needed"}
        if version != RESULTS_VERSION:
            return {"fault": f"has another version of the project (RESULTS_VERSION {RESULTS_VERSION}, here {version})"}
        job, cores = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_CPUS_ON_NODE", "")  # a job's own, though it may see more
        answer = {"place": (os.uname().nodename, job), "cores": int(cores) if cores.isdigit() else CPU_COUNT}
        try:
            if runs := pickle.loads(asked):
                elsewhere("lowres.runs.checks:check_parameters", runs)
                elsewhere("lowres.runs.checks:fetch_weights", [parameters for _, parameters in runs])
        except BadInput as error:
            answer["fault"] = f"cannot do the work: {error}"
        return answer

    return look


class Fitness:
    """Looks at each worker once, when it comes, and remembers why one is left out. `asked` are methods and parameters."""

    def __init__(self, client: Client, where: str, outputs: Path, asked: tuple = (), wanted: int = 1):
        self.client, self.where, self.asked, self.wanted = client, where, pickle.dumps(asked), wanted
        self.token = outputs / f".seen-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.looks: dict[str, tuple[Future, float]] = {}  # by address, since when
        self.answers: dict[str, dict[str, Any]] = {}  # of those that are fit
        self.faults: dict[str, str] = {}
        self.with_gpu: set[str] = set()
        self.untold: list[str] = []
        self.slow: set[str] = set()
        self.threads = 0  # that each run may use: the same everywhere, because it changes the last digits of results
        with connected():
            found = client.get_versions()
        self.ours = found["client"]
        if fault := self._other_version(found["scheduler"]):
            raise BadInput(f"{where}: the scheduler {fault}")

    def wait(self) -> None:
        """Until all that are there have answered, or some while: one that is at work for others answers when it has time."""
        end = time.monotonic() + SETTLED
        self.slots()
        while self.looks and time.monotonic() < end:
            time.sleep(0.1)
            self.slots()

    def close(self) -> None:
        self.token.unlink(missing_ok=True)

    def slots(self, tell: Callable[[str], None] | None = None) -> dict[str, int]:
        """How many runs at a time each fit worker takes. Raises BadInput if none is fit, and as many as are wanted were left out."""
        with connected():
            there = self.client.scheduler_info(n_workers=-1)["workers"]
        if new := there.keys() - self.looks.keys() - self.answers.keys() - self.faults.keys():
            self._begin(new)
        for address, (future, since) in list(self.looks.items()):
            if future.done() or address not in there:
                del self.looks[address]
                self._heard(address, future, address in there)
            elif time.monotonic() > since + LONGEST_LOOK and address not in self.slow:
                self.slow.add(address)
                self.untold.append(f"{self.where}: the worker {address} has not answered for {LONGEST_LOOK:.0f} s: it is busy, or hangs")
        if not self.looks:
            self.close()
        if not any(time.monotonic() < since + SETTLED for _, since in self.looks.values()):
            self.threads = self.threads or self._threads(there)
        for line in self.untold if tell else ():
            tell(line)
        self.untold = [] if tell else self.untold
        left_out = [self.faults[address] for address in there if address in self.faults]
        if not self.answers and left_out and len(left_out) == len(there) and len(left_out) >= self.wanted:
            raise BadInput(left_out[0])
        self.with_gpu = {address for address, worker in there.items() if worker.get("resources", {}).get("GPU")}
        return {address: _takes(worker) if self.threads else 0 for address, worker in there.items() if address in self.answers}

    def _begin(self, new: set[str]) -> None:
        self.token.parent.mkdir(parents=True, exist_ok=True)
        self.token.touch()
        with connected():
            versions = self.client.get_versions()["workers"]
        for address in new & versions.keys():
            if fault := self._other_version(versions[address]):
                self._leave_out(address, fault)
            else:
                future = self.client.submit(asked_of_workers(), shown(self.token), self.asked, RESULTS_VERSION, workers=[address], pure=False)
                self.looks[address] = future, time.monotonic()

    def _heard(self, address: str, future: Future, there: bool) -> None:
        if not there:
            future.cancel()
            return
        try:
            answer = future.result(timeout=5)
        except Exception as error:  # whatever a foreign environment raises
            answer = {"fault": f"cannot be looked at: {error!r}"}
        if "fault" in answer:
            self._leave_out(address, answer["fault"])
        else:
            self.answers[address] = answer

    def _leave_out(self, address: str, fault: str) -> None:
        self.faults[address] = f"{self.where}: the worker {address} {fault}"
        self.untold.append(f"{self.faults[address]}; it is given no run")

    def _other_version(self, other: dict[str, Any]) -> str:
        for name, parts in SAME.items():
            theirs, ours = (".".join(found["packages"][name].split(".")[:parts]) for found in (other, self.ours))
            if theirs != ours:
                return f"has {name} {theirs}, here is {ours}: both must have the same"
        return ""

    def _threads(self, there: dict[str, dict[str, Any]]) -> int:
        fit = {address: answer for address, answer in self.answers.items() if address in there}
        slots = Counter()
        for address, answer in fit.items():
            slots[answer["place"]] += there[address]["nthreads"]
        return min((max(1, answer["cores"] // slots[answer["place"]]) for answer in fit.values()), default=0)


def _takes(worker: dict[str, Any]) -> int:
    if worker.get("status", "running") != "running":
        return 0
    return min(worker["nthreads"], int(worker.get("resources", {}).get("GPU", worker["nthreads"])))
