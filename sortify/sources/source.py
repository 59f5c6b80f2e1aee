"""Where a model comes from: a pickled module, an exported program, timm, torchvision, transformers, or a function.

`load_source` reads one line of text as the user gives it and returns the model with example inputs. Files are not
trusted unless the user says so; named models get random weights, and nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sortify.errors import SourceError
from sortify.sources.archive import is_archive
from sortify.sources.inputs import Inputs, example_inputs_for, parse_inputs
from sortify.sources.trust import allowed_globals, check_program, check_weights

__all__ = ["Inputs", "Source", "example_inputs_for", "load_source"]
_FORMS = "model.pt, model.pt2, timm/NAME, torchvision/NAME, transformers/DIR or package.module:factory"
FACTOR, SPARE = 8, 2**28
"""A model may take so many times the bytes of its weights' files, and so many bytes more."""
TENSOR, SPARE_TENSORS, MOST_TENSORS = 32, 1000, 200_000
"""It may have a tensor for so many bytes of the files, some more, and never more than the last of these."""
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*\Z")


@dataclass(frozen=True)
class Source:
    """A model as it was found.

    Attributes:
        module: the model; None for an exported program.
        program: the exported program; None for a module. Turn it into a module with check_guards=False.
        example_inputs: tuple of positional or dict of keyword inputs; None for a program that mixes both
            (its own example_inputs holds them).
        name: a short readable name.
    """

    module: nn.Module | None
    program: torch.export.ExportedProgram | None
    example_inputs: Inputs | None
    name: str


def load_source(text: str, *, trust: bool = False, allow: Collection[str] = (), input: str | None = None) -> Source:
    """Find and load the model that `text` names.

    Args:
        text: model.pt or .pth (a pickled module), model.pt2 (an exported program), timm/NAME, torchvision/NAME,
            transformers/DIR (a folder made by save_pretrained), or package.module:factory, a function without
            arguments that returns a module or (module, example_inputs); the working folder is importable.
        trust: load a file even if it asks for more than known layers and models. This runs its code.
        allow: classes of one's own that a pickled module may hold (`package.module.Class`), or packages of such; they
            are imported, from the working folder too.
        input: example inputs as text, see `parse_inputs`; else the source's own, else inferred.

    Raises:
        SourceError: it cannot be found, read or trusted, or its inputs cannot be told.
    """
    examples: Inputs | None = None
    if text.endswith(".pt2"):
        return _with_inputs(_load_program(text, trust), input)
    if text.endswith((".pt", ".pth")):
        module, name = _load_pickled(text, trust, allow), Path(text).stem
    elif text.startswith("timm/"):
        module, name = _make_timm(text.removeprefix("timm/")), text.removeprefix("timm/")
    elif text.startswith("torchvision/"):
        module, name = _make_torchvision(text.removeprefix("torchvision/")), text.removeprefix("torchvision/")
    elif text.startswith("transformers/"):
        folder = Path(text.removeprefix("transformers/")).expanduser()
        module, name = _load_transformers(folder), folder.resolve().name
    elif _FACTORY.match(text):
        (module, examples), name = _call_factory(text), text.rpartition(":")[2]
    else:
        raise SourceError(f"'{text}' names no model: {_hint(text)}")
    if input is not None or examples is None:
        examples = example_inputs_for(module, text, input)
    return Source(module, None, examples, name)


def _hint(text: str) -> str:
    if Path(text, "config.json").is_file():
        return f"for a transformers folder write transformers/{text}"
    if text.endswith((".safetensors", ".bin", ".npz", ".onnx")):
        return "it is no pickled module or exported program; name a function that builds the model and loads it"
    return f"expected {_FORMS}"


def _one_line(error: BaseException, limit: int = 300) -> str:
    """The error's first meaningful words on one line."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text if len(text) <= limit else text[: limit - 3] + '...'}"


# ------------------------------------------------------------------------------------------------ files


def _check_file(path: str) -> None:
    if not os.path.exists(path):
        raise SourceError(f"'{path}' does not exist (looked in {os.getcwd()})")
    if not os.path.isfile(path):
        raise SourceError(f"'{path}' is no file")
    if os.path.getsize(path) == 0:
        raise SourceError(f"'{path}' is empty")
    if not os.access(path, os.R_OK):
        raise SourceError(f"'{path}' cannot be read: permission denied")


def _load_pickled(path: str, trust: bool, allow: Collection[str]) -> nn.Module:
    _check_file(path)
    if not trust and not is_archive(path):
        raise SourceError(f"'{path}' is damaged, truncated, or no file of torch.save(module, path)")
    with _importable_here() if trust or allow else contextlib.nullcontext(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded = _unpickle(path, trust, allow)
        except SourceError:
            raise
        except Exception as error:
            raise SourceError(f"'{path}' cannot be read as a pickled module: {_one_line(error)}") from error
    if isinstance(loaded, torch.jit.ScriptModule):
        raise SourceError(f"'{path}' is a TorchScript program: save the module with torch.save or torch.export.save")
    if isinstance(loaded, nn.Module):
        return loaded
    if isinstance(loaded, Mapping) and any(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise SourceError(
            f"'{path}' holds weights only (a state_dict of {len(loaded)} tensors): the model itself is needed, for "
            f"instance package.module:factory, a function that builds it and loads these weights"
        )
    raise SourceError(f"'{path}' holds a {type(loaded).__name__}, not a torch.nn.Module")


def _unpickle(path: str, trust: bool, allow: Collection[str]) -> Any:
    if trust:
        return torch.load(path, map_location="cpu", weights_only=False)
    if any(name.endswith("constants.pkl") for name in zipfile.ZipFile(path).namelist()):
        raise SourceError(f"'{path}' is a TorchScript program: save the module with torch.save or torch.export.save")
    with torch.serialization.safe_globals(allowed_globals(path, allow)):
        return torch.load(path, map_location="cpu", weights_only=True)


def _load_program(path: str, trust: bool) -> Source:
    _check_file(path)
    if not is_archive(path):
        raise SourceError(f"'{path}' is damaged, truncated, or no file of torch.export.save")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if not trust:
                check_program(path)
            program = torch.export.load(path)
        except SourceError:
            raise
        except Exception as error:
            raise SourceError(f"'{path}' cannot be read as an exported program: {_one_line(error)}") from error
    if not trust:
        program._guards_code = []  # Python text of the file that module() would run
    args, kwargs = program.example_inputs or ((), {})
    examples: Inputs | None = (tuple(args) or dict(kwargs)) if not (args and kwargs) else None
    return Source(None, program, examples, Path(path).stem)


def _with_inputs(source: Source, input: str | None) -> Source:
    if input is None:
        return source
    return Source(source.module, source.program, parse_inputs(input), source.name)


def _load_transformers(folder: Path) -> nn.Module:
    if not folder.is_dir():
        raise SourceError(f"'{folder}' is no folder: transformers/DIR names one made by save_pretrained")
    if not (folder / "config.json").is_file():
        raise SourceError(f"'{folder}' has no config.json: transformers/DIR names a folder made by save_pretrained")
    import transformers  # each of these libraries takes seconds to import

    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        largest = _check_folder(folder)
        config = transformers.AutoConfig.from_pretrained(folder, **local)
        names = list(getattr(config, "architectures", None) or [])
        found = getattr(transformers, names[0], None) if names else None
        if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
            raise SourceError(
                f"'{folder}/config.json' names the architecture {names}, which transformers does not have"
            )
        with _no_larger(folder, largest):
            model = found.from_pretrained(folder, config=config, local_files_only=True)
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(f"'{folder}' cannot be read as a transformers model: {_one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise SourceError(f"'{folder}' gives a {type(model).__name__}, not a torch.nn.Module")
    return model


def _check_folder(folder: Path) -> int:
    """Look through the files of a transformers folder; returns how many bytes of weights it has.

    Raises:
        SourceError: a file is none, or weights are pickled with more than tensors.
    """
    files = [path for path in folder.iterdir() if not path.is_dir()]
    if strange := [path for path in files if not path.is_file()]:
        raise SourceError(f"'{strange[0]}' is no ordinary file")
    pickled = [path for path in files if path.suffix in (".bin", ".pt", ".pth")]
    for path in pickled if not any(path.suffix == ".safetensors" for path in files) else ():
        check_weights(str(path))
    return sum(path.stat().st_size for path in files)


@contextlib.contextmanager
def _no_larger(folder: Path, size: int) -> Iterator[None]:
    """Stop the making of a model that is much larger than its weights: its config would take all memory."""
    left = [FACTOR * size + SPARE, min(size // TENSOR + SPARE_TENSORS, MOST_TENSORS)]

    def count(module: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
        if tensor is not None:
            left[0] -= tensor.nbytes
            left[1] -= 1
        if min(left) < 0:
            raise SourceError(f"'{folder}/config.json' describes a model that is much larger than its weights")

    hooks = torch.nn.modules.module
    handles = [
        hooks.register_module_parameter_registration_hook(count),
        hooks.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ------------------------------------------------------------------------------------------------ names


def _suggest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else f"there are {len(known)}, such as {', '.join(known[:3])}"


def _make_timm(name: str) -> nn.Module:
    import timm

    known = timm.list_models()
    if name.partition(".")[0] not in known:
        raise SourceError(f"timm has no model '{name}': {_suggest(name, known)}")
    return _make(f"timm/{name}", lambda: timm.create_model(name, pretrained=False))


def _make_torchvision(name: str) -> nn.Module:
    import torchvision

    known = torchvision.models.list_models()
    if name not in known:
        raise SourceError(f"torchvision has no model '{name}': {_suggest(name, known)}")
    builder = torchvision.models.get_model_builder(name)
    parameters = inspect.signature(builder).parameters
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in parameters:
        options["weights_backbone"] = None
    return _make(f"torchvision/{name}", lambda: builder(**options))


def _make(text: str, build: Callable[[], Any]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = build()
        except Exception as error:
            raise SourceError(f"'{text}' cannot be built: {_one_line(error)}") from error
    if not isinstance(made, nn.Module):
        raise SourceError(f"'{text}' gives a {type(made).__name__}, not a torch.nn.Module")
    return made


# ---------------------------------------------------------------------------------------------- factory


@contextlib.contextmanager
def _importable_here() -> Iterator[None]:
    """The working folder comes first on the import path inside the block."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def _call_factory(text: str) -> tuple[nn.Module, Inputs | None]:
    module_name, _, attribute = text.partition(":")
    with _importable_here():
        factory = _find_factory(module_name, attribute)
        if not isinstance(factory, nn.Module) and not callable(factory):
            raise SourceError(f"'{text}' is a {type(factory).__name__}, not a function that returns a module")
        try:
            made = factory if isinstance(factory, nn.Module) else factory()
        except Exception as error:
            raise SourceError(f"'{text}' raised {_one_line(error)}") from error
    examples: Any = None
    if isinstance(made, tuple) and len(made) == 2:
        made, examples = made
    if not isinstance(made, nn.Module):
        raise SourceError(f"'{text}' returned a {type(made).__name__}: expected a module or (module, example_inputs)")
    if isinstance(examples, torch.Tensor):
        examples = (examples,)
    if examples is not None and type(examples) not in (tuple, list, dict):
        raise SourceError(f"'{text}' returned example inputs of type {type(examples).__name__}: expected tuple or dict")
    return made, tuple(examples) if isinstance(examples, list) else examples


def _find_factory(module_name: str, attribute: str) -> Any:
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise SourceError(f"no module '{module_name}' in {os.getcwd()} or among the installed packages") from error
        raise SourceError(f"importing '{module_name}' failed: {_one_line(error)}") from error
    except Exception as error:
        raise SourceError(f"importing '{module_name}' failed: {_one_line(error)}") from error
    if not hasattr(module, attribute):
        known = [name for name in dir(module) if not name.startswith("_")]
        raise SourceError(f"module '{module_name}' has no '{attribute}': {_suggest(attribute, known)}")
    return getattr(module, attribute)
