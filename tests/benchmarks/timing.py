"""Seconds of things done in turn, and ratios of their medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

Samples = dict[str, list[float]]


@dataclass
class Row:
    """One line of the table. `target` is reached from below where `at_most`; without one the row only informs. `parts` shows the figure's making."""

    measure: str
    case: str
    figure: float
    unit: str
    repeats: int
    target: float | None = None
    at_most: bool = False
    low: float | None = None  # the lowest and highest of the repeats
    high: float | None = None
    parts: str = ""
    samples: Samples = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.figure <= self.target if self.at_most else self.figure >= self.target

    def stored(self) -> dict:
        return {**asdict(self), "met": self.met}


def usual(job: Callable) -> Callable:
    """`job` with torch's own exactness of float32 products: what a peer has that does not set it, as lowres does."""

    def run() -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            job()
        finally:
            torch.set_float32_matmul_precision(before)

    return run


def alternate(jobs: dict[str, Callable], repeats: int, warm: Collection[str] | None = None) -> Samples:
    """Rounds of all jobs in turn: what disturbs the machine disturbs all. A sample a round, in seconds.

    First all are done once, uncounted; or those named by `warm`, where the largest suffice: what is slow at first is memory that is new.
    """
    for name in jobs if warm is None else warm:
        jobs[name]()
    samples: Samples = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            told = job()  # some know their seconds better than the clock
            samples[name].append(told if isinstance(told, float) else time.perf_counter() - start)
    return samples


def ratio(measure: str, case: str, above: list[float], below: list[float], **more) -> Row:
    """The ratio of the medians, and the lowest and highest ratio of one round."""
    each = [a / b for a, b in zip(above, below)]
    figure = statistics.median(above) / statistics.median(below)
    return Row(measure, case, figure, more.pop("unit", "x"), len(each), low=min(each), high=max(each), **more)


def composed(parts: dict[str, tuple[float, list[float]]]) -> list[float]:
    """The sum of times x seconds over all parts, for every round."""
    times = [count for count, _ in parts.values()]
    return [sum(count * part for count, part in zip(times, round_)) for round_ in zip(*(seconds for _, seconds in parts.values()))]


def called(model: str) -> str:
    """A model's name in a table: of a folder, the last part."""
    return Path(model).name


def marked(way: str) -> str:
    """What a case is told apart by where lowres is measured in two ways."""
    return ", compiled" if way == "compiled" else ""


def target(least: float, peer: str, way: str) -> float | None:
    """None for compiled layers against B, which could be compiled as well: there the figure only informs."""
    return None if (peer, way) == ("B", "compiled") else least


def shown(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3g}"
