"""The order of batches: from any place on, in shares, epoch after epoch; and the seeds of everything drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from sortify.data.batches import Place, Share, Stream, is_plain, length, mix, preserved_chance, rows, seed_all
from sortify.errors import DataError


class Counting(IterableDataset[int]):
    """Ten samples, shuffled by torch's own generator each time."""

    def __iter__(self) -> Any:
        return iter(torch.randperm(10).tolist())


def plain(workers: int = 0) -> DataLoader[Any]:
    numbers = TensorDataset(torch.arange(23))
    return DataLoader(numbers, batch_size=5, shuffle=True, num_workers=workers)


LOADERS: dict[str, Callable[[], Any]] = {
    "plain": plain,
    "in sequence": lambda: DataLoader(TensorDataset(torch.arange(23)), batch_size=5, drop_last=True),
    "weighted": lambda: DataLoader(
        TensorDataset(torch.arange(23)), batch_size=5, sampler=WeightedRandomSampler([1.0] * 23, 23)
    ),
    "iterable": lambda: DataLoader(Counting(), batch_size=4),
    "list": lambda: [(torch.arange(4), torch.arange(4)), (torch.arange(4, 8), torch.arange(4))],
}


def flat(batch: Any) -> list[int]:
    return (batch if isinstance(batch, Tensor) else batch[0]).tolist()


@pytest.mark.parametrize("name", LOADERS)
def test_a_stream_goes_on_exactly_from_any_place(name: str) -> None:
    whole = Stream(LOADERS[name](), seed=5)
    places, batches = [], []
    for _ in range(13):
        places.append(whole.place)
        batches.append(flat(whole.take()))
    for index in (0, 1, 4, 5, 9, 12):
        torch.manual_seed(index)
        stream = Stream(LOADERS[name](), seed=5, place=places[index])
        assert [flat(stream.take()) for _ in range(13 - index)] == batches[index:]
    if name not in ("in sequence", "list"):
        other = Stream(LOADERS[name](), seed=6)
        assert [flat(other.take()) for _ in range(13)] != batches


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("world", [2, 3])
def test_the_shares_of_all_processes_make_the_batch(name: str, world: int) -> None:
    whole = Stream(LOADERS[name](), seed=5)
    shares = [Stream(LOADERS[name](), seed=5, share=Share(rank, world)) for rank in range(world)]
    for _ in range(9):
        parts = [flat(share.take()) for share in shares]
        assert flat(whole.take()) == [value for part in parts for value in part]
    assert len({share.place for share in shares}) == 1


def test_an_epoch_holds_each_sample_once_and_the_next_another_order() -> None:
    stream = Stream(plain(), seed=0)
    epochs = [[value for _ in range(5) for value in flat(stream.take())] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(23))
    assert epochs[0] != epochs[1]
    assert stream.place == Place(1, 5)


def test_only_loaders_of_known_order_are_reordered() -> None:
    assert {name: is_plain(make()) for name, make in LOADERS.items()} == {
        "plain": True,
        "in sequence": True,
        "weighted": False,
        "iterable": False,
        "list": False,
    }


def test_workers_give_the_same_batches() -> None:
    alone, helped = Stream(plain(), seed=1), Stream(plain(workers=1), seed=1)
    assert [flat(alone.take()) for _ in range(6)] == [flat(helped.take()) for _ in range(6)]


@pytest.mark.parametrize("loader", [[], DataLoader(TensorDataset(torch.arange(3)), batch_size=5, drop_last=True)])
def test_a_loader_without_batches_is_refused(loader: Any) -> None:
    with pytest.raises(DataError, match="gives no batch"):
        Stream(loader, seed=0).take()


def test_rows_and_length_look_into_nested_batches() -> None:
    batch = {"x": torch.arange(4), "more": (torch.arange(8).view(4, 2), ["text"]), "scalar": 3}
    part = rows(batch, slice(1, 3))
    assert part["x"].tolist() == [1, 2]
    assert part["more"][0].tolist() == [[2, 3], [4, 5]]
    assert part["scalar"] == 3
    assert (length(batch), length("text"), length(((), torch.zeros(3)))) == (4, 0, 3)


def test_seeds_depend_on_every_part_and_chance_is_put_back() -> None:
    seeds = {mix(*parts) for parts in [(0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1), (0, "a", "1")]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    before = torch.get_rng_state()
    with preserved_chance():
        seed_all(7)
        first = (torch.rand(1).item(), numpy.random.rand())
        seed_all(7)
        assert first == (torch.rand(1).item(), numpy.random.rand())
    assert torch.equal(before, torch.get_rng_state())
