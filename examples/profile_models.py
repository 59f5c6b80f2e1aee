"""Latency and memory of sub-networks that were not measured, as a profile predicts them: an image and a text model.

    python examples/profile_models.py [--seconds 60] [--device cpu] [--threads 1]

Each model is profiled on a sample of its sub-networks. Others, drawn at random, take turns with them, so that a machine
that is not always equally fast hurts both alike; only the sample is fitted, and the others are compared with what it
predicts. Prints a line for each, the median error, and what the same sub-networks take in place.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torchvision
import transformers

from sortify import SortedModel, Subnet, sortify
from sortify.models.profiling import COUNT, sample
from sortify.space.profile import Features, fit_rows

GOAL = 0.1
"""The median error of latency that is aimed at."""
VIT: dict[str, Any] = {"image_size": 64, "patch_size": 8, "num_layers": 6, "num_heads": 6}


def resnet18() -> SortedModel:
    """On small pictures, 64 x 64."""
    return sortify(torchvision.models.resnet18().eval(), (torch.rand(2, 3, 64, 64),))


def vision_transformer() -> SortedModel:
    """Six layers of width 192 on 64 patches."""
    module = torchvision.models.VisionTransformer(**VIT, hidden_dim=192, mlp_dim=768)
    return sortify(module.eval(), (torch.rand(2, 3, 64, 64),))


def bert() -> SortedModel:
    """Four layers of width 256 on 64 tokens."""
    config = transformers.BertConfig(
        vocab_size=1000, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8
    )
    module = transformers.BertForSequenceClassification(config).eval()
    return sortify(module, {"input_ids": torch.randint(0, 1000, (2, 64))})


MODELS: Mapping[str, Callable[[], SortedModel]] = {"resnet18": resnet18, "vit": vision_transformer, "bert": bert}


def held_out(model: SortedModel, known: set[Subnet], count: int, seed: int = 1) -> list[Subnet]:
    """Random sub-networks of any fractions from a quarter up, none of them measured before."""
    chance = torch.Generator().manual_seed(seed)
    found: dict[Subnet, None] = {}
    while len(found) < count:
        drawn = 0.25 + 0.75 * torch.rand(len(model.space.groups), generator=chance)
        subnet = model.space.subnet(**dict(zip(model.space.groups, drawn.tolist(), strict=True)))
        if subnet not in known:
            found[subnet] = None
    return list(found)


def in_place(model: SortedModel, subnets: list[Subnet], inputs: Any, rounds: int = 15) -> dict[Subnet, float]:
    """Median seconds of each sub-network without extracting it."""
    args, kwargs = inputs
    times: dict[Subnet, list[float]] = {subnet: [] for subnet in subnets}
    with torch.inference_mode():
        for _ in range(rounds + 3):
            for subnet, own in times.items():
                with model.using(subnet):
                    start = time.perf_counter()
                    model(*args, **kwargs)
                    if torch.cuda.is_available():
                        torch.cuda.synchronize()
                    own.append(time.perf_counter() - start)
    return {subnet: statistics.median(own[3:]) for subnet, own in times.items()}


def compare(name: str, model: SortedModel, device: str, seconds: float, count: int) -> float:
    """Profile a model, measure other sub-networks, print both; returns the median error of latency."""
    known = sample(model.space, COUNT)
    subnets = held_out(model, set(known), count)
    both = model.to(device).profile(subnets=[*known, *subnets], seconds=seconds, batch=1)
    learnt = tuple(row for row in both.rows if row.subnet in set(known))
    latency, memory = fit_rows(learnt, Features(model.space.exact, model.plan), {"batch": 1})
    profile = replace(both, rows=learnt, latency=latency, memory=memory)
    model.record_profile(profile)
    predicted = {subnet: model.measured_cost(subnet) for subnet in subnets}
    rows = [row for row in both.rows if row.subnet in set(subnets)]
    one = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t[:1].to(device), model.examples)
    placed = in_place(model, subnets, one)
    print(f"{name}: {len(profile.rows)} sub-networks, {profile.rounds} rounds, {dict(profile.machine)}")
    times, sizes = [], []
    for row in rows:
        told = predicted[row.subnet]
        times.append(abs(told.latency / row.latency - 1))
        sizes.append(abs(told.memory / row.memory - 1))
        fractions = " ".join(f"{group}={fraction:.2f}" for group, fraction in row.subnet.fractions)
        print(
            f"  {1e3 * row.latency:7.2f} ms measured ({row.spread:4.0%} spread), {1e3 * told.latency:7.2f} predicted; "
            f"{row.memory / 1e6:7.2f} MB measured, {told.memory / 1e6:7.2f} predicted; {fractions}"
        )
    overhead = statistics.median(placed[row.subnet] / row.latency for row in rows)
    print(
        f"  held out: latency {statistics.median(times):.1%} off in the median, {max(times):.1%} at most; "
        f"memory {statistics.median(sizes):.1%}, {max(sizes):.1%}; left out one by one: latency "
        f"{profile.latency.error:.1%}; in place {overhead:.2f} times the time\n",
        flush=True,
    )
    return statistics.median(times)


def main() -> int:
    """Compare all models; 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=60, help="time to measure each model for")
    parser.add_argument("--count", type=int, default=16, help="sub-networks held out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    errors = {}
    for name in options.models:
        torch.manual_seed(0)
        errors[name] = compare(name, MODELS[name](), options.device, options.seconds, options.count)
    print(", ".join(f"{name} {error:.1%}" for name, error in errors.items()), f"(goal: {GOAL:.0%})")
    return int(max(errors.values()) > GOAL)


if __name__ == "__main__":
    sys.exit(main())
