"""A notebook's kernel as `lowres run` starts it: the usual one, that dies with its runner and does not flood it. And what forks such kernels.

    python -m lowres.runs.kernel -f connection.json    a kernel
    python -m lowres.runs.kernel --call FOLDER         calls a function (`process.elsewhere`)
    python -m lowres.runs.kernel --fork 5              one of these for each connection to the Unix socket that was given as file 5
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import pickle
import selectors
import signal
import socket
import struct
import sys
import tempfile
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from ipykernel.iostream import PIPE_BUFFER_SIZE, OutStream

# What notebooks come to import of others' packages: ten seconds of a core. Of our own nothing: a kernel reads the code that is there.
IMPORTED = (
    "ipykernel.kernelapp", "matplotlib_inline.backend_inline", "matplotlib.pyplot", "pandas", "pydantic", "pyarrow.parquet", "scipy.stats",
    "seaborn", "sklearn.linear_model", "torch", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "transformers.modeling_layers", "peft", "datasets",
)
MOST = 50_000  # characters a cell may print to a stream; papermill reads and saves all of it again and again
CUT = f"\n[lowres: this cell printed more; the rest after {MOST:,} characters is not kept]\n"


class ShortStream(OutStream):
    """stdout or stderr that forgets what a cell prints beyond the first MOST characters, and says so."""

    _cell, _printed = None, 0

    def write(self, text: str) -> int | None:
        cell = self.parent_header.get("msg_id")
        if cell != self._cell:
            self._cell, self._printed = cell, 0
        room = MOST - self._printed
        self._printed += len(text)
        if len(text) <= room:
            return super().write(text)
        if room >= 0:  # now, for the first time
            self._printed = MOST + 1
            super().write(text[:room] + CUT)
        return len(text)

    def _watch_pipe_fd(self) -> None:
        """What C code and child processes print, without the copy to the runner's own log that ipykernel makes."""
        while self._should_watch and self._fid is not None:
            try:
                content = os.read(self._fid, PIPE_BUFFER_SIZE)
            except OSError:
                return
            if not content:
                return
            self.write(content.decode(errors="replace"))


def die_with_parent() -> None:
    """Linux kills this process when the one that started it ends, however it ends. Elsewhere ipykernel looks once a second."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ.get("JPY_PARENT_PID", os.getppid())):
            os._exit(1)  # it ended before we asked


class Forks:
    """The kernels of a process that has imported what they need, and done nothing else: each begins as a copy of it.

    A client sends a line of JSON with `arguments`, `folder` (to work in), `log` and `environment` (what differs from this process's own). It is
    sent the kernel's process number, and its exit code when it has ended. A client that goes away takes its kernel with it.
    """

    def __init__(self, listener: socket.socket):
        self.listener = listener
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)

    def asked(self) -> dict:
        """Serves until the process ends; returns in each fork, with what its client asked for."""
        while True:
            for key, _ in self.selector.select():
                if key.data:
                    self._ended(*key.data)
                    break  # the other one of its two files may be among these keys
                client, _ = self.listener.accept()
                client.settimeout(5)  # of one that says nothing the others do not wait
                line = b""
                with suppress(OSError):
                    line = client.makefile("rb").readline() if _is_ours(client) else b""
                client.settimeout(None)
                if not line:
                    client.close()
                elif self._forked(client):
                    return json.loads(line)

    def _forked(self, client: socket.socket) -> bool:
        try:
            pid = os.fork()
        except OSError:  # no memory, or too many processes: it is started as usual, or not
            client.close()
            return False
        if not pid:
            for key in list(self.selector.get_map().values()):
                os.close(key.fd)
            self.selector.close()
            os.close(client.detach())
            return True
        kernel = pid, os.pidfd_open(pid), client
        for file in kernel[1:]:
            self.selector.register(file, selectors.EVENT_READ, kernel)
        _tell(client, pid)
        return False

    def _ended(self, pid: int, process: int, client: socket.socket) -> None:
        """The kernel has, or its client is gone."""
        gone, status = os.waitpid(pid, os.WNOHANG)
        if not gone:
            with suppress(ProcessLookupError):  # it has no group yet
                os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        for file in (process, client):
            self.selector.unregister(file)
        os.close(process)
        _tell(client, os.waitstatus_to_exitcode(status))
        client.close()


def _tell(client: socket.socket, number: int) -> None:
    with suppress(OSError):  # it is gone: seen as soon as the selector looks
        client.sendall(b"%d\n" % number)


def _is_ours(client: socket.socket) -> bool:
    """Anybody on this host may connect to a socket that is no file."""
    _, user, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return user == os.getuid()


def fork_kernels(listener: int) -> list[str]:
    """Imports what kernels need, and forks them. Returns in each fork, as a new process would begin, with a kernel's arguments."""
    die_with_parent()
    own = os.getpid()
    for module in IMPORTED:
        import_module(module)
    gc.collect()
    gc.freeze()  # the collector of a fork writes to none of this, so that it stays shared
    asked = Forks(socket.socket(fileno=listener)).asked()
    os.setsid()
    os.environ.update(asked["environment"], JPY_PARENT_PID=str(own))
    os.chdir(asked["folder"])
    tempfile.tempdir = None  # it is looked up anew
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    sys.modules["numpy"].random.seed()  # the only generator that neither its package nor Python seeds anew in a fork; no two kernels alike
    return asked["arguments"]


def answer(folder: Path) -> None:
    """Calls what `folder`/asked names, and leaves what it returns or raises in `folder`/answer: one of these is None."""
    from lowres.files import called

    try:
        call, asked = pickle.loads((folder / "asked").read_bytes())
        given = called(call, *asked), None
    except Exception as error:
        error.add_note(traceback.format_exc())
        given = None, error
    try:
        content = pickle.dumps(given)
        pickle.loads(content)
    except Exception:  # of a package that raises what cannot be sent
        content = pickle.dumps((None, RuntimeError(f"{type(given[1]).__name__}: {given[1]}")))
    (folder / "answer").write_bytes(content)


def main() -> None:
    if sys.argv[1:2] == ["--fork"]:
        sys.argv[1:] = fork_kernels(int(sys.argv[2]))
    die_with_parent()
    if sys.argv[1:2] == ["--call"]:
        return answer(Path(sys.argv[2]))
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.outstream_class.default_value = "lowres.runs.kernel.ShortStream"
    IPKernelApp.launch_instance()


if __name__ == "__main__":
    main()
