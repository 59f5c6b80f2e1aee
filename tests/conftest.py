"""What every test shares: no network, no windows, one thread, the same random numbers each time."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """Seed torch before each test and keep it to one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
