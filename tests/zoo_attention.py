"""User-written attention: the common ways to make queries, keys and values in one network, and other transformers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SplitQKV(nn.Module):
    """One projection, three widths, taken apart by split."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.inner = heads, heads * head_dim
        self.qkv = nn.Linear(width, 3 * self.inner)
        self.proj = nn.Linear(self.inner, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        parts = self.qkv(x).split([self.inner, self.inner, self.inner], dim=-1)
        q, k, v = (part.view(batch, tokens, self.heads, -1).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, -1))


class ChunkQKV(nn.Module):
    """chunk(3), and heads folded into the batch for bmm."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        self.proj = nn.Linear(heads * head_dim, width)

    def fold(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        x = x.view(batch, tokens, self.heads, self.head_dim).permute(0, 2, 1, 3)
        return x.reshape(batch * self.heads, tokens, self.head_dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = map(self.fold, self.qkv(x).chunk(3, dim=-1))
        weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)) * self.head_dim**-0.5, dim=-1)
        y = torch.bmm(weights, v).view(batch, self.heads, tokens, self.head_dim).transpose(1, 2)
        return self.proj(y.flatten(2))


class ReshapeQKV(nn.Module):
    """The ViT way: reshape(B, N, 3, H, D).permute(...).unbind(0)."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(width, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = ((q * self.head_dim**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, self.heads * self.head_dim))


class PerHeadQKV(nn.Module):
    """The LeViT way: each head holds its own q, k and v, and values are wider than keys."""

    def __init__(self, width: int, heads: int, head_dim: int, value_dim: int = 12) -> None:
        super().__init__()
        self.heads, self.key_dim, self.value_dim = heads, head_dim, value_dim
        self.qkv = nn.Linear(width, heads * (2 * head_dim + value_dim))
        self.proj = nn.Linear(heads * value_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, self.heads, -1)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.value_dim], dim=3)
        q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1), v.permute(0, 2, 1, 3)
        weights = (q @ k * self.key_dim**-0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, self.heads * self.value_dim))


class SeparateQKV(nn.Module):
    """Three projections, softmax and matmul written out, dropout on the weights."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.query = nn.Linear(width, heads * head_dim)
        self.key = nn.Linear(width, heads * head_dim)
        self.value = nn.Linear(width, heads * head_dim)
        self.out = nn.Linear(heads * head_dim, width)
        self.dropout = nn.Dropout(0.1)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, self.head_dim).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = self.split(self.query(x)), self.split(self.key(context)), self.split(self.value(context))
        scores = torch.matmul(q, k.transpose(-1, -2)) / self.head_dim**0.5
        y = torch.matmul(self.dropout(F.softmax(scores, dim=-1)), v).permute(0, 2, 1, 3).contiguous()
        return self.out(y.view(*y.shape[:-2], self.heads * self.head_dim))


class EinsumQKV(nn.Module):
    """Weights with a dimension for heads, contracted by einsum."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.wq = nn.Parameter(torch.randn(width, heads, head_dim) / width**0.5)
        self.wk = nn.Parameter(torch.randn(width, heads, head_dim) / width**0.5)
        self.wv = nn.Parameter(torch.randn(width, heads, head_dim) / width**0.5)
        self.wo = nn.Parameter(torch.randn(heads, head_dim, width) / (heads * head_dim) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        q = torch.einsum("bnd,dhk->bhnk", x, self.wq)
        k = torch.einsum("bnd,dhk->bhnk", x, self.wk)
        v = torch.einsum("bnd,dhk->bhnk", x, self.wv)
        weights = torch.einsum("bhnk,bhmk->bhnm", q, k).div(self.head_dim**0.5).softmax(-1)
        return torch.einsum("bhnk,hkd->bnd", torch.einsum("bhnm,bhmk->bhnk", weights, v), self.wo)


class ModuleAttention(nn.Module):
    """`nn.MultiheadAttention`, weights not asked for."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        assert width == heads * head_dim
        self.attention = nn.MultiheadAttention(width, heads, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class GroupedQuery(nn.Module):
    """Fewer heads for keys and values than for queries; a subclass says how they are repeated."""

    def __init__(self, width: int, heads: int, head_dim: int, repeats: int = 2) -> None:
        super().__init__()
        self.groups, self.repeats, self.head_dim = heads, repeats, head_dim
        self.q = nn.Linear(width, heads * repeats * head_dim, bias=False)
        self.k = nn.Linear(width, heads * head_dim, bias=False)
        self.v = nn.Linear(width, heads * head_dim, bias=False)
        self.o = nn.Linear(heads * repeats * head_dim, width, bias=False)

    def repeat(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.repeats, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, self.groups * self.repeats, self.head_dim).transpose(1, 2)
        k = self.k(x).view(batch, tokens, self.groups, self.head_dim).transpose(1, 2)
        v = self.v(x).view(batch, tokens, self.groups, self.head_dim).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, self.repeat(k), self.repeat(v), is_causal=True)
        return self.o(y.transpose(1, 2).reshape(batch, tokens, -1))


class GroupedQueryExpand(GroupedQuery):
    """Keys and values repeated by expand and reshape (Llama)."""

    def repeat(self, x: Tensor) -> Tensor:
        batch, groups, tokens, head_dim = x.shape
        x = x[:, :, None, :, :].expand(batch, groups, self.repeats, tokens, head_dim)
        return x.reshape(batch, groups * self.repeats, tokens, head_dim)


class MultiQuery(nn.Module):
    """One head of keys and values for all query heads."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.q = nn.Linear(width, heads * head_dim)
        self.kv = nn.Linear(width, 2 * head_dim)
        self.o = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        k, v = self.kv(x).unsqueeze(1).chunk(2, dim=-1)
        weights = (q @ k.mT / self.head_dim**0.5).softmax(dim=-1)
        return self.o((weights @ v).transpose(1, 2).flatten(-2))


class RotaryAttention(nn.Module):
    """Rotary positions: the two halves of each head turn together."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        self.proj = nn.Linear(heads * head_dim, width, bias=False)
        self.register_buffer("rates", 100.0 ** (-torch.arange(0, head_dim, 2) / head_dim), persistent=False)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return x * cos + torch.cat((-second, first), dim=-1) * sin

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        angles = torch.outer(torch.arange(tokens, device=x.device).float(), self.rates).repeat(1, 2)
        cos, sin = angles.cos(), angles.sin()
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, -1))


Attention = Callable[[int, int, int], nn.Module]


class PreNormBlock(nn.Module):
    def __init__(self, attention: Attention, width: int, heads: int, head_dim: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = attention(width, heads, head_dim)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokenNet(nn.Module):
    """Tokens in, two pre-norm blocks with the given attention, a mean over tokens, a class out."""

    def __init__(
        self, attention: Attention, width: int = 32, heads: int = 4, head_dim: int = 8, inner: int = 48, blocks: int = 2
    ) -> None:
        super().__init__()
        self.embedding = nn.Linear(10, width)
        self.blocks = nn.ModuleList(PreNormBlock(attention, width, heads, head_dim, inner) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


class EncoderNet(nn.Module):
    """`nn.TransformerEncoder`, which has a fast path of its own in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, dim_feedforward=48, dropout=0.1, batch_first=True)
        self.embedding = nn.Embedding(20, 32)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens))[:, 0])


class PostNormBlock(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = SeparateQKV(width, heads, 8)
        self.norm1 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.fc2(F.relu(self.fc1(x))))


class PostNorm(nn.Module):
    """BERT's order: add, then norm, so each block ends in a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 32)
        self.norm = nn.LayerNorm(32)
        self.layers = nn.ModuleList(PostNormBlock(32, 4, 48) for _ in range(3))
        self.pooler = nn.Linear(32, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.embedding(tokens))
        for layer in self.layers:
            x = layer(x)
        return self.head(torch.tanh(self.pooler(x[:, 0])))


class RelativeBiasAttention(nn.Module):
    """A learned bias per head and distance, picked by an index buffer, and a causal mask buffer."""

    def __init__(self, width: int, heads: int, head_dim: int, tokens: int = 6) -> None:
        super().__init__()
        self.heads, self.head_dim, self.tokens = heads, head_dim, tokens
        self.qkv = nn.Linear(width, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, width)
        self.table = nn.Parameter(torch.randn(2 * tokens - 1, heads))
        place = torch.arange(tokens)
        self.register_buffer("index", place[:, None] - place[None, :] + tokens - 1)
        self.register_buffer("mask", torch.full((tokens, tokens), -1e4).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        bias = self.table[self.index.view(-1)].view(tokens, tokens, -1).permute(2, 0, 1).contiguous()
        scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5 + bias.unsqueeze(0) + self.mask
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, tokens, -1))


class TiedLM(nn.Module):
    """A causal language model whose embedding is used a second time as its output layer."""

    def __init__(self, width: int = 32, vocabulary: int = 30) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(16, width)
        self.blocks = nn.ModuleList(PreNormBlock(GroupedQuery, width, 4, 8, 48) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embedding(tokens) + self.positions(places)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class DecoderBlock(nn.Module):
    """Two inputs: its own stream, and the encoder's output, which does not depend on it."""

    def __init__(self, width: int, context: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.own = SeparateQKV(width, heads, 8)
        self.cross = SeparateQKV(width, heads, 8)
        self.cross.key = nn.Linear(context, heads * 8)
        self.cross.value = nn.Linear(context, heads * 8)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.own(self.norm1(x))
        x = x + self.cross(self.norm2(x), context)
        return x + self.mlp(self.norm3(x))


class EncoderDecoder(nn.Module):
    """Cross attention between two streams of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.source = nn.Embedding(20, 32)
        self.target = nn.Embedding(22, 24)
        self.encoder = nn.ModuleList(PreNormBlock(SeparateQKV, 32, 4, 8, 48) for _ in range(2))
        self.decoder = nn.ModuleList(DecoderBlock(24, 32, 4, 40) for _ in range(2))
        self.head = nn.Linear(24, 22)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        context, x = self.source(source), self.target(target)
        for block in self.encoder:
            context = block(context)
        for block in self.decoder:
            x = block(x, context)
        return self.head(x)


class TinyViT(nn.Module):
    """Convolution to patches, a class token, learned positions, two blocks, the class token's logits."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, kernel_size=4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 5, width))
        self.blocks = nn.Sequential(*(PreNormBlock(ReshapeQKV, width, 4, 8, 48) for _ in range(2)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])
