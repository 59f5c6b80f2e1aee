"""Measured scores of sub-networks, and whether they are those of the weights of now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sortify.errors import SortifyError
from sortify.space.subnet import Subnet

FILE_NAME = "evaluation.json"


@dataclass(frozen=True, eq=False)
class Scores:
    """What an evaluation found.

    Attributes:
        metric: name of the score; higher is better.
        weights: digest of the weights that were measured, see `fingerprint`.
        rows: the score of each measured sub-network.
    """

    metric: str
    weights: str
    rows: Mapping[Subnet, float]


@dataclass(frozen=True)
class Chosen:
    """A sub-network for a budget, and which rule chose it, in words."""

    subnet: Subnet
    rule: str


def fingerprint(model: torch.nn.Module, *facts: str) -> str:
    """Return a short digest of a model's parameters, what else makes it compute something else, and some facts."""
    digest = hashlib.blake2b(digest_size=16)
    ranked = getattr(model, "chains", {}) if getattr(model, "blocks_ranked", False) else {}
    norms = ("norms frozen",) if getattr(model, "norms_frozen", False) else ()
    for fact in (*facts, *norms, *(block.name for chain in ranked.values() for block in chain.blocks)):
        digest.update(fact.encode() + b"\0")
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\0".encode())
        raw: Any = parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(raw)
    return digest.hexdigest()


def read_scores(folder: str | Path) -> Scores | None:
    """The scores that an evaluation left beside a saved model; None where there is none that can be read."""
    try:
        stored = json.loads((Path(folder) / FILE_NAME).read_text())
        metric, weights = str(stored["metric"]), str(stored["weights"])
        rows = {Subnet.from_json(row["subnet"]): float(row["metrics"][metric]) for row in stored["rows"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SortifyError):
        return None
    return Scores(metric, weights, rows) if rows else None
