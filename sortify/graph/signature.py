"""The signature of a captured call: how calls of the original forward become the captured tensors.

A `Signature` is frozen, holds no tensors, and survives JSON. It accepts what the original forward accepts,
by position or by name, and refuses in one line what the captured graph cannot serve.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from sortify.errors import CheckpointError, InputError
from sortify.graph.arithmetic import holds, understood
from sortify.graph.structure import (
    Scalar,
    Structure,
    flatten,
    open_container,
    scalar_from_json,
    scalar_to_json,
    shorten,
    take,
)
from sortify.graph.symbols import name_of

_SEQUENCES = ("list", "tuple", "namedtuple")


@dataclass(frozen=True)
class LeafSpec:
    """What a captured tensor input looks like: sizes (None = any size) and dtype name such as "float32"."""

    shape: tuple[int | None, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: torch.Tensor) -> LeafSpec:
        """The rank and dtype of `tensor`, every size free."""
        return cls((None,) * tensor.dim(), str(tensor.dtype).removeprefix("torch."))

    def check(self, path: str, value: Any) -> None:
        """Raise InputError in one line if `value` is no tensor of this rank, kind of dtype and fixed sizes."""
        if not isinstance(value, torch.Tensor):
            raise InputError(f"input '{path}': expected {self}, got {_describe(value)}")
        if value.dim() != len(self.shape):
            raise InputError(f"input '{path}': expected {len(self.shape)} dimensions {self}, got {_describe(value)}")
        if _dtype_kind(value.dtype) != _dtype_kind(getattr(torch, self.dtype)):
            raise InputError(f"input '{path}': expected {self}, got {_describe(value)}; convert its dtype first")
        for i, (size, fixed) in enumerate(zip(value.shape, self.shape, strict=True)):
            if fixed is not None and size != fixed:
                raise InputError(
                    f"input '{path}': dimension {i} is fixed at {fixed}, expected {self}, got {_describe(value)}; "
                    f"convert again with example_inputs of this size to use it"
                )

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join('any' if s is None else str(s) for s in self.shape)}]"


def _dtype_kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "float"
    return "complex" if dtype.is_complex else "bool" if dtype == torch.bool else "integer"


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} [{', '.join(map(str, value.shape))}]"
    return "None" if value is None else f"{shorten(value, 40)} ({type(value).__name__})"


@dataclass(frozen=True)
class Constant:
    """A non-tensor value: itself if plain, else opaque, known by its repr only."""

    value: Scalar
    opaque: bool = False

    @classmethod
    def of(cls, value: Any) -> Constant:
        """Record `value`."""
        if value is None or type(value) in (bool, int, float, str):
            return cls(value)
        return cls(shorten(value, 200), opaque=True)

    def equals(self, value: Any) -> bool:
        """Whether `value` is what was recorded (True and 1 differ, 1 and 1.0 do not, nan equals nan)."""
        other = Constant.of(value)
        if isinstance(self.value, bool) is not isinstance(other.value, bool) or self.opaque is not other.opaque:
            return False
        return self.value == other.value or repr(self.value) == repr(other.value)

    def __str__(self) -> str:
        return str(self.value) if self.opaque else repr(self.value)

    def to_json(self) -> dict[str, Any]:
        return {"value": scalar_to_json(self.value), **({"opaque": True} if self.opaque else {})}

    @classmethod
    def from_json(cls, data: Any) -> Constant:
        if not isinstance(data, dict) or "value" not in data or data.get("opaque", False) not in (True, False):
            raise CheckpointError(f"saved signature: a constant was expected, got {shorten(data)}")
        return cls(scalar_from_json(data["value"]), bool(data.get("opaque", False)))


@dataclass(frozen=True)
class Parameter:
    """One parameter of the forward: name, kind as inspect names it, default (None = required)."""

    name: str
    kind: str
    default: Constant | None = None


@dataclass(frozen=True)
class Argument:
    """One argument of the captured call: its structure, and for each leaf a tensor's spec or a constant."""

    name: str
    structure: Structure
    leaves: tuple[LeafSpec | Constant, ...]

    @property
    def has_tensors(self) -> bool:
        """Whether any leaf is a tensor."""
        return any(isinstance(leaf, LeafSpec) for leaf in self.leaves)


_NAMED = ("POSITIONAL_OR_KEYWORD", "KEYWORD_ONLY")
_POSITIONAL = ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD")
_PARAMETER_KINDS = (*_POSITIONAL, "VAR_POSITIONAL", "KEYWORD_ONLY", "VAR_KEYWORD")
_AGAIN = "convert again with example_inputs that include it"


@dataclass(frozen=True)
class Signature:
    """How calls of the original forward become the captured tensors.

    Attributes:
        parameters: of the forward, in order.
        arguments: that the captured call gave, positional ones first, then keywords in the order given.
            That is the order in which torch.export numbers its inputs (which counts None as an input).
        positional: how many of the arguments were given by position.
        limits: what the sizes of a call must meet for the graphs to serve it, over `s0_1` (dimension 1 of captured
            tensor 0) and the like.
    """

    parameters: tuple[Parameter, ...]
    arguments: tuple[Argument, ...]
    positional: int = 0
    limits: tuple[str, ...] = ()

    @classmethod
    def of(cls, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Signature:
        """Record the forward and one call of it.

        Args:
            forward: the callable as the user sees it (a bound method or a module).
            args: the positional arguments of the captured call. Tensor leaves get their rank and dtype and
                free sizes (see `with_specs`); other leaves are constants from here on.
            kwargs: its keyword arguments, likewise.

        Raises:
            InputError: the call does not fit the forward.
        """
        target = forward.forward if isinstance(forward, torch.nn.Module) else forward
        parameters = tuple(
            Parameter(p.name, p.kind.name, None if p.default is p.empty else Constant.of(p.default))
            for p in inspect.signature(target).parameters.values()
        )
        empty = cls(parameters, ())
        arguments = []
        for name, value in empty._named(args, kwargs).items():
            leaves, structure = flatten(value)
            specs = tuple(LeafSpec.of(x) if isinstance(x, torch.Tensor) else Constant.of(x) for x in leaves)
            arguments.append(Argument(name, structure, specs))
        by_name = sum(a.name in kwargs for a in arguments)
        return cls(parameters, tuple(arguments), len(arguments) - by_name)

    @property
    def names(self) -> frozenset[str]:
        """The names of all parameters of the forward."""
        return frozenset(p.name for p in self.parameters)

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Readable name of each captured tensor, in the order of `bind`."""
        return tuple(
            path
            for a in self.arguments
            for path, leaf in zip(a.structure.paths(a.name), a.leaves, strict=True)
            if isinstance(leaf, LeafSpec)
        )

    @property
    def specs(self) -> tuple[LeafSpec, ...]:
        """Spec of each captured tensor, in the order of `bind`."""
        return tuple(leaf for a in self.arguments for leaf in a.leaves if isinstance(leaf, LeafSpec))

    def with_specs(self, specs: Sequence[LeafSpec]) -> Signature:
        """The same signature with other tensor specs (one per captured tensor, in order)."""
        if len(specs) != len(self.specs):
            raise InputError(f"expected {len(self.specs)} specs, one per captured tensor, got {len(specs)}")
        rest = iter(specs)
        arguments = tuple(
            dataclasses.replace(
                a, leaves=tuple(next(rest) if isinstance(leaf, LeafSpec) else leaf for leaf in a.leaves)
            )
            for a in self.arguments
        )
        return dataclasses.replace(self, arguments=arguments)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
        """The tensors of a call, in captured order.

        Values that were no tensors in the captured call stay what they were then: giving another one is an
        error, and so is leaving one out whose default is another (None as default means undecided and is fine).

        Raises:
            InputError: the call does not fit; one line says which argument, what was expected, what was given.
        """
        given = self._named(args, kwargs)
        tensors: list[torch.Tensor] = []
        for argument in self.arguments:
            if argument.name in given and not self._left_open(argument, given[argument.name]):
                tensors += _match_argument(argument, given.pop(argument.name))
            else:
                given.pop(argument.name, None)
                self._check_absent(argument)
        for name, value in given.items():
            self._check_extra(name, value)
        if self.limits and not torch.compiler.is_compiling():
            self.check_sizes([tuple(tensor.shape) for tensor in tensors])
        return tensors

    @property
    def implied(self) -> dict[str, Scalar]:
        """Plain values of the captured call that stand for themselves where a call leaves the argument undecided."""
        names = self.names
        found = {a.name: _whole(a) for a in self.arguments[self.positional :]}
        return {
            name: constant.value
            for name, constant in found.items()
            if constant is not None and constant.value is not None and not constant.opaque
            if name not in names or self._default(name) == Constant(None)
        }

    def completed(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The named arguments of a call with what is implied."""
        placed = [p.name for p in self.parameters if p.kind in _POSITIONAL][: len(args)]
        return {**{name: value for name, value in self.implied.items() if name not in placed}, **kwargs}

    def check_sizes(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Raise InputError in one line if the graphs do not serve tensors of these shapes, in captured order."""
        broken = _broken(self.limits, tuple(shapes))
        if broken is not None:
            sizes = ", ".join(f"{n} {list(s)}" for n, s in zip(self.tensor_names, shapes, strict=True))
            raise InputError(
                f"sizes of the inputs ({sizes}): the captured graphs hold where {self.readable(broken)}; "
                f"convert again with example_inputs of this size"
            )

    def readable(self, limit: str) -> str:
        """A limit in terms of `NAME.shape[DIMENSION]`."""
        names = self.tensor_names
        return re.sub(r"\bs(\d+)_(\d+)\b", lambda m: f"{names[int(m[1])]}.shape[{m[2]}]", limit)

    def call(self, tensors: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The captured call with other tensors: what `bind` takes apart. Returns positional and named arguments."""
        rest = iter(tensors)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        spread = next((p.name for p in self.parameters if p.kind == "VAR_POSITIONAL"), None)
        for number, argument in enumerate(self.arguments):
            leaves = [next(rest) if isinstance(leaf, LeafSpec) else leaf.value for leaf in argument.leaves]
            value = argument.structure.build(leaves)
            if number >= self.positional:
                kwargs[argument.name] = value
            else:
                args += list(value) if argument.name == spread else [value]
        return tuple(args), kwargs

    def _named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Name of each given argument -> value, positional ones first; InputError where the forward has no such."""
        positional = [p.name for p in self.parameters if p.kind in _POSITIONAL]
        given = dict(zip(positional, args, strict=False))
        if len(args) > len(positional):
            rest = next((p.name for p in self.parameters if p.kind == "VAR_POSITIONAL"), None)
            if rest is None:
                raise InputError(
                    f"too many positional arguments: forward takes at most {len(positional)} "
                    f"({', '.join(positional) or 'none'}), got {len(args)}"
                )
            given[rest] = tuple(args[len(positional) :])
        known = [p.name for p in self.parameters if p.kind in _NAMED]
        catch_all = any(p.kind == "VAR_KEYWORD" for p in self.parameters)
        for name, value in kwargs.items():
            if name in given:
                raise InputError(f"argument '{name}' is given twice, by position and by name")
            if name not in known and not catch_all:
                raise InputError(f"unknown argument '{name}': forward takes {', '.join(known) or 'no named arguments'}")
            given[name] = value
        return given

    def _default(self, name: str) -> Constant | None:
        return next((p.default for p in self.parameters if p.name == name), None)

    def _left_open(self, argument: Argument, value: Any) -> bool:
        """None given where None is the default says as much as leaving the argument out."""
        default = self._default(argument.name)
        return value is None and default is not None and default.value is None and not argument.has_tensors

    def _check_absent(self, argument: Argument) -> None:
        if argument.has_tensors:
            raise InputError(f"missing input '{argument.name}': the model was converted with it")
        parameter = next((p for p in self.parameters if p.name == argument.name), None)
        if parameter is None or parameter.kind.startswith("VAR_"):
            return
        if parameter.default is None:
            raise InputError(f"missing argument '{argument.name}'")
        default, captured = parameter.default, _whole(argument)
        if default.value is None or (captured is not None and default == captured):
            return
        raise InputError(
            f"argument '{argument.name}' is left out, which means {default}, but the model was converted with "
            f"{captured or 'another value'}: give that value"
        )

    def _check_extra(self, name: str, value: Any) -> None:
        leaves, _ = flatten(value)
        if any(isinstance(leaf, torch.Tensor) for leaf in leaves):
            raise InputError(f"input '{name}' was not given when the model was converted: {_AGAIN}")
        default = self._default(name)
        if value is None or (default is not None and default.equals(value)):
            return
        if name not in [p.name for p in self.parameters]:
            raise InputError(f"unknown argument '{name}' ({_describe(value)}): {_AGAIN}")
        raise InputError(
            f"argument '{name}' was left at its default {default or '(none)'} when the model was converted, "
            f"got {_describe(value)}: {_AGAIN}"
        )

    def to_json(self) -> dict[str, Any]:
        """The signature as JSON values."""
        return {
            "parameters": [
                {"name": p.name, "kind": p.kind, "default": p.default and p.default.to_json()} for p in self.parameters
            ],
            "arguments": [
                {"name": a.name, "structure": a.structure.to_json(), "leaves": [_leaf_to_json(x) for x in a.leaves]}
                for a in self.arguments
            ],
            "positional": self.positional,
            "limits": list(self.limits),
        }

    @classmethod
    def from_json(cls, data: Any) -> Signature:
        """Read what `to_json` wrote; raises CheckpointError for anything malformed."""
        where = "saved signature"
        parameters = tuple(map(_parameter_from_json, take(data, "parameters", list, where)))
        arguments = tuple(map(_argument_from_json, take(data, "arguments", list, where)))
        for names in ([p.name for p in parameters], [a.name for a in arguments]):
            if len(set(names)) != len(names):
                raise CheckpointError(f"{where}: a name stands twice in {shorten(names)}")
        positional = take(data, "positional", int, where)
        if not 0 <= positional <= len(arguments):
            raise CheckpointError(f"{where}: {positional} positional arguments of {len(arguments)}")
        limits = tuple(take(data, "limits", list, where))
        signature = cls(parameters, arguments, positional, limits)
        ones = {name_of((n, d)): 1 for n, spec in enumerate(signature.specs) for d in range(len(spec.shape))}
        for limit in limits:
            if not isinstance(limit, str) or not understood(limit, ones):
                raise CheckpointError(f"{where}: a limit on sizes is not understood: {shorten(limit)}")
        return signature


@lru_cache(maxsize=4096)
def _broken(limits: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]) -> str | None:
    """The first limit that does not hold."""
    sizes = {name_of((n, d)): size for n, shape in enumerate(shapes) for d, size in enumerate(shape)}
    for limit in limits:
        try:
            if not holds(limit, sizes):
                return limit
        except ArithmeticError:  # such as a division by a size that is 0 here
            return limit
    return None


def _whole(argument: Argument) -> Constant | None:
    """The constant that an argument is as a whole; None for containers."""
    if argument.structure.kind == "none":
        return Constant(None)
    leaf = argument.leaves[0] if argument.structure.kind == "leaf" else None
    return leaf if isinstance(leaf, Constant) else None


def _match_argument(argument: Argument, value: Any) -> list[torch.Tensor]:
    leaves: list[Any] = []
    _match(argument.structure, value, argument.name, leaves)
    tensors = []
    for path, spec, leaf in zip(argument.structure.paths(argument.name), argument.leaves, leaves, strict=True):
        if isinstance(spec, LeafSpec):
            spec.check(path, leaf)
            tensors.append(leaf)
        elif isinstance(leaf, torch.Tensor):
            raise InputError(f"input '{path}' was {spec} when the model was converted, got a tensor: {_AGAIN}")
        elif not spec.equals(leaf):
            raise InputError(f"argument '{path}' was {spec} when the model was converted, got {_describe(leaf)}")
    return tensors


def _match(structure: Structure, value: Any, path: str, leaves: list[Any]) -> None:
    """Append to `leaves` the leaves of `value` in the order of `structure`; list and tuple, dict kinds are alike."""
    if structure.kind == "leaf":
        leaves.append(value)
        return
    if structure.kind == "none":
        if value is not None:
            raise InputError(f"argument '{path}' was None when the model was converted, got {_describe(value)}")
        return
    opened = None if value is None else open_container(value)
    if opened is None:
        raise InputError(f"argument '{path}': expected a {structure.kind}, got {_describe(value)}")
    parts, given = opened
    if structure.kind in _SEQUENCES:
        if given.kind not in _SEQUENCES or len(parts) != len(structure.children):
            raise InputError(
                f"argument '{path}': expected {len(structure.children)} items, got {given.kind} of {len(parts)}"
            )
    elif set(given.keys) != set(structure.keys):
        raise InputError(f"argument '{path}': expected the keys {list(structure.keys)}, got {list(given.keys)}")
    else:
        by_key = dict(zip(given.keys, parts, strict=True))
        parts = [by_key[key] for key in structure.keys]
    for i, (child, part) in enumerate(zip(structure.children, parts, strict=True)):
        _match(child, part, path + structure.step(i), leaves)


def _leaf_to_json(leaf: LeafSpec | Constant) -> dict[str, Any]:
    return leaf.to_json() if isinstance(leaf, Constant) else {"shape": list(leaf.shape), "dtype": leaf.dtype}


def _leaf_from_json(data: Any) -> LeafSpec | Constant:
    if not isinstance(data, dict) or "shape" not in data:
        return Constant.from_json(data)
    shape = tuple(take(data, "shape", list, "saved signature"))
    dtype = take(data, "dtype", str, "saved signature")
    if not all(s is None or (type(s) is int and s >= 0) for s in shape):
        raise CheckpointError(f"saved signature: sizes should be whole numbers or null, got {shorten(shape)}")
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise CheckpointError(f"saved signature: unknown dtype {shorten(dtype)}")
    return LeafSpec(shape, dtype)


def _parameter_from_json(data: Any) -> Parameter:
    where = "saved signature"
    name, kind = take(data, "name", str, where), take(data, "kind", str, where)
    if kind not in _PARAMETER_KINDS:
        raise CheckpointError(f"{where}: unknown parameter kind {shorten(kind)}")
    default = data.get("default")
    return Parameter(name, kind, None if default is None else Constant.from_json(default))


def _argument_from_json(data: Any) -> Argument:
    where = "saved signature"
    name, structure = take(data, "name", str, where), Structure.from_json(data.get("structure"))
    leaves = tuple(map(_leaf_from_json, take(data, "leaves", list, where)))
    if len(leaves) != structure.size:
        raise CheckpointError(f"{where}: argument {shorten(name)} has {structure.size} leaves, {len(leaves)} described")
    return Argument(name, structure, leaves)
