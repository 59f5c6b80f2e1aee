"""What a model file may ask for without being trusted: known layers and models of known packages, nothing that acts.

A pickle is a program. Before torch's restricted unpickler sees a file, its instructions are followed here on paper:
every name that it asks for must be on the allow-list, and what it calls while loading must be one of torch's own
rebuilding functions. Constructors of layers are never called; a `functools.partial` may hold a known layer only.
An exported program is an archive of JSON and raw tensors that torch reads with pickle and sympy in places; the same
care is taken there. With `--trust` none of this is looked at.
"""

from __future__ import annotations

import enum
import importlib
import io
import json
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from sortify.errors import CheckpointError, SourceError
from sortify.graph.graphs import find_target, function_names

_CLASS_HOMES = (
    "torch.nn.modules",
    "torchvision.models",
    "torchvision.ops",
    "timm.layers",
    "timm.models",
    "transformers.activations",
    "transformers.models",
    "transformers.pytorch_utils",
)
_PARTIAL_HOMES = ("torch.nn.modules", "torchvision.models", "torchvision.ops", "timm.layers")
_CONFIG_BASES = ("PretrainedConfig", "PreTrainedConfig")
_OTHER_CLASSES = ("transformers.generation.configuration_utils.GenerationConfig",)
_ACTIVATIONS = """celu elu gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_sigmoid log_softmax
logsigmoid mish relu relu6 rrelu selu sigmoid silu softmax softmin softplus softshrink softsign tanh tanhshrink"""
_FUNCTION_HOMES = ("torch.nn.functional", "torch._C._nn")
_PARTIAL = "functools.partial"


def _within(module: str, homes: Iterable[str]) -> bool:
    return any(module == home or module.startswith(home + ".") for home in homes)


def find_allowed(name: str) -> Any:
    """The layer, model, configuration, enumeration or activation called `name`; None if it is not on the allow-list."""
    module, _, attribute = name.rpartition(".")
    is_function = module in _FUNCTION_HOMES and attribute in _ACTIVATIONS.split()
    if name != _PARTIAL and name not in _OTHER_CLASSES and not is_function and not _within(module, _CLASS_HOMES):
        return None
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception:  # absent in this version, or a package that is not installed
        return None
    if name == _PARTIAL or name in _OTHER_CLASSES or is_function:
        return found
    if not isinstance(found, type) or (found.__module__, found.__qualname__) != (module, attribute):
        return None
    is_config = any(base.__name__ in _CONFIG_BASES for base in found.__mro__[:-1])
    return found if issubclass(found, (torch.nn.Module, enum.Enum)) or is_config else None


def allowed_globals(path: str) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What torch's restricted unpickler must be allowed so that it reads the file, as (object, name).

    Raises:
        SourceError: the file asks for names that are not allowed (all are listed), or calls something while loading.
    """
    pairs = [(find_allowed(name), name) for name in sorted(get_unsafe_globals_in_checkpoint(path))]
    if refused := [name for found, name in pairs if found is None]:
        raise SourceError(
            f"'{path}' asks for {', '.join(refused)}: not among the layers and models of torch, torchvision, timm and "
            f"transformers; if you trust the file, --trust loads it and runs whatever it holds"
        )
    check_pickle(torch._C.PyTorchFileReader(path).get_record("data.pkl"), {name for _, name in pairs}, path)
    return [*pairs]


# ------------------------------------------------------------------------------------ pickles, on paper


@dataclass(frozen=True)
class _Name:
    """A global that the pickle asked for."""

    path: str


@dataclass(frozen=True)
class _Made:
    """The result of calling a global."""

    path: str


_Symbol = _Name | _Made | tuple[Any, ...] | None
_PUSH_PLAIN = set(
    "NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINFLOAT BINUNICODE SHORT_BINSTRING LONG1 EMPTY_LIST EMPTY_DICT "
    "EMPTY_SET".split()
)
_POP_ONE = {"APPEND": 1, "SETITEM": 2}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def check_pickle(data: bytes, granted: set[str], path: str) -> None:
    """Follow a pickle's instructions without obeying them.

    Args:
        data: the pickle.
        granted: names that were allowed for this file, beyond torch's own.
        path: of the file, for messages.

    Raises:
        SourceError: a granted class is called, a partial holds something else than a layer or an activation, or the
            pickle is damaged.
    """
    try:
        for complaint in _follow(data, granted):
            raise SourceError(f"'{path}' {complaint} while loading; if you trust the file, use --trust")
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise SourceError(f"'{path}' is damaged: its pickle cannot be followed ({error})") from error


def _follow(data: bytes, granted: set[str]) -> Iterator[str]:
    """Yield a complaint for each instruction that would call what it should not."""
    stack: list[_Symbol] = []
    marks: list[list[_Symbol]] = []
    memo: dict[int, _Symbol] = {}
    for opcode, argument, _ in pickletools.genops(data):
        op = opcode.name
        if op in _PUSH_PLAIN:
            stack.append(None)
        elif op == "GLOBAL":
            stack.append(_Name(".".join(str(argument).split(" "))))
        elif op == "EMPTY_TUPLE":
            stack.append(())
        elif op in _TUPLES:
            stack[-_TUPLES[op] :] = [tuple(stack[-_TUPLES[op] :])]
        elif op == "MARK":
            marks.append(stack)
            stack = []
        elif op in ("TUPLE", "APPENDS", "SETITEMS"):
            items, stack = stack, marks.pop()
            if op == "TUPLE":
                stack.append(tuple(items))
        elif op in _POP_ONE:
            del stack[-_POP_ONE[op] :]
        elif op in ("BINPUT", "LONG_BINPUT"):
            memo[int(str(argument))] = stack[-1]
        elif op in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(str(argument))])
        elif op == "BINPERSID":
            stack[-1] = None
        elif op in ("REDUCE", "NEWOBJ"):
            inputs, function = stack.pop(), stack.pop()
            yield from _judge_call(op, function, inputs, granted)
            stack.append(_Made(function.path) if isinstance(function, _Name) else None)
        elif op == "BUILD":
            state = stack.pop()
            if stack[-1] == _Made(_PARTIAL):
                yield from _judge_partial(state)
        elif op not in ("PROTO", "STOP"):
            yield f"uses the instruction {op}"


def _judge_call(op: str, function: _Symbol, inputs: _Symbol, granted: set[str]) -> Iterator[str]:
    if not isinstance(function, _Name):
        yield "calls something that it computed"
    elif function.path == _PARTIAL:
        yield from _judge_partial(inputs) if op == "REDUCE" else ["makes a partial of its own"]
    elif op == "REDUCE" and function.path in granted and not _is_enumeration(function.path):
        yield f"calls {function.path}"
    elif function.path == "torch._tensor._rebuild_from_type_v2":
        first = inputs[0] if isinstance(inputs, tuple) and inputs else None
        if not isinstance(first, _Name) or not first.path.startswith("torch._utils._rebuild_"):
            yield "calls a function by way of torch._tensor._rebuild_from_type_v2"


def _is_enumeration(path: str) -> bool:
    found = find_allowed(path)
    return isinstance(found, type) and issubclass(found, enum.Enum)


def _judge_partial(inputs: _Symbol) -> Iterator[str]:
    first = inputs[0] if isinstance(inputs, tuple) and inputs else None
    if not isinstance(first, _Name) or not _within(first.path.rpartition(".")[0], (*_PARTIAL_HOMES, *_FUNCTION_HOMES)):
        held = first.path if isinstance(first, _Name) else "something that it computed"
        yield f"makes a partial of {held}"


# ------------------------------------------------------------------------------------ exported programs

_QUOTED = re.compile(r"'\w+'")
_SYMBOLIC = re.compile(r"[\w\s(),=+\-*/.<>]*\Z")
_CALLED = re.compile(r"(\w+)\s*\(")


def check_program(path: str) -> None:
    """Look through an exported program's archive for what would run code while torch reads it.

    Raises:
        SourceError: it holds compiled code, pickled objects other than tensors, or expressions, operators or types
            other than those of an ordinary export.
    """
    if "version" in zipfile.ZipFile(path).namelist():
        raise SourceError(f"'{path}' is an exported program of an older torch: export it again, or use --trust")
    reader = torch._C.PyTorchFileReader(path)
    for record in reader.get_all_records():
        if problem := _find_problem(reader, record):
            raise SourceError(
                f"'{path}' holds {problem}; if you trust the file, --trust loads it and runs what it holds"
            )


def _find_problem(reader: torch._C.PyTorchFileReader, record: str) -> str:
    """Why this record of the archive is refused; empty if it is harmless."""
    name = record.rpartition("/")[2]
    if "aotinductor" in record or name.endswith((".so", ".cpp", ".cubin", ".ptx")):
        return f"compiled code ({record})"
    if name.startswith(("custom_obj_", "opaque_obj_")):
        return f"a pickled object ({record})"
    if name.endswith(".pt"):
        return _find_pickle_problem(record, reader.get_record(record))
    if name.endswith(".json"):
        try:
            return next(_walk(json.loads(reader.get_record(record))), "")
        except (ValueError, RecursionError):
            return f"damaged JSON ({record})"
    return ""


def _find_pickle_problem(record: str, data: bytes) -> str:
    if not data:
        return ""
    try:
        torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception:
        return f"a pickle of more than tensors ({record})"
    return ""


def _walk(value: Any) -> Iterator[str]:
    """Yield what is out of place anywhere in the JSON of a program, texts that are JSON themselves included."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _judge_entry(key, item)
            yield from _walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item)
    elif isinstance(value, str) and value.lstrip()[:1] in ("[", "{", '"'):
        try:
            inner = json.loads(value)
        except ValueError:
            return
        yield from _walk(inner)


def _judge_entry(key: str, item: Any) -> Iterator[str]:
    if key in ("__enum__", "default_factory_module"):
        yield "a type that torch would import"
    elif key == "use_pickle" and item:
        yield "a pickled tensor of a special type"
    elif key == "target" and isinstance(item, str) and not _is_known_target(item):
        yield f"a call of {item}"
    elif key == "expr_str" and (not isinstance(item, str) or not is_symbolic(item)):
        yield f"an expression that is no plain size ({item})"


def _is_known_target(target: str) -> bool:
    if target.startswith("torch.ops.higher_order."):
        return True
    try:
        find_target(target.removeprefix("torch.ops."))
    except CheckpointError:
        return re.sub(r"^_operator\.", "operator.", target) in function_names()
    return True


def is_symbolic(text: str) -> bool:
    """Whether the text is arithmetic over symbols, as torch writes sizes: no attributes, no calls but of types."""
    plain = _QUOTED.sub("", text)
    return (
        _SYMBOLIC.match(plain) is not None
        and "__" not in text
        and re.search(r"\.\s*[A-Za-z_]", plain) is None
        and all(name[0].isupper() for name in _CALLED.findall(plain))
    )
