"""A notebook through papermill, in a kernel of its own over IPC sockets, and why it ended if it did not end well."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import re
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.provisioning import LocalProvisioner
from jupyter_core.utils import run_sync

from lowres import locks
from lowres.files import ROOT

# Set before a kernel starts. Large blocks are kept, not given back and faulted in anew at each step: 1.2 to 0.7 s a step.
# (Dask sets the opposite in its workers.)
KERNEL_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592", "MALLOC_TOP_PAD_": "268435456",
    "TOKENIZERS_PARALLELISM": "false", "PYDEVD_DISABLE_FILE_VALIDATION": "1", "PYTHONHASHSEED": "0",
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
PATIENCE = 120.0  # seconds until a process that should fork a kernel, once it has imported, is given up
COMMAND = (sys.executable, "-m", "lowres.runs.kernel")
PER_RUN = ("LOWRES_", "JPY_", "CUDA_VISIBLE_DEVICES", "TMPDIR", "PYTEST_")  # variables that differ between runs, and that no import keeps
OUT_OF_MEMORY = re.compile(r"MemoryError|OutOfMemoryError|not enough memory|can't allocate memory|out of memory|Cannot allocate memory", re.I)
DISK_FULL = re.compile(rf"\[Errno ({errno.ENOSPC}|{errno.EDQUOT})\]|No space left on device")
logging.getLogger("papermill").setLevel(logging.ERROR)
# jsonschema, which nbformat and papermill import, would build a grammar of international addresses: 2.5 s of a core a process. It does without one,
# and no notebook's schema has such addresses.
sys.modules.setdefault("rfc3987_syntax", None)
_live: set[Kernel] = set()


@dataclass(frozen=True)
class NotebookResult:
    """kind: '' (well), error (a Python error), timeout, died (the kernel), stopped (asked to)."""

    kind: str = ""
    message: str = ""
    traceback: str = ""
    again: bool = False  # the machine's fault more than the run's: it is tried again by the next `lowres run`


class Kernel(AsyncKernelManager):
    """This Python's kernel: sockets, connection file and log in a private folder (parallel kernels clash on TCP ports)."""

    def __init__(self, folder: Path, environment: dict[str, str], forks: str):
        super().__init__(transport="ipc", ip=str(folder / "k"), connection_file=str(folder / "kernel.json"), kernel_name="python3")
        # Not the installed 'python3', which may be another environment's.
        self._kernel_spec = KernelSpec(argv=[*COMMAND, "-f", "{connection_file}"], display_name="Python 3", language="python")
        self.provisioner = Provisioner(kernel_id=str(uuid.uuid4()), kernel_spec=self._kernel_spec, parent=self)
        self.provisioner.asked = environment, folder / "kernel.log", forks
        self.process, self.peak = None, 0.0

    async def _async_launch_kernel(self, kernel_cmd, **options):
        await super()._async_launch_kernel(kernel_cmd, **options)
        self.process = self.provisioner.process
        _live.add(self)
        threading.Thread(target=self._watch_memory, daemon=True).start()

    def _watch_memory(self) -> None:
        """The highest resident set, looked up while the process lives: afterwards nobody knows it."""
        wait = threading.Event()
        while self in _live and self.process.returncode is None:
            with suppress(OSError, StopIteration):
                status = Path(f"/proc/{self.process.pid}/status").read_text()
                line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
                self.peak = max(self.peak, float(line.split()[1]) * 1024 / 1e9)
            wait.wait(0.5)

    def kill(self) -> None:
        """The kernel and the processes it started."""
        with suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        _live.discard(self)
        if self.process:
            self.kill()
        with suppress(Exception):
            run_sync(self.shutdown_kernel)(now=True)
        self.cleanup_connection_file()


class Provisioner(LocalProvisioner):
    """Gets a kernel's process from those that fork them, where they answer; else starts it as usual."""

    async def launch_kernel(self, cmd: list[str], **options: Any) -> dict[str, Any]:
        environment, log, forks = self.asked
        environment = {**options.pop("env", os.environ), **environment}
        if forks:
            with suppress(OSError):
                self.process = Forked(forks, cmd[len(COMMAND):], log, environment)
                self.pid = self.pgid = self.process.pid
                return self.connection_info
        with log.open("wb") as file:
            return await super().launch_kernel(cmd, **options | {"env": environment, "stdout": file, "stderr": file})


class Forked:
    """A forked kernel, like a Popen of it. Raises OSError where nobody forks any more."""

    stdin = stdout = stderr = returncode = None

    def __init__(self, forks: str, arguments: list[str], log: Path, environment: Mapping[str, str]):
        asked = {"arguments": arguments, "folder": os.getcwd(), "log": str(log)}
        asked["environment"] = {key: value for key, value in environment.items() if key.startswith(PER_RUN)}
        self.forks = socket.socket(socket.AF_UNIX)
        try:
            if not forks:
                raise ConnectionError("nobody forks")
            self.forks.settimeout(PATIENCE)
            self.forks.connect(f"\0{forks}")
            if struct.unpack("3i", self.forks.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1] != os.getuid():
                raise ConnectionError("somebody else has taken the name")
            self.forks.sendall(json.dumps(asked).encode() + b"\n")
            self.answers = self.forks.makefile("rb")
            self.pid = int(self.answers.readline() or b"0")  # it may be importing still
            if self.pid <= 1:
                raise ConnectionError("the process that forks kernels has ended")
            self.forks.settimeout(None)
        except OSError:
            self.forks.close()
            raise

    def poll(self) -> int | None:
        if self.returncode is None and wait([self.forks], 0):
            line = b""
            with suppress(OSError):
                line = self.answers.readline()
            self.returncode = int(line or -signal.SIGKILL)  # with those that fork them kernels end, too
            self.answers.close()
            self.forks.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not wait([self.forks], timeout):
            raise subprocess.TimeoutExpired("kernel", timeout)
        return self.poll()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forks:
    """The process that forks kernels for this one and its workers: `lowres.runs.kernel --fork`. One is kept; it ends with this process."""

    process, name, began = None, "", ({}, {})

    def wanted(self, environment: dict[str, str], start: bool = False) -> str:
        """The name of its socket if it has this environment, and this process's; with `start` one is started where there is none. '' for none."""
        if self.fits(environment):
            return self.name
        if not start or not hasattr(os, "pidfd_open"):  # Linux
            return ""
        if self.process:
            self.process.kill()
            self.process.wait()
        self.name, self.began = f"{locks.PREFIX}{secrets.token_hex(8)}", (_own(), _of_all_runs(environment))
        with socket.socket(socket.AF_UNIX) as listener:  # in Linux' own name space: no file is left, however all this ends
            listener.bind(f"\0{self.name}")
            listener.listen()
            self.process = subprocess.Popen(
                [*COMMAND, "--fork", str(listener.fileno())], pass_fds=[listener.fileno()], cwd=ROOT, start_new_session=True,
                env={**self.began[0], **KERNEL_ENVIRONMENT, **self.began[1], "JPY_PARENT_PID": str(os.getpid())},
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
        return self.name

    def fits(self, environment: dict[str, str] | None = None) -> bool:
        """Whether it lives, and began in what is this process's environment now, and with that of kernels (any, for None)."""
        alive = self.process and self.process.poll() is None
        return bool(alive) and self.began[0] == _own() and (environment is None or self.began[1] == _of_all_runs(environment))


def _own() -> dict[str, str]:
    """This process's environment, but for what kernels are given anyway, and what Dask sets meanwhile for its workers."""
    given = {*KERNEL_ENVIRONMENT, *THREADS}
    return {key: value for key, value in _of_all_runs(os.environ).items() if key not in given and not key.startswith("__DASK")}


def _of_all_runs(environment: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in environment.items() if not key.startswith(PER_RUN)}


forks = Forks()


def elsewhere(call: str, *given: Any) -> Any:
    """What a function, 'module:function', returns in a process of its own, a fork where there is one to fork it: this one stays small. Raises what
    it raises, and RuntimeError if the process ends without an answer."""
    with locks.scratch_folder() as folder:
        (folder / "asked").write_bytes(pickle.dumps((call, given)))
        log, arguments = folder / "log", ["--call", str(folder)]
        try:
            process = Forked(forks.name if forks.fits() else "", arguments, log, os.environ)
        except OSError:
            with log.open("wb") as file:
                process = subprocess.Popen([*COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                           env={**os.environ, "JPY_PARENT_PID": str(os.getpid())})
        try:
            code = process.wait()
        finally:
            process.kill()
        if not (folder / "answer").is_file():
            raise RuntimeError(f"{call} ended without an answer (exit code {code}): {log.read_text(errors='replace')[-2000:]}")
        answer, error = pickle.loads((folder / "answer").read_bytes())  # our own, of a moment ago
    if error:
        raise error
    return answer


def kill_kernels() -> None:
    """All that this process has started."""
    for kernel in list(_live):
        kernel.kill()


def run_notebook(notebook: Path, output: Path, parameters: dict, folder: Path, environment: dict[str, str],
                 timeout: int | None = None, forked_by: str = "") -> NotebookResult:
    """Executes a notebook; `folder` is a private one with a short path; the kernel is a fork where `Forks` has the name, or this process has a
    fitting one. Python errors, dead kernels and hung cells are told, not raised."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    kernel, killed_before = Kernel(folder, {**KERNEL_ENVIRONMENT, **environment}, forked_by or forks.wanted(environment)), _out_of_memory_kills()
    try:
        papermill.execute_notebook(
            notebook, output, parameters, km=kernel, kernel_name="python3", language="python", progress_bar=False, log_output=False,
            cwd=str(ROOT), iopub_timeout=60, raise_on_iopub_timeout=False, execution_timeout=timeout,
        )
        return NotebookResult()
    except papermill.PapermillExecutionError as error:
        return _python_error(error.ename, plain(error.evalue), plain("\n".join(error.traceback)), kernel.peak)
    except CellTimeoutError:
        return NotebookResult("timeout", f"a cell took longer than the {timeout} s allowed (--timeout)")
    except Exception as error:
        if isinstance(error, DeadKernelError) or (kernel.process and kernel.process.poll() is not None):  # some before it answered at all
            return NotebookResult("died", _death(kernel, _out_of_memory_kills() - killed_before), again=True)
        return _python_error(type(error).__name__, str(error), traceback.format_exc(), kernel.peak)  # no notebook, or a broken one
    finally:
        kernel.close()


def _python_error(name: str, value: str, trace: str, peak: float) -> NotebookResult:
    if name == "Interrupted":
        return NotebookResult("stopped", value)
    message = f"{name}: {value}"
    if DISK_FULL.search(message):
        return NotebookResult("error", f"the disk is full: {message}", trace, again=True)
    if OUT_OF_MEMORY.search(message):
        return NotebookResult("error", f"out of memory, with {peak:.1f} GB in use at the peak: {message}", trace)
    return NotebookResult("error", message, trace)


def _death(kernel: Kernel, out_of_memory: int) -> str:
    with suppress(Exception):
        kernel.process.wait(5)
    code, peak = kernel.process.returncode if kernel.process else None, f"{kernel.peak:.1f} GB in use at its peak"
    if code == -signal.SIGKILL and out_of_memory:
        return f"out of memory: the system killed the kernel, with {peak}; fewer --workers leave more for each"
    if code == -signal.SIGKILL:
        return f"the kernel was killed (SIGKILL), with {peak}"
    return f"the kernel died ({signal.Signals(-code).name if code and code < 0 else f'exit code {code}'}), with {peak}"


def _out_of_memory_kills() -> int:
    """How many processes the system has killed for memory so far: of this machine, or of this container."""
    total = 0
    for file in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        with suppress(OSError):
            total += sum(int(line.split()[1]) for line in Path(file).read_text().splitlines() if line.startswith("oom_kill "))
    return total


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text).strip()
