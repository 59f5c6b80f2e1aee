"""The ops of random programs: small modules that take one to three tensors, drawn with options that fit these.

Shapes are written without the batch: an image is (channels, height, width), a sequence (tokens, width), a vector
(width,). An op says which it takes, draws its options for given shapes (None where it does not apply) and is an
`nn.Module` whose constructor gets the shapes and these options. Attention has a file of its own, random_attention.py.
"""

from __future__ import annotations

import random
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, ...]
Options = dict[str, Any] | None
OPS: dict[str, type[Op]] = {}
WIDTHS = (4, 6, 8, 9, 12, 15, 16, 18, 24)
WIDEST = 60
KINDS = {3: "image", 2: "sequence", 1: "vector"}
ACTIVATIONS = ("relu", "gelu", "silu", "leaky_relu", "hardswish", "tanh", "sigmoid", "softplus")


class Op(nn.Module):
    """One op. `takes`: the kinds of its inputs; `alike`: they must agree in all but the channels, or in everything."""

    takes: ClassVar[tuple[str, ...]] = ("any",)
    alike: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        if not cls.__module__.startswith("random_"):
            return  # tracing makes classes of its own
        OPS["".join("_" + c.lower() if c.isupper() else c for c in cls.__name__).lstrip("_")] = cls

    def __init__(self, *shapes: Shape, **options: Any) -> None:
        super().__init__()
        self.shapes = shapes
        for name, value in options.items():
            setattr(self, name, value)
        self.make(*shapes)

    def make(self, *shapes: Shape) -> None:
        """Make the parameters."""

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        return {}


def channels(shape: Shape) -> int:
    """Its channels: the first number of an image, the last of a sequence or a vector."""
    return shape[0] if len(shape) == 3 else shape[-1]


def place(x: Tensor) -> int:
    """Where the channels of a tensor lie."""
    return 1 if x.dim() == 4 else -1


def along(weight: Tensor, x: Tensor) -> Tensor:
    """A vector over the channels, ready to be broadcast."""
    return weight.view(-1, 1, 1) if x.dim() == 4 else weight


def divisors(n: int, least: int = 2) -> list[int]:
    """What divides n, from `least` to n / 2."""
    return [d for d in range(least, n // 2 + 1) if n % d == 0]


def pieces(rng: random.Random, n: int) -> tuple[int, ...]:
    """Two or three sizes that add up to n, unequal more often than not."""
    cuts = sorted(rng.sample(range(1, n), rng.randint(1, 2)))
    return tuple(b - a for a, b in zip([0, *cuts], [*cuts, n], strict=True))


def project(shape: Shape, out: int) -> nn.Module:
    """The layer that gives another number of channels."""
    return nn.Conv2d(shape[0], out, 1) if len(shape) == 3 else nn.Linear(shape[-1], out)


# -- any kind of tensor: what happens to the channels


class Activation(Op):
    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        return {"name": rng.choice(ACTIVATIONS)}

    def forward(self, x: Tensor) -> Tensor:
        return getattr(F, self.name)(x)


class Residual(Op):
    """x + f(x), the simplest block."""

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        return {"inner": rng.choice(WIDTHS), "name": rng.choice(ACTIVATIONS), "bias": rng.random() < 0.5}

    def make(self, shape: Shape) -> None:
        self.up = project(shape, self.inner)
        self.down = project((self.inner, *shape[1:]) if len(shape) == 3 else (self.inner,), channels(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(getattr(F, self.name)(self.up(x)))


class Merge(Op):
    """The sum, product or maximum of two tensors of one shape."""

    takes = ("any", "any")
    alike = "all"

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        return {"name": rng.choice(("add", "add", "mul", "maximum", "lerp", "where"))}

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.name == "lerp":
            return torch.lerp(x, y, 0.3)
        return torch.where(x > 0, x, y) if self.name == "where" else getattr(torch, self.name)(x, y)


class Fuse(Op):
    """The sum of two tensors of which one is projected."""

    takes = ("any", "any")
    alike = "rest"

    def make(self, a: Shape, b: Shape) -> None:
        self.layer = project(b, channels(a))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(x + self.layer(y))


class Cat(Op):
    """Channels joined, in the order given or the other way round."""

    takes = ("any", "any")
    alike = "rest"

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        fits = sum(map(channels, shapes)) <= WIDEST
        return {"order": rng.choice(((0, 1), (1, 0), (0, 1, 0)))} if fits else None

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.cat([xs[i] for i in self.order], place(xs[0]))


class NestedCat(Op):
    """A cat of a cat, read by one layer; the same parts in another order, read by another."""

    takes = ("any", "any", "any")
    alike = "rest"

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        return {"order": tuple(rng.sample(range(3), 3)), "out": rng.choice(WIDTHS)}

    def make(self, *shapes: Shape) -> None:
        total = sum(map(channels, shapes))
        whole = (total, *shapes[0][1:]) if len(shapes[0]) == 3 else (total,)
        self.one, self.two = project(whole, self.out), project(whole, self.out)

    def forward(self, *xs: Tensor) -> Tensor:
        at = place(xs[0])
        x = torch.cat([torch.cat(xs[:2], at), xs[2]], at)
        return self.one(x) + self.two(torch.cat([xs[i] for i in self.order], at))


class CatAdd(Op):
    """cat(x, y) + a parameter or a layer's output: a concatenation meets one width."""

    takes = ("any", "any")
    alike = "rest"

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        fits = sum(map(channels, shapes)) <= WIDEST
        return {"layer": rng.random() < 0.5} if fits else None

    def make(self, *shapes: Shape) -> None:
        total = sum(map(channels, shapes))
        self.layer = project(shapes[0], total) if self.layer else None
        self.weight = nn.Parameter(torch.randn(total)) if self.layer is None else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = torch.cat([x, y], place(x))
        return z * along(self.weight, z) if self.layer is None else z + self.layer(x)


class Split(Op):
    """Channels taken apart into unequal pieces, by split, narrow or indexing."""

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        n = channels(shapes[0])
        return {"sizes": pieces(rng, n), "by": rng.choice(("split", "narrow", "slice"))} if n > 5 else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.by == "split":
            return x.split(self.sizes, place(x))
        starts = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        if self.by == "narrow":
            return tuple(x.narrow(place(x), a, n) for a, n in zip(starts, self.sizes, strict=True))
        both = [(a, a + n) for a, n in zip(starts, self.sizes, strict=True)]
        return tuple(x[:, a:b] if x.dim() == 4 else x[..., a:b] for a, b in both)


class Chunk(Op):
    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        counts = [c for c in (2, 3, 4) if channels(shapes[0]) % c == 0 and channels(shapes[0]) // c > 1]
        return {"count": rng.choice(counts)} if counts else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.chunk(self.count, place(x))


class PartlyTreated(Op):
    """One piece of the channels goes through a layer and comes back to its place, or to the other end."""

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        n = channels(shapes[0])
        return {"size": rng.randint(2, n - 2), "swap": rng.random() < 0.5} if n > 4 else None

    def make(self, shape: Shape) -> None:
        part = (self.size, *shape[1:]) if len(shape) == 3 else (self.size,)
        self.layer = project(part, self.size)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split([self.size, x.shape[place(x)] - self.size], place(x))
        return torch.cat([b, self.layer(a)] if self.swap else [self.layer(a), b], place(x))


class Glu(Op):
    """A gate over the halves of a fused projection: F.glu, chunk, or every second channel."""

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        return {"inner": rng.choice(WIDTHS), "by": rng.choice(("glu", "chunk", "view", "pairs"))}

    def make(self, shape: Shape) -> None:
        self.layer = project(shape, 2 * self.inner)

    def forward(self, x: Tensor) -> Tensor:
        x, at = self.layer(x), place(x)
        if self.by == "glu":
            return F.glu(x, at)
        if self.by == "chunk":
            a, b = x.chunk(2, at)
            return F.silu(a) * b
        at = at % x.dim()
        if self.by == "view":
            a, b = x.unflatten(at, (2, self.inner)).unbind(at)
        else:
            a, b = x.unflatten(at, (self.inner, 2)).unbind(at + 1)
        return a * b.sigmoid()


class Scale(Op):
    """Times a vector over the channels: a parameter, a buffer, a constant, or a mask."""

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        return {"by": rng.choice(("parameter", "buffer", "constant", "mask", "number"))}

    def make(self, shape: Shape) -> None:
        value = torch.randn(channels(shape))
        if self.by == "parameter":
            self.table = nn.Parameter(value)
        elif self.by == "constant":
            self.table = value
        else:
            self.register_buffer("table", value > -0.7 if self.by == "mask" else value)

    def forward(self, x: Tensor) -> Tensor:
        if self.by == "number":
            return x * channels(self.shapes[0]) ** -0.5
        table = along(self.table, x)
        return x.masked_fill(~table, 0.25) if self.by == "mask" else x * table + table


class ByGroup(Op):
    """Channels seen as groups x rest: mixed, normalised, reduced or swapped, then flattened again."""

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        groups = divisors(channels(shapes[0]))
        names = ("shuffle", "softmax", "rms", "scale_groups", "scale_rest", "mean_rest", "mean_groups", "mix_rest")
        return {"groups": rng.choice(groups), "name": rng.choice(names)} if groups else None

    def make(self, shape: Shape) -> None:
        rest = channels(shape) // self.groups
        self.outer = nn.Parameter(torch.randn(self.groups, 1)) if self.name in ("scale_groups", "mean_rest") else None
        self.inner = nn.Parameter(torch.randn(rest)) if self.name in ("scale_rest", "mean_groups") else None
        self.mix = nn.Linear(rest, rest) if self.name == "mix_rest" else None

    def forward(self, x: Tensor) -> Tensor:
        moved = x.movedim(place(x), -1)
        y = moved.unflatten(-1, (self.groups, -1))
        y = self.change(y).flatten(-2) if self.name[:4] != "mean" else self.change(y)
        return y.movedim(-1, place(x))

    def change(self, y: Tensor) -> Tensor:
        match self.name:
            case "shuffle":
                return y.transpose(-1, -2)
            case "softmax":
                return y.softmax(-1)
            case "rms":
                return y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 0.1)
            case "scale_groups":
                return y * self.outer
            case "scale_rest":
                return y * self.inner
            case "mean_rest":
                return (y * self.outer).mean(-1)
            case "mean_groups":
                return (y * self.inner).mean(-2)
        return self.mix(y)


class Copies(Op):
    """Channels repeated: as a whole, one by one, or by expand and reshape."""

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        count = rng.randint(2, 3)
        fits = channels(shapes[0]) * count <= WIDEST
        return (
            {"count": count, "by": rng.choice(("repeat", "interleave", "expand_outer", "expand_inner"))}
            if fits
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        at = place(x) % x.dim()
        if self.by == "repeat":
            return x.repeat(*[self.count if d == at else 1 for d in range(x.dim())])
        if self.by == "interleave":
            return x.repeat_interleave(self.count, at)
        new = at if self.by == "expand_outer" else at + 1
        y = x.unsqueeze(new)
        return y.expand(*[self.count if d == new else -1 for d in range(y.dim())]).flatten(at, at + 1)


class Normalise(Op):
    """Norms over or by the channels, from the library or written by hand."""

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        names = ["layer", "rms", "rms_by_hand", "layer_by_hand", "unit"]
        groups = divisors(channels(shapes[0]), 1)
        names += ["batch", "group", "group", "instance"] if len(shapes[0]) == 3 else []
        names += ["group", "batch"] if len(shapes[0]) == 2 else []
        return {
            "name": rng.choice(names),
            "groups": rng.choice([g for g in groups if channels(shapes[0]) // g > 1] or [1]),
        }

    def make(self, shape: Shape) -> None:
        n, image = channels(shape), len(shape) == 3
        makers: dict[str, Any] = {
            "layer": lambda: nn.LayerNorm(n),
            "rms": lambda: nn.RMSNorm(n, eps=0.1),
            "batch": lambda: nn.BatchNorm2d(n) if image else nn.BatchNorm1d(n),
            "group": lambda: nn.GroupNorm(self.groups, n),
            "instance": lambda: nn.InstanceNorm2d(n, affine=True),
        }
        self.norm = makers[self.name]() if self.name in makers else None
        self.weight = nn.Parameter(torch.randn(n)) if self.norm is None else None

    def forward(self, x: Tensor) -> Tensor:
        if self.name in ("layer", "rms"):
            return self.norm(x.movedim(place(x), -1)).movedim(-1, place(x))
        if self.norm is not None:
            return self.norm(x) if x.dim() == 4 else self.norm(x.transpose(1, 2)).transpose(1, 2)
        at = place(x)
        if self.name == "unit":
            return F.normalize(x + 0.1, dim=at) * along(self.weight, x)
        x = x - x.mean(at, keepdim=True) if self.name == "layer_by_hand" else x
        return x * torch.rsqrt(x.pow(2).mean(at, keepdim=True) + 0.1) * along(self.weight, x)


class SelectiveKernel(Op):
    """Two branches stacked, weighted by a softmax over the branches, and summed."""

    takes = ("any", "any")
    alike = "all"

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        return {"inner": rng.choice(WIDTHS)}

    def make(self, shape: Shape, _: Shape) -> None:
        n = channels(shape)
        self.down, self.up = nn.Linear(n, self.inner), nn.Linear(self.inner, 2 * n)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        both = torch.stack([x, y], 1).movedim(place(x) + 1 if x.dim() == 4 else -1, -1)  # [B, 2, ..., C]
        pooled = both.sum(1).flatten(1, -2).mean(1) if both.dim() > 3 else both.sum(1)
        weights = self.up(torch.relu(self.down(pooled))).view(x.shape[0], 2, -1).softmax(1)
        weights = weights.view(x.shape[0], 2, *[1] * (both.dim() - 3), weights.shape[-1])
        return (both * weights).sum(1).movedim(-1, place(x))


class Excite(Op):
    """Squeeze and excite."""

    takes = ("image",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        return {"inner": rng.choice(WIDTHS), "by": rng.choice(("conv", "linear"))}

    def make(self, shape: Shape) -> None:
        layer: Any = (lambda a, b: nn.Conv2d(a, b, 1)) if self.by == "conv" else nn.Linear
        self.down, self.up = layer(shape[0], self.inner), layer(self.inner, shape[0])

    def forward(self, x: Tensor) -> Tensor:
        if self.by == "conv":
            return x * self.up(torch.relu(self.down(F.adaptive_avg_pool2d(x, 1)))).sigmoid()
        gate = self.up(torch.relu(self.down(x.mean((2, 3))))).sigmoid()
        return x * gate[:, :, None, None]


class Broadcast(Op):
    """A vector added to every place of an image or every token of a sequence, through a layer."""

    takes = ("any", "vector")

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        return {"film": rng.random() < 0.5} if len(shapes[0]) > 1 else None

    def make(self, shape: Shape, vector: Shape) -> None:
        self.layer = nn.Linear(vector[0], channels(shape) * (2 if self.film else 1))

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        y = self.layer(v)
        y = y[:, :, None, None] if x.dim() == 4 else y.unsqueeze(1)
        if not self.film:
            return x + y
        scale, shift = y.chunk(2, 1 if x.dim() == 4 else -1)
        return x * (1 + scale) + shift


class Dropout(Op):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.2, self.training)


class TakeOne(Op):
    """Things that no rule can free: single channels, turned or sorted ones, sums so far."""

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        return {"name": rng.choice(("select", "flip", "cumsum", "sort", "roll", "stride"))}

    def forward(self, x: Tensor) -> Tensor:
        at = place(x)
        match self.name:
            case "select":
                return x + x.select(at, 1).unsqueeze(at)
            case "sort":
                return x.sort(at).values
            case "stride":
                return x + (x[:, ::2] if x.dim() == 4 else x[..., ::2]).mean(at, keepdim=True)
            case "roll":
                return x.roll(1, at)
        return x.flip([at]) if self.name == "flip" else x.cumsum(at)
