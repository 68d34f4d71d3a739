"""lowres' own training loop, one step at a time, so that other things can be measured between its steps."""

from __future__ import annotations

import queue
import threading
from types import SimpleNamespace

from lowres.methods.training import train
from lowres.models.batches import Inputs
from lowres.parameters import Vanilla


class Stepped:
    """`train` runs in a thread; the stream that orders its texts waits to be told which ones the next step takes."""

    def __init__(self, backbone, head, inputs: Inputs):
        self.wanted: queue.SimpleQueue = queue.SimpleQueue()
        self.done: queue.SimpleQueue = queue.SimpleQueue()
        streams = SimpleNamespace(dropout=0, order=self)
        given = backbone, head, inputs, Vanilla(epochs=1_000_000), streams
        threading.Thread(target=self._run, args=given, daemon=True).start()
        self._wait()

    def _run(self, *given) -> None:
        try:
            train(*given)
        except BaseException as error:  # told where the step was asked for
            self.done.put(error)

    def permutation(self, count: int) -> list[int]:
        """What `train` asks at the beginning of an epoch; here an epoch is a step."""
        self.done.put(None)
        return self.wanted.get()

    def step(self, texts: list[int]) -> None:
        """One step on at most 32 texts, by their numbers."""
        self.wanted.put(texts)
        self._wait()

    def _wait(self) -> None:
        if (error := self.done.get()) is not None:
            raise error
