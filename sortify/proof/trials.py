"""What a check runs a sorted model with: its weights a little changed, few samples, the same random numbers."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sortify.errors import CaptureError
from sortify.graph.ops import argument
from sortify.network.blueprint import Blueprint
from sortify.network.network import running_statistics

Tensors = Mapping[str, torch.Tensor]
NOISE = 8191  # numbers in the noise that perturbs weights; a prime, so that rows of a matrix differ
AMOUNTS = (1.0, 0.1, 0.0)  # how far weights are moved, the first that keeps outputs finite


def statistics_of(blueprint: Blueprint) -> list[str]:
    """The running statistics that either graph uses."""
    return [name for program in blueprint.programs.values() for name in running_statistics(program)]


def unsettled(blueprint: Blueprint, tensors: Tensors, examples: Sequence[torch.Tensor]) -> Tensors:
    """Weights as `perturbed` gives them, moved so little that the outputs stay finite.

    Raises:
        CaptureError: the outputs are not finite even with the weights as they are.
    """
    return perturbed(tensors, statistics_of(blueprint), amount_of(blueprint, tensors, examples))


def amount_of(blueprint: Blueprint, tensors: Tensors, examples: Sequence[torch.Tensor]) -> float:
    """How far weights may be moved with finite outputs, of `AMOUNTS`: deep networks may overflow.

    Raises:
        CaptureError: the outputs are not finite even with the weights as they are.
    """
    inputs, runner = few(blueprint, examples, "eval"), blueprint.plain_runners["eval"]
    least: int | None = None

    def lost_with(weights: Tensors) -> tuple[int, int]:
        return _not_finite(quietly(lambda: runner((), clones(weights, blueprint), inputs)))

    for amount in AMOUNTS:
        noisy = perturbed(tensors, statistics_of(blueprint), amount)
        try:
            lost, _ = lost_with(noisy)
        except Exception:  # the checks that follow tell why
            return amount
        if lost == 0:
            return amount
        if least is None:
            least, numbers = lost_with(tensors)
            if least == numbers:
                raise CaptureError(
                    "the model gives no finite number on the example inputs, so nothing can be proven: "
                    "give inputs, or weights, with which it works"
                )
        if lost <= least:
            return amount
    return AMOUNTS[-1]


def _not_finite(outputs: Any) -> tuple[int, int]:
    """How many of the numbers in all floating outputs are not finite, and how many there are."""
    leaves = [
        t for t in torch.utils._pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor) and t.is_floating_point()
    ]
    return sum(int((~t.isfinite()).sum()) for t in leaves), max(1, sum(t.numel() for t in leaves))


def perturbed(tensors: Tensors, statistics: Sequence[str] = (), amount: float = 1.0) -> Tensors:
    """Tensors in which parameters and running statistics differ a little from the given ones, made as looked up.

    Other buffers stay: what a mask or a table of positions means may hang on its exact numbers.
    """
    noise = torch.rand(NOISE, generator=torch.Generator().manual_seed(0))

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        value = tensor.detach()
        if not value.is_floating_point() or not (name in statistics or isinstance(tensor, nn.Parameter)):
            return value.clone(memory_format=torch.contiguous_format)
        value, changed = value.reshape(-1), torch.empty_like(value, memory_format=torch.contiguous_format)
        own = noise.roll(zlib.crc32(name.encode())).to(value.device, value.dtype)
        low = 0.0 if name in statistics else -0.025  # a variance stays above zero
        rest = value.numel() % NOISE
        at = value.numel() - rest
        old, new = value, changed.view(-1)
        for part, mine in ((slice(0, at), own), (slice(at, None), own[:rest])):  # in one pass: weights may be large
            if old[part].numel():
                pair = (old[part].view(-1, len(mine)), new[part].view(-1, len(mine)))
                torch.addcmul(amount * (0.05 * mine + low), pair[0], 1 + 0.1 * amount * mine, out=pair[1])
        return changed

    return Lazily(tensors, change)


class Lazily(Mapping[str, torch.Tensor]):
    """Tensors changed one by one as they are looked up, so that no second copy of a model is held."""

    def __init__(self, tensors: Tensors, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
        self._tensors, self._change = tensors, change

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._change(name, self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def few(blueprint: Blueprint, examples: Sequence[torch.Tensor], mode: str) -> list[torch.Tensor]:
    """One sample where every input has a batch of any size and none needs the others: running takes its time."""
    specs = blueprint.signature.specs
    batched = all(spec.shape and spec.shape[0] is None for spec in specs) and bool(specs)
    nodes = blueprint.programs[mode].graph.nodes
    squeeze = torch.ops.aten.squeeze.dims  # of all dimensions of size 1, in the original: a batch of one would be lost
    together = any(argument(node, "training") is True or node.target is squeeze for node in nodes)
    return [(t[:1] if batched and not together else t).clone() for t in examples]


def clones(tensors: Tensors, blueprint: Blueprint) -> dict[str, torch.Tensor]:
    """Buffers are cloned, as a training step changes them; parameters are not."""
    return {n: t if blueprint.infos[n].kind == "parameter" else t.clone() for n, t in tensors.items()}


def quietly(call: Callable[[], Any]) -> Any:
    """Run with a fixed seed, without gradients, leaving the caller's random state alone."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        return call()
