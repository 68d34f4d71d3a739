"""The limit of a step: its own matrix products, alone.

Every product that a real step computes, forward and backward, is noted with its shapes, layout and type; the same products on fresh
numbers then take the least time that the step could: no norms, no softmax, no optimizer, no copying between them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

AT_MOST = 8  # times that one product is repeated in a round; the rest is multiplication
Operand = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # size, stride, type
Products = Counter[tuple[Operand, Operand]]


class Noting(TorchDispatchMode):
    """Notes the operands of every matrix product that torch computes, autograd's included. Those inside fused attention are not seen: the limit
    of a step that has it comes out too hard to reach, never too easy."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Products = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("mm", "bmm"):
            self._note(args[0], args[1])
        elif name in ("addmm", "baddbmm"):
            self._note(args[1], args[2])
        elif name in ("matmul", "linear"):  # without autograd they arrive whole
            with self:
                return function.decompose(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _note(self, a: torch.Tensor, b: torch.Tensor) -> None:
        self.products[(tuple(a.shape), a.stride(), a.dtype), (tuple(b.shape), b.stride(), b.dtype)] += 1


def products_of(work: Callable) -> Products:
    """The matrix products of a piece of work. Raises ValueError if it has none that are seen."""
    with Noting() as noting:
        work()
    if not noting.products:
        raise ValueError("no matrix product was seen: is the work done by a kernel that is not known here?")
    return noting.products


def flops(products: Products) -> int:
    """2 a multiplication and addition."""
    return sum(2 * _size(a[0]) * b[0][-1] * count for (a, b), count in products.items())


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


class Alone:
    """The products on fresh numbers. Each is tried in the step's own layout and in rows: the faster one counts."""

    def __init__(self, products: Products):
        self.pairs = []
        for (a, b), count in products.items():
            own = _fresh(a), _fresh(b)
            plain = own[0].contiguous(), own[1].contiguous()
            faster = min((own, plain), key=lambda pair: _seconds(pair, 3))
            self.pairs.append((faster, count))

    def seconds(self) -> float:
        """Of all products, once."""
        return sum(_seconds(pair, min(count, AT_MOST)) * count for pair, count in self.pairs)


def _seconds(pair: tuple[torch.Tensor, torch.Tensor], times: int) -> float:
    """Of one product, on average."""
    torch.matmul(*pair)
    start = time.perf_counter()
    for _ in range(times):
        torch.matmul(*pair)
    return (time.perf_counter() - start) / times


def _fresh(operand: Operand) -> torch.Tensor:
    size, stride, dtype = operand
    return torch.empty_strided(size, stride, dtype=dtype).normal_()
