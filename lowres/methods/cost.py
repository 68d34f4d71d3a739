"""What a trial costs: seconds, bytes, floating-point operations."""

from __future__ import annotations

import ctypes
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from lowres.models.backbone import seconds_compiling


class Meter:
    """Seconds by phase, and the peak memory since it was made (the process's resident set; with a GPU, also its own).

    What layers took to be compiled is in no phase: it is a phase of its own.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.inside = ""  # a phase that is going on
        self.shared = 0.0  # what an earlier trial spent on a result of this one
        self.stored = 0.0  # of that, what was read from disk (`lowres.models.store`)
        self.least = 0  # the peak of what computed it, in bytes
        self.compiled_before = seconds_compiling()
        _give_memory_back()
        self.whole_process = not _reset_peak()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase within another is a part of that; within "trial", which is all of it, it counts by itself."""
        if self.inside not in ("", "trial"):
            yield
            return
        start, outer, self.inside = self.clock(), self.inside, name
        try:
            yield
        finally:
            self.inside = outer
            self.seconds[name] = self.seconds.get(name, 0.0) + self.clock() - start

    def clock(self) -> float:
        return time.perf_counter() - seconds_compiling() + self.shared

    def charge(self, seconds: float, peak: int) -> None:
        """What was read from disk costs what it cost to compute."""
        self.shared += seconds
        self.stored += seconds
        self.least = max(self.least, peak)

    def peak(self) -> int:
        """The process's so far, in bytes."""
        return int(_peak())

    def compiling(self) -> float:
        """Seconds since it was made."""
        return seconds_compiling() - self.compiled_before

    def memory(self) -> dict[str, float]:
        """Peak gigabytes (10^9 bytes)."""
        import torch

        peak = {"resident": max(self.peak(), self.least) / 1e9}
        if torch.cuda.is_available():
            peak["gpu"] = torch.cuda.max_memory_allocated() / 1e9
        return peak


def _give_memory_back() -> None:
    """What the last trial has freed, back to the system: glibc keeps it in pieces that the next one cannot use (a peak of 7.0 GB instead of 5.2),
    and this one's peak would begin where that one's ended."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None:
        trim(0)


def _reset_peak() -> bool:
    """Linux can start a process's peak anew; elsewhere the peak is that of the whole process."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return True
    except OSError:
        return False


def _peak() -> float:
    try:
        status = Path("/proc/self/status").read_text()
        return float(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@cache
def matrix_rate(device: str, precision: str) -> float:
    """Operations a second of a product of two matrices of 1,024 x 1,024 on this device, in this kernel's threads: what a method can at best reach."""
    import torch

    place, form = torch.device(device), torch.bfloat16 if precision == "bfloat16" else torch.float32
    one = torch.randn(1024, 1024, device=place, dtype=form)
    times = []
    for _ in range(8):
        begun = time.perf_counter()
        float((one @ one)[0, 0])  # waits for a GPU
        times.append(time.perf_counter() - begun)
    return 2 * 1024**3 / sorted(times)[len(times) // 2]


def flops(parameters: int, trainable: int, training_tokens: int, read_tokens: int, skipped: int = 0) -> float:
    """2 operations a weight and token forward, 2 for the gradient of its input, 2 for a trained weight's own
    (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). `parameters` are those that multiply: without embeddings. Attention's
    own products are left out: small at these lengths, though not behind a long prompt; a larger teacher's tokens count as the student's. Left
    out, too: the head where the whole vocabulary is scored (reading a corpus, likelihood, top_k), and what choosing a pattern reads.
    `skipped` weights lie below all that train, so the gradient never reaches their input; what they make of a text is computed once, and counted
    each time it is read."""
    return training_tokens * (4 * parameters - 2 * skipped + 2 * trainable) + read_tokens * 2 * parameters
