"""Where a model came from: the class of a library and the settings that it was made with, as plain data."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

TRANSFORMERS = "transformers"


@dataclass(frozen=True)
class Origin:
    """What a model was made with.

    Attributes:
        library: that exports the class.
        name: of the class.
        settings: JSON values; of transformers the config.
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
    """The origin of a model of transformers; None of others, and of classes that the library does not export."""
    name = type(module).__name__
    library: Any = sys.modules.get(TRANSFORMERS)  # whoever has a model of it has imported it
    if library is None or not isinstance(module, library.PreTrainedModel):
        return None
    if getattr(library, name, None) is not type(module):
        return None
    config: Any = module.config
    return Origin(TRANSFORMERS, name, json.loads(config.to_json_string(use_diff=False)))
