"""User-written networks of linear layers: MLPs, gates, shared layers, odd inputs and outputs, and what must stay fixed.

Each forward is plain PyTorch as people write it; nothing here knows of sortify.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput


class MLP(nn.Module):
    def __init__(self, inputs: int = 8, first: int = 32, second: int = 24, classes: int = 5) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, first)
        self.fc2 = nn.Linear(first, second)
        self.fc3 = nn.Linear(second, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(torch.tanh(self.fc2(torch.relu(self.fc1(x)))))


class BatchNormMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 32),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(32, 24, bias=False),
            nn.BatchNorm1d(24),
            nn.PReLU(24),
            nn.Linear(24, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class ResidualBlock(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class ResidualMLP(nn.Module):
    def __init__(self, width: int = 32, inner: int = 48, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, inner) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class GLUBlock(nn.Module):
    """One projection for value and gate, taken apart by chunk."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        return x + self.down(value * torch.sigmoid(gate))


class SwiGLUBlock(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.w1 = nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(inner, width, bias=False)
        self.w3 = nn.Linear(width, inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.w2(F.silu(self.w1(y)) * self.w3(y))


class GatedBlock(nn.Module):
    """A learned scalar decides how much of the block is added."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.tensor(0.7))
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.gate) * self.fc2(torch.relu(self.fc1(x)))


class Stack(nn.Module):
    """A stem, equal blocks, a head."""

    def __init__(self, block: type[nn.Module], blocks: int = 2, width: int = 32, inner: int = 24) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.layers = nn.Sequential(*(block(width, inner) for _ in range(blocks)))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x)))


class SharedLayer(nn.Module):
    """One layer called twice: its input and its output are the same quantity."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 32)
        self.fc = nn.Linear(32, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc(self.stem(x)))
        x = torch.tanh(self.fc(x))
        return self.head(x)


class SharedBlock(nn.Module):
    """One residual block applied three times (ALBERT)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 32)
        self.block = ResidualBlock(32, 48)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = self.block(x)
        return self.head(x)


class DropPathBlock(nn.Module):
    """Dropout, and stochastic depth with a mask per sample."""

    def __init__(self, width: int, inner: int, drop: float = 0.4) -> None:
        super().__init__()
        self.keep = 1.0 - drop
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.dropout = nn.Dropout(0.2)
        self.fc2 = nn.Linear(inner, width)

    def drop_path(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(self.keep)
        return x * mask / self.keep

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.fc2(self.dropout(F.gelu(self.fc1(self.norm(x))))))


class DictOutput(nn.Module):
    """Logits and one score per sample, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 32)
        self.fc2 = nn.Linear(32, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.fc2(torch.relu(self.fc1(x))))
        return {"logits": self.head(x), "score": x.mean(dim=-1)}


@dataclass
class NetOutput(ModelOutput):
    logits: Tensor | None = None
    probabilities: Tensor | None = None
    layers: tuple[Tensor, ...] | None = None


class ModelOutputNet(nn.Module):
    """A `ModelOutput` with a tuple in it: what is handed out keeps its width."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 32)
        self.fc2 = nn.Linear(32, 6)
        self.fc3 = nn.Linear(6, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> NetOutput:
        small = self.fc2(torch.relu(self.fc1(x)))
        logits = self.head(torch.relu(self.fc3(small)))
        return NetOutput(logits=logits, probabilities=logits.softmax(-1), layers=(small, logits))


class KeywordInputs(nn.Module):
    """Tokens with an optional mask, called by keyword: masked mean of embeddings, then an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.fc1 = nn.Linear(16, 24)
        self.fc2 = nn.Linear(24, 4)

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        x = self.embedding(tokens) * scale
        if mask is None:
            x = x.mean(dim=1)
        else:
            weights = mask.to(x.dtype).unsqueeze(-1)
            x = (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
        return self.fc2(torch.relu(self.fc1(x)))


class SinusoidalPositions(nn.Module):
    """A sine and cosine table, held as a buffer, added to the embeddings."""

    def __init__(self, width: int = 32, positions: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, width)
        position = torch.arange(positions).unsqueeze(1)
        rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        table = torch.zeros(positions, width)
        table[:, 0::2] = torch.sin(position * rate)
        table[:, 1::2] = torch.cos(position * rate)
        self.register_buffer("table", table)
        self.blocks = nn.ModuleList(ResidualBlock(width, 40) for _ in range(2))
        self.head = nn.Linear(width, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.table[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(dim=1))


class MixerBlock(nn.Module):
    """Token mixing by bmm with an expanded weight, then channel mixing."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.mix_in = nn.Parameter(torch.randn(20, tokens) / tokens**0.5)
        self.mix_out = nn.Parameter(torch.randn(tokens, 20) / 20**0.5)
        self.fc1 = nn.Linear(width, 24)
        self.fc2 = nn.Linear(24, width)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        y = F.gelu(torch.bmm(self.mix_in.expand(batch, -1, -1), self.norm1(x)))
        x = x + torch.bmm(self.mix_out.expand(batch, -1, -1), y)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 32)
        self.blocks = nn.ModuleList(MixerBlock(9, 32) for _ in range(2))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(dim=1))


class NothingElastic(nn.Module):
    """From the input straight to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(x))


class CumulativeSum(nn.Module):
    """The first width is summed up in order, so its order and size matter; the second one is free."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 16)
        self.fc2 = nn.Linear(16, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cumsum(torch.tanh(self.fc1(x)), dim=-1)
        return self.head(torch.relu(self.fc2(x)))


class SortedFeatures(nn.Module):
    """The first width is sorted by value; the second one is free."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 16)
        self.fc2 = nn.Linear(16, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sort(self.fc1(x), dim=-1).values
        return self.head(torch.relu(self.fc2(x)))
