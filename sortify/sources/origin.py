"""Where a model came from: the class of a library and the settings that it was made with, as plain data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

TRANSFORMERS, TIMM, TORCHVISION = "transformers", "timm", "torchvision"


@dataclass(frozen=True)
class Origin:
    """What a model was made with.

    Attributes:
        library: that exports the class.
        name: of the class; of timm that of the architecture.
        settings: JSON values; of transformers the config, of others none: what the name stands for.
    """

    library: str
    name: str
    settings: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"library": self.library, "name": self.name, "settings": dict(self.settings)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Origin:
        """Read what `to_json` gave."""
        return cls(str(data["library"]), str(data["name"]), dict(data["settings"]))


def origin_of(module: torch.nn.Module) -> Origin | None:
    """The origin of a model of a known library; None of others, and of classes that the library does not export."""
    for library, found in FOUND.items():
        if library in sys.modules:  # whoever has a model of it has imported it
            origin = found(sys.modules[library], module)
            if origin is not None:
                return origin
    return None


def _of_transformers(library: Any, module: torch.nn.Module) -> Origin | None:
    name = type(module).__name__
    if not isinstance(module, library.PreTrainedModel) or getattr(library, name, None) is not type(module):
        return None
    config: Any = module.config
    return Origin(TRANSFORMERS, name, json.loads(config.to_json_string(use_diff=False)))


def _of_timm(library: Any, module: torch.nn.Module) -> Origin | None:
    config = getattr(module, "pretrained_cfg", None)
    name = config.get("architecture") if isinstance(config, Mapping) else None
    if not isinstance(name, str) or not library.is_model(name) or not type(module).__module__.startswith(f"{TIMM}."):
        return None
    return Origin(TIMM, name, {})


def _of_torchvision(library: Any, module: torch.nn.Module) -> Origin | None:
    kind = type(module)
    known = kind.__module__.startswith(f"{TORCHVISION}.models.") and kind.__name__ in vars(library.models)
    return Origin(TORCHVISION, kind.__name__, {}) if known else None


FOUND: Mapping[str, Callable[[Any, torch.nn.Module], Origin | None]] = MappingProxyType(
    {TRANSFORMERS: _of_transformers, TIMM: _of_timm, TORCHVISION: _of_torchvision}
)
"""Libraries, and how each knows its own."""
