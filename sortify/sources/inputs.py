"""Example inputs for a model: read from `--input` text, or inferred from what the model says about itself.

Inference looks at attributes that are present (a configuration, an input size, the forward's parameters), never at the
name of a class or model. Batches hold two examples; numbers come from a generator with a fixed seed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sortify.errors import SourceError

Inputs = tuple[Any, ...] | dict[str, Any]
_BATCH, _LENGTH, _IMAGE, _FRAMES, _VIDEO = 2, 16, 224, 16, 112
_PART = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<sizes>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?(?:<(?P<below>\d+))?\Z")
_HOW = "write sizes as 1x3x32x32, whole numbers as 2x16:int64<1000, keywords as name=2x16, commas between inputs"
_GIVE = "give example inputs (on the command line: --input 1x3x224x224)"


def parse_inputs(text: str) -> Inputs:
    """Random tensors as described: "1x3x32x32", "2x16:int64<1000", "input_ids=2x16:int64<99,mask=2x16:bool".

    Returns:
        A tuple of positional inputs, or a dict if every part has a name.

    Raises:
        SourceError: the text is malformed.
    """
    generator = torch.Generator().manual_seed(0)
    parts = [(_match_part(part), part) for part in re.split(r"\s*,\s*", text.strip())]
    tensors = [_make_tensor(match, part, generator) for match, part in parts]
    names = [match["name"] for match, _ in parts]
    if all(name is None for name in names):
        return tuple(tensors)
    if None in names or len(set(names)) != len(names):
        raise SourceError(f"--input '{text}': name every input once or none at all; {_HOW}")
    return dict(zip(names, tensors, strict=True))


def _match_part(part: str) -> re.Match[str]:
    match = _PART.match(part)
    if match is None:
        raise SourceError(f"--input: cannot read '{part}'; {_HOW}")
    return match


def _make_tensor(match: re.Match[str], part: str, generator: torch.Generator) -> Tensor:
    sizes = [int(size) for size in match["sizes"].split("x")]
    below = match["below"]
    dtype = getattr(torch, match["dtype"] or ("float32" if below is None else "int64"), None)
    if not isinstance(dtype, torch.dtype) or dtype.is_complex or 0 in sizes or below == "0":
        raise SourceError(f"--input: '{part}' has an unknown dtype, a size of 0 or no numbers below 0; {_HOW}")
    if dtype.is_floating_point:
        if below is not None:
            raise SourceError(f"--input: '{part}' bounds float numbers; bounds are for whole numbers; {_HOW}")
        return torch.randn(sizes, generator=generator).to(dtype)
    if dtype == torch.bool:
        return torch.randint(0, 2, sizes, generator=generator).to(dtype)
    if below is None:
        raise SourceError(f"--input: '{part}' needs a bound, as in {match['sizes']}:{match['dtype']}<1000; {_HOW}")
    return torch.randint(0, int(below), sizes, generator=generator).to(dtype)


def example_inputs_for(module: nn.Module, source_hint: str | None = None, input: str | None = None) -> Inputs:
    """Example inputs of a model: as `input` says, else inferred.

    Args:
        module: the model.
        source_hint: where it comes from ("torchvision/NAME" helps); None if unknown.
        input: text for `parse_inputs`.

    Returns:
        A tuple of positional inputs or a dict of keyword inputs, batch 2.

    Raises:
        SourceError: nothing about the model tells what it takes.
    """
    if input is not None:
        return parse_inputs(input)
    generator = torch.Generator().manual_seed(0)
    for infer in (_from_input_size, _from_config, _from_weights, _from_first_layer):
        inputs = infer(module, source_hint or "", generator)
        if inputs is not None:
            return inputs
    raise SourceError(f"cannot tell which inputs {type(module).__name__} takes: {_GIVE}")


def _from_input_size(module: nn.Module, hint: str, generator: torch.Generator) -> Inputs | None:
    """timm: `pretrained_cfg` or `default_cfg` with an input_size (channels, height, width)."""
    for attribute in ("pretrained_cfg", "default_cfg"):
        card = getattr(module, attribute, None)
        size = card.get("input_size") if isinstance(card, Mapping) else getattr(card, "input_size", None)
        if isinstance(size, (tuple, list)) and size and all(isinstance(s, int) for s in size):
            return (torch.randn(_BATCH, *size, generator=generator),)
    return None


# ---------------------------------------------------------------------------------------- transformers


def _from_config(module: nn.Module, hint: str, generator: torch.Generator) -> Inputs | None:
    """transformers: `main_input_name` and `config` say what and how large; `dummy_inputs` where they do not."""
    config, main = getattr(module, "config", None), getattr(module, "main_input_name", None)
    if config is None or not isinstance(main, str):
        return None
    names = list(inspect.signature(module.forward).parameters)
    made: dict[str, Any] = {}
    for name in _wanted(main, names, config):
        value = _BUILDERS[name](config, generator) if name in _BUILDERS else None
        if value is not None:
            made[name] = value
    if main not in made:
        dummy = getattr(module, "dummy_inputs", None)
        if not isinstance(dummy, Mapping) or main not in dummy:
            return None
        made = {name: value for name, value in dummy.items() if name in names}
    if "input_ids" in made and "attention_mask" in names:
        made["attention_mask"] = torch.ones_like(made["input_ids"])
    if "use_cache" in names:
        made["use_cache"] = False
    return made


def _wanted(main: str, names: list[str], config: Any) -> list[str]:
    wanted = [main]
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in names:
        wanted.append("decoder_input_ids")
    reads_both = hasattr(config, "vision_config") and hasattr(config, "text_config")
    if reads_both and not any(hasattr(config, f"image_token_{end}") for end in ("id", "index")):
        wanted += [name for name in ("input_ids", "pixel_values") if name in names and name != main]
    return wanted


def _number(config: Any, *names: str) -> Any:
    """The first of these settings that the configuration, or its text or vision part, has."""
    parts = [config, *(getattr(config, part, None) for part in ("text_config", "vision_config", "audio_config"))]
    values = (getattr(part, name, None) for part in parts if part is not None for name in names)
    return next((value for value in values if value is not None and not isinstance(value, bool)), None)


def _make_ids(config: Any, generator: torch.Generator) -> Tensor | None:
    """Token ids (batch, 16), other than padding and the like, which models treat in their own way."""
    size = _number(config, "vocab_size")
    if not isinstance(size, int) or size < 1:
        return None
    special = {value for name in ("pad", "bos", "eos", "sep", "cls", "mask") for value in _ids_of(config, name)}
    usable = torch.tensor([i for i in range(size) if i not in special] or list(range(size)))
    longest = _number(config, "max_position_embeddings", "n_positions")
    length = min(_LENGTH, longest) if isinstance(longest, int) and longest > 0 else _LENGTH
    return usable[torch.randint(0, len(usable), (_BATCH, length), generator=generator)]


def _ids_of(config: Any, name: str) -> list[int]:
    value = _number(config, f"{name}_token_id")
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int)]


def _make_image(config: Any, generator: torch.Generator) -> Tensor | None:
    size, channels = _number(config, "image_size"), _number(config, "num_channels", "in_channels")
    if isinstance(size, Mapping):
        size = (size.get("height"), size.get("width"))
    height, width = (size, size) if isinstance(size, int) or size is None else tuple(size)[:2]
    frames = _number(config, "num_frames")
    middle = (frames,) if isinstance(frames, int) else ()
    return torch.randn(_BATCH, *middle, channels or 3, height or _IMAGE, width or _IMAGE, generator=generator)


def _make_features(config: Any, generator: torch.Generator) -> Tensor | None:
    """Spectrogram (batch, bins, 2 x positions) for models that halve the time axis once."""
    bins, positions = _number(config, "num_mel_bins"), _number(config, "max_source_positions")
    if not isinstance(bins, int) or not isinstance(positions, int):
        return None
    return torch.randn(_BATCH, bins, 2 * positions, generator=generator)


def _make_values(config: Any, generator: torch.Generator) -> Tensor | None:
    """Spectrogram (batch, length, bins) where the configuration has both, else one second of sound at 16 kHz."""
    bins, length = _number(config, "num_mel_bins"), _number(config, "max_length")
    if isinstance(bins, int) and isinstance(length, int) and length > bins:
        return torch.randn(_BATCH, length, bins, generator=generator)
    return torch.randn(_BATCH, 16000, generator=generator)


_BUILDERS: dict[str, Callable[[Any, torch.Generator], Tensor | None]] = {
    "input_ids": _make_ids,
    "decoder_input_ids": _make_ids,
    "pixel_values": _make_image,
    "pixel_values_videos": _make_image,
    "input_features": _make_features,
    "input_values": _make_values,
}

# ----------------------------------------------------------------------------------------- torchvision


def _from_weights(module: nn.Module, hint: str, generator: torch.Generator) -> Inputs | None:
    """torchvision by name: the transforms of its published weights tell the crop, and videos their frames."""
    if not hint.startswith("torchvision/"):
        return None
    import torchvision  # seconds to import, and only needed here

    try:
        entry = next(iter(torchvision.models.get_model_weights(hint.removeprefix("torchvision/"))))
        preset = entry.transforms()
    except (ValueError, StopIteration):
        return None
    crop = list(getattr(preset, "crop_size", None) or [_IMAGE])
    height, width = crop[0], crop[-1]
    frames = (_FRAMES,) if len(crop) == 2 or "min_temporal_size" in entry.meta else ()
    return _per_parameter(module, torch.randn(_BATCH, 3, *frames, height, width, generator=generator))


# ------------------------------------------------------------------------------------------ convolutions

_SIZES = (_IMAGE, 299, 256, 128, 64, 32, 28)
_SIZE_NAMES = ("image_size", "img_size", "input_size")


def _from_first_layer(module: nn.Module, hint: str, generator: torch.Generator) -> Inputs | None:
    """Any module that begins with a convolution: it tells channels, and images from videos; then a run decides.

    An attribute such as `image_size` tells the size, else usual ones are tried; only inputs on which the module runs
    are given.
    """
    first = next((m for m in module.modules() if next(m.parameters(recurse=False), None) is not None), None)
    inside = next((m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))), None)
    if inside is None or not inside.in_channels:
        return None
    if not isinstance(first, (nn.Conv2d, nn.Conv3d)) and not _told_size(module):
        return None
    for sizes in _usual_sizes(module, inside):
        inputs = _per_parameter(module, torch.randn(_BATCH, inside.in_channels, *sizes, generator=generator))
        if _runs(module, inputs):
            return inputs
    return None


def _usual_sizes(module: nn.Module, convolution: nn.Module) -> list[tuple[int, ...]]:
    told = _told_size(module)
    if isinstance(convolution, nn.Conv3d):
        spatial = any(hasattr(m, "spatial_size") for m in module.modules())
        usual = (_IMAGE, _VIDEO) if spatial else (_VIDEO, _IMAGE)
        return [(_FRAMES, *told)] if told else [(_FRAMES, size, size) for size in usual]
    first = 299 if getattr(module, "aux_logits", False) else _IMAGE  # side branches pool to small sizes in training
    return [told] if told else [(size, size) for size in sorted(_SIZES, key=lambda size: size != first)]


def _told_size(module: nn.Module) -> tuple[int, int] | None:
    """Height and width as an attribute of the module, or of one inside it, says."""
    for child in module.modules():
        for name in _SIZE_NAMES:
            value = vars(child).get(name)
            pair = (value, value) if type(value) is int else tuple(value) if isinstance(value, (tuple, list)) else ()
            if len(pair) == 2 and all(type(size) is int and size > 0 for size in pair):
                return pair[0], pair[1]
    return None


def _runs(module: nn.Module, inputs: Inputs) -> bool:
    """Whether the module runs on positional inputs, in evaluation mode; it is not changed."""
    modes = {child: child.training for child in module.modules()}
    state = {name: buffer.clone() for name, buffer in module.named_buffers()}
    like = next(iter(module.parameters()))
    moved = torch.utils._pytree.tree_map(lambda t: t.to(like.device, like.dtype), inputs)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.func.functional_call(module.eval(), state, tuple(moved))
        return True
    except Exception:  # whatever a wrong size makes of it
        return False
    finally:
        for child, training in modes.items():
            child.training = training


def _per_parameter(module: nn.Module, images: Tensor) -> Inputs:
    """The images once for each required parameter of the forward; a list where it wants one."""
    parameters = inspect.signature(module.forward).parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    listed = ["list" in str(p.annotation).lower() for p in required]
    return tuple(list(images) if is_list else images.clone() for is_list in listed)
