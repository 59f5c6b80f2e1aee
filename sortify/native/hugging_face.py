"""Models of transformers with other settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sortify.errors import NativeError
from sortify.native.settings import Settings
from sortify.native.solve import Shapes

NOT_TAKEN = frozenset(
    {"auto_map", "attn_implementation", "_attn_implementation", "_experts_implementation", "use_pretrained_backbone"}
)
"""Entries of a config that may fetch something, or run code that it names."""


def build(name: str, settings: Settings) -> torch.nn.Module:
    """A model of a class that transformers exports, in evaluation mode, with weights as the class makes them.

    Args:
        name: of the class.
        settings: its config, as JSON values; without what it may name to be fetched or run, see `NOT_TAKEN`.

    Raises:
        NativeError: the installed transformers has no such class.
        Exception: whatever the class says of settings that do not go together.
    """
    import transformers  # takes seconds

    kind: Any = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise NativeError(f"transformers {transformers.__version__} has no model class {name}")
    config: Any = kind.config_class
    model: Any = kind(config.from_dict(_inert(settings)))
    made: torch.nn.Module = model.eval()
    return made


def _inert(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _inert(part) for key, part in value.items() if key not in NOT_TAKEN}
    return [_inert(part) for part in value] if isinstance(value, list) else value


def save(module: torch.nn.Module, name: str, settings: Settings, folder: Path) -> None:
    """Write a folder that `from_pretrained` reads, and read it back to see that it does; its config has the settings.

    Raises:
        NativeError: what comes back is not what was written.
    """
    model: Any = module
    with _without_bars():
        model.save_pretrained(folder)
        state, again = module.state_dict(), type(model).from_pretrained(folder).state_dict()
    if state.keys() != again.keys() or not all(torch.equal(tensor, again[key]) for key, tensor in state.items()):
        raise NativeError(f"{type(module).__name__}: from_pretrained does not read what save_pretrained wrote")


def not_saved(module: torch.nn.Module) -> set[str]:
    """Weights that `save_pretrained` leaves out and `from_pretrained` makes anew, such as tables of positions."""
    return set(getattr(module, "_keys_to_ignore_on_save", None) or ()) & set(module.state_dict())


@contextmanager
def _without_bars() -> Iterator[None]:
    from transformers import utils

    logging: Any = utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def shapes(name: str, settings: Settings) -> Shapes:
    """The shapes of the state dict of such a model; no memory is taken for it."""
    from transformers.initialization import no_init_weights

    with torch.device("meta"), no_init_weights():
        return {key: tuple(tensor.shape) for key, tensor in build(name, settings).state_dict().items()}
