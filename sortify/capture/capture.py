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
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from sortify.capture.exporting import Exporter, describe_place, run_untouched, settle, wanted_open
from sortify.capture.lifting import DTYPE, Program, lift
from sortify.capture.prepare import (
    NOTHING,
    Example,
    LeftOut,
    check_memory,
    check_module,
    open_dataclasses,
    to_device_of,
)
from sortify.errors import CaptureError
from sortify.graph.signature import Signature
from sortify.graph.symbols import Traced, traced


@dataclass(frozen=True)
class TensorInfo:
    """What a named tensor is in the original module: 'parameter', 'buffer', 'temporary' (not saved) or 'constant'."""

    kind: str
    requires_grad: bool = False


@dataclass(frozen=True, eq=False)
class Captured:
    """A captured model: programs by mode ('train', 'eval'), tensors by original name, and the call signature.

    `left_out` says what training does at random and the train program does not; `traced` what the tracer noted about
    the sizes of the inputs, by mode.
    """

    programs: Mapping[str, Program]
    tensors: Mapping[str, torch.Tensor]
    infos: Mapping[str, TensorInfo]
    aliases: Mapping[str, str]
    signature: Signature
    examples: tuple[torch.Tensor, ...]
    notes: tuple[str, ...]
    left_out: LeftOut = NOTHING
    traced: Mapping[str, Traced] = field(default_factory=dict)


def capture(
    module: nn.Module,
    example_inputs: tuple[Any, ...] | Mapping[str, Any] | Example,
    dynamic: Mapping[str, Sequence[int]] | None = None,
    training: bool = True,
) -> Captured:
    """Capture `module` in train and eval mode.

    Args:
        module: any module; it is not changed.
        example_inputs: positional inputs as a tuple, or keyword inputs as a dict. Dimension 0 of every tensor (the
            batch), and dimension 1 of integer tensors of rank 2 (a sequence), stay open where the model allows it.
        dynamic: further dimensions to leave open, by input: {"x": (2, 3)} for the height and width of images.
        training: False captures evaluation only, and takes it for training too: half the time.

    Raises:
        CaptureError: the model cannot be captured with these inputs.
    """
    notes = check_module(module)
    args, kwargs, added = _ordered(module, example_inputs)
    open_dataclasses((args, kwargs))
    (args, kwargs), moved = to_device_of(module, (args, kwargs))
    args, kwargs = _two_samples((args, kwargs))
    signature = Signature.of(module.forward, args, kwargs)
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    names = _names(module)
    wanted = wanted_open(leaves, signature.tensor_names, dynamic)
    export = Exporter(module, args, kwargs, wanted)
    programs, sizes, specs = {}, dict[str, Traced](), None
    constants: dict[str, torch.Tensor] = {}
    reference: fx.Graph | None = None
    for mode in ("train", "eval") if training else ("eval",):
        exported = export(mode == "train")
        sizes[mode] = traced(exported)
        programs[mode], found, seen = lift(exported, names)
        constants |= found
        specs = settle(seen, specs)
        if any(_dtypes(programs[mode].graph)):
            if reference is None or not _alike(programs[mode].graph, reference):
                reference = _reference(export, names, mode == "train")
            _follow_dtype(programs[mode], reference)
    left_out = export.left_out
    if not training:
        programs["train"], left_out = programs["eval"], LeftOut(everything=True)
    tensors, infos, aliases = _tensors(module, constants)
    shared = check_memory(tensors, constants)
    fixed = [
        describe_place(place, signature.tensor_names, leaves)
        + (f": {export.refused[place]}" if place in export.refused else "")
        for place in wanted
        if specs is not None and specs[place[0]].shape[place[1]] is not None
    ]
    told = dict.fromkeys(note for program in programs.values() for note in program.notes)
    notes += [*added, *moved, *fixed, *shared, *told, *left_out.notes]
    signature = signature.with_specs(specs or [])
    return Captured(programs, tensors, infos, aliases, signature, tuple(leaves), tuple(notes), left_out, sizes)


PROOF_SIZE = 256


def examples_to_prove(captured: Captured, module: nn.Module) -> tuple[torch.Tensor, ...]:
    """The inputs to prove a capture on: large pictures of open size are cut to 256 by 256, as a proof runs often."""
    if len(captured.examples) != 1:
        return captured.examples
    (spec,), (whole,) = captured.signature.specs, captured.examples
    cut = whole
    for dim in range(2, whole.dim() if whole.dim() > 3 else 2):
        cut = cut.narrow(dim, 0, PROOF_SIZE) if spec.shape[dim] is None and cut.shape[dim] > PROOF_SIZE else cut
    if cut.is_meta or cut is whole:
        return captured.examples
    try:
        for training in (True, False):
            run_untouched(module, *captured.signature.call([cut]), training)
    except Exception:  # a size that the model does not like
        return captured.examples
    return (cut.contiguous(),)


ENDS = {sign * torch.finfo(dtype).max for dtype in (torch.float32, torch.bfloat16) for sign in (1, -1)}
CACHE = "use_cache"  # the argument by which transformers models hand out their key-value cache


def as_example(module: nn.Module, inputs: Any) -> Example:
    """Example inputs of any form as one call of `module`, on its device."""
    args, kwargs, _ = _ordered(module, inputs)
    open_dataclasses((args, kwargs))
    (args, kwargs), _ = to_device_of(module, (args, kwargs))
    return Example(args, kwargs)


def _ordered(module: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any], list[str]]:
    """The example call as positional and named arguments, and what was added to it."""
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    if isinstance(inputs, Example):
        args, kwargs = inputs.args, dict(inputs.kwargs)
    elif isinstance(inputs, (tuple, list, Mapping)):
        args = () if isinstance(inputs, Mapping) else tuple(inputs)
        kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    else:
        raise CaptureError(
            f"example_inputs: expected a tuple of positional inputs or a dict of keyword inputs, "
            f"got {type(inputs).__name__}"
        )
    order = list(inspect.signature(module.forward).parameters)
    notes = []
    named = CACHE in order[len(args) :]
    if CACHE not in kwargs and (named or (_passes_cache_on(module) and _takes(module, args, {**kwargs, CACHE: False}))):
        kwargs[CACHE] = False
        notes.append(f"{CACHE}=False was chosen: a cache in the output cannot be captured")
    place = {name: order.index(name) if name in order else len(order) for name in kwargs}
    return args, dict(sorted(kwargs.items(), key=lambda item: place[item[0]])), notes


def _passes_cache_on(module: nn.Module) -> bool:
    """Whether a call hands out a cache because its configuration says so, and takes `**kwargs` that may decline it."""
    spread = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(module.forward).parameters.values())
    config = getattr(module, "config", None)
    configs = [config, *(vars(config).values() if hasattr(config, "__dict__") else ())]
    return spread and any(getattr(each, CACHE, None) is True for each in configs)


def _takes(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call takes these arguments; some pass on what they are given beside their own, and find it twice."""
    try:
        run_untouched(module, args, kwargs, module.training)
    except TypeError:
        return False
    except Exception:  # whatever it is has nothing to do with the arguments' names, and is told where it matters
        return True
    return True


def _two_samples(value: Any) -> Any:
    """Export specialises dimensions of size 1, so a batch of one is doubled; not where other inputs have more."""
    leaves = [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, torch.Tensor)]
    if not leaves or any(t.dim() == 0 or t.shape[0] != 1 for t in leaves):
        return value
    return torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: torch.cat([t, t]), value)


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


def _reference(export: Exporter, names: Mapping[str, str], training: bool) -> fx.Graph | None:
    """The same capture of a copy in another dtype; None where the model cannot run in it."""
    cast: dict[int, Any] = {}
    module = export.module
    tensors = [*module.parameters(), *module.buffers()]
    own = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    dtype = torch.float32 if own == torch.bfloat16 else torch.bfloat16
    for tensor in tensors:
        other = tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()
        cast[id(tensor)] = nn.Parameter(other, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else other
    try:
        twin = copy.deepcopy(module, cast)
        args, kwargs = torch.utils._pytree.tree_map_only(
            torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, (export.args, export.kwargs)
        )
        return lift(Exporter(twin, args, kwargs, export.wanted)(training), names)[0].graph
    except Exception:  # a model that cannot run in another dtype tells nothing: its own dtype is then followed
        return None
