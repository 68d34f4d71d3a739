"""Private folders and locks that do not outlive their owner: both hang on a lock of the operating system's, which it
lets go when the process dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "lowres-"
LONGEST = 88  # a socket's path has at most 107 characters (103 on macOS), and names follow
LOCK = ".lock"
SIGNS = (".stop", ".seen")  # of a runner, named by its host and process, to its kernels and workers


class Busy(Exception):
    """Another process is at work there."""


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new private folder with a short path, removed at the end; if its owner is killed, by the next `sweep`."""
    base = tempfile.gettempdir()
    if len(base) + len(PREFIX) + 9 > LONGEST and Path("/tmp").is_dir():
        base = "/tmp"
    folder, owner = _made(base)
    try:
        yield folder
    finally:
        with suppress(OSError):
            _remove(folder)
        os.close(owner)


def _made(base: str) -> tuple[Path, int]:
    """A new folder, and its lock as an open file."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        with suppress(FileNotFoundError):  # a sweep took it for a dead one's
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (folder / LOCK).exists():
                return folder, lock
            os.close(lock)


def _remove(folder: Path) -> None:
    """The lock last: whoever is killed here leaves what the next sweep knows. To be called by the lock's owner."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink(missing_ok=True)
    if [path.name for path in folder.iterdir()] == [LOCK]:  # else a dying process still writes
        (folder / LOCK).unlink()
        folder.rmdir()


def sweep() -> None:
    """Removes the scratch folders whose owner is dead."""
    for base in {tempfile.gettempdir(), "/tmp"}:
        for folder in Path(base).glob(f"{PREFIX}????????"):
            with suppress(OSError):
                if folder.stat().st_uid == os.getuid():
                    _sweep(folder)


def _sweep(folder: Path) -> None:
    try:
        lock = os.open(folder / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return folder.rmdir()  # empty: who is about to lock it makes another
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(folder)
    finally:
        os.close(lock)


def tidy(study: Path, runs: Iterable[Path]) -> None:
    """Removes what killed runners left: their temporary folders, dead locks of `runs`, signs, and what an analysis was writing."""
    sweep()
    for run in runs:
        remove_dead_lock(run)
    for half in (path for path in study.glob(".*-????????") if not path.name.startswith(SIGNS)):
        with suppress(OSError):
            if time.time() - half.stat().st_mtime > 60:  # else somebody may be about to rename it
                half.unlink()
    for sign in (sign for kind in SIGNS for sign in study.glob(f"{kind}-{socket.gethostname()}-*")):
        with suppress(OSError, ValueError):
            try:
                os.kill(int(sign.name.split("-")[-2]), 0)
            except ProcessLookupError:
                sign.unlink()


def held(lock: Path | str) -> bool:
    """Whether a living process holds a lock, told without taking it from anybody (runners wait a moment for a lock)."""
    try:
        file = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(file)


def owner(folder: Path) -> str | None:
    """Who is at work in a run's folder, as 'host pid'; None if nobody, or somebody who died."""
    lock = f"{folder}/{LOCK}"
    if not held(lock):
        return None
    with suppress(OSError):
        return " ".join(Path(lock).read_text().split()) or "unknown"
    return None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The right to write into a run's folder, which is made if need be. Raises Busy.

    A dead owner's lock is free: only the file is left, and taken over. The file is removed while the lock is still held; one who
    waited for it then finds that it has no name any more, and makes a new one (filelock looks for that).
    """
    lock = FileLock(folder / LOCK, timeout=1)
    for _ in range(5):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
            break
        except Timeout:
            raise Busy(owner(folder)) from None
        except FileNotFoundError:
            continue  # another process has just removed the empty folder
    else:
        raise Busy(None)
    try:
        with suppress(OSError):  # a full disk is told by what matters, later
            (folder / LOCK).write_text(f"{socket.gethostname()} {os.getpid()}\n")
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()
        remove_empty(folder)


def remove_empty(folder: Path) -> None:
    """A run's folder and those above it, up to the study's, as long as nothing is in them."""
    with suppress(OSError):
        for place in (folder / "trials", folder, *folder.parents[:4]):
            if place.exists():
                place.rmdir()


def remove_leftovers(folder: Path) -> None:
    """What a killed process was about to rename into a run's folder. To be called by the lock's owner."""
    for place in (folder, folder / "trials", folder / "adapters"):
        for path in place.glob(".*-*"):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove_dead_lock(folder: Path) -> None:
    """A lock file whose owner was killed after its last write."""
    if (folder / LOCK).exists() and not held(folder / LOCK):
        with suppress(Busy, OSError), locked(folder):
            remove_leftovers(folder)


SCRATCH = "LOWRES_SCRATCH"  # set by the runner: where the record waits until the notebook has ended
NOTEBOOK = "LOWRES_NOTEBOOK"  # set by the runner: the file that is executed
KEEP = "LOWRES_KEEP"  # set by `lowres keep`: a folder for the model that a trial leaves
STOP = "LOWRES_STOP"  # set by the runner: a file; once it is there, no trial is begun any more


class Interrupted(Exception):
    """The runner was asked to stop. What is finished is kept; `lowres run` continues after it."""
