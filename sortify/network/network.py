"""A module made of graphs: tensors under their original names, one graph per mode, the original call signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from sortify.capture.capture import TensorInfo
from sortify.capture.lifting import Program
from sortify.graph.ops import RUNNING, argument, has_effect, nesting_restored, nests
from sortify.graph.signature import Signature
from sortify.graph.structure import Structure

STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, eq=False)
class Runner:
    """An executable graph: `module(*leading, device, dtype, *tensors, *inputs)` returns the flat outputs.

    Attributes:
        nests: whether it runs something under `torch.vmap`.
    """

    module: fx.GraphModule
    tensors: tuple[str, ...]
    outputs: Structure
    nests: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nests", nests(self.module.graph))

    def __call__(
        self, leading: Sequence[Any], tensors: Mapping[str, torch.Tensor], inputs: Sequence[torch.Tensor]
    ) -> Any:
        """Run on any tensors: `tensors` maps original names to what stands in for them (looked up as needed)."""
        return self.run_with(self.module, tensors, inputs, leading)

    def run_with(
        self,
        run: Callable[..., Any],
        tensors: Mapping[str, torch.Tensor],
        inputs: Sequence[torch.Tensor],
        leading: Sequence[Any] = (),
    ) -> Any:
        """As a call, with something else that takes the graph's arguments in the place of the graph."""
        with nesting_restored() if self.nests else nullcontext():
            return self.outputs.build(run(*leading, *self.arguments(tensors, inputs)))

    def arguments(self, tensors: Mapping[str, torch.Tensor], inputs: Sequence[torch.Tensor]) -> list[Any]:
        """What the graph takes after the leading arguments: the device and dtype that literals follow, then tensors."""
        values = [tensors[name] for name in self.tensors]
        reference = next((t for t in values if t.is_floating_point()), None)
        reference = reference if reference is not None else next(iter([*values, *inputs]))
        return [reference.device, reference.dtype, *values, *inputs]


def used_tensors(program: Program) -> dict[fx.Node, str]:
    """The placeholders of tensors that something uses, and the tensors' names."""
    holes = [node for node in program.graph.nodes if node.op == "placeholder"][2:]
    return {node: name for node, name in zip(holes, program.tensors, strict=False) if node.users}


def followed(inputs: Sequence[torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Inputs on the device and in the dtype that a model's tensors have by now."""
    like = next((tensor for tensor in tensors.values() if tensor.is_floating_point()), None)
    if like is None:
        return list(inputs)
    return [each.to(like.device, like.dtype if each.is_floating_point() else None) for each in inputs]


def running_statistics(program: Program) -> list[str]:
    """The names of the running means and variances that normalisations use."""
    names = used_tensors(program)
    values = [argument(node, name) for node in program.graph.nodes for name in STATISTICS]
    return list(dict.fromkeys(names[value] for value in values if isinstance(value, fx.Node) and value in names))


def written_statistics(program: Program) -> list[str]:
    """The names of the running means and variances that normalisations write and do not read."""
    names = used_tensors(program)
    writers = [node for node in program.graph.nodes if node.target in RUNNING and has_effect(node)]
    values = [argument(node, name) for node in writers for name in STATISTICS]
    return list(dict.fromkeys(names[value] for value in values if isinstance(value, fx.Node) and value in names))


class TensorStore(Mapping[str, torch.Tensor]):
    """The tensors of a tree of plain modules by their original names, looked up at each use."""

    def __init__(self, places: Mapping[str, tuple[dict[str, Any], str]]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> torch.Tensor:
        table, key = self._places[name]
        found = table[key]
        assert isinstance(found, torch.Tensor)
        return found

    def __iter__(self) -> Any:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class GraphModule(nn.Module):
    """Base of sorted and extracted models.

    Parameters and buffers live in a tree of plain modules that repeats the original names, so `state_dict()` and
    `named_parameters()` are those of the original model; the graphs hold no tensors of their own.
    """

    accepts_loss_kwargs = False  # asked by `transformers.Trainer`: a graph takes what it was captured with

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        infos: Mapping[str, TensorInfo],
        aliases: Mapping[str, str],
        signature: Signature,
        *,
        owned: bool = False,
    ) -> None:
        """Make the tree.

        Args:
            tensors: by original name; infos: what each is; aliases: further names of tied ones.
            signature: how calls become tensors.
            owned: the tensors are nobody else's: they are taken as they are, not copied.
        """
        super().__init__()
        self.signature = signature
        self._infos = dict(infos)
        self._aliases = dict(aliases)
        hold(self, _tree(tensors, infos, aliases, owned))
        self._store = TensorStore({name: _place(self, name) for name in infos})

    def __setattr__(self, name: str, value: Any) -> None:
        """Attributes may have the names of the original's modules: those stand in `named_modules()`."""
        if isinstance(value, (nn.Module, torch.Tensor)):
            super().__setattr__(name, value)
        else:
            object.__setattr__(self, name, value)

    @property
    def tensors(self) -> TensorStore:
        """Every tensor that the graphs use, by original name."""
        return self._store

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
        return self.signature.bind(args, kwargs)


def hold(module: nn.Module, tree: nn.Module) -> None:
    """Make the children and tensors of `tree` those of `module` too, by the same names, for all changes to come."""
    for table in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
        vars(module)[table] = vars(tree)[table]


def _tree(
    tensors: Mapping[str, torch.Tensor], infos: Mapping[str, TensorInfo], aliases: Mapping[str, str], owned: bool
) -> nn.Module:
    root = nn.Module()
    made: dict[str, Any] = {}
    for name in [*tensors, *aliases]:
        first = aliases.get(name, name)
        if first not in made:
            value = tensors[first].detach() if owned else tensors[first].detach().clone()
            parameter = infos[first].kind == "parameter"
            made[first] = nn.Parameter(value, infos[first].requires_grad) if parameter else value
        path, _, key = name.rpartition(".")
        holder = _holder(root, path)
        # Written directly: the public methods refuse names such as `type`, which the original may use.
        if isinstance(made[first], nn.Parameter):
            holder._parameters[key] = made[first]
        else:
            holder._buffers[key] = made[first]
            if infos[first].kind != "buffer":
                holder._non_persistent_buffers_set.add(key)
    return root


def _holder(root: nn.Module, path: str) -> nn.Module:
    for part in path.split(".") if path else ():
        if part not in root._modules:
            root._modules[part] = nn.Module()
        child = root._modules[part]
        assert child is not None
        root = child
    return root


def _place(root: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    path, _, key = name.rpartition(".")
    holder = _holder(root, path)
    return (holder._parameters if key in holder._parameters else holder._buffers), key
