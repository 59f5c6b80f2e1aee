"""Ops of random programs that work on sequences: attention in many spellings, and what stands around it."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from random_ops import WIDEST, WIDTHS, Op, Options, Shape, divisors
from torch import Tensor, nn

FUSED = ("split", "chunk", "unbind", "per_head", "heads_last", "separate", "einsum", "folded")
SHARED = ("expand", "interleave", "enable_gqa", "expand_inner")
Heads = tuple[Tensor, Tensor, Tensor]


class Attention(Op):
    """Self-attention: how q, k and v come about, how they are multiplied, and how heads become a width again."""

    takes = ("sequence",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        by = rng.choice(FUSED)
        key = rng.choice((2, 3, 4, 6))
        own = by in ("split", "per_head", "separate", "einsum")
        return {
            "by": by,
            "heads": rng.choice((2, 3, 4, 6)),
            "key": key,
            "value": rng.choice((2, 4, 5, key)) if own else key,
            "core": rng.choice(("sdpa", "softmax", "einsum", "bias", "masked", "normed")),
            "out": rng.choice(("reshape", "flatten", "einsum")),
            "residual": rng.random() < 0.7,
        }

    def make(self, shape: Shape) -> None:
        (tokens, width), h, k, v = shape, self.heads, self.key, self.value
        self.qkv = nn.Linear(width, h * (2 * k + v))
        self.three = nn.ModuleList(nn.Linear(width, h * n, bias=False) for n in (k, k, v))
        self.tables = nn.ParameterList(torch.randn(width, h, n) * 0.3 for n in (k, k, v))
        self.proj = nn.Linear(h * v, width)
        self.table = nn.Parameter(torch.randn(h, tokens, tokens))
        self.scale = nn.Parameter(torch.randn(h, 1, 1))
        self.register_buffer("mask", torch.ones(tokens, tokens).tril().bool())
        unused = {"separate": ("qkv", "tables"), "einsum": ("qkv", "three")}.get(self.by, ("three", "tables"))
        for name in (
            *unused,
            *(["table"] if self.core != "bias" else []),
            *(["scale"] if self.core != "normed" else []),
        ):
            delattr(self, name)

    def forward(self, x: Tensor) -> Tensor:
        y = self.join(self.core_of(*self.apart(x)))
        return x + y if self.residual else y

    def apart(self, x: Tensor) -> Heads:
        (b, t, _), h, k, v = x.shape, self.heads, self.key, self.value
        match self.by:
            case "split" | "chunk" | "folded":
                y = self.qkv(x)
                parts = y.split([h * k, h * k, h * v], -1) if self.by == "split" else y.chunk(3, -1)
                return tuple(p.view(b, t, h, -1).transpose(1, 2) for p in parts)  # type: ignore[return-value]
            case "unbind":
                return self.qkv(x).reshape(b, t, 3, h, k).permute(2, 0, 3, 1, 4).unbind(0)  # type: ignore[return-value]
            case "per_head":
                return self.qkv(x).view(b, t, h, 2 * k + v).transpose(1, 2).split([k, k, v], -1)  # type: ignore[return-value]
            case "heads_last":
                parts = self.qkv(x).view(b, t, 3, k, h).unbind(2)
                return tuple(p.permute(0, 3, 1, 2) for p in parts)  # type: ignore[return-value]
            case "einsum":
                return tuple(torch.einsum("btd,dhk->bhtk", x, w) for w in self.tables)  # type: ignore[return-value]
        return tuple(f(x).view(b, t, h, -1).transpose(1, 2) for f in self.three)  # type: ignore[return-value]

    def core_of(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.by == "folded":
            b, h = q.shape[:2]
            q, k, v = (z.reshape(b * h, *z.shape[2:]) for z in (q, k, v))
            return (torch.bmm(q, k.transpose(1, 2)).softmax(-1) @ v).view(b, h, *v.shape[1:])
        if self.core == "sdpa":
            return F.scaled_dot_product_attention(q, k, v)
        if self.core == "masked":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        if self.core == "einsum":
            scores = torch.einsum("bhqd,bhkd->bhqk", q * self.key**-0.5, k)
            return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)
        if self.core == "normed":
            scores = F.normalize(q + 0.1, dim=-1) @ F.normalize(k + 0.1, dim=-1).mT * self.scale.exp()
        else:
            scores = q @ k.transpose(-2, -1) / self.key**0.5
        return (scores + self.table if self.core == "bias" else scores).softmax(-1) @ v

    def join(self, y: Tensor) -> Tensor:
        b, h, t, v = y.shape
        if self.out == "einsum":
            return torch.einsum("bhtv,dhv->btd", y, self.proj.weight.view(-1, h, v)) + self.proj.bias
        y = y.transpose(1, 2)
        return self.proj(y.reshape(b, t, h * v) if self.out == "reshape" else y.flatten(2))


class GroupedQuery(Op):
    """Fewer keys and values than queries, perhaps with rotary halves."""

    takes = ("sequence",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        groups, times = rng.choice(((1, 2), (1, 4), (2, 2), (2, 3), (3, 2), (4, 2)))
        return {
            "groups": groups,
            "times": times,
            "dim": rng.choice((2, 4, 6)),
            "by": rng.choice(SHARED),
            "rotary": rng.random() < 0.4,
            "fused": rng.random() < 0.5,
        }

    def make(self, shape: Shape) -> None:
        (tokens, width), g, n = shape, self.groups, self.dim
        if self.fused:
            self.qkv = nn.Linear(width, g * (self.times + 2) * n)
        else:
            self.q, self.k, self.v = (nn.Linear(width, g * t * n) for t in (self.times, 1, 1))
        self.proj = nn.Linear(g * self.times * n, width)
        angles = torch.outer(torch.arange(tokens), 10.0 ** -torch.arange(n // 2))
        self.register_buffer("angles", torch.cat([angles, angles], -1))

    def forward(self, x: Tensor) -> Tensor:
        (b, t, _), g, n = x.shape, self.groups, self.dim
        if self.fused:
            parts = self.qkv(x).split([g * self.times * n, g * n, g * n], -1)
        else:
            parts = (self.q(x), self.k(x), self.v(x))
        q, k, v = (p.view(b, t, -1, n).transpose(1, 2) for p in parts)
        if self.rotary:
            q, k = self.turned(q), self.turned(k)
        if self.by == "enable_gqa":
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        elif self.by == "expand_inner":
            y = self.grouped(q, k, v)
        else:
            y = F.scaled_dot_product_attention(q, self.copied(k), self.copied(v))
        return x + self.proj(y.transpose(1, 2).reshape(b, t, -1))

    def turned(self, z: Tensor) -> Tensor:
        a, b = z[..., : self.dim // 2], z[..., self.dim // 2 :]
        return z * self.angles.cos() + torch.cat([-b, a], -1) * self.angles.sin()

    def copied(self, z: Tensor) -> Tensor:
        if self.by == "interleave":
            return z.repeat_interleave(self.times, 1)
        b, g, t, n = z.shape
        return z[:, :, None].expand(b, g, self.times, t, n).reshape(b, g * self.times, t, n)

    def grouped(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, _, t, n = q.shape
        q = q.view(b, self.groups, self.times, t, n)
        scores = (q @ k.unsqueeze(2).transpose(-1, -2) * n**-0.5).softmax(-1)
        return (scores @ v.unsqueeze(2)).flatten(1, 2)


class Library(Op):
    """torch's own attention and encoder layers."""

    takes = ("sequence",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        heads = divisors(shapes[0][1])
        names = ("attention", "encoder", "gru", "lstm")
        return {"heads": rng.choice(heads), "name": rng.choice(names), "inner": rng.choice(WIDTHS)} if heads else None

    def make(self, shape: Shape) -> None:
        width = shape[1]
        match self.name:
            case "attention":
                self.layer = nn.MultiheadAttention(width, self.heads, batch_first=True)
            case "encoder":
                self.layer = nn.TransformerEncoderLayer(width, self.heads, self.inner, 0.0, batch_first=True)
            case "gru":
                self.layer = nn.GRU(width, self.inner, batch_first=True)
            case "lstm":
                self.layer = nn.LSTM(width, self.inner, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "encoder":
            return self.layer(x)
        return self.layer(x, x, x)[0] if self.name == "attention" else self.layer(x)[0]


class Cross(Op):
    """Attention from one sequence to another, or to learned tokens."""

    takes = ("sequence", "sequence")

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        return {"heads": rng.choice((2, 3)), "dim": rng.choice((2, 4)), "learned": rng.random() < 0.3}

    def make(self, a: Shape, b: Shape) -> None:
        n = self.heads * self.dim
        self.q, self.kv, self.proj = nn.Linear(a[1], n), nn.Linear(b[1], 2 * n), nn.Linear(n, a[1])
        self.tokens = nn.Parameter(torch.randn(1, 3, b[1])) if self.learned else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.tokens is not None:
            y = torch.cat([self.tokens.expand(y.shape[0], -1, -1), y], 1)
        b, t, _ = x.shape
        q = self.q(x).view(b, t, self.heads, self.dim).transpose(1, 2)
        k, v = self.kv(y).reshape(b, y.shape[1], 2, self.heads, self.dim).permute(2, 0, 3, 1, 4)
        return x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1))


class Positions(Op):
    """A table over tokens and widths is added: a parameter, a buffer, or rows looked up by number."""

    takes = ("sequence",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        return {"by": rng.choice(("parameter", "buffer", "constant", "embedding"))}

    def make(self, shape: Shape) -> None:
        value = torch.randn(*shape)
        if self.by == "embedding":
            self.layer = nn.Embedding(*shape)
        elif self.by == "buffer":
            self.register_buffer("table", value)
        else:
            self.table = nn.Parameter(value[None]) if self.by == "parameter" else value

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.layer(torch.arange(x.shape[1])) if self.by == "embedding" else self.table)


class ClassToken(Op):
    takes = ("sequence",)

    def make(self, shape: Shape) -> None:
        self.token = nn.Parameter(torch.randn(1, 1, shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)


class TokenMixing(Op):
    """Layers over tokens: a matrix, a convolution, a spatial gate."""

    takes = ("sequence",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        return {"inner": rng.choice(WIDTHS), "by": rng.choice(("mlp", "conv", "gate"))}

    def make(self, shape: Shape) -> None:
        tokens, width = shape
        if self.by == "mlp":
            self.up, self.down = nn.Linear(tokens, self.inner), nn.Linear(self.inner, tokens)
        elif self.by == "conv":
            self.layer = nn.Conv1d(width, width, 3, padding=1, groups=width)
        else:
            self.up, self.layer, self.down = (
                nn.Linear(width, 2 * self.inner),
                nn.Linear(tokens, tokens),
                nn.Linear(self.inner, width),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(1, 2)
        if self.by == "mlp":
            return x + self.down(F.gelu(self.up(y))).transpose(1, 2)
        if self.by == "conv":
            return x + self.layer(y).transpose(1, 2)
        a, b = F.gelu(self.up(x)).chunk(2, -1)
        return x + self.down(a * self.layer(b.transpose(1, 2)).transpose(1, 2))


class PatchMerging(Op):
    """Neighbouring tokens become one wider token."""

    takes = ("sequence",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        fits = shapes[0][0] % 2 == 0 and shapes[0][0] > 2 and 2 * shapes[0][1] <= WIDEST
        return {"by": rng.choice(("reshape", "cat", "apart"))} if fits else None

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        if self.by == "reshape":
            return x.reshape(b, t // 2, 2 * d)
        if self.by == "cat":
            return torch.cat([x[:, 0::2], x[:, 1::2]], -1)
        return x.view(b, t // 2, 2, d).transpose(2, 3).reshape(b, t // 2, 2 * d)


class Experts(Op):
    """A soft mixture of experts: all run, a softmax weighs them."""

    takes = ("sequence",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        return {"experts": rng.choice((2, 3)), "inner": rng.choice(WIDTHS)}

    def make(self, shape: Shape) -> None:
        e, d, n = self.experts, shape[1], self.inner
        self.gate = nn.Linear(d, e)
        self.up, self.down = nn.Parameter(torch.randn(e, d, n) * 0.3), nn.Parameter(torch.randn(e, n, d) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("btd,edn->betn", x, self.up).relu() @ self.down
        return x + torch.einsum("bte,betd->btd", self.gate(x).softmax(-1), y)


class Factors(Op):
    """Widths seen as a product, swapped and seen as another product."""

    takes = ("sequence",)

    @staticmethod
    def options(rng: random.Random, *shapes: Shape) -> Options:
        found = divisors(shapes[0][1])
        return {"first": rng.choice(found), "second": rng.choice(found), "swap": rng.random() < 0.5} if found else None

    def make(self, shape: Shape) -> None:
        self.weight = nn.Parameter(torch.randn(self.first, 1))
        self.other = nn.Parameter(torch.randn(self.second, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        y = x.view(b, t, self.first, d // self.first) * self.weight
        y = (y.transpose(2, 3) if self.swap else y).reshape(b, t, d)
        return (y.view(b, t, self.second, d // self.second) * self.other).reshape(b, t, d)
