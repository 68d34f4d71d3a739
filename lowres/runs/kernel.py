"""A notebook's kernel as `lowres run` starts it: the usual one, that dies with its runner and does not flood it.

    python -m lowres.runs.kernel -f connection.json
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from ipykernel.iostream import PIPE_BUFFER_SIZE, OutStream

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


def main() -> None:
    from ipykernel.kernelapp import IPKernelApp

    die_with_parent()
    IPKernelApp.outstream_class.default_value = "lowres.runs.kernel.ShortStream"
    IPKernelApp.launch_instance()


if __name__ == "__main__":
    main()
