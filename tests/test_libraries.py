"""The laws over the models of torchvision, timm and transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compare import assert_close_outputs
from laws import SINGLE, Converted, FindingLaws, FullLaws, SubnetLaws
from zoo import LIBRARY, call

from sortify import load


@pytest.fixture(scope="module", params=LIBRARY, ids=lambda case: case.name)
def conversion(request: pytest.FixtureRequest) -> Converted:
    """Each model converted once for all laws."""
    return Converted(request.param)


@pytest.fixture
def converted(conversion: Converted) -> Converted:
    return conversion.reset()


class TestFull(FullLaws):
    pass


class TestFindings(FindingLaws):
    pass


class TestSubnets(SubnetLaws):
    pass


def test_other_text_length(converted: Converted) -> None:
    if isinstance(converted.inputs, tuple):
        pytest.skip("no text")
    inputs = {
        name: value[:, :9] if isinstance(value, torch.Tensor) else value for name, value in converted.inputs.items()
    }
    with torch.no_grad():
        assert_close_outputs(call(converted.model, inputs), call(converted.original, inputs), SINGLE)


def test_saved_and_loaded_is_the_same(converted: Converted, tmp_path: Path) -> None:
    model = converted.model
    model.save(tmp_path / "sorted")
    again = load(tmp_path / "sorted").eval()
    with torch.no_grad():
        for subnet in (model.space.full, model.space.smallest):
            with model.using(subnet), again.using(subnet):
                assert_close_outputs(converted.run(again), converted.run(model), SINGLE)
