"""What a model file may ask for without being trusted: known layers and models of known packages, nothing that acts.

A pickle is a program. Before torch's restricted unpickler sees a file, its instructions are followed on paper
(`pickles`), and the archive that it is in is looked through (`archive`).
An exported program is an archive of JSON and raw tensors that torch reads with pickle and sympy in places; the same
care is taken there. With `--trust` none of this is looked at.
"""

from __future__ import annotations

import enum
import importlib
import io
import json
import re
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from sortify.errors import CheckpointError, SourceError
from sortify.graph.graphs import find_target, function_names
from sortify.sources.archive import check_archive
from sortify.sources.pickles import FUNCTION_HOMES, PARTIAL, check_pickle, within

_CLASS_HOMES = (
    "torch.nn.modules",
    "torchvision.models",
    "torchvision.ops",
    "timm.layers",
    "timm.models",
    "transformers.activations",
    "transformers.models",
    "transformers.pytorch_utils",
)
_CONFIG_BASES = ("PretrainedConfig", "PreTrainedConfig")
_OTHER_CLASSES = ("transformers.generation.configuration_utils.GenerationConfig",)
_ACTIVATIONS = """celu elu gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_sigmoid log_softmax
logsigmoid mish relu relu6 rrelu selu sigmoid silu softmax softmin softplus softshrink softsign tanh tanhshrink"""


def find_allowed(name: str, own: Collection[str] = ()) -> Any:
    """The layer, model, configuration, enumeration or activation called `name`; None if it is not on the allow-list.

    Args:
        name: with its module.
        own: classes that are allowed as well, or the packages and modules of such.
    """
    module, _, attribute = name.rpartition(".")
    if any(name == each or module == each or module.startswith(f"{each}.") for each in own):
        return _own_class(module, attribute)
    is_function = module in FUNCTION_HOMES and attribute in _ACTIVATIONS.split()
    if name != PARTIAL and name not in _OTHER_CLASSES and not is_function and not within(module, _CLASS_HOMES):
        return None
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception:  # absent in this version, or a package that is not installed
        return None
    if name == PARTIAL or name in _OTHER_CLASSES or is_function:
        return found
    if not isinstance(found, type) or (found.__module__, found.__qualname__) != (module, attribute):
        return None
    is_config = any(base.__name__ in _CONFIG_BASES for base in found.__mro__[:-1])
    return found if issubclass(found, (torch.nn.Module, enum.Enum)) or is_config else None


def _own_class(module: str, attribute: str) -> Any:
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception:  # whatever importing it raises
        return None
    return found if isinstance(found, type) else None


def allowed_globals(path: str, own: Collection[str] = ()) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What torch's restricted unpickler must be allowed so that it reads the file, as (object, name).

    Args:
        path: of the file.
        own: classes of the user's that are allowed as well, see `find_allowed`.

    Raises:
        SourceError: the file asks for names that are not allowed (all are listed), or calls something while loading, or
            declares more than it holds.
    """
    records = check_archive(path)
    pairs = [(find_allowed(name, own), name) for name in sorted(get_unsafe_globals_in_checkpoint(path))]
    if refused := [name for found, name in pairs if found is None]:
        raise SourceError(
            f"'{path}' asks for {', '.join(refused)}: not among the layers and models of torch, torchvision, timm and "
            f"transformers; --allow takes names of classes of yours; if you trust the file, --trust loads it and runs "
            f"whatever it holds"
        )
    called = {name for found, name in pairs if isinstance(found, type) and issubclass(found, enum.Enum)}
    pickle = torch._C.PyTorchFileReader(path).get_record("data.pkl")
    check_pickle(pickle, {name for _, name in pairs}, path, called, records)
    return [*pairs]


def check_weights(path: str) -> None:
    """Look through a file that torch pickled, which must hold tensors in plain containers and nothing else.

    Raises:
        SourceError: it holds something else, or declares more than it holds.
    """
    records = check_archive(path)
    check_pickle(torch._C.PyTorchFileReader(path).get_record("data.pkl"), set(), path, records=records)


# ------------------------------------------------------------------------------------ exported programs

_QUOTED = re.compile(r"'\w+'")
_SYMBOLIC = re.compile(r"[\w\s(),=+\-*/.<>]*\Z")
_CALLED = re.compile(r"(\w+)\s*\(")
_HUGE = re.compile(
    r"\d{20}|\*\*(?!\s*\d(?![\w.]))|\*\*[^*]*\*\*[^*]*\*\*|LShift|Pow(?!\w*\(\s*\w+\s*,\s*\d\s*\))"  # powers of powers
)
LONGEST = 10_000
"""Letters of an expression of sizes, at most."""


def check_program(path: str) -> None:
    """Look through an exported program's archive for what would run code while torch reads it.

    Raises:
        SourceError: it holds compiled code, pickled objects other than tensors, or expressions, operators or types
            other than those of an ordinary export.
    """
    if "version" in zipfile.ZipFile(path).namelist():
        raise SourceError(f"'{path}' is an exported program of an older torch: export it again, or use --trust")
    check_archive(path)
    reader = torch._C.PyTorchFileReader(path)
    for record in reader.get_all_records():
        if problem := _find_problem(reader, record):
            raise SourceError(
                f"'{path}' holds {problem}; if you trust the file, --trust loads it and runs what it holds"
            )


def _find_problem(reader: torch._C.PyTorchFileReader, record: str) -> str:
    """Why this record of the archive is refused; empty if it is harmless."""
    name = record.rpartition("/")[2]
    if "aotinductor" in record or name.endswith((".so", ".cpp", ".cubin", ".ptx")):
        return f"compiled code ({record})"
    if name.startswith(("custom_obj_", "opaque_obj_")):
        return f"a pickled object ({record})"
    if name.endswith(".pt"):
        return _find_pickle_problem(record, reader.get_record(record))
    if name.endswith(".json"):
        try:
            return next(_walk(json.loads(reader.get_record(record))), "")
        except (ValueError, RecursionError):
            return f"damaged JSON ({record})"
    return ""


def _find_pickle_problem(record: str, data: bytes) -> str:
    if not data:
        return ""
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        file.write(data)
        file.flush()
        try:
            check_weights(file.name)
            torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        except Exception:
            return f"a pickle of more than tensors ({record})"
    return ""


def _walk(value: Any) -> Iterator[str]:
    """Yield what is out of place anywhere in the JSON of a program, texts that are JSON themselves included."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _judge_entry(key, item)
            yield from _walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item)
    elif isinstance(value, str) and value.lstrip()[:1] in ("[", "{", '"'):
        try:
            inner = json.loads(value)
        except ValueError:
            return
        yield from _walk(inner)


def _judge_entry(key: str, item: Any) -> Iterator[str]:
    if key in ("__enum__", "default_factory_module"):
        yield "a type that torch would import"
    elif key == "use_pickle" and item:
        yield "a pickled tensor of a special type"
    elif key == "target" and isinstance(item, str) and not _is_known_target(item):
        yield f"a call of {item}"
    elif key == "expr_str" and (not isinstance(item, str) or not is_symbolic(item)):
        yield f"an expression that is no plain size ({item})"


def _is_known_target(target: str) -> bool:
    if target.startswith("torch.ops.higher_order."):
        return True
    try:
        find_target(target.removeprefix("torch.ops."))
    except CheckpointError:
        return re.sub(r"^_operator\.", "operator.", target) in function_names()
    return True


def is_symbolic(text: str) -> bool:
    """Whether the text is arithmetic over symbols, as torch writes sizes: no attributes, no calls but of types."""
    plain = _QUOTED.sub("", text)
    return (
        len(text) <= LONGEST
        and _HUGE.search(text) is None
        and _SYMBOLIC.match(plain) is not None
        and "__" not in text
        and re.search(r"\.\s*[A-Za-z_]", plain) is None
        and all(name[0].isupper() for name in _CALLED.findall(plain))
    )
