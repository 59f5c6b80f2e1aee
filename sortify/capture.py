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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from sortify.errors import CaptureError
from sortify.lifting import DTYPE, Program, lift
from sortify.signature import LeafSpec, Signature


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


def capture(module: nn.Module, example_inputs: tuple[Any, ...] | Mapping[str, Any]) -> Captured:
    """Capture `module` in train and eval mode.

    Args:
        module: any module; it is not changed.
        example_inputs: positional inputs as a tuple, or keyword inputs as a dict. Dimension 0 of every tensor (the
            batch), and dimension 1 of integer tensors of rank 2 (a sequence), stay dynamic where the model allows it.

    Raises:
        CaptureError: the model cannot be captured with these inputs.
    """
    args, kwargs, notes = _ordered(module, example_inputs)
    args, kwargs = _two_samples(args), _two_samples(kwargs)
    signature = Signature.of(module.forward, args, kwargs)
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    names = _names(module)
    programs, specs = {}, list[LeafSpec]()
    constants: dict[str, torch.Tensor] = {}
    reference: fx.Graph | None = None
    for mode in ("train", "eval"):
        exported, missed = _export(module, args, kwargs, training=mode == "train")
        programs[mode], found, specs = lift(exported, names)
        constants |= found
        missed += _settled(signature, specs, leaves)
        notes += [note for note in missed if note not in notes]
        if any(_dtypes(programs[mode].graph)):
            if reference is None or not _alike(programs[mode].graph, reference):
                reference = _reference(module, args, kwargs, names, mode == "train")
            _follow_dtype(programs[mode], reference)
    tensors, infos, aliases = _tensors(module, constants)
    return Captured(programs, tensors, infos, aliases, signature.with_specs(specs), tuple(leaves), tuple(notes))


ENDS = {sign * torch.finfo(dtype).max for dtype in (torch.float32, torch.bfloat16) for sign in (1, -1)}
CACHE = "use_cache"  # the argument by which transformers models hand out their key-value cache


def _settled(signature: Signature, specs: Sequence[LeafSpec], leaves: Sequence[torch.Tensor]) -> list[str]:
    """What was asked to stay free and is fixed nevertheless, because the model combines it with a number."""
    return [
        f"input '{name}': dimension {dim} ({('the batch size', 'the sequence length')[dim]}) is fixed at {size}"
        for name, spec, leaf in zip(signature.tensor_names, specs, leaves, strict=True)
        for dim, size in enumerate(spec.shape)
        if size is not None and dim in (_dynamic(leaf, 2) or {})
    ]


def _ordered(module: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any], list[str]]:
    """The example call as positional and named arguments, and what was added to it."""
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    if not isinstance(inputs, (tuple, list, Mapping)):
        raise CaptureError(
            f"example_inputs: expected a tuple of positional inputs or a dict of keyword inputs, "
            f"got {type(inputs).__name__}"
        )
    order = list(inspect.signature(module.forward).parameters)
    args = () if isinstance(inputs, Mapping) else tuple(inputs)
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    notes = []
    if CACHE in order[len(args) :] and CACHE not in kwargs:
        kwargs[CACHE] = False
        notes.append(f"{CACHE}=False was chosen: a cache in the output cannot be captured")
    place = {name: order.index(name) if name in order else len(order) for name in kwargs}
    return args, dict(sorted(kwargs.items(), key=lambda item: place[item[0]])), notes


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
            return exported.module(check_guards=False), notes
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
    parameters = list(inspect.signature(module.forward).parameters.values())
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    spread = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    by_name = dict(zip(plain, positional, strict=False))
    if spread is not None and len(positional) > len(plain):
        by_name[spread] = tuple(positional[len(plain) :])
    return {**by_name, **named}


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


# -- dtype literals -----------------------------------------------------------------------------------------------


def _dtypes(graph: fx.Graph) -> Iterator[tuple[fx.Node, int | str, torch.dtype]]:
    for node in graph.nodes:
        if node.op == "call_function":
            for key, value in [*enumerate(node.args), *node.kwargs.items()]:
                if isinstance(value, torch.dtype) and value.is_floating_point:
                    yield node, key, value


def _follow_dtype(program: Program, other: fx.Graph | None) -> None:
    """Literals that change when the model is cast to another dtype follow the model's dtype.

    `x.to(torch.float32)` stays, `x.to(weight.dtype)` follows; both look alike in one capture, so the
    model is captured once more in another dtype, and only if there is a floating dtype literal at all.
    """
    if other is not None and _alike(program.graph, other):
        _rewire(program.graph, other)
    found = list(_dtypes(program.graph))
    twins = list(_dtypes(other)) if other is not None else []
    aligned = [n.target for n, _, _ in twins] == [n.target for n, _, _ in found]
    dtype = next(node for node in program.graph.nodes if node.target == DTYPE)
    for position, (node, key, value) in enumerate(found):
        if twins[position][2] != value if aligned else value == torch.get_default_dtype():
            if isinstance(key, int):
                node.update_arg(key, dtype)
            else:
                node.update_kwarg(key, dtype)


def _alike(graph: fx.Graph, other: fx.Graph) -> bool:
    """Whether two graphs call the same ops one after the other."""
    return [(node.op, node.target) for node in graph.nodes] == [(node.op, node.target) for node in other.nodes]


def _rewire(graph: fx.Graph, other: fx.Graph) -> None:
    """Take over which node uses which from a capture of the same model in another dtype.

    A cast to the dtype that a tensor has returns the tensor itself, and the tracer then notes later uses of the tensor
    as uses of the cast: a residual stream would go on in float32. In the other dtype that cast is an op of its own.
    The ends of the other dtype's range, in masks, are taken over too where it is the smaller one.
    """
    counterpart = dict(zip(other.nodes, graph.nodes, strict=True))

    def taken(ours: Any, theirs: Any) -> Any:
        if isinstance(theirs, fx.Node):
            return counterpart[theirs]
        if isinstance(theirs, (list, tuple)) and isinstance(ours, (list, tuple)) and len(ours) == len(theirs):
            return type(ours)(map(taken, ours, theirs))
        end = isinstance(ours, float) and theirs in ENDS and abs(theirs) < abs(ours)
        return theirs if end else ours

    for twin, node in counterpart.items():
        node.args = taken(node.args, twin.args)
        node.kwargs = {key: taken(value, twin.kwargs.get(key)) for key, value in node.kwargs.items()}


def _reference(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: Mapping[str, str], training: bool
) -> fx.Graph | None:
    cast: dict[int, Any] = {}
    tensors = [*module.parameters(), *module.buffers()]
    own = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    dtype = torch.float32 if own == torch.bfloat16 else torch.bfloat16
    for tensor in tensors:
        other = tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()
        cast[id(tensor)] = nn.Parameter(other, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else other
    try:
        twin = copy.deepcopy(module, cast)
        inputs = torch.utils._pytree.tree_map_only(
            torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, (args, kwargs)
        )
        exported, _ = _export(twin, *inputs, training=training)
        return lift(exported, names)[0].graph
    except Exception:  # a model that cannot run in another dtype tells nothing: its own dtype is then followed
        return None
