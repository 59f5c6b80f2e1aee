"""The laws that every converted model obeys; tests/test_models.py and tests/test_libraries.py run them over tables.

A test file inherits the classes below and defines a fixture `converted`: a `Converted` in its first state (full,
weights as built, eval mode).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

import pytest
import torch
from compare import assert_close_outputs, assert_same_tensors, max_error, tensors
from torch import Tensor, nn
from zoo import Case, call, repeated

from sortify import SortedModel, Subnet, sortify
from sortify.network.extract import cut
from sortify.training.landing import Landing

SINGLE = 1e-5
"""Relative error allowed in float32."""
PERMUTED = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Largest permutation error in a model that computes in float64, and in one that casts to float32 itself."""


class Converted:
    """One case converted: the original, the sorted model, and the state to which both return before each law."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.inputs = case.inputs()
        self.original = case.build()
        self.given = case.build()
        self.was_training = self.given.training
        self.model = sortify(self.given, self.inputs)
        self.given_state = copied(self.given.state_dict())
        self.state = copied(self.original.state_dict())

    def reset(self) -> Converted:
        """Weights and running statistics as built, full size, eval mode, no gradients."""
        for module in (self.original, self.model):
            module.load_state_dict(self.state)
            module.zero_grad(set_to_none=True)
            module.eval()
        self.model.activate(self.model.space.full)
        return self

    def run(self, module: nn.Module, seed: int = 5) -> Any:
        """Call with the example inputs; the same random numbers at each call."""
        torch.manual_seed(seed)
        return call(module, self.inputs)

    def subnets(self) -> list[Any]:
        """The smallest sub-network, the half one, and two random ones."""
        space, generator = self.model.space, torch.Generator().manual_seed(1)
        half = space.subnet(**dict.fromkeys(space.groups, 0.5))
        return [space.smallest, half, space.sample(generator), space.sample(generator)]


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with memory of its own."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def loss(output: Any) -> Tensor:
    """A number that depends on every float of the output."""
    return torch.stack([leaf.float().square().mean() for leaf in tensors(output) if leaf.is_floating_point()]).sum()


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Gradients by the names of the state dict, zero where there is none; a tied parameter under each of its names."""
    owner = {parameter.data_ptr(): parameter for parameter in module.parameters()}
    found = ((name, tensor, owner.get(tensor.data_ptr())) for name, tensor in module.state_dict().items())
    return {
        name: torch.zeros_like(tensor) if parameter.grad is None else parameter.grad
        for name, tensor, parameter in found
        if parameter is not None
    }


def elastic_names(model: Any) -> set[str]:
    """The parameters that carry an elastic axis in some dimension."""
    return {name for axis in model.axes.values() for name in axis.parameters}


def elastic_share(model: Any, original: nn.Module) -> float:
    """Numbers in parameters with an elastic dimension, as a share of all; tied parameters count once."""
    elastic = elastic_names(model)
    sizes = {name: parameter.numel() for name, parameter in original.named_parameters()}
    return sum(size for name, size in sizes.items() if name in elastic) / sum(sizes.values())


def size(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def placed_back(model: SortedModel, subnet: Subnet, small: nn.Module) -> dict[str, Tensor]:
    """Gradients of an extracted sub-network at their places in tensors of full size, zero elsewhere."""
    full = {}
    for name, parameter in small.named_parameters():
        if parameter.grad is not None:
            whole = model.tensors[name]
            places = cut(model.plan, name, torch.arange(whole.numel(), device=whole.device).view(whole.shape), subnet)
            full[name] = torch.zeros_like(whole).flatten().index_copy(0, places.flatten(), parameter.grad.flatten())
            full[name] = full[name].view(whole.shape)
    return full


def largest_gap(found: Mapping[str, Tensor | None], expected: Mapping[str, Tensor]) -> float:
    """The largest difference of gradients, relative to the largest one of all; infinite where one is missing."""
    there = {name: gradient for name, gradient in found.items() if gradient is not None}
    if there.keys() != expected.keys():
        return float("inf")
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    return max(float((there[name] - expected[name]).abs().max()) for name in there) / scale


class FullLaws:
    """The full sub-network is the original model."""

    def test_equal_in_eval(self, converted: Converted) -> None:
        assert not converted.model.training
        with torch.no_grad():
            expected = converted.run(converted.original)
            assert_close_outputs(converted.run(converted.model), expected, SINGLE)

    def test_equal_in_train(self, converted: Converted) -> None:
        original, model = converted.original.train(), converted.model.train()
        assert_close_outputs(converted.run(model), converted.run(original), SINGLE)
        assert_close_outputs(dict(model.state_dict()), dict(original.state_dict()), SINGLE)

    def test_equal_gradients(self, converted: Converted) -> None:
        original, model = converted.original.train(), converted.model.train()
        loss(converted.run(original)).backward()
        loss(converted.run(model)).backward()
        expected, actual = gradients(original), gradients(model)
        assert list(actual) == list(expected)
        largest = max(float(gradient.abs().max()) for gradient in expected.values())
        assert largest > 0
        for name, gradient in expected.items():  # a bias before a norm has a gradient of rounding errors only
            scale = max(float(gradient.abs().max()), 1e-3 * largest)
            error = float((actual[name] - gradient).abs().max()) / scale
            assert error <= 1e-4, f"gradient of {name}: relative error {error:.3g}"

    @pytest.mark.parametrize("times", [2, 3])
    def test_other_batch_sizes(self, converted: Converted, times: int) -> None:
        inputs = repeated(converted.inputs, times)
        with torch.no_grad():
            assert_close_outputs(call(converted.model, inputs), call(converted.original, inputs), SINGLE)

    def test_state_keeps_names_and_values(self, converted: Converted) -> None:
        assert_same_tensors(converted.model.state_dict(), converted.original.state_dict())
        assert size(converted.model) == size(converted.original)

    def test_given_module_is_left_as_it_was(self, converted: Converted) -> None:
        assert_same_tensors(converted.given_state, converted.original.state_dict())
        assert converted.given.training == converted.was_training
        assert all(parameter.grad is None for parameter in converted.given.parameters())


class FindingLaws:
    """What is found in the model, and its proof."""

    def test_axes_by_kind(self, converted: Converted) -> None:
        axes = converted.model.axes
        assert dict(Counter(axis.kind for axis in axes.values())) == converted.case.elastic, list(axes)

    def test_axes_are_well_formed(self, converted: Converted) -> None:
        known = dict(converted.original.named_parameters(remove_duplicate=False))
        for name, axis in converted.model.axes.items():
            assert axis.name == name
            assert axis.levels[-1] == axis.size > 1
            assert list(axis.levels) == sorted(set(axis.levels))
            assert axis.group == ("heads" if axis.kind == "heads" else "width")
            assert axis.parameters, f"{name} is carried by no parameter"
            assert set(axis.parameters) <= set(known)

    def test_chains(self, converted: Converted) -> None:
        lengths = [len(chain.blocks) for chain in converted.model.chains.values()]
        assert tuple(length for length in lengths if length > 1) == converted.case.chains, dict(converted.model.chains)

    def test_elastic_share(self, converted: Converted) -> None:
        names = [name for name, _ in converted.original.named_parameters()]
        expected = {name for name in names if any(fnmatch(name, pattern) for pattern in converted.case.fixed)}
        assert set(names) - elastic_names(converted.model) == expected
        assert elastic_share(converted.model, converted.original) >= converted.case.share

    def test_frozen_has_reasons(self, converted: Converted) -> None:
        texts = [f"{frozen.where}: {frozen.op}: {frozen.why}" for frozen in converted.model.frozen]
        assert all(frozen.where.strip() and frozen.why.strip() for frozen in converted.model.frozen)
        assert not any("\n" in text for text in texts)
        for word in converted.case.frozen:
            assert any(word in text for text in texts), f"no reason names {word}: {texts}"

    def test_proof(self, converted: Converted) -> None:
        report = converted.model.verify()
        rows = {row.name: row for row in report.rows}
        assert report.passed, [row for row in report.rows if not row.passed]
        assert all(row.error <= row.tolerance for row in rows.values())
        for law in ("identity", "permut", "extract"):
            assert any(law in name for name in rows), f"no row proves {law}: {list(rows)}"
        allowed = PERMUTED[torch.float32 if converted.case.casts else torch.float64]
        assert all(row.error <= allowed for name, row in rows.items() if "permut" in name)


class SubnetLaws:
    """Every nested sub-network runs, learns, and equals its extraction."""

    def test_nested(self, converted: Converted) -> None:
        space = converted.model.space
        for subnet in converted.subnets():
            assert space.full.contains(subnet)
            assert subnet.contains(space.smallest)
            assert subnet == space.full or not subnet.contains(space.full)

    def test_forward_and_backward(self, converted: Converted) -> None:
        model = converted.model.train()
        for subnet in converted.subnets():
            model.zero_grad(set_to_none=True)
            with model.using(subnet):
                assert model.active == subnet
                value = loss(converted.run(model))
                value.backward()
            assert value.isfinite()
            found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            assert found
            assert all(gradient.isfinite().all() for gradient in found)
            assert any(gradient.abs().max() > 0 for gradient in found)
        assert model.active == model.space.full

    def test_equals_its_extraction(self, converted: Converted) -> None:
        model = converted.model
        with torch.no_grad():
            for subnet in (model.space.full, *converted.subnets()):
                small = model.extract(subnet=subnet).eval()
                with model.using(subnet):
                    expected = converted.run(model)
                assert_close_outputs(converted.run(small), expected, SINGLE)
                assert size(small) == model.cost(subnet).params, subnet

    def test_equals_its_extraction_in_train(self, converted: Converted) -> None:
        model = converted.model.train()
        half = converted.subnets()[1]
        small = model.extract(subnet=half).train()
        with torch.no_grad(), model.using(half):
            expected = converted.run(model)
            assert_close_outputs(converted.run(small), expected, SINGLE)

    def test_gradients_are_those_of_its_extraction(self, converted: Converted) -> None:
        model = converted.model.train()
        landing = Landing(model)
        for subnet in converted.subnets():
            small = model.extract(subnet=subnet).train()
            loss(converted.run(small)).backward()
            with model.using(subnet), landing():
                loss(converted.run(model)).backward()
            found = {name: parameter.grad for name, parameter in model.named_parameters()}
            assert largest_gap(found, placed_back(model, subnet, small)) < SINGLE
            model.zero_grad(set_to_none=True)

    def test_smaller_is_another_function(self, converted: Converted) -> None:
        model = converted.model
        with torch.no_grad():
            full = converted.run(model)
            with model.using(model.space.smallest):
                assert max_error(converted.run(model), full) > 1e-3

    def test_cost_grows_with_size(self, converted: Converted) -> None:
        model = converted.model
        full, smallest = model.cost(model.space.full), model.cost(model.space.smallest)
        assert full.params == size(converted.original)
        assert 0 < smallest.params < full.params
        assert 0 < smallest.flops < full.flops
        assert 0 < smallest.activation_bytes < full.activation_bytes

    def test_half_the_flops(self, converted: Converted) -> None:
        model = converted.model
        budget = 0.5 * model.cost(model.space.full).flops
        if model.cost(model.space.smallest).flops > budget:
            pytest.skip("the smallest sub-network costs more than half")
        assert model.cost(model.space.at(budget=0.5, metric="flops")).flops <= budget
