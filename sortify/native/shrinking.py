"""The second rung of extraction: a copy of the original module with smaller layers, proven by equal outputs.

Weights get their new sizes, blocks that are left out leave their lists, and numbers that modules keep beside their
weights (`num_heads`, `normalized_shape`) follow. Which of these follow, and which only happen to be as large, is
decided by running the copy beside the extracted graph.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from sortify.errors import NativeError, first_line
from sortify.models.sorted_model import SortedModel
from sortify.native.comparing import TOLERANCE, furthest
from sortify.network.extract import ExtractedModel
from sortify.space.space import Subnet

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
TRIALS = 60
"""Copies that are compared, at most."""
Sizes = Mapping[int, frozenset[int]]


@dataclass(frozen=True)
class Smaller:
    """A sub-network as a copy of the original module.

    Attributes:
        subnet: that it is.
        module: of the original's class; it trains, and saves its state dict, as the original does.
        changes: numbers beside the weights that differ from the original's, as `{"blocks.0.attn.num_heads": 3}`.
        error: the largest difference of its outputs from the extracted graph's.
    """

    subnet: Subnet
    module: nn.Module
    changes: Mapping[str, Any]
    error: float


@dataclass(frozen=True)
class Number:
    """A number, or several, that modules of one class keep under one name, and what it may become.

    Attributes:
        places: path and name of each.
        value: what it is.
        options: what it may become, the likeliest first.
        is_count: whether the first option is a number of units that no weight has as a size, such as heads.
    """

    places: tuple[tuple[str, str], ...]
    value: Any
    options: tuple[Any, ...]
    is_count: bool


def to_module(model: SortedModel, subnet: Subnet, original: nn.Module) -> Smaller:
    """A sub-network as a copy of the original module with smaller layers.

    Args:
        model: made from the original.
        subnet: which sub-network.
        original: it is not changed; the weights are those of `model`.

    Raises:
        NativeError: the module is not what the model was made from, or its code holds numbers that no attribute shows,
            or a block is in no list.
    """
    if any(tensor.is_meta for tensor in model.tensors.values()):
        raise NativeError("the weights are on the meta device: without values nothing can be compared")
    small = model.extract(subnet=subnet).eval()
    _check_original(model, original)
    module, names = _cut(original, model, small)
    numbers = _numbers(module, _before(original, names), _axes(model, subnet))
    best, why = float("inf"), "does not run"

    def error_of(choice: Sequence[int]) -> float:
        nonlocal best, why
        _set(module, numbers, choice)
        try:
            error = furthest(model, subnet, module, names)
        except Exception as problem:  # sizes that do not go together
            why = f"does not run: {first_line(problem)}" if best == float("inf") else why
            return float("inf")
        best, why = min(best, error), f"gives outputs that differ by {min(best, error):.1e}"
        return error

    found = next((choice for choice in _choices(numbers) if error_of(choice) <= TOLERANCE), None)
    if found is None:
        raise NativeError(
            f"{subnet}: the copy with smaller layers {why}; its code may hold sizes as numbers that no attribute shows"
        )
    for place, number in enumerate(numbers):  # what makes no difference may only happen to be as large
        if number.is_count and found[place] == 0:
            kept = (*found[:place], len(number.options), *found[place + 1 :])
            found = kept if error_of(kept) <= TOLERANCE else found
    error = error_of(found)
    said = {f"{path}.{name}".lstrip("."): new for (path, name), new in _said(numbers, found)}
    return Smaller(subnet, module.train(original.training), MappingProxyType(said), error)


def _check_original(model: SortedModel, original: nn.Module) -> None:
    own = {name: tuple(tensor.shape) for name, tensor in original.state_dict().items()}
    for name, tensor in model.state_dict().items():
        if own.get(name) != tuple(tensor.shape):
            raise NativeError(
                f"the module is not the one that was converted: {name} is {own.get(name, 'missing')}, expected "
                f"{tuple(tensor.shape)}"
            )


# -- weights and blocks


def _cut(original: nn.Module, model: SortedModel, small: ExtractedModel) -> tuple[nn.Module, dict[str, str]]:
    """A copy with smaller weights and without the blocks that are left out; and names of the sub-network -> its own."""
    module, state = copy.deepcopy(original).eval(), small.state_dict()
    tensors: dict[str, Tensor] = dict(small.tensors)
    kept: dict[int, Tensor] = {}
    before = {name: id(tensor) for name, tensor in _named(module)}
    owners = dict(module.named_modules())
    for name, tensor in list(_named(module)):
        given = tensors.get(name, state.get(name))
        if given is None or not _is_set(owners, name):
            continue
        same = kept.setdefault(before[name], _like(tensor, given))  # tied weights stay tied
        setattr(owners[name.rpartition(".")[0]], name.rpartition(".")[2], same)
    dropped = (set(model.state_dict()) - set(state)) & set(before)
    _without(module, "", dropped, set(before))
    now = {id(tensor): name for name, tensor in reversed(list(_named(module)))}
    names = {name: now[id(kept[before[name]])] for name in state if before[name] in kept}
    return module, names


def _is_set(owners: Mapping[str, nn.Module], name: str) -> bool:
    """Whether a tensor is a parameter or buffer of the module that its name says."""
    path, _, own = name.rpartition(".")
    return path in owners and (own in owners[path]._parameters or own in owners[path]._buffers)


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _like(old: Tensor, given: Tensor) -> Tensor:
    value = given.detach().clone()
    return nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value


def _without(module: nn.Module, path: str, dropped: set[str], known: set[str]) -> None:
    """Take modules of which no weight is left out of their lists; what follows in a numbered list moves up."""
    for key, child in list(module.named_children()):
        at = f"{path}{key}."
        own = {name for name in known if name.startswith(at)}
        if not own & dropped:
            continue
        if not own <= dropped:
            _without(child, at, dropped, known)
        elif not isinstance(module, LISTS):
            raise NativeError(f"{at[:-1]} is to be left out, but it is in no list of modules that could do without it")
        else:
            del module._modules[key]
    if isinstance(module, (nn.Sequential, nn.ModuleList)) and all(key.isdigit() for key in module._modules):
        module._modules = {str(place): child for place, child in enumerate(module._modules.values())}


# -- numbers beside the weights


def _axes(model: SortedModel, subnet: Subnet) -> dict[str, tuple[set[str], int, int]]:
    """Axes that are smaller: the parameters that carry each, its full size, its own."""
    sizes = dict(subnet.sizes)
    return {
        name: (set(axis.parameters), axis.size, sizes[name])
        for name, axis in model.axes.items()
        if sizes[name] < axis.size
    }


def _before(original: nn.Module, names: Mapping[str, str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """By the names in the copy: the names and shapes in the original."""
    shapes = {name: tuple(tensor.shape) for name, tensor in _named(original)}
    return {new: (old, shapes[old]) for old, new in names.items()}


def _numbers(
    module: nn.Module,
    before: Mapping[str, tuple[str, tuple[int, ...]]],
    axes: Mapping[str, tuple[set[str], int, int]],
) -> list[Number]:
    """What may have to follow, alike in all modules of a class that have the same value and the same options."""
    after = {name: tuple(tensor.shape) for name, tensor in _named(module)}
    found: defaultdict[tuple[type, str, Any, tuple[Any, ...], bool], list[tuple[str, str]]] = defaultdict(list)
    for path, each in module.named_modules():
        prefix = f"{path}." if path else ""
        own = {name: before[name] for name in after if name.startswith(prefix) and name in before}
        shown = _sizes(own, after)
        sizes = _with_axes(shown, own, axes)
        for name, value in list(vars(each).items()):
            options = _options(each, name, value, sizes)
            if options:
                is_count = (
                    isinstance(value, int) and _told(each, name) is None and options[0] not in shown.get(value, ())
                )
                key = type(each), name, _frozen(value), tuple(map(_frozen, options)), is_count
                found[key].append((path, name))
    return [Number(tuple(places), *rest) for (_, _, *rest), places in found.items()]


def _sizes(own: Mapping[str, tuple[str, tuple[int, ...]]], after: Mapping[str, tuple[int, ...]]) -> Sizes:
    """What the sizes of the weights in a part of the module become."""
    found: defaultdict[int, set[int]] = defaultdict(set)
    for name, (_, shape) in own.items():
        for a, b in zip(shape, after[name], strict=True):
            found[a].add(b)
    return {a: frozenset(b) for a, b in found.items()}


def _with_axes(
    sizes: Sizes,
    own: Mapping[str, tuple[str, tuple[int, ...]]],
    axes: Mapping[str, tuple[set[str], int, int]],
) -> Sizes:
    """With the sizes of the axes that reach these weights, such as numbers of heads; without what stays as it is."""
    found, originals = dict(sizes), {old for old, _ in own.values()}
    for parameters, full, size in axes.values():
        if parameters & originals:
            found[full] = found.get(full, frozenset()) | {size}
    return {a: b for a, b in found.items() if b != {a}}


def _options(module: nn.Module, name: str, value: Any, sizes: Sizes) -> tuple[Any, ...]:
    """What a number may become; of layers of torch what their weights say."""
    if name.startswith("_") or isinstance(value, bool):
        return ()
    told = _told(module, name)
    if told is not None:
        return (told,) if told != value else ()
    if isinstance(value, int):
        return tuple(sorted(sizes.get(value, ()), key=lambda size: (size == value, size)))
    if isinstance(value, (tuple, list)) and value and all(type(part) is int for part in value):
        each = [sorted(sizes.get(part, {part})) for part in value]
        kind = type(value)
        made = [kind(parts) for parts in product(*each)][:4]
        return tuple(made) if made != [value] else ()
    return ()


def _told(module: nn.Module, name: str) -> Any:
    """A number of a layer of torch, as its weights have it; None of any other."""
    rule = next((rules[name] for kind, rules in LAYERS.items() if isinstance(module, kind) and name in rules), None)
    weight = getattr(module, "weight", None)
    return rule(module, weight) if rule is not None and isinstance(weight, Tensor) else None


def _groups(module: Any, weight: Tensor) -> int:
    """Groups of a convolution: their number shrinks with the channels where each keeps its width."""
    fan = module.in_channels // module.groups if not module.transposed else module.out_channels // module.groups
    outer = module.out_channels if not module.transposed else module.in_channels
    if weight.shape[1] != fan or weight.shape[0] == outer:
        return int(module.groups)
    return max(1, int(module.groups * weight.shape[0] // outer))


def _in_channels(module: Any, weight: Tensor) -> int:
    return int(weight.shape[0] if module.transposed else weight.shape[1] * _groups(module, weight))


def _out_channels(module: Any, weight: Tensor) -> int:
    return int(weight.shape[1] * _groups(module, weight) if module.transposed else weight.shape[0])


LAYERS: Mapping[type[nn.Module] | tuple[type[nn.Module], ...], Mapping[str, Any]] = MappingProxyType(
    {
        nn.Linear: {
            "in_features": lambda module, weight: weight.shape[1],
            "out_features": lambda module, weight: weight.shape[0],
        },
        nn.modules.conv._ConvNd: {
            "groups": _groups,
            "in_channels": _in_channels,
            "out_channels": _out_channels,
        },
        nn.modules.batchnorm._NormBase: {"num_features": lambda module, weight: weight.shape[0]},
        (nn.LayerNorm, nn.RMSNorm): {"normalized_shape": lambda module, weight: tuple(weight.shape)},
        nn.GroupNorm: {"num_channels": lambda module, weight: weight.shape[0]},
        nn.Embedding: {
            "num_embeddings": lambda module, weight: weight.shape[0],
            "embedding_dim": lambda module, weight: weight.shape[1],
        },
    }
)
"""Layers of torch: the numbers that their weights tell, with the old numbers still in place."""


def _frozen(value: Any) -> Any:
    """Something that can be a key."""
    return (type(value), *value) if isinstance(value, list) else value


def _thawed(value: Any) -> Any:
    return list(value[1:]) if isinstance(value, tuple) and value and value[0] is list else value


def _choices(numbers: Sequence[Number]) -> Iterator[tuple[int, ...]]:
    """Which option of each number, one past the last: as it was. The likeliest everywhere, then up to 3 others."""
    first = [0] * len(numbers)
    yield tuple(first)
    others = [
        (place, option)
        for place, number in enumerate(numbers)
        for option in range(1, len(number.options) + (number.value not in number.options))
    ]
    tried = 1
    for count in (1, 2, 3):
        for changes in combinations(others, count):
            if len({place for place, _ in changes}) == count and tried < TRIALS:
                tried += 1
                choice = list(first)
                for place, option in changes:
                    choice[place] = option
                yield tuple(choice)


def _said(numbers: Sequence[Number], choice: Sequence[int]) -> Iterator[tuple[tuple[str, str], Any]]:
    """Places, and what they are by a choice, where that is new."""
    for number, option in zip(numbers, choice, strict=True):
        if option < len(number.options) and number.options[option] != number.value:
            yield from ((place, _thawed(number.options[option])) for place in number.places)


def _set(module: nn.Module, numbers: Sequence[Number], choice: Sequence[int]) -> None:
    modules = dict(module.named_modules())
    for number in numbers:
        for path, name in number.places:
            setattr(modules[path], name, _thawed(number.value))
    for (path, name), value in _said(numbers, choice):
        setattr(modules[path], name, value)
