"""How many sub-networks a second are costed, all metrics, on one core: python examples/bench_cost.py [NAME]."""

from __future__ import annotations

import sys
import time

import numpy as np
import torch

from sortify import sortify
from sortify.sources.source import load_source

COUNT, REPEATS = 200_000, 7


def main(name: str) -> None:
    """Print the rate on random sub-networks of a model, every axis and chain drawn on its own."""
    torch.set_num_threads(1)
    source = load_source(name)
    with torch.device("meta"):
        module = source.module.to("meta")
    model = sortify(module, source.example_inputs, source=name)
    full = np.array(model.space.full.values)
    chance = np.random.default_rng(0)
    values = chance.integers(1, full + 1, size=(COUNT, len(full)), dtype=np.int64)
    table = model.costs
    table(values[:1000])
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        costs = table(values)
        seconds.append(time.perf_counter() - started)
    picked = chance.integers(0, COUNT, 100)
    one_by_one = model.blueprint.costs
    assert all(costs[i] == one_by_one(tuple(map(int, values[i]))) for i in picked)
    rate = COUNT / float(np.median(seconds))
    print(
        f"{name}: {len(model.axes)} axes, {len(model.chains)} chains, {len(model.blueprint.costs.terms)} terms; "
        f"{rate / 1e6:.2f} million sub-networks per second (median of {REPEATS} runs of {COUNT:,}; "
        f"fastest {COUNT / min(seconds) / 1e6:.2f}, slowest {COUNT / max(seconds) / 1e6:.2f}); 100 of them checked"
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "torchvision/resnet50")
