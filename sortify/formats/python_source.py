"""The eval graph of an extracted model as a Python module that a person can read and that needs torch alone."""

from __future__ import annotations

import ast
import inspect
import operator
import re
import textwrap
from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import fx

from sortify.errors import SortifyError
from sortify.formats import standalone
from sortify.formats.spelling import MODULES, Names, call, comment, is_name, literal, place
from sortify.graph.signature import Argument, Constant, LeafSpec, Signature
from sortify.graph.structure import Structure
from sortify.network.extract import ExtractedModel
from sortify.network.network import Runner

HELPERS: tuple[Any, ...] = (
    standalone.put,
    standalone.make,
    standalone.fill,
    standalone.expect,
    standalone.fixed,
)
OWN = ("self", *MODULES, "Group", "Model", "load", "TENSORS", "TIED", *(helper.__name__ for helper in HELPERS))
"""Names that the source has already."""
PLAIN_ARITHMETIC = (
    *(ast.Expression, ast.Compare, ast.BinOp, ast.Name, ast.Load, ast.Constant),
    *(ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.cmpop),
)
SOURCE = '''"""A model cut out of a larger one, as plain PyTorch: {count:,} parameters.

    from model import load

    model = load()  # reads the weights beside this file
    output = model({inputs})

This is the evaluation graph: there is no dropout, and norms use their running statistics, whatever `train()` says.
Names in the state dict are those of the original model. Needs torch and safetensors.
"""

from __future__ import annotations

{imports}from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn


{group}

class Model(Group):
    """The evaluation graph, and the tensors that it uses."""

    def __init__(self) -> None:
        super().__init__()
        make(self, TENSORS, TIED)

{forward}


def load(folder: str | Path = Path(__file__).parent) -> Model:
    """The model with the weights of a folder, in evaluation mode."""
    model = Model()
    fill(model, Path(folder), TIED)
    return model.eval()


{helpers}

# Name in the state dict: what it is, dtype, sizes. Constants are no part of the state dict.
TENSORS: dict[str, Any] = {tensors}
# Further names of the same tensors.
TIED: dict[str, str] = {tied}
'''


def source_of(model: ExtractedModel) -> str:
    """The whole module; beside it belong the files of `write_python`.

    Raises:
        SortifyError: the model has no graph of its own, or something in it cannot be said with torch alone.
    """
    runner = model.runners.get("eval")
    if runner is None:
        raise SortifyError(
            "python: a model in parts has no source: the original's code runs between them; write weights"
        )
    (own, tied), saved = named_tensors(model), set(model.state_dict())
    forward = "\n".join(f"    {line}".rstrip() for line in _forward(model, runner))
    text = SOURCE.format(
        count=sum(p.numel() for p in model.parameters()),
        inputs=", ".join(map(comment, model.signature.tensor_names)),
        imports="".join(f"import {name}\n" for name in ("builtins", "math", "operator") if f"{name}." in forward),
        group=inspect.getsource(standalone.Group),
        forward=forward,
        helpers="\n\n".join(inspect.getsource(helper) for helper in HELPERS),
        tensors=_table({name: _described(tensor, name in saved) for name, tensor in own.items()}),
        tied=_table({name: repr(first) for name, first in tied.items()}),
    )
    ast.parse(text)
    return text


def named_tensors(model: ExtractedModel) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Every tensor under its first name, and the further names of tied ones with the first."""
    state: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    everything = {**state, **dict(model.named_buffers(remove_duplicate=False))}
    first: dict[int, str] = {}
    for name, tensor in everything.items():
        first.setdefault(id(tensor), name)
    tied = {name: first[id(tensor)] for name, tensor in everything.items() if first[id(tensor)] != name}
    return {name: tensor for name, tensor in everything.items() if name not in tied}, tied


def _described(tensor: torch.Tensor, saved: bool) -> str:
    kind = "buffer" if saved else "constant"
    if isinstance(tensor, torch.nn.Parameter):
        kind = "parameter" if tensor.requires_grad else "frozen parameter"
    return literal((kind, tensor.dtype, tuple(tensor.shape)), {})


def _table(rows: Mapping[str, str]) -> str:
    lines = "".join(f"    {key!r}: {value},\n" for key, value in rows.items())
    return f"{{\n{lines}}}" if rows else "{}"


def _forward(model: ExtractedModel, runner: Runner) -> Iterator[str]:
    """The lines of the method `forward`."""
    signature, graph = model.signature, runner.module.graph
    yield f"def forward{_call_signature(signature)}:"
    names = Names([*OWN, *signature.names])
    holes = [node for node in graph.nodes if node.op == "placeholder"]
    given = holes[2 + len(runner.tensors) :]
    known = {holes[0]: names.new("device"), holes[1]: names.new("dtype")}
    known |= {node: place("self", name) for node, name in zip(holes[2:], runner.tensors, strict=False)}
    for line in _taken_in(signature, given, known, names):
        yield f"    {line}"
    like = next((n for n in runner.tensors if model.tensors[n].is_floating_point()), None)
    source = place("self", like) if like is not None else known[holes[2]]
    for node, what in zip(holes, ("device", "dtype"), strict=False):
        if node.users:
            yield f"    {known[node]} = {source}.{what}"
    tensors = dict(zip(holes[2:], runner.tensors, strict=False))
    yield from (f"    {line}" for line in _sections(graph, known, names, tensors))
    flat: Any = graph.output_node().args[0]
    results = iter([literal(value, known) for value in flat])
    yield f"    return {_rebuilt(runner.outputs, results)}"


# -- what goes in


class _Text:
    """Source that stands as a default value in a signature."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _call_signature(signature: Signature) -> str:
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for each in signature.parameters:
        if each.name in OWN or not is_name(each.name):
            raise SortifyError(f"python: an argument of the model is called {each.name!r}: the source cannot")
        default = inspect.Parameter.empty if each.default is None else _Text(_constant(each.default))
        parameters.append(inspect.Parameter(each.name, getattr(inspect.Parameter, each.kind), default=default))
    try:
        if any(each.kind is each.POSITIONAL_ONLY for each in parameters):
            parameters[0] = parameters[0].replace(kind=inspect.Parameter.POSITIONAL_ONLY)
        return str(inspect.Signature(parameters))
    except ValueError as error:
        raise SortifyError(f"python: the arguments of the model are no call of Python ({error})") from error


def _constant(constant: Constant) -> str:
    return "..." if constant.opaque else literal(constant.value, {})


def _taken_in(signature: Signature, given: Sequence[fx.Node], known: dict[fx.Node, str], names: Names) -> Iterator[str]:
    """Lines that check the arguments and take the tensors out of them; `known` learns what they are called."""
    holes = iter(given)
    extra = next((p.name for p in signature.parameters if p.kind == "VAR_KEYWORD"), None)
    captured = {argument.name: argument for argument in signature.arguments}
    for argument in signature.arguments:
        root = argument.name if argument.name in signature.names else f"{extra}[{argument.name!r}]"
        for where, leaf in _leaves(argument, root):
            if isinstance(leaf, LeafSpec):
                node = next(holes)
                known[node] = where if where in signature.names else names.new(where)
                if known[node] != where:
                    yield f"{known[node]} = {where}"
                yield f"expect({', '.join([repr(comment(where)), known[node], *map(repr, leaf.shape)])})"
            elif leaf.opaque:
                raise SortifyError(f"python: argument {argument.name} was {leaf} when the model was converted")
            else:
                yield f"fixed({comment(where)!r}, {where}, {_allowed(signature, argument.name, leaf)})"
    for each in signature.parameters:
        if each.default is not None and each.name not in captured and not each.kind.startswith("VAR_"):
            yield f"fixed({each.name!r}, {each.name}, {_allowed(signature, each.name, each.default)})"
    if extra is not None:
        others = sorted(set(captured) - set(signature.names))
        yield f"fixed({extra!r}, builtins.sorted({extra}), {others!r})"
    for limit in signature.limits:
        text = _limit(limit, [known[node] for node in given])
        if text is not None:
            yield f"fixed({comment(signature.readable(limit))!r}, builtins.bool({text}), True)"


def _allowed(signature: Signature, name: str, constant: Constant) -> str:
    """The values that an argument may have: what it was, and None where that leaves it undecided."""
    default = next((p.default for p in signature.parameters if p.name == name), None)
    values = [_constant(constant), *(["None"] if default is None or default.value is None else [])]
    return ", ".join(dict.fromkeys(values))


def _leaves(argument: Argument, root: str) -> Iterator[tuple[str, LeafSpec | Constant]]:
    """Where each leaf of an argument is found, as source; of None where the argument is None."""
    if argument.structure.kind == "none":
        yield root, Constant(None)
        return
    yield from zip(_paths(argument.structure, root), argument.leaves, strict=True)


def _paths(structure: Structure, root: str) -> Iterator[str]:
    if structure.kind == "leaf":
        yield root
    for number, child in enumerate(structure.children):
        key: Any = structure.keys[number] if structure.keys and structure.kind != "namedtuple" else number
        field = structure.kind == "object"
        if field and not is_name(str(key)):
            raise SortifyError(f"python: a field of an argument is called {key!r}, which is no name")
        yield from _paths(child, f"{root}.{key}" if field else f"{root}[{literal(key, {})}]")


def _limit(limit: str, inputs: Sequence[str]) -> str | None:
    """A condition on sizes as source; None for one that is no plain arithmetic."""
    tree = ast.parse(limit, mode="eval")
    if not all(isinstance(node, PLAIN_ARITHMETIC) for node in ast.walk(tree)):
        return None
    return re.sub(r"\bs(\d+)_(\d+)\b", lambda hit: f"{inputs[int(hit[1])]}.shape[{hit[2]}]", ast.unparse(tree))


# -- what is computed


def _sections(
    graph: fx.Graph, known: dict[fx.Node, str], names: Names, tensors: Mapping[fx.Node, str]
) -> Iterator[str]:
    """The calls, in sections by module; what no later section needs is let go at the end of one, its name too."""
    steps = [node for node in graph.nodes if node.op == "call_function"]
    order = {node: number for number, node in enumerate(steps)}
    last = {node: max((order.get(user, len(steps)) for user in node.users), default=-1) for node in steps}
    calls, module = Counter(map(_path, steps)), names.new("module")
    inner = {path.rpartition(".")[0] for path in calls} | {""}
    for section, members in groupby(steps, lambda n: p if (p := _path(n)) in inner else p.rpartition(".")[0]):
        part = list(members)
        yield ""
        yield f"# {_title(section, part)}"
        own = _own(part, f"{section}.", module, tensors)
        if own:
            yield f"{module} = {place('self', section)}"
        for node in part:
            text = call(node, ChainMap(own, known))
            if node.users:
                path = _path(node)
                alone = path not in inner and calls[path] == 1
                known[node] = names.new(path[len(section) :] + ("" if alone else f".{_short(node)}"))
                text = f"{known[node]} = {text}"
            yield text
        ends = range(order[part[0]], order[part[-1]] + 1)
        gone = [known[node] for node in steps[: ends.stop] if last[node] in ends and not _is_number(node)]
        names.free(gone)
        for line in textwrap.wrap(", ".join(gone), 96, break_long_words=False):
            yield f"del {line.rstrip(',')}"


def _own(part: Sequence[fx.Node], prefix: str, module: str, tensors: Mapping[fx.Node, str]) -> dict[fx.Node, str]:
    """The tensors of a section that are of its module, as source."""
    used = {each: tensors[each] for node in part for each in node.all_input_nodes if each in tensors}
    return {each: place(module, name[len(prefix) :]) for each, name in used.items() if name.startswith(prefix)}


def _path(node: fx.Node) -> str:
    """The module path of a node; what came from nowhere in the model belongs to the whole."""
    path = str(node.meta.get("sortify_module") or "")
    return "" if path.startswith("_") else path


def _title(path: str, part: Sequence[fx.Node]) -> str:
    """The module path of a section, and the first line of the original's code that it is from."""
    inside = [node.meta for node in part if _path(node) == node.meta.get("sortify_module")]
    sources = [str(meta.get("sortify_source") or "") for meta in inside]
    file = next((re.split(r"[/\\]", source)[-1] for source in sources if source), "")
    return comment(f"{path or 'the whole'}{f'  ({file})' if file else ''}")


def _is_number(node: fx.Node) -> bool:
    """Whether a node is a size or what is computed from sizes."""
    made = isinstance(node.target, torch._ops.OpOverload) or node.target is operator.getitem
    return not made or _short(node) in ("size", "numel")


def _short(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.partition("::")[2].removeprefix("sym_")
    return str(getattr(target, "__name__", "value"))


# -- what comes out


def plain(structure: Structure) -> Structure:
    """A structure of lists, tuples and dicts alone: objects become dicts, named tuples tuples."""
    kinds = {"object": "dict", "ordered": "dict", "namedtuple": "tuple"}
    kind = kinds.get(structure.kind, structure.kind)
    keys = structure.keys if kind == "dict" else ()
    return Structure(kind, tuple(map(plain, structure.children)), keys)


def _rebuilt(structure: Structure, results: Iterator[str]) -> str:
    """The expression of a nested output."""
    if structure.kind == "leaf":
        return next(results)
    if structure.kind == "none":
        return "None"
    parts = [_rebuilt(child, results) for child in structure.children]
    if structure.kind == "list":
        return f"[{', '.join(parts)}]"
    if structure.kind in ("tuple", "namedtuple"):
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
    return "{" + ", ".join(f"{literal(k, {})}: {part}" for k, part in zip(structure.keys, parts, strict=True)) + "}"
