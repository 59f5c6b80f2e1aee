"""Inputs for a model of the sweep: what sortify infers, else guesses by the names of the forward's parameters."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from examples.coverage import values
from sortify import SortifyError, example_inputs_for

Inputs = tuple[Any, ...] | dict[str, Any]


def candidates(module: nn.Module, hint: str) -> Iterator[Inputs]:
    """Inputs that may do, the most likely first."""
    with contextlib.suppress(SortifyError, Exception):
        inferred = example_inputs_for(module, hint)
        own = getattr(module, "image_size", None)
        for size in () if hasattr(module, "config") else (128, 160, *([own] if isinstance(own, int) else [])):
            small = _smaller(inferred, size)
            if small is not None:
                yield small
        yield inferred
        ended = _ended(inferred, getattr(module, "config", None))
        if ended is not None:
            yield ended
    if hasattr(module, "config"):
        yield from _by_name(module)
    with contextlib.suppress(Exception):
        dummy = getattr(module, "dummy_inputs", None)
        if isinstance(dummy, Mapping):
            yield dict(dummy)


def first_that_runs(module: nn.Module, hint: str) -> tuple[Inputs | None, str]:
    """The first inputs with which the model runs in both modes and gives finite numbers; else None and the errors."""
    problems: list[str] = []
    for inputs in candidates(module, hint):
        args, kwargs = call_of(inputs)
        try:
            with torch.no_grad():
                if not wants_targets(module):
                    module.train()(*clone(args), **clone(kwargs))
                module.eval()(*clone(args), **clone(kwargs))
        except Exception as error:
            problems.append(f"{type(error).__name__}: {error}".splitlines()[0][:200])
            continue
        return inputs, ""
    return None, "; ".join(dict.fromkeys(problems)) or "no inputs could be inferred"


def wants_targets(module: nn.Module) -> bool:
    """Whether training takes targets beside the inputs, as detection models do, which then return losses."""
    return "targets" in inspect.signature(module.forward).parameters


def call_of(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments."""
    return ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})


def clone(value: Any) -> Any:
    """Copies of all tensors of a nested value."""
    return torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, value)


def _smaller(inputs: Inputs, size: int) -> Inputs | None:
    """Images cut to a square of `size`; None if nothing is larger."""
    changed = False

    def cut(value: Any) -> Any:
        nonlocal changed
        if isinstance(value, Tensor) and value.ndim >= 3 and value.is_floating_point() and min(value.shape[-2:]) > size:
            changed = True
            return value[..., :size, :size].clone()
        return value

    small = torch.utils._pytree.tree_map(cut, inputs)
    return small if changed else None


# ------------------------------------------------------------------------------------ transformers


def _by_name(module: nn.Module) -> Iterator[Inputs]:
    """A tensor for every parameter of the forward whose name tells what it is, several shapes for some."""
    parameters = inspect.signature(module.forward).parameters
    main = getattr(module, "main_input_name", "input_ids")
    mains = [main] if isinstance(main, str) else list(main)
    both = [n for n in ("input_ids", "pixel_values", "input_features", "input_values") if n in parameters]
    for wanted in (mains if set(mains) <= parameters.keys() else [], both, both[:1]):
        yield from _shapes(module, wanted, 4)
    required = [n for n, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    known = [n for n in parameters if values.known(_wish(module), n)]
    texts = [n for n in ("input_ids", "mm_token_type_ids") if n in known]
    for wanted in (required, texts, known):
        yield from _shapes(module, wanted, values.VARIANTS)
    for made in _shapes(module, known, 1):  # some take no batches
        yield {name: value[:1] if isinstance(value, Tensor) else value for name, value in made.items()}


def _wish(module: nn.Module, image: int | None = None, variant: int = 0) -> values.Wish:
    names = frozenset(inspect.signature(module.forward).parameters)
    return values.Wish(module.config, names, torch.Generator().manual_seed(0), image, variant)


def _shapes(module: nn.Module, wanted: list[str], variants: int) -> Iterator[Inputs]:
    """Values for the wanted parameters, in all shapes that are offered."""
    pictures = {"pixel_values", "pixel_values_videos"} & set(wanted)
    if variants < values.VARIANTS and not {"input_features", "input_values"} & set(wanted):
        variants = 1
    for image in ((None, 64, 224) if pictures else (None,)) if wanted else ():
        for variant in range(variants):
            made = values.build(_wish(module, image, variant), wanted)
            if made is not None:
                yield made


def _ended(inputs: Inputs, config: Any) -> Inputs | None:
    """Each row of ids ending with the token that ends a text; None if nothing tells which that is."""
    end = getattr(config, "eos_token_id", None)
    if not isinstance(inputs, dict) or not isinstance(inputs.get("input_ids"), Tensor) or not isinstance(end, int):
        return None
    ids = inputs["input_ids"].clone()
    ids[:, -1] = end
    return inputs | {"input_ids": ids}
