"""Pickles, on paper: their instructions are followed without obeying them.

Every name that a pickle asks for must have been granted, and what it calls while loading must be one of the functions
by which torch rebuilds tensors. Constructors of layers are never called; a `functools.partial` may hold a known layer
only. A tensor must lie within its storage, and a storage within its record: torch would read past its end, or take
as much memory as a tensor claims.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sortify.errors import SourceError

PARTIAL = "functools.partial"
FUNCTION_HOMES = ("torch.nn.functional", "torch._C._nn")
_PARTIAL_HOMES = ("torch.nn.modules", "torchvision.models", "torchvision.ops", "timm.layers")
_BY_TYPE, _TENSOR = "torch._tensor._rebuild_from_type_v2", "torch._utils._rebuild_tensor_v2"
_CALLED = {
    "_codecs.encode",
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_meta_tensor_no_storage",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.device",
    "torch.serialization._get_layout",
    *(f"{home}.{name}" for home in ("builtins", "__builtin__") for name in ("complex", "set")),
}
_ITEMS = {
    1: "Byte Char Bool",
    2: "Half BFloat16 Short",
    4: "Float Int",
    8: "Double Long ComplexFloat",
    16: "ComplexDouble",
}
_ITEM_SIZES = {f"torch.{name}Storage": size for size, names in _ITEMS.items() for name in names.split()} | {
    "torch.storage.UntypedStorage": 1
}
_EXPANDED = 2**24
"""Numbers that a tensor may show of a smaller storage (`expand`), at most."""


def within(module: str, homes: Iterable[str]) -> bool:
    """Whether a module is one of some packages, or in one."""
    return any(module == home or module.startswith(home + ".") for home in homes)


@dataclass(frozen=True)
class _Name:
    """A global that the pickle asked for."""

    path: str


@dataclass(frozen=True)
class _Made:
    """The result of calling a global."""

    path: str


@dataclass(frozen=True)
class _Storage:
    """Some numbers of the archive."""

    count: int


_PUSH_PLAIN = set(
    "NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINFLOAT BINUNICODE SHORT_BINSTRING LONG1 EMPTY_LIST EMPTY_DICT "
    "EMPTY_SET".split()
)
_POP_ONE = {"APPEND": 1, "SETITEM": 2}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def check_pickle(
    data: bytes,
    granted: Collection[str],
    path: str,
    called: Collection[str] = (),
    records: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Follow a pickle's instructions without obeying them.

    Args:
        data: the pickle.
        granted: names of classes that were allowed for this file, beyond torch's own.
        path: of the file, for messages.
        called: those of the granted names that may be called (enumerations).
        records: of the archive around it, and their sizes in bytes.

    Raises:
        SourceError: a granted class is called, a partial holds something else than a layer or an activation, a tensor
            claims more than its record holds, or the pickle is damaged.
    """
    try:
        for complaint in _follow(data, granted, called, records):
            raise SourceError(f"'{path}' {complaint} while loading; if you trust the file, use --trust")
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise SourceError(f"'{path}' is damaged: its pickle cannot be followed ({error})") from error


def _follow(
    data: bytes, granted: Collection[str], called: Collection[str], records: Mapping[str, int]
) -> Iterator[str]:
    """Yield a complaint for each instruction that would call what it should not."""
    stack: list[Any] = []
    marks: list[list[Any]] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(data):
        op = opcode.name
        if op in _PUSH_PLAIN:
            stack.append(argument)
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
            stack[-1] = _storage(stack[-1], records)
        elif op in ("REDUCE", "NEWOBJ"):
            inputs, function = stack.pop(), stack.pop()
            yield from _judge_call(op, function, inputs, granted, called)
            stack.append(_Made(function.path) if isinstance(function, _Name) else None)
        elif op == "BUILD":
            state = stack.pop()
            yield from _judge_build(stack[-1], state, granted)
        elif op not in ("PROTO", "STOP"):
            yield f"uses the instruction {op}"


def _storage(wanted: Any, records: Mapping[str, int]) -> _Storage:
    """Read what a tensor's numbers are asked for by: ('storage', class, record, device, count)."""
    _, kind, key, _, count = wanted
    if type(count) is not int or not 0 <= count * _ITEM_SIZES[kind.path] <= records[f"data/{key}"]:
        raise ValueError(f"a storage of {count!r:.40} numbers is not in its record")
    return _Storage(count)


def _judge_call(
    op: str, function: Any, inputs: Any, granted: Collection[str], called: Collection[str]
) -> Iterator[str]:
    path = function.path if isinstance(function, _Name) else ""
    if not path:
        yield "calls something that it computed"
    elif path == PARTIAL:
        yield from _judge_partial(inputs) if op == "REDUCE" else ["makes a partial of its own"]
    elif op == "NEWOBJ":
        if path not in granted:
            yield f"makes a {path}"
    elif path == _TENSOR:
        yield from _judge_tensor(*inputs[:4])
    elif path == _BY_TYPE:
        first, _, arguments = inputs[:3]
        if not isinstance(first, _Name) or (first.path != _TENSOR and first.path not in _CALLED):
            yield f"calls a function by way of {path}"
        else:
            yield from _judge_call("REDUCE", first, arguments, (), ())
    elif path not in _CALLED and path not in called:
        yield f"calls {path}"


def _judge_tensor(storage: Any, offset: Any, sizes: Any, strides: Any) -> Iterator[str]:
    numbers = (offset, *sizes, *strides)
    if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in numbers):
        yield "makes a tensor of something else than numbers"
        return
    reach = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) + 1
    count = math.prod(sizes)
    if count and (reach > storage.count or count > max(storage.count, _EXPANDED)):
        yield f"makes a tensor of sizes {sizes!r:.80} of {storage.count} numbers"


def _judge_build(target: Any, state: Any, granted: Collection[str]) -> Iterator[str]:
    """Give an object its attributes: of tensors that would be other numbers."""
    path = target.path if isinstance(target, _Made) else ""
    if path == PARTIAL:
        yield from _judge_partial(state)
    elif path not in granted and path != "collections.OrderedDict":
        yield f"changes {path or 'something that it did not make'}"


def _judge_partial(inputs: Any) -> Iterator[str]:
    first = inputs[0] if isinstance(inputs, tuple) and inputs else None
    if not isinstance(first, _Name) or not within(first.path.rpartition(".")[0], (*_PARTIAL_HOMES, *FUNCTION_HOMES)):
        held = first.path if isinstance(first, _Name) else "something that it computed"
        yield f"makes a partial of {held}"
