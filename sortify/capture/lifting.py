"""Lifting: an exported module becomes a plain graph, a pure function of its tensors and inputs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import fx, nn
from torch.fx.node import map_arg

from sortify.capture.places import seen_from_here
from sortify.errors import CaptureError, ExportError
from sortify.graph.graphs import register_function
from sortify.graph.ops import without_dead_code
from sortify.graph.signature import LeafSpec
from sortify.graph.structure import Structure, flatten

DEVICE, DTYPE = "device", "dtype"
RESERVED = frozenset({DEVICE, DTYPE, "sizes"})


@dataclass(frozen=True, eq=False)
class Program:
    """One captured mode.

    The graph's placeholders are `device`, `dtype`, one per name in `tensors`, one per input tensor.
    Its output is the flat list of output tensors; `outputs` rebuilds the nested value. `notes` tell what the graph
    does in another way than the module.
    """

    graph: fx.Graph
    tensors: tuple[str, ...]
    outputs: Structure
    notes: tuple[str, ...] = ()


def device_type(device: torch.device) -> str:
    """The type of a device, as autocast wants it."""
    return torch.device(device).type


register_function("sortify.device_type", device_type)


def lift(exported: fx.GraphModule, names: Mapping[str, str]) -> tuple[Program, dict[str, torch.Tensor], list[LeafSpec]]:
    """The plain graph of an exported module, its constants by name, and what its tensor inputs look like.

    Args:
        exported: what `torch.export` made of a module.
        names: every name of a parameter or buffer -> its first name.
    """
    lifter = Lifter(exported, names)
    program = lifter.program()
    return program, lifter.constants, lifter.specs


class Lifter:
    """Copies an exported graph into a plain one, node by node."""

    def __init__(self, exported: fx.GraphModule, names: Mapping[str, str]) -> None:
        self.exported = exported
        self.names = names
        self.graph = fx.Graph()
        self.constants: dict[str, torch.Tensor] = {}
        self.specs: list[LeafSpec] = []
        self.notes: list[str] = []
        self.tensors: dict[str, fx.Node] = {}
        self.device = self.graph.placeholder(DEVICE)
        self.dtype = self.graph.placeholder(DTYPE)

    def program(self) -> Program:
        env: dict[fx.Node, Any] = {}
        for node in self.exported.graph.nodes:
            if node.op == "get_attr" and isinstance(_attribute(self.exported, node.target), torch.Tensor):
                env[node] = self._tensor(node)
        for node in self.exported.graph.nodes:
            if node.op == "placeholder":
                env[node] = self._input(node)
        outputs = self._inline(self.exported, env)
        leaves, structure = flatten(_output_value(self.exported, outputs))
        self.graph.output(leaves)
        _use_latest(self.graph)
        _without_in_place(self.graph)
        without_dead_code(self.graph)
        self.graph.lint()
        return Program(self.graph, tuple(self.tensors), structure, tuple(dict.fromkeys(self.notes)))

    def _tensor(self, node: fx.Node) -> fx.Node:
        name = self.names.get(str(node.target))
        if name is None:
            name = f"constant.{str(node.target).replace('.', '_')}"
            self.constants[name] = _attribute(self.exported, node.target).detach()
        if name not in self.tensors:
            new = self._placeholder(node)
            new.meta = {**_place(node), "val": node.meta.get("val", _attribute(self.exported, node.target))}
            self.tensors[name] = new
        return self.tensors[name]

    def _placeholder(self, node: fx.Node) -> fx.Node:
        return self.graph.placeholder(f"given_{node.name}" if node.name in RESERVED else node.name)

    def _input(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return value
        new = self._placeholder(node)
        new.meta = {"val": value, **_place(node)}
        shape = tuple(map(_fixed_size, value.shape))
        self.specs.append(LeafSpec(shape, str(value.dtype).removeprefix("torch.")))
        return new

    def _inline(self, module: fx.GraphModule, env: dict[fx.Node, Any]) -> Any:
        """Copy the nodes of `module`; `env` holds what its placeholders and tensors stand for."""
        for node in module.graph.nodes:
            if node in env or node.op == "placeholder":
                continue
            if node.op == "output":
                return map_arg(node.args[0], lambda n: env[n])
            if node.op == "get_attr":
                env[node] = _attribute(module, node.target)
            elif node.op == "call_function" and node.target not in DROPPED:
                env[node] = self._call(node, env)
        raise CaptureError("the captured graph has no output; this is a fault of sortify, please report it")

    def _call(self, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        args = map_arg(node.args, lambda n: env[n])
        kwargs = map_arg(node.kwargs, lambda n: env[n])
        if node.target in REGIONS:
            return REGIONS[node.target](self, args)
        if node.target is operator.getitem and isinstance(args[0], (list, tuple)):
            return args[0][args[1]]  # type: ignore[index]
        if node.target in LOOPS:
            return self._unrolled(node, args)
        if node.target is _hop.cond:
            return self._both_branches(node, args)
        if node.target is _hop.flat_apply:
            return self._custom_function(node, args)
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise ExportError(
                f"the model decides while it runs what to compute ({node.target}, at {_where(node)}): a graph cannot "
                "hold that; convert the parts before and after it, or write it without control flow"
            )
        target, args, kwargs = _plain_split(node, args, kwargs)
        target, args, kwargs = _plain_squeeze(node, target, args, kwargs)
        kwargs = {k: v for k, v in kwargs.items() if k != "pin_memory"}
        args, kwargs = cast(Any, fx.node.map_aggregate((args, kwargs), self._follow_device))
        new = self.graph.create_node("call_function", target, args, kwargs, name=node.name)
        new.meta = {**_place(node), "val": node.meta.get("val")}
        return new

    def _follow_device(self, value: Any) -> Any:
        return self.device if isinstance(value, torch.device) else value

    def no_grad(self, args: tuple[Any, ...]) -> Any:
        enabled, body, *inputs = args
        return self._region(body, inputs if enabled else [self._detached(value) for value in inputs])

    def _detached(self, value: Any) -> Any:
        """What enters is cut off, not what leaves: a buffer changed inside must not join the graph of gradients."""
        if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), torch.Tensor):
            return value
        new = self.graph.call_function(torch.ops.aten.detach.default, (value,))
        new.meta = dict(value.meta)
        return new

    def autocast(self, args: tuple[Any, ...]) -> Any:
        _, dtype, enabled, cache, body, *inputs = args
        kind = self.graph.call_function(device_type, (self.device,))
        enter = self.graph.call_function(torch.amp.autocast_mode._enter_autocast, (kind, dtype, enabled, cache))
        outputs = self._region(body, inputs)
        self.graph.call_function(torch.amp.autocast_mode._exit_autocast, (enter,))
        return outputs

    def checkpoint(self, args: tuple[Any, ...]) -> Any:
        body, *inputs = args
        return self._region(body, inputs)

    def _region(self, body: fx.GraphModule, inputs: list[Any]) -> Any:
        holes = [n for n in body.graph.nodes if n.op == "placeholder"]
        return self._inline(body, dict(zip(holes, inputs, strict=True)))

    def _both_branches(self, node: fx.Node, args: tuple[Any, ...]) -> Any:
        """A choice between two branches, which have no effects: both are written out and the result is picked."""
        chosen, *branches, inputs = args
        if isinstance(chosen, bool):
            return self._region(branches[not chosen], list(inputs))
        results = [list(self._region(branch, list(inputs))) for branch in branches]
        if not isinstance(chosen, fx.Node) or not isinstance(chosen.meta.get("val"), torch.Tensor):
            raise ExportError(
                f"torch.cond at {_where(node)} is decided by an open size: choose by a tensor, or fix the size"
            )
        self.notes.append(f"torch.cond at {_where(node)} runs both branches and picks the result")
        return [self._op(node, torch.ops.aten.where.self, chosen, *pair) for pair in zip(*results, strict=True)]

    def _unrolled(self, node: fx.Node, args: tuple[Any, ...]) -> list[Any]:
        """A loop over the first dimension of tensors, written out step by step; results of the steps are stacked."""
        body, carried, rows, others = LOOPS[node.target](args)
        steps = rows[0].meta["val"].shape[0]
        work = len(body.graph.nodes) * steps if isinstance(steps, int) else 0
        if not 0 < work <= LONGEST_LOOP:
            raise ExportError(
                f"the model loops over {steps} steps ({node.target}, at {_where(node)}): a loop is written out up to "
                f"{LONGEST_LOOP} operations of a known number of steps; convert the parts before and after it"
            )
        state, made = list(carried), list[list[Any]]()
        for step in range(steps):
            now = [self._op(node, torch.ops.aten.select.int, row, 0, step) for row in rows]
            results = list(self._region(body, [*state, *now, *others]))
            state, out = results[: len(state)], results[len(state) :]
            made.append(out)
        stacked = [self._op(node, torch.ops.aten.stack.default, list(parts), 0) for parts in zip(*made, strict=True)]
        return [*state, *stacked]

    def _custom_function(self, node: fx.Node, args: tuple[Any, ...]) -> fx.Node:
        """An autograd function that torch keeps as a call of its own: what it computes, where that is known."""
        _, structure, *flat = args
        (function, *given), _ = torch.utils._pytree.tree_unflatten(flat, structure)
        if function not in FUNCTIONS:
            raise ExportError(
                f"the model calls the autograd function {function} at {_where(node)}, "
                "which torch.export keeps as Python code: a graph cannot hold that; convert the parts before and after "
                "it, or register it by torch.library.custom_op"
            )
        new = self.graph.call_function(FUNCTIONS[function], tuple(given))
        new.meta = {**_place(node), "val": node.meta.get("val")}
        return new

    def _op(self, origin: fx.Node, op: Any, *args: Any) -> fx.Node:
        """A new op in place of a part of `origin`."""
        new = self.graph.call_function(op, args)
        values: Any = fx.node.map_arg(args, lambda n: n.meta["val"])
        new.meta = {**_place(origin), "val": op(*values)}
        return new


_hop = torch.ops.higher_order
REGIONS: dict[Any, Callable[[Lifter, tuple[Any, ...]], Any]] = {
    _hop.wrap_with_set_grad_enabled: Lifter.no_grad,
    _hop.wrap_with_autocast: Lifter.autocast,
    _hop.tag_activation_checkpoint: Lifter.checkpoint,
}
# Loops: their arguments as the body, what is carried from step to step, what is gone through, and what else enters.
Loop = tuple[fx.GraphModule, Sequence[Any], Sequence[Any], Sequence[Any]]
LOOPS: dict[Any, Callable[[tuple[Any, ...]], Loop]] = {
    _hop.map_impl: lambda args: (args[0], (), args[1], args[2]),
    _hop.scan: lambda args: (args[0], args[1], args[2], args[3]),
}
LONGEST_LOOP = 4000
# Autograd functions of torch's own, by the names under which graphs call them, and the ops that they are.
FUNCTIONS: dict[str, Any] = {
    "torch._dynamo._trace_wrapped_higher_order_op.ModIndex": torch.ops.aten.index.Tensor,
}
DROPPED = {
    torch.ops.aten._assert_tensor_metadata.default,
    torch.ops.aten._assert_scalar.default,
    torch.ops.aten.sym_constrain_range_for_size.default,
    torch.ops.aten.sym_constrain_range.default,
}


def _fixed_size(size: int | torch.SymInt) -> int | None:
    """A size as a number; None where it may be any. Export may settle a size that was asked to stay free."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_Integer else None


def _attribute(module: nn.Module, target: Any) -> Any:
    return operator.attrgetter(str(target))(module) if "." not in str(target) else _walk(module, str(target))


def _walk(module: nn.Module, target: str) -> Any:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _place(node: fx.Node) -> dict[str, str]:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return {"sortify_module": _plain_path(paths[-1]) if paths else "", "sortify_source": _where(node)}


def _plain_path(path: str) -> str:
    """`layers.slice(None, 4, None).0` and `L['self'].layers` are both spelled plainly."""
    return path.removeprefix("L['self'].")


def _where(node: fx.Node) -> str:
    """The innermost source line that is no part of torch itself, as `file:line`."""
    trace = node.meta.get("stack_trace") or ""
    frames = [line.strip() for line in trace.splitlines() if line.strip().startswith('File "')]
    own = [f for f in frames if "/torch/" not in f and 'File "<' not in f] or frames
    if not own:
        return ""
    file, line = own[-1].split(", ")[:2]
    return f"{seen_from_here(file.removeprefix('File ').strip(chr(34)))}:{line.removeprefix('line ')}"


def _output_value(exported: fx.GraphModule, flat: Any) -> Any:
    return torch.utils._pytree.tree_unflatten(list(flat), cast(Any, exported)._out_spec)


def _plain_split(
    node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Splits into parts become splits by sizes, so that each part may get its own."""
    if node.target not in SPLITS:
        return node.target, args, kwargs
    dim = SPLITS[node.target]
    if dim is None:
        dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    dim = min(dim, args[0].meta["val"].dim() - 1)
    sizes = [part.shape[dim] for part in node.meta["val"]]
    if not all(isinstance(size, int) for size in sizes):
        return node.target, args, kwargs
    return torch.ops.aten.split_with_sizes.default, (args[0], sizes, dim), {}


_aten = torch.ops.aten
# Ops that split, and the dimension that they split, None where an argument tells.
SPLITS: dict[Any, int | None] = {
    _aten.split.Tensor: None,
    _aten.chunk.default: None,
    _aten.unsafe_chunk.default: None,
    _aten.unsafe_split.Tensor: None,
    _aten.tensor_split.sections: None,
    _aten.tensor_split.indices: None,
    _aten.hsplit.int: 1,
    _aten.hsplit.array: 1,
    _aten.vsplit.int: 0,
    _aten.vsplit.array: 0,
    _aten.dsplit.int: 2,
    _aten.dsplit.array: 2,
}


def _plain_squeeze(
    node: fx.Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A squeeze of all dimensions of size 1 names them: in a sub-network others may have size 1."""
    if target is not _aten.squeeze.default:
        return target, args, kwargs
    tensor = args[0] if args else kwargs["self"]
    single = [dim for dim, size in enumerate(tensor.meta["val"].shape) if _fixed_size(size) == 1]
    return _aten.squeeze.dims, (tensor, single), {}


def _use_latest(graph: fx.Graph) -> None:
    """An in-place op returns the tensor that it changed: later uses name the result."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.is_mutable or not node.args:
            continue
        first = schema.arguments[0]
        if first.alias_info is None or not first.alias_info.is_write or not isinstance(node.args[0], fx.Node):
            continue
        node.args[0].replace_all_uses_with(node, delete_user_cb=partial(_stands_after, order, node))


def _stands_after(order: Mapping[fx.Node, int], node: fx.Node, user: fx.Node) -> bool:
    return order[user] > order[node]


def _without_in_place(graph: fx.Graph) -> None:
    """In-place ops become their functional twins where nothing else shares the memory that they change.

    Otherwise a bypassed block would hand the same memory to what changes it and to what still needs it.
    """
    for node in graph.nodes:
        twin = functional_twin(node)
        if twin is not None and _owns_memory(node):
            node.target = twin


def functional_twin(node: fx.Node) -> torch._ops.OpOverload | None:
    """The op that returns what an in-place op writes: `relu` for `relu_`; None for any other node."""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or not op._schema.is_mutable:
        return None
    namespace, name = op._schema.name.split("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    twin = getattr(packet, op._overloadname, None)
    if not isinstance(twin, torch._ops.OpOverload) or twin._schema.is_mutable:
        return None
    ours, theirs = ([(a.name, str(a.type)) for a in x._schema.arguments] for x in (op, twin))
    return twin if ours == theirs else None


def _owns_memory(node: fx.Node) -> bool:
    """Whether the changed tensor was newly made by an op and no view of it is about."""
    changed = node.args[0] if node.args else None
    if not isinstance(changed, fx.Node) or changed.op != "call_function" or shares_memory(changed):
        return False
    return not any(shares_memory(user) for user in changed.users if user is not node)


def shares_memory(node: fx.Node) -> bool:
    """Whether an op may return memory of its inputs; what is no ATen op may."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and (schema is None or any(r.alias_info is not None for r in schema.returns))
