"""Sub-networks through `torch.compile`, with few graphs for many of them.

Compiled as it stands, a sorted model would be compiled anew for every sub-network: its sizes are constants to the
compiler, and so are the places of slices. Here the weights are cut first, and what is compiled is a graph that takes
them at the size they have: its widths are symbols, and a choice of blocks needs two graphs for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn
from torch.fx.experimental import _config as config

from sortify.graph.ops import without_dead_code
from sortify.network.network import Runner
from sortify.rewriting.rewrite import Bypass
from sortify.rewriting.slicing import take, take_copy

Sizes = tuple[int, ...]
Slicer = Callable[[torch.Tensor, Sizes], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Flat:
    """A rewritten graph for one choice of blocks, which takes its tensors cut to size.

    Attributes:
        runner: `module(sizes, device, dtype, *tensors, *inputs)`, without slice nodes and without blocks.
        slicers: for the tensors that have to be cut, how.
    """

    runner: Runner
    slicers: Mapping[str, Slicer]

    def cut(self, sizes: Sizes, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors that the graph takes, cut to these sizes.

        A parameter of full size is handed on as a plain tensor, like all others: the compiler tells the two apart.
        """
        found = {name: tensors[name] for name in self.runner.tensors}
        for name, cut in self.slicers.items():
            found[name] = cut(found[name], sizes)
        return {name: x.view_as(x) if isinstance(x, nn.Parameter) else x for name, x in found.items()}


class Compiler:
    """Runs sub-networks compiled. A graph is made when a sub-network first needs it.

    Widths are symbols where the compiler is told so. A choice of blocks then has one graph in each mode for weights
    that are whole, and one for all that are cut: those have gaps, which the compiler asks about. There are more where
    some groups are whole and others are not, and where an axis has a single unit. Else widths are constants, which the
    compiler can make more of, and every sub-network has a graph of its own. Graphs that run something under
    `torch.vmap` are not compiled.

    Args:
        axes: how many of the values of a sub-network are sizes of axes; the others are depths.
        dynamic: whether widths are symbols.
        options: further arguments of `torch.compile`.
    """

    def __init__(self, axes: int, dynamic: bool = True, options: Mapping[str, Any] | None = None) -> None:
        self._axes, self._dynamic, self._options = axes, dynamic, dict(options or {})
        self._made = WeakKeyDictionary[Runner, dict[Sizes, tuple[Flat, Callable[..., Any]]]]()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy has the settings, and makes its own graphs."""
        return Compiler, (self._axes, self._dynamic, self._options)

    def __call__(
        self, runner: Runner, sizes: Sizes, tensors: Mapping[str, torch.Tensor], inputs: Sequence[torch.Tensor]
    ) -> Any:
        """Run a sub-network as the rewritten graph does."""
        if runner.nests:
            return runner((sizes,), tensors, inputs)
        made = self._made.setdefault(runner, {})
        key = sizes[self._axes :] if self._dynamic else sizes
        if key not in made:
            flat = flatten(runner, sizes)
            made[key] = flat, torch.compile(flat.runner.module, dynamic=self._dynamic, **self._options)
        flat, call = made[key]
        with config.patch(use_duck_shape=False):  # type: ignore[attr-defined]  # equal sizes may differ next time
            return flat.runner.run_with(call, flat.cut(sizes, tensors), inputs, (sizes[: self._axes],))


def flatten(runner: Runner, sizes: Sizes) -> Flat:
    """Write the blocks that a sub-network keeps into the main graph, and take the slice nodes out.

    Args:
        runner: a rewritten graph.
        sizes: the values of a sub-network; only its depths matter.
    """
    writer = _Flattener(sizes)
    graph = writer.graph
    graph.output(writer.copy(runner.module, {}))
    without_dead_code(graph)
    holes = [node for node in graph.nodes if node.op == "placeholder"]
    names = dict(zip(holes[3:], runner.tensors, strict=False))
    for hole in names:
        if not hole.users:
            graph.erase_node(hole)
    graph.lint()
    used = {hole: name for hole, name in names.items() if hole.users}
    slicers = {name: writer.slicers[hole] for hole, name in used.items() if hole in writer.slicers}
    return Flat(Runner(fx.GraphModule(nn.Module(), graph), tuple(used.values()), runner.outputs), slicers)


class _Flattener:
    """Copies a rewritten graph, then the bodies of its blocks where they are called."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self.graph = fx.Graph()
        self.slicers: dict[fx.Node, Slicer] = {}

    def copy(self, module: fx.GraphModule, env: dict[fx.Node, Any]) -> Any:
        """Copy the nodes of a graph; `env` holds what stands for its placeholders, none in the main graph."""
        for node in module.graph.nodes:
            if node.op == "output":
                return fx.node.map_arg(node.args[0], env.__getitem__)
            if node.op == "call_module":
                env[node] = self._block(module.get_submodule(str(node.target)), node, env)
            elif node.target in (take, take_copy):
                env[node] = self._uncut(node, env)
            elif node not in env:
                env[node] = self.graph.node_copy(node, env.__getitem__)
        raise AssertionError("a graph without an output")

    def _block(self, block: nn.Module, node: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
        assert isinstance(block, Bypass)
        keep, *given = node.args
        entries = [env[each] for each in given if isinstance(each, fx.Node)]
        if not self._kept(keep):
            return entries[1]
        holes = [hole for hole in block.body.graph.nodes if hole.op == "placeholder"]
        return self.copy(block.body, dict(zip(holes, entries, strict=True)))

    def _kept(self, keep: Any) -> bool:
        entry, number = keep.args
        return bool(keep.target(self._sizes[entry.args[1]], number))

    def _uncut(self, node: fx.Node, env: Mapping[fx.Node, Any]) -> fx.Node:
        tensor, shape, entries = node.args
        hole = env[tensor]  # type: ignore[index]
        assert isinstance(hole, fx.Node)
        assert isinstance(shape, str)
        indices: list[int] = [each.args[1] for each in entries]  # type: ignore[union-attr, misc]
        slicer = take if node.target is take else take_copy
        self.slicers[hole] = lambda value, sizes: slicer(value, shape, [sizes[index] for index in indices])
        return hole
