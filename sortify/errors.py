"""Errors that users meet: one base class, one kind per stage, one line each.

Every message says what went wrong, where, what was expected, what was found and what to do.
"""

from __future__ import annotations


class SortifyError(Exception):
    """Base of every error that sortify raises on purpose."""


class SourceError(SortifyError):
    """The model to convert cannot be found, read or trusted."""


class CaptureError(SortifyError):
    """The model cannot be captured as a graph with the given example inputs."""


class ExportError(CaptureError):
    """The tracer cannot follow the model's code: it may do better on parts of it."""


class InputError(SortifyError):
    """A call of a sorted model does not fit what was captured."""


class AxesError(SortifyError):
    """Nothing in the model is elastic, or a name given by the user matches no axis."""


class ProofError(SortifyError):
    """The rewritten model does not equal the original one."""


class BudgetError(SortifyError):
    """No sub-network fits the budget."""


class ProfileError(SortifyError):
    """Sub-networks cannot be measured, or what was measured cannot be used."""


class CheckpointError(SortifyError):
    """A saved model is missing, damaged, or of an unknown version."""


class NativeError(SortifyError):
    """A sub-network cannot be expressed as a model of the library that the original came from."""


class DataError(SortifyError):
    """The data for training or evaluation is missing or does not fit the model."""


class TrainingError(SortifyError):
    """Training cannot start or go on."""


def first_line(error: BaseException | None) -> str:
    """The first line of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else repr(error)
