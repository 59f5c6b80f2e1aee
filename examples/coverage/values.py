"""A tensor for each parameter of a transformers forward whose name tells what it is.

Guesses: sizes come from fields of the configuration by their names, and several shapes are offered for some.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BATCH, LENGTH = 2, 16
FRAMES = 128  # of a spectrogram
GRID = (1, 4, 4)  # frames, rows and columns of patches of one image
IMAGE_TOKENS = ("num_query_tokens",)  # fields that tell how many tokens an image takes
VARIANTS = 7  # how many shapes are offered where names do not tell


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Attributes:
        config: of the model.
        names: all parameters of the forward.
        generator: of the random numbers.
        image: the size of images; None takes the configuration's.
        variant: which shape, below `VARIANTS`, where there are several.
    """

    config: Any
    names: frozenset[str]
    generator: torch.Generator
    image: int | None = None
    variant: int = 0

    def number(self, *names: str) -> Any:
        """The first of these settings in the configuration or in any configuration inside it."""
        todo, seen = [self.config], []
        while todo:
            part = todo.pop(0)
            seen.append(part)
            for name in names:
                value = getattr(part, name, None)
                if value is not None and not isinstance(value, bool):
                    return value
            todo += [v for v in vars(part).values() if hasattr(v, "model_type") and all(v is not s for s in seen)]
        return None

    def normal(self, *shape: int) -> Tensor:
        """Random numbers."""
        return torch.randn(*shape, generator=self.generator)

    @property
    def packed(self) -> bool:
        """Whether the forward takes patches of images, with the grid that they come from."""
        return bool(self.names & GRIDS.keys())


Builder = Callable[[Wish], Any]


def build(wish: Wish, wanted: list[str]) -> dict[str, Any] | None:
    """A value for each wanted parameter, and masks and decoder ids for those that take them; None if one is unknown."""
    made: dict[str, Any] = {}
    for name in wanted:
        value = BUILDERS[name](wish) if name in BUILDERS else None
        if value is None:
            return None
        made[name] = value
    if "input_ids" in made:
        if "attention_mask" in wish.names:
            made["attention_mask"] = torch.ones_like(made["input_ids"])
        if "bbox" in wish.names:
            made["bbox"] = torch.tensor([1, 2, 5, 9]).expand(*made["input_ids"].shape, 4).clone()
    if "context_hidden_states" in made and "attention_mask" in wish.names:  # before the embeddings that are asked
        made["attention_mask"] = torch.ones(BATCH, 2 * LENGTH, dtype=torch.long)
    if "decoder_input_ids" in wish.names and "decoder_input_ids" not in made:
        made["decoder_input_ids"] = _ids(wish)
    if "use_cache" in wish.names:
        made["use_cache"] = False
    return made


def known(wish: Wish, name: str) -> bool:
    """Whether a parameter's value can be told from its name and the configuration."""
    return name in BUILDERS and BUILDERS[name](wish) is not None


# ---------------------------------------------------------------------------------------- text


def _ids(wish: Wish) -> Tensor:
    size = wish.number("vocab_size", "n_vocab", "num_tokens") or 64
    rows = BATCH * (wish.number("num_codebooks") or 1 if wish.variant else 1)
    ids = torch.randint(min(5, size - 1), max(6, size // 2), (rows, LENGTH), generator=wish.generator)
    ids = ids.clamp(max=size - 1)
    image, count = wish.number("image_token_id", "image_token_index", "video_token_index"), wish.number(*IMAGE_TOKENS)
    if wish.variant >= 2 and image is not None and count is not None:  # every second variant has two images
        ids[:, : count * (1 + wish.variant % 2)] = image
    return ids


def _ones(*shape: int) -> Builder:
    return lambda wish: torch.ones(*shape, dtype=torch.long)


def _places(wish: Wish) -> Tensor:
    """Where the embeddings of an image replace those of tokens."""
    count = wish.number("latent_query_num") or 4
    return (torch.arange(LENGTH) < count).long().repeat(BATCH, 1)


def _context(wish: Wish) -> Tensor:
    """Hidden states of several layers side by side."""
    return wish.normal(BATCH, LENGTH, wish.number("hidden_size") * len(wish.number("target_layer_ids") or (1,)))


def _wide(*names: str) -> Builder:
    """Hidden states as wide as the first of these fields says."""
    return lambda wish: wish.normal(BATCH, LENGTH, wish.number(*names)) if wish.number(*names) else None


# ---------------------------------------------------------------------------------------- images


def _pixels(wish: Wish) -> Tensor:
    size = wish.image or wish.number("image_size", "img_size", "input_size") or wish.number("max_img_size") or 224
    if isinstance(size, Mapping):
        size = (size.get("height", 64), size.get("width", 64))
    height, width = (size, size) if isinstance(size, int) else (list(size) * 2)[:2]
    frames = wish.number("num_frames")
    told, other = ((frames,), ()) if isinstance(frames, int) else ((), (2,))
    middle = other if wish.variant % 2 else told
    return wish.normal(BATCH, *middle, _channels(wish), height, width)


def _channels(wish: Wish) -> int:
    channels = wish.number("num_channels", "in_channels", "in_chans")
    return channels if isinstance(channels, int) else 3


def _pixels_or_patches(wish: Wish) -> Tensor:
    """Images, or the patches of a grid in one of several layouts."""
    if not wish.packed:
        return _pixels(wish)
    patch = wish.number("patch_size", "spatial_patch_size") or 14
    patch = patch if isinstance(patch, int) else patch[0]
    channels, count = _channels(wish), math.prod(GRID)
    flat, deep = channels * patch**2, channels * patch**2 * (wish.number("temporal_patch_size", "patch_temporal") or 1)
    merge = wish.number("spatial_merge_size") or 1
    shapes = (
        (BATCH * count, deep),
        (BATCH * count, flat),
        (BATCH * count, channels, patch, patch),
        (BATCH, count, flat),
        (1, channels, patch, patch * BATCH * count),
        (BATCH * count, merge * patch, merge * patch, channels),
        (BATCH, channels, patch, patch * count),
    )
    return wish.normal(*shapes[wish.variant])


def _states(wish: Wish) -> Tensor:
    """Patches of a grid, else features of a sequence before or behind its length."""
    width = wish.number("hidden_size") or 64
    if wish.packed:
        return _pixels_or_patches(wish)
    return wish.normal(*(BATCH, width, LENGTH) if wish.variant % 2 else (BATCH, LENGTH, width))


def _positions(wish: Wish) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(GRID[1]), torch.arange(GRID[2]), indexing="ij")
    return torch.stack([columns, rows], -1).reshape(1, -1, 2).repeat(BATCH, 1, 1)


def _sizes(wish: Wish) -> Tensor:
    return torch.tensor(GRID[1:]).repeat(BATCH, 1)


def _grid(wish: Wish) -> Tensor:
    return torch.tensor(GRID).repeat(BATCH, 1)


def _merges(wish: Wish) -> Tensor:
    return torch.full((BATCH,), wish.number("spatial_merge_size") or 2)


GRIDS: dict[str, Builder] = {
    "grid_thw": _grid,
    "image_grid_thw": _grid,
    "merge_sizes": _merges,
    "pixel_position_ids": _positions,
    "spatial_shapes": _sizes,
    "target_sizes": _sizes,
}

# ---------------------------------------------------------------------------------------- sound


def _bins(wish: Wish) -> int:
    fields = ("feature_projection_input_dim", "num_mel_bins", "feature_size", "input_feat_per_channel", "n_mels")
    return wish.number(*fields) or 80


def _features(wish: Wish) -> Tensor:
    bins = _bins(wish)
    length = 2 * (wish.number("max_source_positions") or 64)
    shapes: tuple[tuple[int, ...], ...] = (
        (BATCH, bins, length),
        (BATCH, FRAMES, bins),
        (BATCH, length, bins),
        (BATCH, bins, FRAMES),
        (BATCH, FRAMES, 4 * bins),
        (BATCH, 1, wish.number("spec_size") or FRAMES, bins),
        (BATCH, bins, 4 * (wish.number("n_window") or 25)),
    )
    return wish.normal(*shapes[wish.variant])


def _sound(wish: Wish) -> Tensor:
    bins = wish.number("num_mel_bins", "n_mels") or 80
    shapes = ((BATCH, 4000), (BATCH, 1, 4000), (BATCH, 16000), (BATCH, FRAMES, bins))
    width = wish.number("hidden_size") or 64
    more = ((BATCH, LENGTH, width), (BATCH, 1, 16000), (BATCH, 1, 9600))
    return wish.normal(*(shapes + more)[wish.variant])


def _frames_mask(wish: Wish) -> Tensor:
    """A mask as long as the spectrogram's time axis, which is the one that is not the bins'."""
    shape = _features(wish).shape
    return torch.ones(BATCH, shape[-1] if shape[1] == _bins(wish) else shape[1], dtype=torch.long)


# ---------------------------------------------------------------------------------------- series


def _past(wish: Wish) -> Tensor:
    """As many steps as the context and the largest lag take; one series, or as many as there are channels."""
    size = wish.number("context_length") or 64
    lags = wish.number("lags_sequence")
    length = size + (max(lags) if lags else 0)
    several = wish.number("num_input_channels", "input_size") or 1
    return wish.normal(*(BATCH, length, several) if several > 1 or wish.variant % 2 else (BATCH, length))


def _past_steps(wish: Wish) -> Tensor:
    return wish.normal(BATCH, _past(wish).shape[1], wish.number("num_time_features") or 1)


def _future_steps(wish: Wish) -> Tensor:
    return wish.normal(BATCH, wish.number("prediction_length") or 4, wish.number("num_time_features") or 1)


def _future(wish: Wish) -> Tensor:
    return wish.normal(BATCH, wish.number("prediction_length") or 4, *_past(wish).shape[2:])


BUILDERS: dict[str, Builder] = GRIDS | {
    "action_embeds": _wide("hidden_size"),
    "actions": _wide("act_dim"),
    "audio_mel": lambda wish: wish.normal(BATCH, FRAMES, wish.number("input_feat_size") or 128),
    "audio_mel_mask": lambda wish: torch.zeros(BATCH, FRAMES, dtype=torch.bool),
    "audio_values": _sound,
    "classes_attention_mask": _ones(BATCH, LENGTH),
    "classes_input_ids": _ids,
    "classes_structure": _ones(BATCH),
    "context_hidden_states": _context,
    "decoder_input_values": _wide("hidden_size"),
    "duration_labels": _ones(BATCH, LENGTH),
    "encoder_hidden_states": _wide("encoder_hidden_size", "cross_attention_hidden_size"),
    "energy_labels": lambda wish: wish.normal(BATCH, LENGTH, 1),
    "future_time_features": _future_steps,
    "future_values": _future,
    "hidden_states": _states,
    "image_embeds_position_mask": _places,
    "input_features": _features,
    "input_features_mask": _frames_mask,
    "input_ids": _ids,
    "input_values": _sound,
    "is_longer": lambda wish: torch.zeros(BATCH, 1, dtype=torch.bool),
    "latents": lambda wish: wish.normal(BATCH, wish.number("hidden_size"), LENGTH),
    "mm_token_type_ids": lambda wish: torch.zeros(BATCH, LENGTH, dtype=torch.long),
    "noise_embeds": _wide("hidden_size"),
    "past_observed_mask": lambda wish: torch.ones_like(_past(wish)),
    "past_time_features": _past_steps,
    "past_values": _past,
    "pitch_labels": lambda wish: wish.normal(BATCH, LENGTH, 1),
    "pixel_attention_mask": lambda wish: torch.ones(BATCH, math.prod(GRID) if wish.packed else 2, dtype=torch.long),
    "pixel_values": _pixels_or_patches,
    "pixel_values_videos": _pixels,
    "prompt_masks": _pixels,
    "prompt_pixel_values": _pixels,
    "qformer_input_ids": _ids,
    "query_embeds": _wide("hidden_size"),
    "returns_to_go": lambda wish: wish.normal(BATCH, LENGTH, 1),
    "rewards": lambda wish: wish.normal(BATCH, LENGTH, 1),
    "spectrogram_labels": _wide("num_mel_bins"),
    "states": _wide("state_dim"),
    "task_inputs": lambda wish: torch.ones(BATCH, wish.number("task_seq_len") or LENGTH, dtype=torch.long),
    "tasks_attention_mask": _ones(BATCH, LENGTH),
    "tasks_input_ids": _ids,
    "timesteps": lambda wish: torch.arange(LENGTH).repeat(BATCH, 1),
    "visual_feats": _wide("visual_feat_dim"),
    "visual_pos": _wide("visual_pos_dim"),
}
