"""Nested Python values taken apart and rebuilt: what a call takes and what it returns, as a value that can be saved.

A `Structure` says how lists, dicts, named tuples and output objects are put together from their leaves. It is
frozen, holds no tensors, and survives JSON. Classes named in a file are imported only from a few known packages
and only when they are plain containers; anything else becomes a named tuple made on the spot or a `Record`.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib
import keyword
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from sortify.errors import CheckpointError, InputError

Scalar = None | bool | int | float | str
_TRUSTED = ("torch", "torchvision", "timm", "transformers")
_DEEPEST = 100
LONE = "output"  # the name of an output that is no part of anything
_KINDS = ("leaf", "none", "list", "tuple", "dict", "ordered", "namedtuple", "object")


def scalar_to_json(value: Scalar) -> Any:
    """JSON for one plain value; floats that JSON lacks (inf, nan) become {"float": "inf"}."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def scalar_from_json(data: Any) -> Scalar:
    """The plain value behind `scalar_to_json`. Raises CheckpointError for anything else."""
    if isinstance(data, dict) and list(data) == ["float"] and data["float"] in ("inf", "-inf", "nan"):
        return float(data["float"])
    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    raise CheckpointError(f"a plain value was expected, got {shorten(data)}")


def take(data: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """`data[key]` if `data` is a dict and the entry has one of the types `kind`; CheckpointError otherwise."""
    if not isinstance(data, dict) or key not in data:
        raise CheckpointError(f"{where}: entry '{key}' is missing")
    value = data[key]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if type(value) not in kinds:
        expected = " or ".join(k.__name__ for k in kinds)
        raise CheckpointError(f"{where}: entry '{key}' should be {expected}, got {shorten(value)}")
    return value


def shorten(value: Any, limit: int = 60) -> str:
    """Show `value` on one line of at most `limit` characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


class Record(dict[str, Any]):
    """An ordered mapping with attribute access (and integer index), for output classes that cannot be imported."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no field '{name}'; there are {', '.join(self)}") from None

    def __getitem__(self, key: str | int) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


def _open_record(record: Record) -> tuple[list[Any], list[str]]:
    return list(record.values()), list(record)


def _close_record(values: Any, keys: Any) -> Record:
    return Record(zip(keys, values, strict=True))


pytree.register_pytree_node(
    Record,
    _open_record,
    _close_record,
    serialized_type_name="sortify.Record",
    flatten_with_keys_fn=lambda r: ([(pytree.MappingKey(k), v) for k, v in r.items()], list(r)),
)


@dataclass(frozen=True)
class Structure:
    """How a nested value is built from its leaves.

    Attributes:
        kind: leaf, none, list, tuple, dict, ordered (OrderedDict), namedtuple (also torch.return_types)
            or object (dataclass, ModelOutput, anything registered with torch.utils._pytree).
        children: the parts, in order. Unlike in torch's own pytrees None is no leaf.
        keys: dict keys (None, bool, int, float, str) or field names, one per child; empty for list and tuple.
        ref: "module:qualname" of the class of a namedtuple or object.
        origin: that class where it is at hand; None makes a named tuple or a `Record` in its place.
        context: what torch.utils._pytree needs to rebuild the object, as a 1-tuple; None after JSON.
    """

    kind: str
    children: tuple[Structure, ...] = ()
    keys: tuple[Scalar, ...] = ()
    ref: str = ""
    origin: type[Any] | None = field(default=None, compare=False, repr=False)
    context: tuple[Any] | None = field(default=None, compare=False, repr=False)

    @property
    def size(self) -> int:
        """Number of leaves."""
        return 1 if self.kind == "leaf" else sum(child.size for child in self.children)

    def paths(self, name: str = "") -> list[str]:
        """A readable name for every leaf, in order: `x`, `states[0]`, `batch['mask']`, `out.logits`."""
        if self.kind == "leaf":
            return [name]
        return [p for i, child in enumerate(self.children) for p in child.paths(name + self.step(i))]

    def names(self) -> list[str]:
        """The paths with dots alone, as patterns like them: `logits`, `hidden_states.0`; `output` for a lone leaf."""
        plain = [re.sub(r"[\[\]'\"]+", ".", path).strip(".").replace("..", ".") for path in self.paths()]
        return [name or LONE for name in plain]

    def build(self, leaves: Sequence[Any]) -> Any:
        """The value whose leaves are `leaves` (one per leaf, in order). Raises InputError for another number."""
        if len(leaves) != self.size:
            raise InputError(f"expected {self.size} leaves to rebuild the value, got {len(leaves)}")
        return self._build(iter(leaves))

    def _build(self, leaves: Iterator[Any]) -> Any:
        if self.kind == "leaf":
            return next(leaves)
        if self.kind == "none":
            return None
        parts = [child._build(leaves) for child in self.children]
        if self.kind == "list":
            return parts
        if self.kind == "tuple":
            return tuple(parts)
        named = dict(zip(self.keys, parts, strict=True)) if self.keys else {}
        if self.kind == "dict":
            return named
        if self.kind == "ordered":
            return collections.OrderedDict(named)
        return self._build_object(parts, {str(k): v for k, v in named.items()})

    def _build_object(self, parts: list[Any], named: dict[str, Any]) -> Any:
        if self.kind == "namedtuple":
            if self.origin is None:
                return Record(named)
            return self.origin(parts) if pytree.is_structseq_class(self.origin) else tuple.__new__(self.origin, parts)
        if self.origin is None:
            return Record(named)
        if self.context is not None:
            return pytree.SUPPORTED_NODES[self.origin].unflatten_fn(parts, self.context[0])
        return self.origin(**named)

    def step(self, index: int) -> str:
        """How the path of child `index` goes on from the path of the whole: `[0]`, `['mask']`, `.logits`."""
        if not self.keys:
            return f"[{index}]"
        key = self.keys[index]
        return f"[{key!r}]" if self.kind in ("dict", "ordered") else f".{key}"

    def to_json(self) -> dict[str, Any]:
        """The structure as JSON values."""
        data: dict[str, Any] = {"kind": self.kind}
        if self.children:
            data["children"] = [child.to_json() for child in self.children]
        if self.keys:
            data["keys"] = [scalar_to_json(key) for key in self.keys]
        if self.ref:
            data["class"] = self.ref
        return data

    @classmethod
    def from_json(cls, data: Any, depth: int = 0) -> Structure:
        """Read what `to_json` wrote; raises CheckpointError for anything malformed."""
        where = "saved structure"
        if depth > _DEEPEST:
            raise CheckpointError(f"{where}: nested deeper than {_DEEPEST} levels")
        kind = take(data, "kind", str, where)
        if kind not in _KINDS:
            raise CheckpointError(f"{where}: unknown kind {shorten(kind)}, expected one of {', '.join(_KINDS)}")
        if unknown := sorted(set(data) - {"kind", "children", "keys", "class"}):
            raise CheckpointError(f"{where}: unknown entry {shorten(unknown[0])}")
        children = take(data, "children", list, where) if "children" in data else []
        keys = tuple(map(scalar_from_json, take(data, "keys", list, where))) if "keys" in data else ()
        ref = take(data, "class", str, where) if "class" in data else ""
        _check_counts(kind, len(children), keys)
        parts = tuple(cls.from_json(child, depth + 1) for child in children)
        return cls(kind, parts, keys, ref, _find_class(kind, ref, tuple(map(str, keys))))


def flatten(value: Any) -> tuple[list[Any], Structure]:
    """Take a nested value apart.

    Args:
        value: anything. Lists, tuples, dicts, named tuples, dataclasses and types registered with
            torch.utils._pytree are opened; every other value except None is a leaf.

    Returns:
        The leaves in order, and the structure that rebuilds the value from them.

    Raises:
        InputError: a dict has keys other than None, bool, int, float or str.

    >>> leaves, structure = flatten({"a": 1, "b": [2, None]})
    >>> leaves, structure.build(["x", "y"])
    ([1, 2], {'a': 'x', 'b': ['y', None]})
    """
    if value is None:
        return [], Structure("none")
    opened = open_container(value)
    if opened is None:
        return [value], Structure("leaf")
    parts, empty = opened
    pairs = [flatten(part) for part in parts]
    leaves = [leaf for part, _ in pairs for leaf in part]
    return leaves, dataclasses.replace(empty, children=tuple(structure for _, structure in pairs))


def open_container(value: Any) -> tuple[list[Any], Structure] | None:
    """The parts of a container and its structure without children; None for a leaf. None itself is no container."""
    kind = type(value)
    if kind is list or kind is tuple or kind is torch.Size:
        return list(value), Structure("list" if kind is list else "tuple")
    if kind is dict or kind is collections.OrderedDict:
        return list(value.values()), Structure("dict" if kind is dict else "ordered", keys=_plain_keys(value))
    ref = f"{kind.__module__}:{kind.__qualname__}"
    if pytree.is_namedtuple_class(kind) or pytree.is_structseq_class(kind):
        fields = kind._fields if hasattr(kind, "_fields") else kind.__match_args__
        return list(value), Structure("namedtuple", keys=tuple(fields), ref=ref, origin=kind)
    if kind in pytree.SUPPORTED_NODES:
        parts, context = pytree.SUPPORTED_NODES[kind].flatten_fn(value)
        return list(parts), Structure("object", (), _field_names(value, len(parts)), ref, kind, (context,))
    if dataclasses.is_dataclass(kind):
        names = [f.name for f in dataclasses.fields(kind) if f.init]
        return [getattr(value, n) for n in names], Structure("object", (), tuple(names), ref, kind)
    return None


def _plain_keys(value: Mapping[Any, Any]) -> tuple[Scalar, ...]:
    for key in value:
        if not (key is None or type(key) in (bool, int, float, str)):
            raise InputError(f"dict keys must be text or plain numbers, got {shorten(key)} ({type(key).__name__})")
    return tuple(value)


def _field_names(value: Any, count: int) -> tuple[str, ...]:
    """Names of the parts of a registered object; field_0, field_1 where it gives none."""
    node = pytree.SUPPORTED_NODES[type(value)]
    plain = tuple(f"field_{i}" for i in range(count))
    if node.flatten_with_keys_fn is None:
        return plain
    entries, _ = node.flatten_with_keys_fn(value)
    names = tuple(str(getattr(k, "name", getattr(k, "key", i))) for i, (k, _) in enumerate(entries))
    return names if len(set(names)) == count else plain


def _check_counts(kind: str, children: int, keys: tuple[Scalar, ...]) -> None:
    named = kind in ("dict", "ordered", "namedtuple", "object")
    if len(keys) != (children if named else 0) or (kind in ("leaf", "none") and children):
        raise CheckpointError(f"saved structure: {kind} with {children} children and {len(keys)} keys")
    if len(set(keys)) != len(keys) or (kind in ("namedtuple", "object") and not all(type(k) is str for k in keys)):
        raise CheckpointError(f"saved structure: keys of {kind} should be distinct names, got {shorten(keys)}")


def _find_class(kind: str, ref: str, keys: tuple[str, ...]) -> type[Any] | None:
    """The class to rebuild with: the real one if it is a known plain container, else a stand-in or None."""
    if kind not in ("namedtuple", "object"):
        return None
    found = _import_class(ref)
    if kind == "namedtuple":
        if found is not None and (pytree.is_namedtuple_class(found) or pytree.is_structseq_class(found)):
            names = found._fields if hasattr(found, "_fields") else found.__match_args__
            if tuple(names) == keys:
                return found
        return _stand_in(ref.rpartition(".")[2].rpartition(":")[2], keys)
    if found is None or not dataclasses.is_dataclass(found) or not _is_plain(found):
        return None
    return found if set(keys) <= {f.name for f in dataclasses.fields(found) if f.init} else None


def _import_class(ref: str) -> type[Any] | None:
    module, _, qualname = ref.partition(":")
    parts = module.split(".") + qualname.split(".")
    if parts[0] not in _TRUSTED or not all(p.isidentifier() and not p.startswith("__") for p in parts):
        return None
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except Exception:  # whatever another version's import does, the Record serves
        return None
    return found if isinstance(found, type) else None


def _is_plain(found: type[Any]) -> bool:
    """Building it only stores fields: a ModelOutput-like mapping, or a dataclass with no code of its own at birth."""
    return issubclass(found, collections.OrderedDict) or not hasattr(found, "__post_init__")


def _stand_in(name: str, keys: tuple[str, ...]) -> type[Any] | None:
    """A named tuple of the same fields, so that `a, b = model(x)` goes on working; None where names do not allow it."""
    names = (name, *keys)
    if not all(n.isidentifier() and not keyword.iskeyword(n) and not n.startswith("_") for n in names):
        return None
    make: Callable[..., type[Any]] = collections.namedtuple
    return make(name, keys)
