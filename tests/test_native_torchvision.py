"""Sub-networks as models of torchvision, and the code that makes them."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from sortify import NativeError, SortedModel, difference, sortify, to_native
from sortify.native import torchvision_models
from sortify.native.calls import arguments_of, defaults, expression, modules_of, noting, plain, restored
from sortify.native.settings import changed


@functools.cache
def converted() -> SortedModel:
    """A ResNet with another number of classes than its name stands for."""
    torch.manual_seed(0)
    module = torchvision.models.resnet18(weights=None, num_classes=5).eval()
    return sortify(module, (torch.rand(2, 3, 32, 32),)).eval()


def test_a_sub_network_is_a_model_of_torchvision(tmp_path: Path) -> None:
    model = converted()
    native = to_native(model, model.space.subnet(depth=0.25))
    assert native.changes == {"num_classes": 5, **{f"layers[{stage}]": 1 for stage in range(4)}}
    native.save(tmp_path / "small")
    code = (
        "import sys; sys.modules['sortify'] = None\n"
        "import torch\n"
        "from model import load\n"
        "torch.save(load()(torch.ones(2, 3, 32, 32)).detach(), 'out.pt')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "small", check=True)
    with torch.no_grad(), model.using(depth=0.25):
        assert difference(model(torch.ones(2, 3, 32, 32)), torch.load(tmp_path / "small" / "out.pt")) <= 1e-5


def test_what_the_arguments_cannot_say_is_no_model_of_the_class() -> None:
    model = converted()
    with pytest.raises(NativeError, match=r"no settings of resnet18 give a model with the shapes of width=0\.5"):
        to_native(model, model.space.subnet(width=0.5))


def test_a_file_that_does_not_make_the_model_never_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = to_native(converted(), converted().space.subnet(depth=0.25))
    monkeypatch.setattr(torchvision_models, "load", lambda folder: torchvision.models.resnet18(weights=None))
    with pytest.raises(NativeError, match=r"resnet18: model\.py does not make what was written"):
        native.save(tmp_path / "small")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["wide_resnet50_2", "regnet_x_400mf", "mnasnet0_75"])
def test_the_name_is_that_of_the_model_that_is_most_alike(name: str) -> None:
    module = torchvision.models.get_model(name, weights=None, num_classes=7)
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    assert torchvision_models.named(type(module).__name__, shapes) == name


def test_arguments_may_be_objects() -> None:
    given = torchvision_models.settings("regnet_y_400mf")
    assert given["block_params"]["depths"] == [1, 3, 6, 6]
    small = torchvision_models.shapes(
        "regnet_y_400mf", changed(given, {("block_params", "depths", 2): 1, ("stem_width",): 16})
    )
    assert small["stem.0.weight"] == (16, 3, 3, 3)
    assert "trunk_output.block3.block3-1.proj.0.weight" not in small


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vgg11", "VGG is made with what cannot be written down: features"),
        ("mobilenet_v3_small", "cannot be written down: inverted_residual_setting"),
    ],
)
def test_arguments_that_cannot_be_written_down_are_named(name: str, why: str) -> None:
    with pytest.raises(NativeError, match=why):
        torchvision_models.settings(name)


def test_a_class_without_a_name_is_refused() -> None:
    with pytest.raises(NativeError, match="has no name that stands for Sequential"):
        torchvision_models.named("Sequential", {})


# -- calls


@dataclass
class Stage:
    """Made of what it keeps."""

    channels: int
    layers: int = 2
    norm: Callable[..., nn.Module] = nn.BatchNorm2d


class Hidden:
    """Keeps something else than it is made of."""

    def __init__(self, name: str) -> None:
        self.upper = name.upper()


class Doubled:
    """Keeps another value than it is given."""

    def __init__(self, size: int) -> None:
        self.size = 2 * size


VALUES: list[Any] = [3, "a'b", None, [1, (2.5,), ()], Stage(4), [Stage(4, 3, nn.LayerNorm)], nn.GELU]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_code_makes_the_value_again(value: Any) -> None:
    code = expression(value)
    assert code is not None
    places = {place: sys.modules[place] for place in modules_of(value)}
    scope: dict[str, Any] = {place.partition(".")[0]: sys.modules[place.partition(".")[0]] for place in places}
    assert eval(code, scope) == value
    assert restored(value, plain(value)) == value


def test_code_of_a_partial() -> None:
    value = functools.partial(nn.LayerNorm, eps=1e-6)
    assert expression(value) == "functools.partial(torch.nn.modules.normalization.LayerNorm, eps=1e-06)"
    assert modules_of([value]) == {"functools", "torch.nn.modules.normalization"}
    assert restored([value], plain([value])) == [value]


@pytest.mark.parametrize("value", [lambda x: x, nn.Linear(1, 1), Hidden("a"), Doubled(1), [object()]])
def test_what_no_code_makes_has_none(value: Any) -> None:
    assert expression(value) is None
    assert isinstance(value, list) or arguments_of(value) is None


def test_settings_change_objects() -> None:
    found = restored([Stage(4), Stage(8)], [{"channels": 2, "layers": 2, "norm": None}, plain(Stage(6, 1))])
    assert found == [Stage(2), Stage(6, 1)]
    with pytest.raises(ValueError, match="shorter"):
        restored([Stage(4), Stage(8)], [plain(Stage(4))])


class Base(nn.Module):
    def __init__(self, size: int = 3, depth: int = 1) -> None:
        super().__init__()
        self.size, self.depth = size, depth


class Derived(Base):
    def __init__(self, width: int, *, rate: float = 0.5, **rest: Any) -> None:
        super().__init__(**rest)
        self.width, self.rate = width, rate


def test_a_call_is_noted_with_what_it_hands_on() -> None:
    with noting(Derived) as calls:
        Derived(4, depth=2)
    Derived(5)
    assert calls == [{"width": 4, "depth": 2}]
    assert defaults(Derived) == {"size": 3, "depth": 1, "rate": 0.5}
