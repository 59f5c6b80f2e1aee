"""Ops of random programs that work on images or vectors, or turn one kind of tensor into another."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from random_ops import ACTIVATIONS, WIDEST, WIDTHS, Op, Options, Shape, channels, divisors
from torch import Tensor, nn


class Conv(Op):
    """A convolution: plain or grouped, with a stride or dilated."""

    takes = ("image",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        out = rng.choice(WIDTHS)
        groups = [1, 1, *(g for g in divisors(shapes[0][0]) if out % g == 0)]
        large = min(shapes[0][1:]) > 3
        return {
            "out": out,
            "kernel": rng.choice((1, 3)),
            "stride": rng.choice((1, 1, 2)) if large else 1,
            "groups": rng.choice(groups),
            "bias": rng.random() < 0.5,
        }

    def make(self, shape: Shape) -> None:
        size = self.kernel
        self.layer = nn.Conv2d(shape[0], self.out, size, self.stride, size // 2, groups=self.groups, bias=self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Depthwise(Op):
    """Each channel on its own, with one or more outputs each."""

    takes = ("image",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        times = rng.choice((1, 1, 2, 3))
        return {"times": times if shapes[0][0] * times <= WIDEST else 1}

    def make(self, shape: Shape) -> None:
        self.layer = nn.Conv2d(shape[0], shape[0] * self.times, 3, padding=1, groups=shape[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Transposed(Op):
    """A transposed convolution, plain or grouped."""

    takes = ("image",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        out = rng.choice(WIDTHS)
        groups = [1, *(g for g in divisors(shapes[0][0]) if out % g == 0)]
        return {"out": out, "groups": rng.choice(groups)} if max(shapes[0][1:]) < 7 else None

    def make(self, shape: Shape) -> None:
        self.layer = nn.ConvTranspose2d(shape[0], self.out, 2, 2, groups=self.groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Bottleneck(Op):
    """Convolution, batch-norm, activation, convolution, batch-norm; the shortcut is the input."""

    takes = ("image",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        return {"inner": rng.choice(WIDTHS), "depthwise": rng.random() < 0.5}

    def make(self, shape: Shape) -> None:
        n = self.inner
        self.one, self.norm_one = nn.Conv2d(shape[0], n, 1, bias=False), nn.BatchNorm2d(n)
        self.mid = nn.Conv2d(n, n, 3, padding=1, groups=n if self.depthwise else 1, bias=False)
        self.two, self.norm_two = nn.Conv2d(n, shape[0], 1, bias=False), nn.BatchNorm2d(shape[0])

    def forward(self, x: Tensor) -> Tensor:
        y = self.mid(torch.relu(self.norm_one(self.one(x))))
        return F.relu(self.norm_two(self.two(y)) + x)


class Pool(Op):
    takes = ("image",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        return {"name": rng.choice(("max", "avg", "up", "bilinear"))} if 3 < min(shapes[0][1:]) < 7 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "up":
            return F.interpolate(x, scale_factor=2.0)
        if self.name == "bilinear":
            return F.interpolate(x, scale_factor=0.5, mode="bilinear")
        return F.max_pool2d(x, 2) if self.name == "max" else F.avg_pool2d(x, 2)


class PixelShuffle(Op):
    takes = ("image",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        c, h, w = shapes[0]
        fits = c % 4 == 0 and c > 4 and max(h, w) < 7
        return {"by": rng.choice(("library", "depth_to_space"))} if fits else None

    def forward(self, x: Tensor) -> Tensor:
        if self.by == "library":
            return F.pixel_shuffle(x, 2)
        b, c, h, w = x.shape
        return x.view(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // 4, 2 * h, 2 * w)


class PixelUnshuffle(Op):
    takes = ("image",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        c, h, w = shapes[0]
        fits = h % 2 == w % 2 == 0 and 4 * c <= WIDEST
        return {"by": rng.choice(("library", "outer", "slices"))} if fits else None

    def forward(self, x: Tensor) -> Tensor:
        if self.by == "library":
            return F.pixel_unshuffle(x, 2)
        if self.by == "slices":
            return torch.cat([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)
        b, c, h, w = x.shape
        return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)


class LibraryShuffle(Op):
    """The library's channel shuffle, and the usual spelling by view, transpose and view."""

    takes = ("image",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        groups = divisors(shapes[0][0])
        return {"groups": rng.choice(groups), "library": rng.random() < 0.5} if groups else None

    def forward(self, x: Tensor) -> Tensor:
        if self.library:
            return F.channel_shuffle(x, self.groups)
        b, c, h, w = x.shape
        return x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)


class PaddedShortcut(Op):
    """A wider convolution whose shortcut is the input, padded with zeros on one side or on both."""

    takes = ("image",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        before, after = rng.choice(((0, 1), (1, 0), (1, 1), (1, 2)))
        n = rng.randint(1, 4)
        return {"before": n * before, "after": n * after, "stride": rng.choice((1, 2)) if shapes[0][1] > 3 else 1}

    def make(self, shape: Shape) -> None:
        self.layer = nn.Conv2d(shape[0], shape[0] + self.before + self.after, 3, self.stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        short = x[:, :, :: self.stride, :: self.stride]
        return self.layer(x) + F.pad(short, (0, 0, 0, 0, self.before, self.after))


class Shuffled(Op):
    """The unit of ShuffleNet: half of the channels stay, half are convolved, then both are shuffled."""

    takes = ("image",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        return {} if shapes[0][0] % 2 == 0 and shapes[0][0] > 3 else None

    def make(self, shape: Shape) -> None:
        n = shape[0] // 2
        self.one, self.two = nn.Conv2d(n, n, 1), nn.Conv2d(n, n, 3, padding=1, groups=n)
        self.norm = nn.BatchNorm2d(n)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        y = torch.cat([a, torch.relu(self.norm(self.two(self.one(b))))], 1)
        batch, n, h, w = y.shape
        return y.view(batch, 2, n // 2, h, w).transpose(1, 2).reshape(batch, n, h, w)


class Dense(Op):
    """A block of DenseNet: each layer reads all that came before."""

    takes = ("image",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        growth = rng.choice((2, 3, 4, 5))
        return {"growth": growth} if shapes[0][0] + 2 * growth <= WIDEST else None

    def make(self, shape: Shape) -> None:
        n, g = shape[0], self.growth
        self.norms = nn.ModuleList([nn.BatchNorm2d(n), nn.BatchNorm2d(n + g)])
        self.convs = nn.ModuleList([nn.Conv2d(n, g, 3, padding=1), nn.Conv2d(n + g, g, 3, padding=1)])

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            found.append(conv(torch.relu(norm(torch.cat(found, 1)))))
        return torch.cat(found, 1)


# -- from one kind to another


class ToSequence(Op):
    takes = ("image",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        c, h, w = shapes[0]
        ways = ["flatten", "permute", "rows"] + ["patch_last", "patch_first"] * (
            h % 2 == w % 2 == 0 and 4 * c <= WIDEST
        )
        return {"by": rng.choice(ways)} if h * w <= 64 else None

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        if self.by == "flatten":
            return x.flatten(2).transpose(1, 2)
        if self.by == "permute":
            return x.permute(0, 2, 3, 1).reshape(b, h * w, c)
        if self.by == "rows":
            return x.mean(3).transpose(1, 2)
        order = (0, 2, 4, 3, 5, 1) if self.by == "patch_last" else (0, 2, 4, 1, 3, 5)
        return x.reshape(b, c, h // 2, 2, w // 2, 2).permute(order).flatten(3).flatten(1, 2)


class ToImage(Op):
    """Tokens laid out as an image again."""

    takes = ("sequence",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        rows = divisors(shapes[0][0])
        return {"rows": rng.choice(rows), "late": rng.random() < 0.5} if rows else None

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        if self.late:
            return x.reshape(b, self.rows, t // self.rows, d).permute(0, 3, 1, 2)
        return x.transpose(1, 2).reshape(b, d, self.rows, t // self.rows)


class ToVector(Op):
    """Pooled, flattened, or one token taken."""

    takes = ("any",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        if len(shapes[0]) == 1:
            return None
        small = torch.Size(shapes[0]).numel() <= 400
        ways = ["mean", "amax"] + ["flatten"] * small + ["first", "last_first"] * (len(shapes[0]) == 2)
        return {"by": rng.choice(ways), "out": rng.choice(WIDTHS)}

    def make(self, shape: Shape) -> None:
        size = torch.Size(shape).numel()
        self.layer = nn.Linear(size, self.out) if self.by == "flatten" else None

    def forward(self, x: Tensor) -> Tensor:
        places = (2, 3) if x.dim() == 4 else (1,)
        match self.by:
            case "mean":
                return x.mean(places)
            case "amax":
                return x.amax(places)
            case "flatten":
                return self.layer(x.flatten(1))
            case "first":
                return x[:, 0]
        return x[:, -1] + x[:, 0]


class FromVector(Op):
    """A vector seen as tokens or as an image: a product taken apart."""

    takes = ("vector",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        return {"width": rng.choice(WIDTHS), "tokens": rng.choice((4, 6)), "last": rng.random() < 0.5}

    def make(self, shape: Shape) -> None:
        self.layer = nn.Linear(shape[0], self.width * self.tokens)

    def forward(self, v: Tensor) -> Tensor:
        y = self.layer(v)
        if self.last:
            return y.view(-1, self.tokens, self.width)
        return y.reshape(-1, self.width, self.tokens).transpose(1, 2)


class Outer(Op):
    """The outer product of two vectors, flattened and read by a layer."""

    takes = ("vector", "vector")

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        fits = shapes[0][0] * shapes[1][0] <= 300
        return {"out": rng.choice(WIDTHS), "by": rng.choice(("mul", "einsum", "bmm"))} if fits else None

    def make(self, a: Shape, b: Shape) -> None:
        self.layer = nn.Linear(a[0] * b[0], self.out)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.by == "mul":
            z = x.unsqueeze(2) * y.unsqueeze(1)
        else:
            z = torch.einsum("bi,bj->bij", x, y) if self.by == "einsum" else torch.bmm(x[:, :, None], y[:, None])
        return self.layer(z.flatten(1))


class Linear(Op):
    """A layer over the channels of a sequence or a vector."""

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        if len(shapes[0]) == 3:
            return None
        return {"out": rng.choice(WIDTHS), "by": rng.choice(("layer", "layer", "matmul", "einsum"))}

    def make(self, shape: Shape) -> None:
        self.layer = nn.Linear(channels(shape), self.out, bias=self.by != "einsum")

    def forward(self, x: Tensor) -> Tensor:
        if self.by == "matmul":
            return x @ self.layer.weight.t() + self.layer.bias
        return torch.einsum("...i,oi->...o", x, self.layer.weight) if self.by == "einsum" else self.layer(x)


class Tied(Op):
    """Down and up again through one and the same matrix."""

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        return {"inner": rng.choice(WIDTHS), "name": rng.choice(ACTIVATIONS)} if len(shapes[0]) < 3 else None

    def make(self, shape: Shape) -> None:
        self.layer = nn.Linear(channels(shape), self.inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(getattr(F, self.name)(self.layer(x)), self.layer.weight.t())
