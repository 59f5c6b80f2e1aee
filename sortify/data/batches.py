"""Batches in an order that depends on nothing but the seed, the epoch and the position in it.

All chance in training is a pure function of a place: `mix(seed, ...)` turns a place into a seed.
A run that starts again in the middle therefore meets the same batches and the same random numbers
as one that never stopped, and no generator state has to be kept.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler, SequentialSampler

from sortify.errors import DataError

Loader = DataLoader[Any]


def mix(*parts: int | str) -> int:
    """Return a seed below 2**63 that depends on all parts: `mix(seed, "batch", epoch, index)`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators, and those of devices in use.

    `torch.manual_seed` would keep a record of each call for devices that are not in use yet.
    """
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


@contextmanager
def preserved_chance() -> Iterator[None]:
    """Put all generators that `seed_all` seeds back where they were."""
    python, arrays, torch_state = random.getstate(), numpy.random.get_state(), torch.default_generator.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(arrays)
        torch.default_generator.set_state(torch_state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@dataclass(frozen=True)
class Share:
    """One process's part of every batch: rows from `rank/world` to `(rank + 1)/world` of it."""

    rank: int = 0
    world: int = 1

    def of(self, size: int) -> slice:
        """Return the rows of a batch of `size` that belong to this process."""
        return slice(self.rank * size // self.world, (self.rank + 1) * size // self.world)


@dataclass(frozen=True)
class EpochOrder(Sampler[list[int]]):
    """Index lists of one epoch's batches, from batch `start` on, one process's share of each.

    Attributes:
        size: number of samples.
        batch_size: samples of a batch over all processes.
        seed: of the permutation; None keeps the given order.
        drop_last: whether an incomplete last batch is left out.
    """

    size: int
    batch_size: int
    seed: int | None
    drop_last: bool
    start: int = 0
    share: Share = field(default_factory=Share)

    def __len__(self) -> int:
        return max(0, self.total - self.start)

    @property
    def total(self) -> int:
        """Batches of a whole epoch."""
        return self.size // self.batch_size if self.drop_last else -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        if self.seed is None:
            order = torch.arange(self.size)
        else:
            order = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.seed))
        for index in range(self.start, self.total):
            batch = order[index * self.batch_size : (index + 1) * self.batch_size]
            yield batch[self.share.of(len(batch))].tolist()


def is_plain(loader: object) -> bool:
    """Say whether a loader's order can be replaced: a map-style data set in sequence or shuffled."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    if loader.batch_size is None or type(loader.batch_sampler) is not BatchSampler:
        return False
    sampler = loader.sampler
    if isinstance(sampler, RandomSampler):
        return not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    return type(sampler) is SequentialSampler


def reorder(loader: Loader, order: EpochOrder) -> Loader:
    """Return a loader over the same data set with another order; the given loader stays as it is."""
    workers = loader.num_workers
    return DataLoader(
        loader.dataset,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor if workers else None,
        generator=torch.Generator().manual_seed(0 if order.seed is None else order.seed),
    )


def rows(batch: Any, part: slice) -> Any:
    """Return some rows of every tensor in a nested batch of tuples, lists and dicts."""
    if isinstance(batch, torch.Tensor):
        return batch[part]
    if isinstance(batch, Mapping):
        return {key: rows(value, part) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(rows(value, part) for value in batch)
    return batch


def length(batch: Any) -> int:
    """Return the number of samples in a batch: the first dimension of its first tensor; 0 without tensors."""
    if isinstance(batch, torch.Tensor):
        return batch.shape[0] if batch.dim() else 0
    if isinstance(batch, Mapping):
        return length(tuple(batch.values()))
    if isinstance(batch, (tuple, list)):
        return next((found for found in map(length, batch) if found), 0)
    return 0


@dataclass(frozen=True)
class Place:
    """Where in the data the next batch stands."""

    epoch: int = 0
    batch: int = 0


class Stream:
    """Batches without end, epoch after epoch, from any place on.

    A plain loader (see `is_plain`) is reordered: every process reads only its own samples, and starting
    in the middle reads nothing in vain. Any other iterable is taken as it comes: it is read from its
    start, each batch under its own seed, and every process keeps its share of each batch.

    States: `place` names the batch that `take` returns next.

    Args:
        loader: a DataLoader, or any iterable of batches that can be iterated again and again.
        seed: of the order and of whatever else is drawn while a batch is made.
        share: this process's part of each batch.
        place: where to start.
    """

    def __init__(self, loader: Loader, seed: int, share: Share | None = None, place: Place | None = None) -> None:
        self._loader = loader
        self._seed = seed
        self._share = share or Share()
        self.place = place or Place()
        self._open(self.place)

    @property
    def per_epoch(self) -> int | None:
        """Batches of an epoch; None where the loader does not know."""
        try:
            return len(self._loader)
        except TypeError:
            return None

    @property
    def last_seed(self) -> int:
        """A seed that belongs to the batch that was taken last, alike on all processes."""
        return mix(self._seed, "drawn", self.place.epoch, self.place.batch)

    def take(self) -> Any:
        """Return this process's share of the next batch.

        Raises:
            DataError: the loader has no batches.
        """
        batch = self._fetch()
        if batch is None:
            if self.place.batch == 0:
                raise DataError("the training data gives no batch: there are fewer samples than the batch size")
            self._open(Place(self.place.epoch + 1))
            return self.take()
        self.place = Place(self.place.epoch, self.place.batch + 1)
        return batch

    def _open(self, place: Place) -> None:
        """Start an epoch at a batch."""
        self.place = Place(place.epoch)
        if is_plain(self._loader):
            self._batches = iter(self._reordered(place))
            self.place = place
            return
        self._seeded(place.epoch, -1)
        self._batches = iter(self._loader)
        while self.place != place and self._fetch() is not None:
            self.place = Place(place.epoch, self.place.batch + 1)

    def _reordered(self, place: Place) -> Loader:
        loader = self._loader
        order = EpochOrder(
            size=len(loader.dataset),  # type: ignore[arg-type]
            batch_size=loader.batch_size or 1,
            seed=mix(self._seed, "order", place.epoch) if isinstance(loader.sampler, RandomSampler) else None,
            drop_last=loader.drop_last,
            start=place.batch,
            share=self._share,
        )
        return reorder(loader, order)

    def _fetch(self) -> Any:
        self._seeded(self.place.epoch, self.place.batch)
        batch = next(self._batches, None)
        if batch is None or is_plain(self._loader):
            return batch
        return rows(batch, self._share.of(length(batch)))

    def _seeded(self, epoch: int, batch: int) -> None:
        """Seed what is drawn while a batch is made: alike on all processes that read the whole batch."""
        rank = self._share.rank if is_plain(self._loader) else 0
        seed_all(mix(self._seed, "batch", epoch, batch, rank))
