"""A torch.fx graph as JSON and back, without pickle and without running anything.

A saved graph may come from anybody. So targets are looked up, never evaluated: operators in torch.ops by attribute
access, functions in a fixed table; nothing is imported but the packages of a fixed table that bring operators of their
own. What touches files, processes or other machines is refused; every entry is checked before it is used, and
whatever does not fit is a CheckpointError that names node and value.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import keyword
import math
import operator
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.amp import autocast_mode
from torch.fx import Graph, Node

from sortify.errors import CheckpointError
from sortify.graph.structure import scalar_from_json, scalar_to_json, shorten, take

_DEEPEST = 100
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_MODULE_PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*\Z")
_ENTRIES = {"op", "name", "target", "args", "kwargs", "module", "source"}
_META = {"module": "sortify_module", "source": "sortify_source"}

_OPERATORS = """abs add and_ concat contains eq floordiv ge getitem gt iadd iand ifloordiv imod imul index invert ior
isub itruediv ixor le lshift lt matmul mod mul ne neg not_ or_ pos pow rshift sub truediv xor"""
_MATH = "ceil floor trunc sqrt log log2 exp pow isnan isinf"
_BUILTINS = "abs max min round int float bool sum len pow"
_TORCH = "sym_float sym_int sym_ite sym_max sym_min sym_not sym_sqrt sym_sum"
_REFUSED_NAMESPACES = """image io video_reader profiler inductor c10d _c10d_functional _c10d_functional_autograd
c10d_functional symm_mem fsdp streams debugprims debug_mode_ops onnx onnx_symbolic mempool _test rpc"""
# Packages that add operators to torch when they are imported: the operators' namespace, and the module to import.
_PACKAGES = {"torchvision": "torchvision", "transformers": "transformers.integrations.moe"}
_REFUSED_ARGUMENTS = frozenset({"filename", "file_name", "file", "path", "url"})


def _collect(prefix: str, owner: Any, names: str) -> dict[str, Callable[..., Any]]:
    return {f"{prefix}.{name}": getattr(owner, name) for name in names.split() if hasattr(owner, name)}


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **_collect("builtins", builtins, _BUILTINS),
    **_collect("math", math, _MATH),
    **_collect("operator", operator, _OPERATORS),
    **_collect("torch", torch, _TORCH),
    **_collect("torch.amp", autocast_mode, "_enter_autocast _exit_autocast"),
    "torch.set_grad_enabled": torch._C._set_grad_enabled,
}
_NAMES: dict[Callable[..., Any], str] = {function: name for name, function in _FUNCTIONS.items()}


def register_function(name: str, function: Callable[..., Any]) -> None:
    """Let graphs call `function`; files know it by `name` ("sortify.narrow").

    Raises:
        ValueError: the name is malformed, or the name or the function is already registered otherwise.
    """
    if not _MODULE_PATH.match(name) or "." not in name:
        raise ValueError(f"a function's name should be dotted like 'sortify.narrow', got {name!r}")
    if _FUNCTIONS.get(name, function) is not function or _NAMES.get(function, name) != name:
        raise ValueError(f"'{name}' or {function!r} is registered already: {_NAMES.get(function, name)}")
    _FUNCTIONS[name] = function
    _NAMES[function] = name


def function_names() -> tuple[str, ...]:
    """Names of all functions, other than torch operators, that a graph may call."""
    return tuple(sorted(_FUNCTIONS))


def target_name(target: Any) -> str:
    """The name under which a file knows the target of a call_function node: "aten.linear.default", "operator.add".

    Raises:
        CheckpointError: a file cannot hold this target.
    """
    if isinstance(target, torch._ops.OpOverload):
        space, _, op = target._schema.name.partition("::")
        name = f"{space}.{op}.{target._overloadname}"
        find_target(name)
        return name
    try:
        return _NAMES[target]
    except (KeyError, TypeError):
        raise CheckpointError(f"a graph with a call of {shorten(target)} cannot be saved") from None


def find_target(name: str) -> Callable[..., Any]:
    """The operator or function that `target_name` called `name`. Raises CheckpointError if there is none."""
    return _FUNCTIONS[name] if name in _FUNCTIONS else _find_operator(name)


@functools.lru_cache(maxsize=1024)
def _find_operator(name: str) -> Callable[..., Any]:
    parts = name.split(".")
    if len(parts) != 3 or not all(map(_IDENTIFIER.match, parts)):
        raise CheckpointError(f"unknown function {shorten(name)}")
    if parts[0] in _PACKAGES:
        with contextlib.suppress(ImportError):  # then the operator is missing, which is said below
            importlib.import_module(_PACKAGES[parts[0]])
    found: Any = torch.ops
    for part, kind in zip(
        parts, (torch._ops._OpNamespace, torch._ops.OpOverloadPacket, torch._ops.OpOverload), strict=True
    ):
        try:
            found = getattr(found, part)
        except Exception:  # torch.ops raises AttributeError, RuntimeError and others for what it lacks
            found = None
        if not isinstance(found, kind):
            raise CheckpointError(
                f"unknown operator {shorten(name)}: this torch does not have it, or its package is not imported"
            )
    arguments = {argument.name for argument in found._schema.arguments}
    if parts[0] in _REFUSED_NAMESPACES.split() or arguments & _REFUSED_ARGUMENTS:
        raise CheckpointError(f"operator {shorten(name)} reaches outside the model and is refused")
    return found  # type: ignore[no-any-return]


# What torch calls its plain values: kind -> name -> value.
_TORCH_VALUES: dict[str, dict[str, Any]] = {
    kind: {str(v).removeprefix("torch."): v for v in vars(torch).values() if isinstance(v, cls)}
    for kind, cls in (("dtype", torch.dtype), ("layout", torch.layout), ("memory_format", torch.memory_format))
}
_TORCH_KINDS: dict[type[Any], str] = {
    torch.dtype: "dtype",
    torch.layout: "layout",
    torch.memory_format: "memory_format",
}


def graph_to_json(graph: Graph) -> dict[str, Any]:
    """The graph as JSON values: nodes in order, with names, targets, arguments and where they come from.

    Args:
        graph: of placeholder, call_function, call_module and output nodes. Of each node's meta only the strings
            under "sortify_module" and "sortify_source" are kept.

    Raises:
        CheckpointError: a node or value that a file cannot hold; the message names both.
    """
    return {"nodes": [_node_to_json(node) for node in graph.nodes]}


def _node_to_json(node: Node) -> dict[str, Any]:
    data: dict[str, Any] = {"op": node.op, "name": node.name}
    try:
        if node.op == "call_function":
            data["target"] = target_name(node.target)
        elif node.op in ("placeholder", "call_module", "output"):
            data["target"] = str(node.target)
        else:
            raise CheckpointError(f"a {node.op} node cannot be saved")
        data["args"] = [_value_to_json(value) for value in node.args]
        data["kwargs"] = {key: _value_to_json(value) for key, value in node.kwargs.items()}
    except CheckpointError as error:
        raise CheckpointError(f"graph node '{node.name}': {error}") from error
    for entry, key in _META.items():
        if isinstance(node.meta.get(key), str):
            data[entry] = node.meta[key]
    return data


def _value_to_json(value: Any, depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise CheckpointError(f"a value is nested deeper than {_DEEPEST} levels")
    if isinstance(value, Node):
        return {"node": value.name}
    if value is None or type(value) in (bool, int, float, str):
        return scalar_to_json(value)
    if value is Ellipsis:
        return {"ellipsis": True}
    if type(value) in _TORCH_KINDS:
        return {_TORCH_KINDS[type(value)]: str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if type(value) is complex:
        return {"complex": [scalar_to_json(value.real), scalar_to_json(value.imag)]}
    return _container_to_json(value, depth + 1)


def _container_to_json(value: Any, depth: int) -> Any:
    if isinstance(value, slice):
        return {"slice": [_value_to_json(v, depth) for v in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.Size):
        return {"size": [_value_to_json(v, depth) for v in value]}
    if type(value) is tuple:
        return {"tuple": [_value_to_json(v, depth) for v in value]}
    if isinstance(value, list):
        return [_value_to_json(v, depth) for v in value]
    if isinstance(value, dict) and all(type(key) is str for key in value):
        return {"dict": {key: _value_to_json(v, depth) for key, v in value.items()}}
    raise CheckpointError(f"the value {shorten(value)} of type {type(value).__name__} cannot be saved")


def graph_from_json(data: Any) -> Graph:
    """Rebuild the graph that `graph_to_json` wrote; node names are the same. Nothing is run.

    Raises:
        CheckpointError: for anything that is not exactly such a graph.
    """
    graph, known = Graph(), dict[str, Node]()
    for i, entry in enumerate(take(data, "nodes", list, "saved graph")):
        where = f"saved graph, node {i}"
        name = take(entry, "name", str, where)
        where = f"saved graph, node {shorten(name)}"
        if not _IDENTIFIER.match(name) or name in known:
            raise CheckpointError(f"{where}: its name is malformed or stands twice")
        try:
            known[name] = _read_node(graph, entry, name, known, where)
        except CheckpointError as error:
            message = str(error)
            raise CheckpointError(message if message.startswith(where) else f"{where}: {message}") from error
    inputs = [node.target for node in graph.nodes if node.op == "placeholder"]
    if len(set(inputs)) != len(inputs):
        raise CheckpointError("saved graph: two inputs have the same name")
    ops = [node.op for node in graph.nodes]
    if ops.count("output") != 1 or ops[-1] != "output":
        raise CheckpointError("saved graph: it should end in its one output node")
    try:
        graph.lint()
    except Exception as error:
        raise CheckpointError(f"saved graph: {shorten(str(error), 200)}") from error
    return graph


def _read_node(graph: Graph, entry: dict[str, Any], name: str, known: dict[str, Node], where: str) -> Node:
    if unknown := sorted(set(map(str, entry)) - _ENTRIES):
        raise CheckpointError(f"{where}: unknown entry {shorten(unknown[0])}")
    op, text = take(entry, "op", str, where), take(entry, "target", str, where)
    args = tuple(_read_value(value, known) for value in take(entry, "args", list, where))
    kwargs = {key: _read_value(value, known) for key, value in take(entry, "kwargs", dict, where).items()}
    if not all(type(key) is str and _IDENTIFIER.match(key) for key in kwargs):
        raise CheckpointError(f"{where}: names of arguments should be identifiers, got {shorten(list(kwargs))}")
    _check_shape(op, text, args, kwargs)
    target = find_target(text) if op == "call_function" else text
    if not isinstance(target, str):
        _check_schema(target, args, kwargs)
    node = graph.create_node(op, target, args, kwargs, name=name)
    if node.name != name:
        node.name = name  # create_node alters names that shadow builtins; torch.export does use such names
        graph._graph_namespace._used_names.add(name)
    for key, meta in _META.items():
        if key in entry:
            node.meta[meta] = take(entry, key, str, where)
    return node


def _check_shape(op: str, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """What torch.fx takes for granted about a node, because it writes targets into code."""
    if op == "placeholder":
        named = _IDENTIFIER.match(target) is not None and not keyword.iskeyword(target) and target != "self"
        fits = named and len(args) <= 1 and not kwargs
    elif op == "output":
        fits = target == "output" and len(args) == 1 and not kwargs
    elif op == "call_module":
        fits = _MODULE_PATH.match(target) is not None
    else:
        fits = op == "call_function"
    if not fits:
        raise CheckpointError(f"{shorten(op)} of {shorten(target)} with {len(args)} arguments is no node of a graph")


def _check_schema(target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The operator takes that many arguments, and arguments of these names."""
    if not isinstance(target, torch._ops.OpOverload):
        return
    names = [argument.name for argument in target._schema.arguments]
    unknown = [key for key in kwargs if key not in names[len(args) :]]
    if len(args) > len(names) or unknown:
        given = f"{len(args)} arguments{''.join(f' and {shorten(key)}' for key in unknown)}"
        raise CheckpointError(f"{target} takes {', '.join(names)}, got {given}")


def _read_value(data: Any, known: dict[str, Node], depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise CheckpointError(f"a value is nested deeper than {_DEEPEST} levels")
    if isinstance(data, list):
        return _read_all(data, known, depth)
    if not isinstance(data, dict) or "float" in data:
        return scalar_from_json(data)
    if len(data) != 1:
        raise CheckpointError(f"a value should have one entry that names its kind, got {shorten(data)}")
    ((kind, body),) = data.items()
    reader = _READERS.get(kind)
    if reader is not None:
        return reader(body, known, depth)
    if kind in _TORCH_VALUES and isinstance(body, str) and body in _TORCH_VALUES[kind]:
        return _TORCH_VALUES[kind][body]
    raise CheckpointError(f"unknown value {shorten(data)}")


def _read_all(body: Any, known: dict[str, Node], depth: int, count: int | None = None) -> list[Any]:
    if not isinstance(body, list) or (count is not None and len(body) != count):
        raise CheckpointError(f"a list{f' of {count}' if count else ''} was expected, got {shorten(body)}")
    return [_read_value(value, known, depth + 1) for value in body]


def _read_ref(body: Any, known: dict[str, Node], depth: int) -> Node:
    if not isinstance(body, str) or body not in known:
        raise CheckpointError(f"no earlier node is called {shorten(body)}")
    return known[body]


def _read_dict(body: Any, known: dict[str, Node], depth: int) -> dict[str, Any]:
    if not isinstance(body, dict) or not all(type(key) is str for key in body):
        raise CheckpointError(f"a dict with text keys was expected, got {shorten(body)}")
    return {key: _read_value(value, known, depth + 1) for key, value in body.items()}


def _read_size(body: Any, known: dict[str, Node], depth: int) -> torch.Size:
    return torch.Size(_plain(_read_all(body, known, depth), (int,)))


def _read_complex(body: Any, known: dict[str, Node], depth: int) -> complex:
    real, imaginary = _plain(_read_all(body, known, depth, 2), (int, float))
    return complex(real, imaginary)


def _read_device(body: Any, known: dict[str, Node], depth: int) -> torch.device:
    try:
        return torch.device(str(body))
    except Exception:
        raise CheckpointError(f"unknown device {shorten(body)}") from None


def _read_ellipsis(body: Any, known: dict[str, Node], depth: int) -> Any:
    if body is not True:
        raise CheckpointError(f"an ellipsis is written as true, got {shorten(body)}")
    return Ellipsis


def _plain(values: Iterable[Any], kinds: tuple[type, ...]) -> list[Any]:
    items = list(values)
    if not all(type(item) in kinds and (type(item) is float or abs(item) < 2**63) for item in items):
        raise CheckpointError(f"plain numbers were expected, got {shorten(items)}")
    return items


_READERS: dict[str, Callable[[Any, dict[str, Node], int], Any]] = {
    "node": _read_ref,
    "tuple": lambda body, known, depth: tuple(_read_all(body, known, depth)),
    "slice": lambda body, known, depth: slice(*_read_all(body, known, depth, 3)),
    "dict": _read_dict,
    "size": _read_size,
    "complex": _read_complex,
    "device": _read_device,
    "ellipsis": _read_ellipsis,
}
