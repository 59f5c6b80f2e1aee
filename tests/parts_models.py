"""Models that cannot be captured whole: their code asks the data which way to go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 32), nn.Linear(32, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Encoder(nn.Module):
    """Rows [N, 8] to [N, 12]; `gain` is asked for by the code around."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(8, 16), nn.Linear(16, 12)
        self.blocks = nn.ModuleList(Block(16) for _ in range(3))
        self.gain = 2.0

    def forward(self, x: Tensor, *, shift: Tensor | None = None) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x) if shift is None else self.out(x) + shift

    def amplify(self, x: Tensor) -> Tensor:
        """Asked for by the code around, too."""
        return x * self.gain


class Router(nn.Module):
    """Sends the better half of the rows, by a score, to one expert, and the rest to another."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 6)) for _ in range(2)
        )
        self.gate, self.unused = nn.Linear(12, 1), nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 3))
        self.scale = nn.Parameter(torch.full((6,), 1.5))
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encoder(x, shift=torch.ones(12))
        hidden = self.encoder.amplify(hidden) if self.training else hidden * self.encoder.gain
        score = self.gate(hidden)[:, 0]
        first = score > score.median()
        out = torch.zeros(len(x), 6)
        for expert, mine in zip(self.experts, (first, ~first), strict=True):
            rows = mine.nonzero()[:, 0]
            if len(rows) > 1:
                out[rows] = expert(hidden[rows])
        self.seen += 1
        return out * self.scale


def two_layers(inner: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, inner), nn.ReLU(), nn.Linear(inner, 8))


class Branching(nn.Module):
    """Base of models below: `body` says what happens before a branch on the data."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y * 2 if y.sum() > 0 else y

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Shares(Branching):
    """`first` shares a weight with code outside of it; `second` does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.outside = two_layers(), two_layers(), nn.Linear(8, 16)
        self.outside.weight = self.first[0].weight

    def body(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) + self.outside(x).mean(-1, keepdim=True)


class Peeks(Branching):
    """Code outside of `first` reads its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = two_layers(), two_layers()

    def body(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) * self.first[0].weight.mean()


class Repeats(Branching):
    """One part is called three times, with other sizes each time; another one with other kinds of input."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.kinds = two_layers(), two_layers()

    def body(self, x: Tensor) -> Tensor:
        pieces = torch.cat([self.sizes(x), self.sizes(x[:3]), self.sizes(x[1:])])
        return self.kinds(pieces) + self.kinds(x[None])[0].mean()


class Caching(nn.Module):
    """Hands a cache out unless the call declines it, and tells its layers so."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = CachingLayer()

    def forward(self, x: Tensor, use_cache: bool | None = None) -> tuple[Tensor, list[Tensor] | None]:
        use_cache = True if use_cache is None else use_cache
        y = self.layer(x, use_cache=use_cache)
        return (y * 2 if y.sum() > 0 else y), ([x] if use_cache else None)


class CachingLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = two_layers()

    def forward(self, x: Tensor, use_cache: bool = True) -> Tensor:
        return x + self.body(x)


class Watching(nn.Module):
    """Asks the data between its layers, in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.up(x))
        return self.down(y * 2 if self.training and y.sum() > 0 else y)


class NothingInside(Branching):
    def __init__(self) -> None:
        super().__init__()
        self.unused, self.only = nn.ModuleList(two_layers(20) for _ in range(3)), nn.Linear(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.only(x)


def detector() -> nn.Module:
    """A detection model with a backbone of two convolutions."""
    backbone: Any = nn.Sequential(nn.Conv2d(3, 12, 3, 4, 1), nn.ReLU(), nn.Conv2d(12, 8, 3, 4, 1), nn.ReLU())
    backbone.out_channels = 8
    anchors = AnchorGenerator(sizes=((16, 32),), aspect_ratios=((0.5, 1.0),))
    sizes = {"min_size": 64, "max_size": 96, "box_score_thresh": 0.0, "box_detections_per_img": 5}
    return FasterRCNN(backbone, 3, rpn_anchor_generator=anchors, **sizes)
