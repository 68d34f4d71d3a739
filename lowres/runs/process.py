"""A notebook through papermill, in a kernel of its own over IPC sockets, and why it ended if it did not end well."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from jupyter_core.utils import run_sync

from lowres.files import ROOT

# Set before a kernel starts. Large blocks are kept, not given back and faulted in anew at each step: 1.2 to 0.7 s a step.
# (Dask sets the opposite in its workers.)
KERNEL_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592", "MALLOC_TOP_PAD_": "268435456",
    "TOKENIZERS_PARALLELISM": "false", "PYDEVD_DISABLE_FILE_VALIDATION": "1", "PYTHONHASHSEED": "0",
}
OUT_OF_MEMORY = re.compile(r"MemoryError|OutOfMemoryError|not enough memory|can't allocate memory|out of memory|Cannot allocate memory", re.I)
DISK_FULL = re.compile(rf"\[Errno ({errno.ENOSPC}|{errno.EDQUOT})\]|No space left on device")
logging.getLogger("papermill").setLevel(logging.ERROR)
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

    def __init__(self, folder: Path, environment: dict[str, str]):
        super().__init__(transport="ipc", ip=str(folder / "k"), connection_file=str(folder / "kernel.json"), kernel_name="python3")
        # Not the installed 'python3', which may be another environment's.
        self._kernel_spec = KernelSpec(
            argv=[sys.executable, "-m", "lowres.runs.kernel", "-f", "{connection_file}"], display_name="Python 3", language="python",
        )
        self.log_file, self.environment, self.process, self.peak = folder / "kernel.log", environment, None, 0.0

    async def _async_launch_kernel(self, kernel_cmd, **options):
        with self.log_file.open("wb") as log:
            options |= {"env": {**options.get("env", os.environ), **self.environment}, "stdout": log, "stderr": log}
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


def kill_kernels() -> None:
    """All that this process has started."""
    for kernel in list(_live):
        kernel.kill()


def run_notebook(notebook: Path, output: Path, parameters: dict, folder: Path, environment: dict[str, str],
                 timeout: int | None = None) -> NotebookResult:
    """Executes a notebook; `folder` is a private one with a short path. Python errors, dead kernels and hung cells are told, not raised."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    kernel, killed_before = Kernel(folder, {**KERNEL_ENVIRONMENT, **environment}), _out_of_memory_kills()
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
