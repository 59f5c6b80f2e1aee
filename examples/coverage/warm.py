"""Imported once by the server from which the sweep's processes are forked: libraries, and what torch loads late.

The library under test is not imported here, so that each process has the files of its own moment.
"""

from __future__ import annotations

import importlib
import warnings

import torch
from torch import nn

LIBRARIES = (
    "accelerate",
    "datasets",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "networkx",
    "rich.console",
    "rich.progress",
    "safetensors.torch",
    "sklearn.datasets",
    "timm",
    "torchvision",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "torch.utils.flop_counter",
)


class _Small(nn.Module):
    """A few common operations, so that exporting it loads what exporting others will need."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.convolution(x))).flatten(2).transpose(1, 2)
        mixed: torch.Tensor = self.last(nn.functional.scaled_dot_product_attention(x, x, x))
        return mixed


def _warm() -> None:
    torch.set_num_threads(1)
    for name in LIBRARIES:
        importlib.import_module(name)
    for training in (True, False):
        module = _Small().train(training)
        shapes = ({0: torch.export.Dim.AUTO},)
        program = torch.export.export(module, (torch.randn(2, 3, 8, 8),), dynamic_shapes=shapes, strict=False)
        program.module(check_guards=False)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    _warm()
