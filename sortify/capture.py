"""Capture: a PyTorch model becomes two torch.fx graphs (train and eval) over one set of tensors.

`torch.export` traces the model once in each mode (decision 0001). The graphs are then made plain:

- parameters, buffers and constants come in as placeholders, by their original names, so a graph is a
  pure function of its tensors and inputs;
- device literals, and dtype literals that followed the model's own dtype, come in as placeholders too,
  so that `.to(...)`, `.bfloat16()` and autocast work;
- no-grad, autocast and checkpoint regions are written out in the main graph;
- splits carry their sizes; checks that only hold for the example are dropped.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg

from sortify.errors import CaptureError
from sortify.graphs import register_function
from sortify.signature import LeafSpec, Signature
from sortify.structure import Structure, flatten

DEVICE, DTYPE = "device", "dtype"
RESERVED = frozenset({DEVICE, DTYPE, "sizes"})


@dataclass(frozen=True, eq=False)
class Program:
    """One captured mode.

    The graph's placeholders are `device`, `dtype`, one per name in `tensors`, one per input tensor.
    Its output is the flat list of output tensors; `outputs` rebuilds the nested value.
    """

    graph: fx.Graph
    tensors: tuple[str, ...]
    outputs: Structure


@dataclass(frozen=True)
class TensorInfo:
    """What a named tensor is in the original module: 'parameter', 'buffer', 'temporary' (not saved) or 'constant'."""

    kind: str
    requires_grad: bool = False


@dataclass(frozen=True, eq=False)
class Captured:
    """A captured model: programs by mode ('train', 'eval'), tensors by original name, and the call signature."""

    programs: Mapping[str, Program]
    tensors: Mapping[str, torch.Tensor]
    infos: Mapping[str, TensorInfo]
    aliases: Mapping[str, str]
    signature: Signature
    examples: tuple[torch.Tensor, ...]
    notes: tuple[str, ...]


def device_type(device: torch.device) -> str:
    """The type of a device, as autocast wants it."""
    return torch.device(device).type


register_function("sortify.device_type", device_type)


def capture(module: nn.Module, example_inputs: tuple[Any, ...] | Mapping[str, Any]) -> Captured:
    """Capture `module` in train and eval mode.

    Args:
        module: any module; it is not changed.
        example_inputs: positional inputs as a tuple, or keyword inputs as a dict. Dimension 0 of every tensor
            (the batch), and dimension 1 of integer tensors of rank 2 (a sequence), stay dynamic where the model allows it.

    Raises:
        CaptureError: the model cannot be captured with these inputs.
    """
    args, kwargs = _ordered(module, example_inputs)
    args, kwargs = _two_samples(args), _two_samples(kwargs)
    signature = Signature.of(module.forward, args, kwargs)
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    names = _names(module)
    programs, notes, specs = {}, list[str](), list[LeafSpec]()
    constants: dict[str, torch.Tensor] = {}
    for mode in ("train", "eval"):
        exported, missed = _export(module, args, kwargs, training=mode == "train")
        programs[mode], found, specs = _lift(exported, names)
        constants |= found
        notes += [note for note in missed if note not in notes]
        _follow_dtype(programs[mode], lambda mode=mode: _reference(module, args, kwargs, names, mode == "train"))  # type: ignore[misc]
    tensors, infos, aliases = _tensors(module, constants)
    return Captured(programs, tensors, infos, aliases, signature.with_specs(specs), tuple(leaves), tuple(notes))


def _ordered(module: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    if not isinstance(inputs, (tuple, list, Mapping)):
        raise CaptureError(
            f"example_inputs: expected a tuple of positional inputs or a dict of keyword inputs, got {type(inputs).__name__}"
        )
    if not isinstance(inputs, Mapping):
        return tuple(inputs), {}
    order = list(inspect.signature(module.forward).parameters)
    place = {name: order.index(name) if name in order else len(order) for name in inputs}
    return (), dict(sorted(inputs.items(), key=lambda item: place[item[0]]))


def _two_samples(value: Any) -> Any:
    """Export specialises dimensions of size 1, so a batch of one is doubled."""
    leaves = [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, torch.Tensor)]
    if not leaves or any(t.dim() == 0 or t.shape[0] != 1 for t in leaves):
        return value
    return torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: torch.cat([t, t]), value)


def _export(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool
) -> tuple[fx.GraphModule, list[str]]:
    """Export with as many dynamic dimensions as the model allows, and say which were given up."""
    notes, first, tried = list[str](), None, list[Any]()
    for level, note in ((2, "the sequence length"), (1, "the batch size"), (0, "")):
        shapes = _shapes(module, args, kwargs, level)
        if shapes in tried:
            continue
        tried.append(shapes)
        try:
            with mode_of(module, training):
                exported = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
            return exported.module(check_guards=False), notes  # type: ignore[return-value]
        except Exception as error:
            first = first or error
            notes.append(f"{note} is fixed to the example's: {_first_line(error)}")
    raise CaptureError(
        f"{type(module).__name__} cannot be captured by torch.export ({'train' if training else 'eval'} mode): "
        f"{type(first).__name__}: {_first_line(first)}"
    ) from first


def _shapes(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], level: int) -> Any:
    """The dynamic dimensions of every input, in the form that torch.export takes."""
    positional, named = torch.utils._pytree.tree_map(lambda leaf: _dynamic(leaf, level), (args, kwargs))
    if not kwargs:
        return tuple(positional)
    names = list(inspect.signature(module.forward).parameters)
    return {**dict(zip(names, positional, strict=False)), **named}


def _dynamic(leaf: Any, level: int) -> dict[int, Any] | None:
    if not isinstance(leaf, torch.Tensor):
        return None
    auto = torch.export.Dim.AUTO
    dims = {0: auto} if level >= 1 and leaf.dim() else {}
    sequence = level >= 2 and leaf.dim() == 2 and not leaf.dtype.is_floating_point
    return {**dims, 1: auto} if sequence else dims


def _first_line(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else repr(error)


@contextmanager
def mode_of(module: nn.Module, training: bool) -> Iterator[None]:
    """Put every sub-module in one mode for a while; afterwards each has its own again."""
    before = {child: child.training for child in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for child, flag in before.items():
            child.training = flag


def _names(module: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer -> its first name (tied tensors have several)."""
    first: dict[int, str] = {}
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def _tensors(
    module: nn.Module, constants: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, TensorInfo], dict[str, str]]:
    names = _names(module)
    saved = set(module.state_dict(keep_vars=True))
    tensors: dict[str, torch.Tensor] = {}
    infos: dict[str, TensorInfo] = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer" if name in saved else "temporary"
        tensors[name], infos[name] = tensor, TensorInfo(kind, tensor.requires_grad)
    for name, tensor in constants.items():
        tensors[name], infos[name] = tensor, TensorInfo("constant")
    return tensors, infos, {name: first for name, first in names.items() if name != first}


# -- from an exported module to a plain graph ---------------------------------------------------------------------


def _lift(exported: fx.GraphModule, names: Mapping[str, str]) -> tuple[Program, dict[str, torch.Tensor], list[LeafSpec]]:
    lifter = _Lifter(exported, names)
    program = lifter.program()
    return program, lifter.constants, lifter.specs


class _Lifter:
    """Copies an exported graph into a plain one, node by node."""

    def __init__(self, exported: fx.GraphModule, names: Mapping[str, str]) -> None:
        self.exported = exported
        self.names = names
        self.graph = fx.Graph()
        self.constants: dict[str, torch.Tensor] = {}
        self.specs: list[LeafSpec] = []
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
        self.graph.eliminate_dead_code()
        self.graph.lint()
        return Program(self.graph, tuple(self.tensors), structure)

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
        shape = tuple(s if isinstance(s, int) else None for s in value.shape)
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
        if node.target is operator.getitem and not isinstance(args[0], fx.Node):
            return args[0][args[1]]
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise CaptureError(f"{node.target} has no rule yet: the model uses a control-flow op at {_where(node)}")
        target, args, kwargs = _plain_split(node, args, kwargs)
        kwargs = {k: v for k, v in kwargs.items() if k != "pin_memory"}
        args, kwargs = fx.node.map_aggregate((args, kwargs), self._follow_device)  # type: ignore[misc]
        new = self.graph.create_node("call_function", target, args, kwargs, name=node.name)
        new.meta = {**_place(node), "val": node.meta.get("val")}
        return new

    def _follow_device(self, value: Any) -> Any:
        return self.device if isinstance(value, torch.device) else value

    def no_grad(self, args: tuple[Any, ...]) -> Any:
        enabled, body, *inputs = args
        outputs = self._region(body, inputs)
        if enabled:
            return outputs
        return map_arg(outputs, self._detached)

    def _detached(self, node: fx.Node) -> fx.Node:
        new = self.graph.call_function(torch.ops.aten.detach.default, (node,))
        new.meta = dict(node.meta)
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


_hop = torch.ops.higher_order
REGIONS: dict[Any, Callable[[_Lifter, tuple[Any, ...]], Any]] = {
    _hop.wrap_with_set_grad_enabled: _Lifter.no_grad,
    _hop.wrap_with_autocast: _Lifter.autocast,
    _hop.tag_activation_checkpoint: _Lifter.checkpoint,
}
DROPPED = {
    torch.ops.aten._assert_tensor_metadata.default,
    torch.ops.aten._assert_scalar.default,
    torch.ops.aten.sym_constrain_range_for_size.default,
    torch.ops.aten.sym_constrain_range.default,
}


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
    own = [f for f in frames if "/torch/" not in f] or frames
    if not own:
        return ""
    file, line = own[-1].split(", ")[:2]
    return f"{file.removeprefix('File ').strip(chr(34))}:{line.removeprefix('line ')}"


def _output_value(exported: fx.GraphModule, flat: Any) -> Any:
    spec = exported._out_spec  # type: ignore[union-attr]
    return torch.utils._pytree.tree_unflatten(list(flat), spec)


def _plain_split(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Splits into equal parts become splits by sizes, so that each part may get its own."""
    if node.target not in (torch.ops.aten.split.Tensor, torch.ops.aten.chunk.default, torch.ops.aten.tensor_split.sections):
        return node.target, args, kwargs
    dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    sizes = [part.shape[dim] for part in node.meta["val"]]
    if not all(isinstance(size, int) for size in sizes):
        return node.target, args, kwargs
    return torch.ops.aten.split_with_sizes.default, (args[0], sizes, dim), {}


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
        node.args[0].replace_all_uses_with(node, delete_user_cb=lambda user, node=node: order[user] > order[node])


# -- dtype literals -----------------------------------------------------------------------------------------------


def _dtypes(graph: fx.Graph) -> Iterator[tuple[fx.Node, int | str, torch.dtype]]:
    for node in graph.nodes:
        if node.op == "call_function":
            for key, value in [*enumerate(node.args), *node.kwargs.items()]:
                if isinstance(value, torch.dtype) and value.is_floating_point:
                    yield node, key, value


def _follow_dtype(program: Program, reference: Callable[[], fx.Graph | None]) -> None:
    """Literals that change when the model is cast to another dtype follow the model's dtype.

    `x.to(torch.float32)` stays, `x.to(weight.dtype)` follows; both look alike in one capture, so the
    model is captured once more in bfloat16, and only if there is a floating dtype literal at all.
    """
    found = list(_dtypes(program.graph))
    if not found:
        return
    other = reference()
    twins = list(_dtypes(other)) if other is not None else []
    aligned = [n.target for n, _, _ in twins] == [n.target for n, _, _ in found]
    dtype = next(node for node in program.graph.nodes if node.target == DTYPE)
    for position, (node, key, value) in enumerate(found):
        if twins[position][2] != value if aligned else value == torch.get_default_dtype():
            if isinstance(key, int):
                node.update_arg(key, dtype)
            else:
                node.update_kwarg(key, dtype)


def _reference(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: Mapping[str, str], training: bool
) -> fx.Graph | None:
    cast: dict[int, Any] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        other = tensor.detach().to(torch.bfloat16) if tensor.is_floating_point() else tensor.detach()
        cast[id(tensor)] = nn.Parameter(other, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else other
    try:
        twin = copy.deepcopy(module, cast)
        inputs = torch.utils._pytree.tree_map_only(
            torch.Tensor, lambda t: t.to(torch.bfloat16) if t.is_floating_point() else t, (args, kwargs)
        )
        exported, _ = _export(twin, *inputs, training=training)
        return _lift(exported, names)[0].graph
    except Exception:  # a model that cannot run in bfloat16 tells nothing: its own dtype is then followed
        return None
