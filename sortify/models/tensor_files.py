"""Tensors on disk: safetensors, in several files where one would be too large, and mapped into memory when read.

Several files are named as the Hugging Face libraries name them: `model-00001-of-00003.safetensors` and so on, and
`model.safetensors.index.json`, which tells them where each tensor is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sortify.errors import CheckpointError

LARGEST = "5GB"
END, INDEX = ".safetensors", ".safetensors.index.json"


def write_tensors(
    folder: Path, stem: str, tensors: Mapping[str, torch.Tensor], largest: int | str = LARGEST
) -> list[str]:
    """Write `stem.safetensors`, or several files and their index.

    Args:
        folder: where.
        stem: of the files' names.
        tensors: by name.
        largest: bytes that a file may hold (`"5GB"`, `"200MB"` or a number); a larger tensor has a file of its own.

    Returns:
        The names of the files.

    Raises:
        CheckpointError: `largest` is no size, or a tensor has no data.
    """
    if without := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise CheckpointError(f"{without[0]} is on the meta device: there is nothing to save")
    if not tensors:
        return write_all(folder, f"{stem}{END}", {})
    try:
        if not isinstance(largest, str) and (type(largest) is not int or largest < 1):
            raise ValueError("a number of bytes is whole and positive")
        split = split_torch_state_dict_into_shards(
            dict(tensors), filename_pattern=f"{stem}{{suffix}}{END}", max_shard_size=largest
        )
    except ValueError as error:
        raise CheckpointError(f"largest file {largest!r}: expected a size such as '5GB' ({error})") from error
    for file, names in split.filename_to_tensors.items():
        save_file(_plain({name: tensors[name] for name in names}), folder / file, {"format": "pt"})
    if not split.is_sharded:
        return list(split.filename_to_tensors)
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (folder / f"{stem}{INDEX}").write_text(json.dumps(index, indent=1))
    return [*split.filename_to_tensors, f"{stem}{INDEX}"]


def write_all(folder: Path, name: str, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Write one file of that name, however large; returns the name."""
    save_file(_plain(tensors), folder / name)
    return [name]


def weight_files(stem: str, files: Iterable[str]) -> list[str]:
    """Those of some files that `write_tensors` wrote, without the index."""
    shard = re.compile(rf"{stem}(-\d{{5}}-of-\d{{5}})?\{END}\Z")
    return sorted(name for name in files if shard.match(name))


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As safetensors wants them: contiguous on the CPU, none in the memory of another; copied where they are not."""
    seen, result = set[int](), {}
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        if own.data_ptr() in seen or own.untyped_storage().nbytes() != own.nbytes:
            own = own.clone()
        seen.add(own.data_ptr())
        result[name] = own
    return result


def read_tensors(files: Iterable[Path]) -> dict[str, torch.Tensor]:
    """All tensors of some files, on the CPU. They are mapped: what is not used is not read; changes stay in memory.

    Raises:
        CheckpointError: a file is missing or damaged, or a tensor is in two files.
    """
    found: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            more = load_file(file)
        except FileNotFoundError as error:
            raise CheckpointError(f"{file}: not found; the checkpoint is incomplete") from error
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"{file}: cannot be read ({error}); the file is damaged") from error
        if twice := found.keys() & more.keys():
            raise CheckpointError(f"{file}: tensor {min(twice)!r} is in another file too")
        found |= more
    return found
