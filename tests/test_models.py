"""The laws over user-written models, networks sliced by hand as an independent witness, saving, and refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import pytest
import torch
import zoo_attention as attention
import zoo_conv as conv
import zoo_dense as dense
from compare import assert_close_outputs, assert_same_tensors
from laws import SINGLE, Converted, FindingLaws, FullLaws, SubnetLaws
from torch import Tensor, nn
from zoo import MODELS, NOTHING_ELASTIC, Case, call

from sortify import load, sortify
from sortify.errors import AxesError, BudgetError, InputError

CASES = {case.name: case for case in MODELS}


@pytest.fixture(scope="module", params=MODELS, ids=lambda case: case.name)
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


def test_table_has_no_duplicates() -> None:
    assert len(CASES) == len(MODELS)


Ranges = tuple[tuple[int, int], ...]
THIRDS: Ranges = ((0, 16), (32, 48), (64, 80))
STAGE_2: Ranges = ((0, 2), (4, 8), (12, 14))
STAGE_3: Ranges = ((0, 4), (8, 10), (12, 16), (20, 22), (24, 28))


@dataclass(frozen=True)
class ByHand:
    """A sub-network that a user would write down: the same class with half the sizes, its weights cut out by hand.

    Attributes:
        case: The full model's name in the table.
        small: Makes the small network.
        depth: Fraction of the blocks that it keeps.
        kept: "parameter:dimension" (fnmatch) -> the index ranges that stay; a prefix where nothing is said.
    """

    case: str
    small: Callable[[], nn.Module]
    depth: float = 1.0
    kept: Mapping[str, Ranges] = field(default_factory=dict)

    def cut(self, name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
        """The part of a full tensor that the small network has."""
        for dim, size in enumerate(shape):
            ranges = next((kept for key, kept in self.kept.items() if fnmatch(f"{name}:{dim}", key)), ((0, size),))
            tensor = torch.cat([tensor.narrow(dim, start, stop - start) for start, stop in ranges], dim=dim)
        return tensor

    def build(self, full: Mapping[str, Tensor]) -> nn.Module:
        """The small network with its weights, in eval mode."""
        small = self.small()
        shapes = {name: tensor.shape for name, tensor in small.state_dict().items()}
        small.load_state_dict({name: self.cut(name, full[name], shape) for name, shape in shapes.items()})
        return small.eval()


HALF_TOKENS = partial(attention.TokenNet, width=16, heads=2, head_dim=8, inner=24)
BY_HAND = (
    ByHand("mlp", partial(dense.MLP, 8, 16, 12)),
    ByHand("residual_mlp", partial(dense.ResidualMLP, 16, 24, blocks=2), depth=0.5),
    ByHand("glu_chunk", partial(dense.Stack, dense.GLUBlock, 2, 16, 12), kept={"*.up.*:0": ((0, 12), (24, 36))}),
    ByHand("qkv_split", partial(HALF_TOKENS, attention.SplitQKV), kept={"*.qkv.*:0": THIRDS}),
    ByHand("qkv_chunk", partial(HALF_TOKENS, attention.ChunkQKV), kept={"*.qkv.*:0": THIRDS}),
    ByHand("qkv_reshape", partial(HALF_TOKENS, attention.ReshapeQKV, blocks=1), 0.5, {"*.qkv.*:0": THIRDS}),
    ByHand("qkv_per_head", partial(HALF_TOKENS, attention.PerHeadQKV)),
    ByHand("qkv_einsum", partial(HALF_TOKENS, attention.EinsumQKV)),
    ByHand("rotary", partial(HALF_TOKENS, attention.RotaryAttention), kept={"*.qkv.*:0": THIRDS}),
    ByHand("grouped_query_interleave", partial(HALF_TOKENS, attention.GroupedQuery)),
    ByHand("grouped_query_expand", partial(HALF_TOKENS, attention.GroupedQueryExpand)),
    ByHand("multi_query", partial(HALF_TOKENS, attention.MultiQuery)),
    ByHand("relative_bias", partial(HALF_TOKENS, attention.RelativeBiasAttention), kept={"*.qkv.*:0": THIRDS}),
    ByHand("resnet", partial(conv.ResNet, 4, 8)),
    ByHand("flatten", partial(conv.FlattenNet, 4, 8, 16)),
    ByHand(
        "resnet_option_a",
        partial(conv.OptionAResNet, 4),
        kept={
            "layers.[345].conv2*:0": STAGE_2,
            "layers.[45].conv1.0.weight:1": STAGE_2,
            "layers.6.conv1.0.weight:1": STAGE_2,
            "layers.[678].conv2*:0": STAGE_3,
            "layers.[78].conv1.0.weight:1": STAGE_3,
            "fc.weight:1": STAGE_3,
        },
    ),
)


@pytest.mark.parametrize("witness", BY_HAND, ids=lambda witness: witness.case)
def test_half_equals_the_network_sliced_by_hand(witness: ByHand) -> None:
    case = CASES[witness.case]
    model = sortify(case.build(), case.inputs()).eval()
    expected = witness.build(model.state_dict())
    fractions = {"width": 0.5, "heads": 0.5, "depth": witness.depth}
    with torch.no_grad(), model.using(**{group: fractions[group] for group in model.space.groups}):
        assert_close_outputs(call(model, case.inputs()), call(expected, case.inputs()), SINGLE)


SAVED = ("mlp", "drop_path", "model_output", "keyword_inputs", "qkv_per_head", "tied_embeddings", "resnet_option_a")


@pytest.mark.parametrize("name", SAVED)
def test_saved_and_loaded_is_the_same(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = sortify(case.build(), case.inputs())
    model.save(tmp_path / "sorted")
    again = load(tmp_path / "sorted")
    assert_same_tensors(again.state_dict(), model.state_dict())
    assert list(again.axes) == list(model.axes)
    assert again.space.full == model.space.full
    for training in (True, False):
        for subnet in (model.space.full, model.space.smallest):
            found, expected = (seeded(m, case, training, subnet) for m in (again, model))
            assert_close_outputs(without_class(found), without_class(expected), SINGLE)


def without_class(output: object) -> object:
    """Classes of the user's own are not imported from a checkpoint: their fields come back in a mapping."""
    return dict(output) if isinstance(output, Mapping) else output


def seeded(model: nn.Module, case: Case, training: bool, subnet: object) -> object:
    """The sub-network's output, with the same random numbers each time."""
    torch.manual_seed(5)
    with model.train(training).using(subnet):
        return call(model, case.inputs())


def test_using_comes_back_after_an_error() -> None:
    model = sortify(CASES["mlp"].build(), CASES["mlp"].inputs())
    assert broken(model) == "stop"
    assert model.active == model.space.full


def broken(model: nn.Module) -> str:
    """Leave a `using` block by an error."""
    try:
        with model.using(width=0.5):
            raise KeyError("stop")
    except KeyError as error:
        return error.args[0]


@pytest.fixture(scope="module")
def mlp() -> nn.Module:
    return sortify(CASES["mlp"].build(), CASES["mlp"].inputs())


def test_nothing_elastic_is_refused_with_reasons() -> None:
    with pytest.raises(AxesError, match=r"nothing .*elastic") as refusal:
        sortify(NOTHING_ELASTIC.build(), NOTHING_ELASTIC.inputs())
    assert "input" in str(refusal.value) or "output" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_wrong_width_is_refused(mlp: nn.Module) -> None:
    with pytest.raises(InputError, match=r"expected .*8.*got .*9"):
        mlp(torch.randn(3, 9))


def test_missing_input_is_refused(mlp: nn.Module) -> None:
    with pytest.raises(InputError, match="x"):
        mlp()


def test_unknown_axis_is_refused(mlp: nn.Module) -> None:
    with pytest.raises(AxesError, match="length"):
        mlp.activate(length=0.5)


def test_budget_too_small_names_the_smallest(mlp: nn.Module) -> None:
    smallest = mlp.cost(mlp.space.smallest).flops / mlp.cost(mlp.space.full).flops
    with pytest.raises(BudgetError, match=r"smallest") as refusal:
        mlp.space.at(budget=smallest / 2, metric="flops")
    assert f"{smallest:.2g}"[:4] in str(refusal.value) or f"{100 * smallest:.2g}" in str(refusal.value)
