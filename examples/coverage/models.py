"""The models of the sweep by name, built offline with random weights.

Names are `torchvision/NAME`, `timm/NAME` and `transformers/GROUP/TYPE`, where GROUP is a task or `base`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from examples.coverage import feeds

SIZES = Path(__file__).with_name("sizes.json")
TASKS = {
    "causal-lm": "CAUSAL_LM",
    "masked-lm": "MASKED_LM",
    "seq2seq-lm": "SEQ_TO_SEQ_CAUSAL_LM",
    "sequence-classification": "SEQUENCE_CLASSIFICATION",
    "image-classification": "IMAGE_CLASSIFICATION",
    "audio-classification": "AUDIO_CLASSIFICATION",
    "semantic-segmentation": "SEMANTIC_SEGMENTATION",
    "ctc": "CTC",
}
LARGEST = 60_000_000  # parameters of a configuration that counts as tiny enough
LARGEST_RUN = 100_000_000  # parameters above which the long sweep only analyses


@dataclass(frozen=True)
class Built:
    """A model and inputs with which it runs; `how` says what had to be guessed, `meta` that it has no weights."""

    module: nn.Module
    inputs: feeds.Inputs
    how: str = ""
    meta: bool = False


class NotBuilt(Exception):
    """The model cannot be built or run here; the message says why."""


def build(name: str, meta: bool = False) -> Built:
    """Build one model by name.

    Args:
        name: of the list.
        meta: on the meta device, without weights; of timm and torchvision.

    Raises:
        NotBuilt: it cannot be built offline from its default arguments, or no inputs were found that it takes.
    """
    zoo, _, rest = name.partition("/")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if zoo == "transformers":
            group, _, model_type = rest.partition("/")
            return _transformers(group, model_type)
        with torch.device("meta") if meta else nullcontext():
            return _named({"timm": _timm, "torchvision": _torchvision}[zoo], name, rest, meta)


def _named(make: Callable[[str], nn.Module], name: str, rest: str, meta: bool) -> Built:
    try:
        module = make(rest)
    except Exception as error:
        raise NotBuilt(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    inputs, problems = feeds.first_that_runs(module, name)
    if inputs is None:
        raise NotBuilt(problems)
    return Built(module, inputs, meta=meta)


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False)  # type: ignore[no-any-return]


def _torchvision(name: str) -> nn.Module:
    import torchvision

    builder = torchvision.models.get_model_builder(name)
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None
    return builder(**options)  # type: ignore[no-any-return]


def _transformers(group: str, model_type: str) -> Built:
    """The first way to shrink the configuration with which the model is built and runs."""
    from examples.coverage import tiny

    cls = _class_of(group, model_type)
    problems: list[str] = []
    for shrink in tiny.strategies():
        for layers, image in ((2, 64), (2, None), (4, 64)):
            how = f"{shrink.__name__.strip('_')}, {layers} layers, image {image or 'as given'}"
            try:
                config = tiny.tiny(model_type, shrink, layers, image)
                parts = [part for part in vars(config).values() if isinstance(part, cls.config_class)]
                if parts and not isinstance(config, cls.config_class):  # such as a language model's own of a larger one
                    config = parts[0]
                tiny.for_task(config, group)
                if layers > 2:
                    tiny.without_cache(config)
                with torch.device("meta"):
                    count = sum(p.numel() for p in cls(config).parameters())
                if count > LARGEST:
                    problems.append(f"{how}: {count:,} parameters")
                    continue
                torch.manual_seed(0)
                module = cls(config)
            except Exception as error:
                problems.append(" ".join(f"{how}: {type(error).__name__}: {error}".split())[:200])
                continue
            inputs, why = feeds.first_that_runs(module, f"transformers/{model_type}")
            if inputs is not None:
                return Built(module, inputs, how)
            problems.append(f"{how}: {why}")
    raise NotBuilt(" | ".join(problems)[:1500])


def _class_of(group: str, model_type: str) -> Any:
    import transformers
    from transformers.models.auto import modeling_auto

    table = "MODEL" if group == "base" else f"MODEL_FOR_{TASKS[group]}"
    names = getattr(modeling_auto, f"{table}_MAPPING_NAMES")[model_type]
    name = names if isinstance(names, str) else names[0]
    found = getattr(transformers, name, None) or _inside(model_type, name)
    if not isinstance(found, type):
        raise NotBuilt(f"{name} is not available")
    return found


def _inside(model_type: str, name: str) -> Any:
    """A class that its module keeps to itself; None if it is not there."""
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    module = model_type_to_module_name(model_type)
    with suppress(ImportError):
        return getattr(importlib.import_module(f"transformers.models.{module}.modeling_{module}"), name, None)
    return None


# ------------------------------------------------------------------------------------------- lists


def names(zoo: str) -> list[str]:
    """The names of a list, small models first, the libraries by turns.

    Args:
        zoo: `zoo` (one or two names per timm module), `zoo-full` (the other names of timm), or `zoo-sample` (a
            fixed few).
    """
    if zoo == "zoo-sample":
        return list(SAMPLE)
    sizes = _sizes()
    by_size = sorted(sizes, key=lambda name: sizes[name][0] or math.inf)
    timm = [name for name in by_size if name.startswith("timm/")]
    chosen = _smallest_per_module(timm, {name: row[1] for name, row in sizes.items()})
    if zoo == "zoo-full":
        return [name for name in timm if name not in chosen]
    torchvision = [name for name in by_size if name.startswith("torchvision/")]
    first, more, base = transformers_names()
    return [*by_turns(by_turns(torchvision, chosen), first), *by_turns(more, base)]


def _sizes() -> dict[str, tuple[int, str]]:
    """Parameters and module of every torchvision and timm name."""
    return {name: tuple(row) for name, row in json.loads(SIZES.read_text("utf-8")).items()}


def listed_size(name: str) -> int:
    """How many parameters a torchvision or timm model has; 0 where that is not listed."""
    return _sizes().get(name, (0, ""))[0]


def _smallest_per_module(timm: list[str], module: dict[str, str], count: int = 2) -> list[str]:
    seen: dict[str, int] = {}
    kept = []
    for name in timm:
        seen[module[name]] = seen.get(module[name], 0) + 1
        kept += [name] if seen[module[name]] <= count else []
    return kept


def transformers_names() -> tuple[list[str], list[str], list[str]]:
    """Every model type once with one of the tasks, the same types with further tasks, and types with none of them."""
    from transformers.models.auto import modeling_auto

    tables = {group: getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES") for group, task in TASKS.items()}
    first: list[str] = []
    more: list[str] = []
    seen: set[str] = set()
    for group, table in tables.items():
        named = {model_type: f"transformers/{group}/{model_type}" for model_type in table}
        first = by_turns(first, [name for model_type, name in named.items() if model_type not in seen])
        more = by_turns(more, [name for model_type, name in named.items() if model_type in seen])
        seen |= set(table)
    base = [f"transformers/base/{t}" for t in modeling_auto.MODEL_MAPPING_NAMES if t not in seen]
    return _mixed(first), _mixed(more), _mixed(base)


def _mixed(names: list[str]) -> list[str]:
    """A fixed order unlike the alphabet's, so that the first hour of a sweep meets every family."""
    return sorted(names, key=lambda name: zlib.crc32(name.encode()))


def by_turns(first: list[str], second: list[str]) -> list[str]:
    """Both lists in one, each spread evenly."""
    placed = [((i + 0.5) / len(names), name) for names in (first, second) for i, name in enumerate(names)]
    return [name for _, name in sorted(placed, key=lambda pair: pair[0])]


def measure() -> Iterator[tuple[str, int, str]]:
    """Every torchvision and timm name with its parameters and its module, for the file of sizes."""
    import timm
    import torchvision

    makers = {"timm": (timm.list_models(), _timm), "torchvision": (torchvision.models.list_models(), _torchvision)}
    for zoo, (known, make) in makers.items():
        for name in known:
            try:
                with torch.device("meta"):
                    module = make(name)
            except NotImplementedError:  # a builder that reads numbers from its own weights
                module = make(name)
            source = type(module).__module__.rpartition(".")[2] if zoo == "timm" else ""
            yield f"{zoo}/{name}", sum(p.numel() for p in module.parameters()), source


SAMPLE = (
    "torchvision/squeezenet1_1",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/resnet18",
    "timm/mobilenetv3_small_050",
    "timm/vit_tiny_patch16_224",
    "timm/convnext_atto",
    "transformers/causal-lm/llama",
    "transformers/causal-lm/gpt2",
    "transformers/masked-lm/bert",
    "transformers/seq2seq-lm/t5",
    "transformers/image-classification/vit",
    "transformers/sequence-classification/distilbert",
)

if __name__ == "__main__":
    lines = (f"{json.dumps(name)}: {json.dumps(row)}" for name, *row in measure())
    SIZES.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
