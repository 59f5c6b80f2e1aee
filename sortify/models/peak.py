"""The memory that one call needs at its peak."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Call = Callable[[], object]


class Alive(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations make, for as long as they live.

    What an operation allocates and frees inside itself is not seen.

    Attributes:
        most: the largest sum so far.
    """

    def __init__(self, known: Iterable[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = set(known)
        self._ends: list[weakref.finalize[..., Any]] = []
        self._now: int = 0
        self.most: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._count(_storage(leaf))
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self._now += size
            self.most = max(self.most, self._now)
            self._ends.append(weakref.finalize(storage, self._gone, key, size))

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._now -= size


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def peak(call: Call, held: Iterable[Any], device: torch.device | None = None) -> int:
    """Bytes at the peak of a call: what is held anyway, and what lives at once while it runs.

    Args:
        call: what to run.
        held: tensors that exist before, each storage counted once.
        device: on a GPU its allocator is asked, which also sees what operations allocate inside themselves.
    """
    storages: dict[int, int] = {_storage(t)._cdata: _storage(t).nbytes() for t in held if isinstance(t, Tensor)}
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = int(torch.cuda.memory_allocated(device))
        call()
        most = int(torch.cuda.max_memory_allocated(device))
        return sum(storages.values()) + most - before
    alive = Alive(storages)
    with alive:
        call()
    return sum(storages.values()) + alive.most
