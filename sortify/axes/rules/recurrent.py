"""Rules of recurrent layers and cells: their gates are blocks of the hidden width, one below the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sortify.axes import algebra
from sortify.axes.algebra import Expr
from sortify.axes.rules.table import Call, Dims, rule

GATES = {"lstm": 4, "lstm_cell": 4, "gru": 3, "gru_cell": 3}


def gates_of(target: object) -> int:
    """How many gates an op such as `aten.lstm.input` has; a plain recurrent layer has one."""
    return GATES.get(str(target).split(".")[1], 1)


@dataclass(frozen=True)
class LayerWeights:
    """The parameters of one layer in one direction; `projection` only where the output is narrower than the state."""

    inputs: Any
    hidden: Any
    biases: tuple[Any, ...]
    projection: Any = None


def layers_of(params: Sequence[Any], has_biases: bool, layers: int, directions: int) -> Iterator[LayerWeights]:
    """The flat list of parameters, layer by layer and direction by direction."""
    each = len(params) // (layers * directions)
    biases = 2 if has_biases else 0
    for start in range(0, len(params), each):
        own = params[start : start + each]
        rest = own[2 + biases :]
        yield LayerWeights(own[0], own[1], tuple(own[2 : 2 + biases]), rest[0] if rest else None)


def _tie(call: Call, weights: LayerWeights, inputs: Expr, output: Expr, hidden: Expr) -> None:
    """One layer in one direction: weights [gates * H, I] and [gates * H, R], biases [gates * H]."""
    gates = call.fixed(gates_of(call.node.target), "its gates")
    block = algebra.product([gates, hidden])
    for weight, columns in ((weights.inputs, inputs), (weights.hidden, output)):
        rows, own = call.dims_of(weight)
        call.unify(rows, block)
        call.unify(own, columns)
    for bias in weights.biases:
        for dim in call.dims_of(bias):
            call.unify(dim, block)
    if weights.projection is None:
        call.unify(output, hidden)
    else:
        call.unify_all(call.dims_of(weights.projection), (output, hidden))


def _layers(call: Call, inputs: Expr, states: Sequence[Any]) -> Expr:
    """Every layer reads the outputs of both directions of the one before; returns the width of what leaves.

    The states of all layers and directions are one tensor [layers * directions, N, H], so all have the same width.
    """
    directions = 2 if call["bidirectional"] else 1
    output, hidden = call.dims_of(states[0])[-1], call.dims_of(states[-1])[-1]
    if algebra.size_of(output) != algebra.size_of(hidden):
        _keep_apart(call, output, hidden)
    found = list(layers_of(call["params"], call["has_biases"], call["num_layers"], directions))
    for number, weights in enumerate(found):
        _tie(call, weights, inputs, output, hidden)
        if number % directions == directions - 1:
            inputs = algebra.concat([output] * directions)
    return inputs


def _keep_apart(call: Call, output: Expr, hidden: Expr) -> None:
    """The op sees from the sizes alone that there is a projection: they must not become equal in a sub-network."""
    times = algebra.size_of(hidden).over(algebra.size_of(output))
    if times is None:
        call.fix([output, hidden], "its projection is told by the sizes of its states, which must differ")
    else:
        call.unify(hidden, algebra.product([call.fixed(times, "hidden units of a projected one"), output]))


def _states(call: Call) -> list[Any]:
    """The first states: one tensor, or for an LSTM two."""
    given = call["hx"]
    return list(given) if isinstance(given, list) else [given]


@rule("aten.lstm.input", "aten.gru.input", "aten.rnn_tanh.input", "aten.rnn_relu.input")
def recurrent(call: Call) -> list[Dims]:
    """input [L, N, I] (or [N, L, I]), states [layers * directions, N, H]."""
    dims, states = call.dims("input"), _states(call)
    time, batch = (1, 0) if call["batch_first"] else (0, 1)
    call.fix([dims[time]], "it is gone through in order")
    for state in states:
        stacked, samples, _ = call.dims_of(state)
        call.fix([stacked], "it counts layers and directions")
        call.unify(samples, dims[batch])
    width = _layers(call, dims[-1], states)
    return [(*dims[:-1], width), *(call.dims_of(state) for state in states)]


@rule("aten.lstm.data", "aten.gru.data", "aten.rnn_tanh.data", "aten.rnn_relu.data")
def packed(call: Call) -> list[Dims]:
    """Packed sequences: data [steps of all samples, I]."""
    (steps, inputs), states = call.dims("data"), _states(call)
    call.fix([steps, *call.dims("batch_sizes")], "it is gone through in order")
    for state in states:
        call.fix(call.dims_of(state)[:2], "its samples are packed in order of length")
    width = _layers(call, inputs, states)
    return [(steps, width), *(call.dims_of(state) for state in states)]


@rule("aten.lstm_cell.default", "aten.gru_cell.default", "aten.rnn_tanh_cell.default", "aten.rnn_relu_cell.default")
def cell(call: Call) -> list[Dims] | Dims:
    """input [N, I], states [N, H]."""
    dims, states = call.dims("input"), [call.dims_of(state) for state in _states(call)]
    for state in states:
        call.unify_all(state, (dims[0], states[0][1]) if len(dims) > 1 else states[0])
    biases = tuple(call[name] for name in ("b_ih", "b_hh") if call.dims(name))
    hidden = states[0][-1]
    _tie(call, LayerWeights(call["w_ih"], call["w_hh"], biases), dims[-1], hidden, hidden)
    return states if len(states) > 1 else states[0]
