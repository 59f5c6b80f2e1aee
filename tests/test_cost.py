"""Costs are exact: what the plan predicts for a sub-network is what running its extraction counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sorted_zoo import blueprint_of, found
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sortify import load, sortify
from sortify.costs.cost import Cost, CostModel, Term
from sortify.errors import InputError
from sortify.graph.dims import parse
from sortify.network.extract import extract
from sortify.space.space import Subnet

MODELS = """residual_mlp swiglu scalar_gate shared_block mixer qkv_per_head grouped_query_expand tied_embeddings
tiny_vit resnet resnext densenet group_norm""".split()


def counted(name: str, subnet: Subnet) -> tuple[int, int]:
    """Parameters and FLOPs of an extracted sub-network, by counting and by running it."""
    captured, blueprint = found(name)
    small = extract(blueprint, captured.tensors, subnet).eval()
    args, kwargs = blueprint.signature.call(captured.examples)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        small(*args, **kwargs)
    return sum(parameter.numel() for parameter in small.parameters()), counter.get_total_flops()


def random_subnets(name: str, count: int) -> list[Subnet]:
    """Every axis and chain at a size of its own, so that no two dimensions hide each other."""
    plan, space = found(name)[1].plan, found(name)[1].space
    generator = torch.Generator().manual_seed(0)

    def fraction() -> float:
        return float(torch.randint(1, 9, (1,), generator=generator)) / 8

    names = [*(axis.name for axis in plan.axes), *(chain.name for chain in plan.chains)]
    return [space.subnet(**{each: fraction() for each in names}) for _ in range(count)]


@pytest.mark.parametrize("name", MODELS)
def test_params_and_flops_equal_those_of_the_extraction(name: str) -> None:
    costs = found(name)[1].costs
    subnets = [found(name)[1].space.full, *random_subnets(name, 10)]
    predicted = [(costs(s.values).params, costs(s.values).flops) for s in subnets]
    assert predicted == [counted(name, subnet) for subnet in subnets]
    assert all(flops > 0 for _, flops in predicted)


@pytest.mark.parametrize("name", MODELS)
def test_every_cost_grows_along_nesting(name: str) -> None:
    _, blueprint = found(name)
    chain = [blueprint.costs(subnet.values) for subnet in blueprint.space.chain(6)]
    for metric in ("params", "flops", "activation_bytes"):
        values = [getattr(cost, metric) for cost in chain]
        assert values == sorted(values)
        assert 0 < values[0] < values[-1]


def test_activation_bytes_of_known_ops() -> None:
    """A linear layer and a relu make 3 x 12 floats each; the view in between makes nothing; the head 3 x 5."""
    net = nn.Sequential(nn.Linear(8, 12), nn.Unflatten(1, (3, 4)), nn.Flatten(), nn.ReLU(), nn.Linear(12, 5))
    _, blueprint = blueprint_of(net, (torch.rand(3, 8),))
    full = blueprint.costs(blueprint.space.full.values)
    assert full.activation_bytes == 4 * (3 * 12 + 3 * 12 + 3 * 5)
    assert full.params == 8 * 12 + 12 + 12 * 5 + 5
    assert full.flops == 2 * 3 * (8 * 12 + 12 * 5)


class Recurrent(nn.Module):
    """A recurrent layer between two linear ones, in float64: there torch counts the matrix products inside."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(3, 8), layer, nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.first(x))[0])


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(8, 6, 2, bidirectional=True, batch_first=True),
    "lstm with projection": lambda: nn.LSTM(8, 6, proj_size=3),
    "gru": lambda: nn.GRU(8, 6, 2, bias=False),
    "rnn": lambda: nn.RNN(8, 6, bidirectional=True),
    "lstm cell": lambda: nn.LSTMCell(8, 6),
    "gru cell": lambda: nn.GRUCell(8, 6),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_recurrent_layers_cost_what_their_products_cost(kind: str) -> None:
    x = torch.rand(4, 3).double() if "cell" in kind else torch.rand(4, 7, 3).double()
    net = Recurrent(LAYERS[kind]()).double()
    net(x)
    captured, blueprint = blueprint_of(net, (x,))
    for subnet in (blueprint.space.full, blueprint.space.subnet(width=0.5)):
        small = extract(blueprint, captured.tensors, subnet).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            small(x)
        assert blueprint.costs(subnet.values).flops == counter.get_total_flops()


Pair = Callable[[Tensor, Tensor, "Products"], Tensor]
CONTRACTIONS: dict[str, Pair] = {
    "matmul": lambda a, b, net: a @ net.core,
    "matmul of vectors": lambda a, b, net: a @ net.vector,
    "addmm": lambda a, b, net: torch.addmm(net.shift, a[0], net.core),
    "mm": lambda a, b, net: torch.mm(a[0], b[0].T),
    "bmm": lambda a, b, net: torch.bmm(a, b.transpose(1, 2)),
    "baddbmm": lambda a, b, net: torch.baddbmm(torch.bmm(a, b.transpose(1, 2)), a, b.transpose(1, 2)),
    "mv": lambda a, b, net: torch.mv(a[0], net.vector),
    "dot": lambda a, b, net: torch.dot(a[0, 0], net.vector),
    "outer": lambda a, b, net: torch.outer(a[0, 0], net.vector).sum(),
    "einsum of two": lambda a, b, net: torch.einsum("nsi,nti->nst", a, b),
    "einsum of three": lambda a, b, net: torch.einsum("nsi,ij,ntj->nst", a, net.core, b @ net.core),
    "einsum with a letter alone": lambda a, b, net: torch.einsum("nsi,ij->nj", a, net.core),
    "einsum with dots": lambda a, b, net: torch.einsum("...si,...ti,...t->...s", a, b, b.sum(-1)),
    "einsum of squares": lambda a, b, net: torch.einsum("nii,nij->nj", a[:, :3, :3], b[:, :3]),
    "tensordot": lambda a, b, net: torch.tensordot(a, net.core, ([2], [0])),
    "inner": lambda a, b, net: torch.inner(a, net.core.T),
    "addbmm": lambda a, b, net: torch.addbmm(torch.zeros(4, 4), a, b.transpose(1, 2)),
    "bilinear": lambda a, b, net: torch.nn.functional.bilinear(a, b, net.core[None] @ net.core.T),
    "cdist": lambda a, b, net: torch.cdist(a, b),
    "einsum of one": lambda a, b, net: torch.einsum("nsi->ni", a),
    "attention": lambda a, b, net: F.scaled_dot_product_attention(a[:, None], b[:, None], a[:, None]),
    "attention over more keys": lambda a, b, net: F.scaled_dot_product_attention(a[:, :2], b, torch.relu(b)),
}


class Products(nn.Module):
    """One op that contracts, on two hidden layers."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.pair = pair
        self.left, self.right = nn.Linear(8, 12), nn.Linear(8, 12)
        self.core, self.shift, self.vector = (nn.Parameter(torch.rand(*n)) for n in ((12, 10), (10,), (12,)))

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(self.left(x), self.right(x), self)


@pytest.mark.parametrize("op", CONTRACTIONS)
def test_a_contraction_is_counted_as_the_flop_counter_counts_it(op: str) -> None:
    captured, blueprint = blueprint_of(Products(CONTRACTIONS[op]), (torch.rand(3, 4, 8),))
    widths = (0.5, 0.75) if blueprint.plan.axes else ()
    for subnet in (blueprint.space.full, *(blueprint.space.subnet(width=width) for width in widths)):
        small = extract(blueprint, captured.tensors, subnet).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            small(*blueprint.signature.call(captured.examples)[0])
        assert blueprint.costs(subnet.values).flops == counter.get_total_flops()


def test_the_counter_is_not_fooled_by_full_sizes() -> None:
    """The comparison above can fail: a smaller sub-network really counts less."""
    _, blueprint = found("residual_mlp")
    smaller = blueprint.space.subnet(width=0.5)
    assert counted("residual_mlp", smaller) != counted("residual_mlp", blueprint.space.full)
    assert counted("residual_mlp", smaller)[1] != blueprint.costs(blueprint.space.full.values).flops


def test_terms_are_counted_while_an_owner_is_kept() -> None:
    terms = [
        Term("params", 2, (parse("a:4"), parse("(a:4 + 3)"))),
        Term("flops", 5, (), (((0, 1),),)),
        Term("flops", 1, (), (((0, 0),), ((0, 2),))),
    ]
    model = CostModel(terms, ["a"])
    assert model((4, 3)) == Cost(params=2 * 4 * 7, flops=6, activation_bytes=0)
    assert model((2, 1)) == Cost(params=2 * 2 * 5, flops=1, activation_bytes=0)
    assert model((2, 0)) == Cost(params=2 * 2 * 5, flops=0, activation_bytes=0)


@pytest.mark.parametrize("name", ["residual_mlp", "qkv_per_head"])
def test_costs_survive_json(name: str) -> None:
    _, blueprint = found(name)
    again = CostModel.from_json(blueprint.costs.to_json(), [axis.name for axis in blueprint.plan.axes])
    assert again.terms == blueprint.costs.terms
    for subnet in random_subnets(name, 3):
        assert again(subnet.values) == blueprint.costs(subnet.values)


# -- other batches and sequences ----------------------------------------------------------------------------------


class Pyramid(nn.Module):
    """Pictures of any size: a strided convolution halves them (rounding up), pooling halves them again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.max_pool2d(self.second(F.relu(self.first(x))), 2).mean((2, 3)))


class Attention(nn.Module):
    """Tokens of any number, whose cost grows with the square of it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Embedding(11, 16), nn.Linear(16, 48), nn.Linear(16, 7)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(x + y.transpose(1, 2).flatten(2))


@dataclass(frozen=True)
class Open:
    """A model, its input's sizes by name (None: fixed), its further open dimensions, and other sizes to try."""

    build: Callable[[], nn.Module]
    sizes: tuple[tuple[str | None, int], ...]
    others: tuple[dict[str, int], ...]
    dynamic: Mapping[str, tuple[int, ...]]

    def input(self, **sizes: int) -> Tensor:
        shape = [sizes.get(name, size) if name else size for name, size in self.sizes]
        return torch.rand(shape) if len(shape) > 2 else torch.randint(0, 11, shape)


OPEN = {
    "pyramid": Open(
        Pyramid,
        (("batch", 2), (None, 3), ("x_2", 16), ("x_3", 12)),
        ({"batch": 7}, {"x_2": 9}, {"batch": 3, "x_2": 21, "x_3": 33}),
        {"x": (2, 3)},
    ),
    "attention": Open(
        Attention,
        (("batch", 2), ("sequence", 6)),
        ({"batch": 5}, {"sequence": 9}, {"batch": 8, "sequence": 13}),
        {},
    ),
}


@pytest.mark.parametrize("name", OPEN)
def test_costs_at_other_sizes_are_what_runs_there(name: str) -> None:
    case = OPEN[name]
    model = sortify(case.build().eval(), (case.input(),), dynamic=case.dynamic)
    assert model.open_sizes == {each: size for each, size in case.sizes if each}
    seen = set()
    for subnet in (model.space.full, model.space.subnet(**dict.fromkeys(model.space.groups, 0.5))):
        small = model.extract(subnet=subnet)
        for sizes in ({}, *case.others):
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                small(case.input(**sizes))
            found = model.cost(subnet, **sizes)
            assert found.flops == counter.get_total_flops(), sizes
            assert list(model.costs([subnet], **sizes)) == [found]
            seen.add(found)
    assert len(seen) == 2 * (1 + len(case.others))


def test_activation_bytes_grow_with_the_batch() -> None:
    model = sortify(OPEN["attention"].build(), (OPEN["attention"].input(),))
    once, twice = model.cost(batch=4), model.cost(batch=8)
    assert twice.activation_bytes == 2 * once.activation_bytes
    assert twice.params == once.params


def test_sizes_that_are_fixed_are_refused() -> None:
    model = sortify(OPEN["pyramid"].build().eval(), (OPEN["pyramid"].input(),))
    with pytest.raises(InputError, match=r"x_2=9: the model has no open size 'x_2'; it has batch \(2\)"):
        model.cost(x_2=9)


def test_open_sizes_survive_a_checkpoint(tmp_path: Path) -> None:
    model = sortify(OPEN["pyramid"].build().eval(), (OPEN["pyramid"].input(),), dynamic=OPEN["pyramid"].dynamic)
    model.save(tmp_path)
    again = load(tmp_path)
    assert again.open_sizes == model.open_sizes
    assert again.cost(batch=3, x_2=21) == model.cost(batch=3, x_2=21) != model.cost()


class TwoInputs(nn.Module):
    """The tracer need not see that both inputs have one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5)) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(y)


def test_one_batch_stands_for_that_of_all_inputs() -> None:
    model = sortify(TwoInputs(), (torch.rand(2, 8), torch.rand(2, 8)))
    assert model.open_sizes == {"batch": 2}
    assert model.cost(batch=6).flops == 3 * model.cost().flops


def test_shares_tell_what_each_axis_multiplies() -> None:
    """Two layers of 8 x 16 and 16 x 5: the middle axis multiplies everything but the last bias."""
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
    model = sortify(net, (torch.rand(2, 8),))
    (axis,) = model.axes
    assert model.shares("flops") == {"": 1.0, axis: 1.0}
    assert model.shares("params")[axis] == pytest.approx(1 - 5 / (8 * 16 + 16 + 16 * 5 + 5))


def test_the_share_of_several_axes_counts_what_both_reach_once() -> None:
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5))
    model = sortify(module, (torch.randn(2, 8),))
    one, other = model.axes
    first, second, third = 8 * 16, 16 * 32, 32 * 5
    whole = first + second + third
    assert model.share([one]) == pytest.approx((first + second) / whole) == model.shares()[one]
    assert model.share([other]) == pytest.approx((second + third) / whole)
    assert model.share([one, other]) == 1.0 == model.shares()[""]
    assert model.share([]) == 0.0
