"""Inputs for a model of the sweep: what sortify infers, else guesses by the names of the forward's parameters."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sortify import SortifyError, example_inputs_for

Inputs = tuple[Any, ...] | dict[str, Any]
BATCH, LENGTH = 2, 16


def candidates(module: nn.Module, hint: str) -> Iterator[Inputs]:
    """Inputs that may do, the most likely first."""
    with contextlib.suppress(SortifyError, Exception):
        inferred = example_inputs_for(module, hint)
        for size in () if hasattr(module, "config") else (128, 160):
            small = _smaller(inferred, size)
            if small is not None:
                yield small
        yield inferred
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
    names = list(inspect.signature(module.forward).parameters)
    main = getattr(module, "main_input_name", "input_ids")
    both = [n for n in ("input_ids", "pixel_values", "input_features", "input_values") if n in names]
    for wanted in ([main] if main in names else [], both, both[:1]):
        if wanted:
            for image in (None, 64, 224):
                for sound in range(4):
                    made = _made(module.config, names, wanted, image, sound)
                    if made is not None:
                        yield made
                    if not {"input_features", "input_values"} & set(wanted):
                        break
                if not {"pixel_values", "pixel_values_videos"} & set(wanted):
                    break


def _made(config: Any, names: list[str], wanted: list[str], image: int | None, sound: int) -> dict[str, Any] | None:
    generator = torch.Generator().manual_seed(0)
    made: dict[str, Any] = {}
    for name in wanted:
        build = BUILDERS.get(name)
        value = build(config, generator, image, sound) if build else None
        if value is None:
            return None
        made[name] = value
    if "input_ids" in made:
        if "attention_mask" in names:
            made["attention_mask"] = torch.ones_like(made["input_ids"])
        for name in ("bbox",):
            if name in names:
                made[name] = torch.tensor([1, 2, 5, 9]).expand(*made["input_ids"].shape, 4).clone()
    if "decoder_input_ids" in names and "decoder_input_ids" not in made:
        made["decoder_input_ids"] = _ids(config, generator, None, 0)
    if "use_cache" in names:
        made["use_cache"] = False
    return made


def number(config: Any, *names: str) -> Any:
    """The first of these settings in the configuration or in any configuration inside it."""
    todo, seen = [config], []
    while todo:
        part = todo.pop(0)
        seen.append(part)
        for name in names:
            value = getattr(part, name, None)
            if value is not None and not isinstance(value, bool):
                return value
        todo += [v for v in vars(part).values() if hasattr(v, "model_type") and all(v is not s for s in seen)]
    return None


def _ids(config: Any, generator: torch.Generator, image: int | None, sound: int) -> Tensor:
    size = number(config, "vocab_size", "n_vocab", "num_tokens") or 64
    return torch.randint(min(5, size - 1), max(6, size // 2), (BATCH, LENGTH), generator=generator).clamp(max=size - 1)


def _pixels(config: Any, generator: torch.Generator, image: int | None, sound: int) -> Tensor:
    size = image or number(config, "image_size", "img_size", "input_size") or 224
    if isinstance(size, Mapping):
        size = (size.get("height", 64), size.get("width", 64))
    height, width = (size, size) if isinstance(size, int) else (list(size) * 2)[:2]
    frames = number(config, "num_frames")
    channels = number(config, "num_channels", "in_channels", "in_chans") or 3
    channels = channels if isinstance(channels, int) else 3
    return torch.randn(
        BATCH, *((frames,) if isinstance(frames, int) else ()), channels, height, width, generator=generator
    )


def _features(config: Any, generator: torch.Generator, image: int | None, sound: int) -> Tensor:
    bins = (
        number(
            config, "feature_projection_input_dim", "num_mel_bins", "feature_size", "input_feat_per_channel", "n_mels"
        )
        or 80
    )
    length = 2 * (number(config, "max_source_positions") or 64)
    shapes = ((BATCH, bins, length), (BATCH, 128, bins), (BATCH, length, bins), (BATCH, bins, 128))
    return torch.randn(*shapes[sound], generator=generator)


def _sound(config: Any, generator: torch.Generator, image: int | None, sound: int) -> Tensor:
    bins = number(config, "num_mel_bins", "n_mels") or 80
    shapes = ((BATCH, 4000), (BATCH, 1, 4000), (BATCH, 16000), (BATCH, 128, bins))
    return torch.randn(*shapes[sound], generator=generator)


BUILDERS: dict[str, Callable[[Any, torch.Generator, int | None, int], Tensor]] = {
    "input_ids": _ids,
    "pixel_values": _pixels,
    "pixel_values_videos": _pixels,
    "input_features": _features,
    "input_values": _sound,
    "audio_values": _sound,
}
