"""A stand-in for a sorted model: prefix widths and skipped blocks by hand."""

from __future__ import annotations

import itertools
import json
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

try:
    from sortify.space import Subnet, Trained
except ImportError:

    @dataclass(frozen=True)
    class Subnet:  # type: ignore[no-redef]
        sizes: tuple[tuple[str, int], ...]
        depths: tuple[tuple[str, int], ...]
        fractions: tuple[tuple[str, float], ...] = field(default=(), compare=False)

        def to_json(self) -> dict[str, Any]:
            return {
                "sizes": dict(self.sizes),
                "depths": dict(self.depths),
                "fractions": dict(self.fractions),
            }

        @classmethod
        def from_json(cls, d: dict[str, Any]) -> Subnet:
            return cls(tuple(d["sizes"].items()), tuple(d["depths"].items()), tuple(d["fractions"].items()))

        def __str__(self) -> str:
            return " ".join(f"{name}={value:g}" for name, value in self.fractions) or "full"

    @dataclass(frozen=True)
    class Trained:  # type: ignore[no-redef]
        levels: tuple[tuple[str, tuple[float, ...]], ...]

        def to_json(self) -> dict[str, list[float]]:
            return {name: list(values) for name, values in self.levels}

        @classmethod
        def from_json(cls, stored: dict[str, list[float]]) -> Trained:
            return cls(tuple((name, tuple(values)) for name, values in stored.items()))

    module = types.ModuleType("sortify.space")
    module.Subnet, module.Trained, module.Space = Subnet, Trained, object  # type: ignore[attr-defined]
    sys.modules["sortify.space"] = module


@dataclass(frozen=True)
class Cost:
    params: int
    flops: int
    activation_bytes: int


class StandinSpace:
    groups = ("width", "depth")

    def __init__(self, width: int, depth: int) -> None:
        self.size, self.blocks = width, depth
        self.trained: Trained | None = None

    @property
    def full(self) -> Subnet:
        return self.subnet()

    @property
    def smallest(self) -> Subnet:
        return self.subnet(width=0.01, depth=0.01)

    def subnet(self, width: float = 1.0, depth: float = 1.0) -> Subnet:
        return Subnet(
            (("hidden", max(1, round(width * self.size))),),
            (("blocks", max(1, round(depth * self.blocks))),),
            (("width", width), ("depth", depth)),
        )

    def grid(self, **levels: Any) -> list[Subnet]:
        axes = [
            [(i + 1) / level for i in range(level)] if isinstance(level, int) else list(level)
            for level in (levels.get("width", (1.0,)), levels.get("depth", (1.0,)))
        ]
        return list(dict.fromkeys(self.subnet(w, d) for w, d in itertools.product(*axes)))

    def members(self) -> list[Subnet]:
        return self.grid(**dict(self.trained.levels)) if self.trained else self.grid(width=4, depth=2)


class StandinModel(nn.Module):
    """kind "mlp": pictures to classes; "bn": with batch-norm; "lm": tokens to next tokens; "text": tokens to classes."""

    def __init__(self, kind: str, width: int, depth: int, classes: int, inputs: int) -> None:
        super().__init__()
        self.config = (kind, width, depth, classes, inputs)
        self.kind, self.space = kind, StandinSpace(width, depth)
        self.tokens = kind in ("lm", "text")
        self.stem = nn.Embedding(inputs, width) if self.tokens else nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        norm = nn.BatchNorm1d if kind == "bn" else nn.LayerNorm
        self.norms = nn.ModuleList(norm(width) for _ in range(depth))
        self.head = nn.Linear(width, classes)
        self.dropout = nn.Dropout(0.1)
        self.active = self.space.full
        self.has_batch_statistics = kind == "bn"
        self.statistics: dict[int, tuple[Tensor, Tensor]] = {}
        self.source: str | None = None
        picture = torch.zeros(2, 1, 8, 8)
        self.examples: Any = (
            ((picture,), {}) if not self.tokens else ((), {"input_ids": torch.zeros(2, 16, dtype=torch.long)})
        )

    def forward(self, x: Tensor | None = None, *, input_ids: Tensor | None = None) -> Any:
        size, depth = self.active.sizes[0][1], self.active.depths[0][1]
        if self.tokens:
            h = self.stem.weight[:, :size][input_ids]
        else:
            h = functional.linear(x.flatten(1), self.stem.weight[:size], self.stem.bias[:size])
        for index in range(depth):
            block = self.blocks[index]
            if self.tokens:
                steps = torch.arange(1, h.shape[1] + 1, device=h.device, dtype=h.dtype).view(1, -1, 1)
                h = 0.5 * h + 0.5 * h.cumsum(1) / steps
            y = functional.linear(self._norm(index, h, size), block.weight[:size, :size], block.bias[:size])
            h = h + self.dropout(y.relu())
        h = h.mean(1) if self.kind == "text" else h
        logits = functional.linear(h, self.head.weight[:, :size], self.head.bias)
        return {"logits": logits} if self.tokens else logits

    def _norm(self, index: int, h: Tensor, size: int) -> Tensor:
        norm = self.norms[index]
        if self.kind != "bn":
            return functional.layer_norm(h, (size,), norm.weight[:size], norm.bias[:size])
        if self.training:
            return functional.batch_norm(h, None, None, norm.weight[:size], norm.bias[:size], training=True)
        if self._collect is not None:
            self._collect.setdefault(index, []).append(torch.stack([h.mean(0), h.var(0)]))
            return functional.batch_norm(h, None, None, norm.weight[:size], norm.bias[:size], training=True)
        mean, var = self.statistics.get(index, (torch.zeros(size), torch.ones(size)))
        return functional.batch_norm(h, mean[:size], var[:size], norm.weight[:size], norm.bias[:size])

    _collect: dict[int, list[Tensor]] | None = None

    def activate(self, subnet: Subnet | None = None, **fractions: float) -> Subnet:
        self.active = subnet or self.space.subnet(**fractions)
        return self.active

    @contextmanager
    def using(self, subnet: Subnet | None = None, **fractions: float) -> Iterator[StandinModel]:
        before = self.active
        self.activate(subnet, **fractions)
        try:
            yield self
        finally:
            self.activate(before)

    def cost(self, subnet: Subnet | None = None) -> Cost:
        subnet = subnet or self.active
        size, depth = subnet.sizes[0][1], subnet.depths[0][1]
        _, _, _, classes, inputs = self.config
        params = size * (inputs + classes + depth * (size + 3))
        return Cost(params, 2 * params, 4 * size * depth)

    def recalibrate(self, loader: Any, batches: int = 20) -> None:
        if not self.has_batch_statistics:
            return
        self._collect = {}
        with torch.no_grad():
            for batch in itertools.islice(loader, batches):
                self(batch)
        collected = {index: torch.stack(found).mean(0) for index, found in self._collect.items()}
        self.statistics = {index: (found[0], found[1]) for index, found in collected.items()}
        self._collect = None

    def record_trained(self, trained: Trained) -> None:
        self.space.trained = trained

    def save(self, path: str | Path) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), Path(path) / "model.safetensors")
        trained = None if self.space.trained is None else self.space.trained.to_json()
        (Path(path) / "sortify.json").write_text(json.dumps({"config": self.config, "trained": trained}))


def load_model(path: str | Path) -> StandinModel:
    """Load what `save` wrote."""
    stored = json.loads((Path(path) / "sortify.json").read_text())
    model = StandinModel(*stored["config"])
    model.load_state_dict(load_file(Path(path) / "model.safetensors"))
    model.space.trained = Trained.from_json(stored["trained"]) if stored["trained"] else None
    return model.eval()


def make_model(kind: str = "mlp", seed: int = 0, classes: int = 10, width: int = 32, depth: int = 4) -> StandinModel:
    """A small model of a kind: "mlp", "bn" (pictures [B, 1, 8, 8]), "lm", "text" (tokens [B, 16] of 256)."""
    torch.manual_seed(seed)
    inputs = 256 if kind in ("lm", "text") else 64
    return StandinModel(kind, width, depth, 256 if kind == "lm" else classes, inputs).eval()
