"""One forward pass for several sub-networks: what they have in common is computed once.

Sub-networks of equal widths that differ in depth share all blocks of the shallowest, and so on: one pass gives the
outputs of all exits (Sorted LLaMA, arXiv 2309.08968, section 3). Any other difference only begins later or earlier in
the graph: a node is run once for each distinct set of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from sortify.graph.ops import nesting_restored
from sortify.network.network import Runner
from sortify.rewriting.rewrite import Bypass

if TYPE_CHECKING:
    from sortify.space.space import Subnet

Sizes = tuple[int, ...]


class Together:
    """The outputs of several sub-networks on the same inputs, computed when the first one is asked for.

    States: nothing computed; outputs waiting, each to be taken once.

    Args:
        subnets: which.
    """

    def __init__(self, subnets: Sequence[Subnet]) -> None:
        self._subnets = tuple(dict.fromkeys(subnets))
        self._inputs: list[Tensor] = []
        self._waiting: dict[Subnet, Any] = {}

    def take(self, subnet: Subnet, inputs: list[Tensor], run: Callable[[Sequence[Subnet]], list[Any]]) -> Any:
        """The output of a sub-network on these inputs.

        Args:
            subnet: one that is not among those of the start runs by itself.
            inputs: the very tensors of the call before, or others: then all is computed anew.
            run: gives the outputs of sub-networks on these inputs.
        """
        same = len(inputs) == len(self._inputs) and all(a is b for a, b in zip(inputs, self._inputs, strict=True))
        if not same or subnet not in self._waiting:
            if subnet not in self._subnets:
                return run([subnet])[0]
            self._inputs, self._waiting = list(inputs), dict(zip(self._subnets, run(self._subnets), strict=True))
        return self._waiting.pop(subnet)


def can_share(runner: Runner) -> bool:
    """Whether sub-networks may look at the same values: nothing is written to but counters that nobody reads."""
    graph = runner.module.graph
    own = {node for node in graph.nodes if node.op == "placeholder" and len(node.users) == 1}
    return all(_keeps(graph, own) for graph, own in [(graph, own), *_bodies(runner.module, own)])


def run_many(runner: Runner, sizes: Sequence[Sizes], axes: int, tensors: Any, inputs: Sequence[Tensor]) -> list[Any]:
    """The outputs of several sub-networks, in their order.

    Args:
        runner: a rewritten graph, see `can_share`.
        sizes: the values of each sub-network.
        axes: how many of them are sizes of axes; the others are depths.
        tensors, inputs: as for the runner itself.
    """
    with nesting_restored() if runner.nests else nullcontext():
        return _Many(runner, sizes, axes).outputs(runner.arguments(tensors, inputs))


class _Many:
    """The values of every node, one per sub-network; equal ones are one object."""

    def __init__(self, runner: Runner, sizes: Sequence[Sizes], axes: int) -> None:
        self._runner, self._sizes, self._axes = runner, list(sizes), axes
        self._values: dict[fx.Node, list[Any]] = {}

    def outputs(self, arguments: Sequence[Any]) -> list[Any]:
        nodes = list(self._runner.module.graph.nodes)
        last = {source: node for node in nodes for source in node.all_input_nodes}
        given = iter([self._sizes, *([value] * len(self._sizes) for value in arguments)])
        for node in nodes[:-1]:
            self._values[node] = list(next(given)) if node.op == "placeholder" else self._run(node)
            for source in node.all_input_nodes:
                if last[source] is node:
                    self._values.pop(source, None)
        flat = [map_arg(nodes[-1].args[0], self._of(run)) for run in range(len(self._sizes))]
        return [self._runner.outputs.build(each) for each in flat]

    def _of(self, run: int) -> Callable[[fx.Node], Any]:
        return lambda node: self._values[node][run]

    def _run(self, node: fx.Node) -> list[Any]:
        """Run a node once for each distinct set of inputs."""
        known, results = dict[Hashable, Any](), list[Any]()
        for run in range(len(self._sizes)):
            args: Any = map_arg(node.args, self._of(run))
            kwargs = map_arg(node.kwargs, self._of(run))
            if node.op == "call_module":
                keep, sizes, *entries = args
                args = (keep, sizes[: self._axes], *entries)  # a body knows no depth
            key = tuple(_same(leaf) for leaf in tree_leaves((args, kwargs)))
            if key not in known:
                known[key] = self._called(node, args, kwargs)
            results.append(known[key])
        return results

    def _called(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "get_attr":
            return getattr(self._runner.module, str(node.target))
        return self._runner.module.get_submodule(str(node.target))(*args, **kwargs)


def _same(leaf: Any) -> Hashable:
    """What is equal for equal arguments: a number by its value, anything else by what it is."""
    return (type(leaf), leaf) if isinstance(leaf, (bool, int, float, str)) else id(leaf)


def _bodies(module: fx.GraphModule, own: set[fx.Node]) -> Iterator[tuple[fx.Graph, set[fx.Node]]]:
    """The body of every block, with what it is given that nobody else uses."""
    for node in module.graph.nodes:
        if node.op == "call_module":
            block = module.get_submodule(str(node.target))
            assert isinstance(block, Bypass)
            holes = [hole for hole in block.body.graph.nodes if hole.op == "placeholder"]
            given = zip(holes, node.args[1:], strict=True)
            yield block.body.graph, {hole for hole, value in given if value in own and len(hole.users) == 1}


def _keeps(graph: fx.Graph, own: set[fx.Node]) -> bool:
    """Whether a graph leaves all values as they are, but those of `own`."""
    writes = (n for n in graph.nodes if getattr(getattr(n.target, "_schema", None), "is_mutable", False))
    return all(len(node.all_input_nodes) == 1 and node.args[0] in own and not node.users for node in writes)
