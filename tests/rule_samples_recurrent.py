"""Samples of recurrent layers and cells."""

from __future__ import annotations

from typing import Any

import torch
from rule_law import Sample
from rule_tensors import case
from rule_tensors import numbers as n

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def params(
    gates: int, inputs: int, hidden: int, layers: int, directions: int, *, biases: bool, proj: int
) -> list[torch.Tensor]:
    """The flat list of parameters of a recurrent layer."""
    found, width = list[torch.Tensor](), proj or hidden
    for layer in range(layers):
        for _ in range(directions):
            columns = width * directions if layer else inputs
            found += [n(gates * hidden, columns), n(gates * hidden, width)]
            found += [n(gates * hidden), n(gates * hidden)] if biases else []
            found += [n(proj, hidden)] if proj else []
    return found


def layer(kind: str, *, layers: int = 1, two: bool = False, biases: bool = True, proj: int = 0, **more: Any) -> Sample:
    """input [5, 3, 2] or [3, 5, 2], hidden width 4: the samples, the input's and the hidden width stay open."""
    directions, opens = 2 if two else 1, 2 if proj == 3 else 3
    weights = params(GATES[kind], 2, 4, layers, directions, biases=biases, proj=proj)
    states = [n(layers * directions, 3, proj or 4), n(layers * directions, 3, 4)]
    given: Any = states if kind == "lstm" else states[0]
    first = more.get("batch_first", False)
    data = n(3, 5, 2) if first else n(5, 3, 2)
    rest = (biases, layers, 0.0, False, two, first)
    return case(f"{kind}.input", data, given, weights, *rest, opens=opens, values="masked")


def packed(kind: str) -> Sample:
    """Sequences of lengths 2, 2 and 1, in one: [5, 2]."""
    states = [n(1, 3, 4), n(1, 3, 4)]
    weights = params(GATES[kind], 2, 4, 1, 1, biases=True, proj=0)
    given: Any = states if kind == "lstm" else states[0]
    rest = (given, weights, True, 1, 0.0, False, False)
    return case(f"{kind}.data", n(5, 2), torch.tensor([3, 2]), *rest, opens=2, values="masked")


def cells(kind: str) -> tuple[Sample, ...]:
    rows = GATES[kind] * 4
    given: Any = [n(3, 4), n(3, 4)] if kind == "lstm" else n(3, 4)
    weights = n(rows, 2), n(rows, 4)
    return (
        case(f"{kind}_cell.default", n(3, 2), given, *weights, n(rows), n(rows), opens=3, values="masked"),
        case(f"{kind}_cell.default", n(3, 2), given, *weights, opens=3, values="masked"),
    )


LAYERS = tuple(
    layer(kind, **more)
    for kind in GATES
    for more in (
        {},
        {"layers": 2, "two": True},
        {"biases": False, "batch_first": True},
        {"layers": 3},
        *([{"layers": 2, "two": True, "proj": 2}, {"proj": 2, "biases": False}, {"proj": 3}] if kind == "lstm" else []),
    )
)

RECURRENT = (*LAYERS, *map(packed, GATES), *(sample for kind in GATES for sample in cells(kind)))
