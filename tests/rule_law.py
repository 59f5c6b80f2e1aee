"""The law of rules: what a rule says about one op call, checked on numbers.

Every dimension of every input starts as an open atom of its own. The rule then says which are the same and which are
fixed; for the atoms that it leaves open,

- sizes: the result has the rank and the sizes that the op really gives;
- permutation: shuffled atoms, in every tensor that carries them, give the shuffled result;
- slicing: atoms cut to a prefix, and the size arguments that the rule noted replaced, give a result of the predicted
  shape, and where the op works position by position, the sliced numbers.

The evaluator of expressions below is this file's own (plain numpy indexing), so that a fault of
`sortify.graph.dims` or of the rewriting cannot hide one of a rule.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from compare import assert_close_outputs
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from sortify.axes.algebra import Atom, ConcatExpr, Expr, ProductExpr, atoms, resolve, size_of
from sortify.axes.analysis import analyse
from sortify.axes.rules.table import RULES, Dims, Literal, find_op
from sortify.capture.capture import Captured, Program
from sortify.graph.structure import flatten

TOLERANCE = 1e-9  # everything runs in float64
UNFIT = ("the result of its rule does not fit", "this op has no rule", "its rule does not apply")
Kept = Mapping[Atom, np.ndarray]
Results = tuple[list[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Sample:
    """One call of one op.

    Attributes:
        op: its name, such as `aten.linear.default`.
        args: positional arguments; every distinct tensor among them (and in `kwargs`) is one input.
        kwargs: keyword arguments.
        opens: how many atoms must stay open, where that is known.
        values: how far a slice can be told from the full result: "equal" (the same numbers), "masked" (the numbers that
            the full op gives when all that is cut off is zero), "shape" (the op mixes positions, so shapes only).
        noisy: the op draws random numbers, so only shapes can be checked at all.
        least: the smallest size to which atoms are cut.
        refused: the rule has no answer for this use and says so: everything must be fixed.
    """

    op: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    opens: int | None = None
    values: str = "equal"
    noisy: bool = False
    least: int = 1
    refused: bool = False

    def __str__(self) -> str:
        def short(value: Any) -> Any:
            return list(value.shape) if isinstance(value, Tensor) else value

        args, kwargs = pytree.tree_map(short, (self.args, dict(self.kwargs)))
        texts = [*map(str, args), *(f"{key}={value}" for key, value in kwargs.items())]
        return f"{self.op.removeprefix('aten.')}({', '.join(texts)})"


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a rule said about a sample: dimensions of the inputs and of the outputs, and the size arguments."""

    inputs: list[Dims]
    outputs: list[Dims]
    literals: list[Literal]

    @property
    def open(self) -> list[Atom]:
        """Every atom that is still elastic, once, in order of appearance."""
        found = (atom for dims in (*self.inputs, *self.outputs) for dim in dims for atom in atoms(dim))
        return list(dict.fromkeys(atom for atom in found if atom.fixed is None))

    @property
    def reasons(self) -> set[str]:
        found = (atom for dims in (*self.inputs, *self.outputs) for dim in dims for atom in atoms(dim))
        return {str(atom.fixed) for atom in found if atom.fixed is not None}


def check(sample: Sample, rules: Mapping[str, Any] = RULES) -> Verdict:
    """Run the whole law over one sample; AssertionError where it does not hold."""
    try:
        verdict = judge(sample, rules)
        _check_answer(sample, verdict)
        _check_permutation(sample, verdict)
        _check_slicing(sample, verdict)
        _check_count(sample, verdict)
    except Exception as error:
        raise AssertionError(f"{sample}: {type(error).__name__}: {error}") from error
    return verdict


def inputs_of(sample: Sample) -> list[Tensor]:
    """The distinct tensors of a sample, in order."""
    leaves = pytree.tree_leaves((sample.args, dict(sample.kwargs)))
    return list({id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}.values())


def judge(sample: Sample, rules: Mapping[str, Any] = RULES) -> Verdict:
    """Analyse a graph of this one call, all of whose tensors are open."""
    graph = fx.Graph()
    graph.placeholder("device"), graph.placeholder("dtype")
    tensors = {f"tensor_{place}": tensor for place, tensor in enumerate(inputs_of(sample))}
    holes = {}
    for name, tensor in tensors.items():
        holes[id(tensor)] = graph.placeholder(name)
        holes[id(tensor)].meta["val"] = tensor
    given = pytree.tree_map_only(Tensor, lambda t: holes[id(t)], (sample.args, dict(sample.kwargs)))
    node = graph.call_function(find_op(sample.op), *given)
    results, _ = run(sample, inputs_of(sample))
    several = len(find_op(sample.op)._schema.returns) > 1 or "List" in str(find_op(sample.op)._schema.returns[0].type)
    node.meta["val"] = results if several else results[0]
    graph.output([])
    program = Program(graph, tuple(tensors), flatten([])[1])
    analysis = analyse(Captured({"eval": program}, tensors, {}, {}, None, (), ()), rules)  # type: ignore[arg-type]
    outputs = analysis.nodes["eval"][node]
    return Verdict(list(analysis.tensors.values()), outputs if several else [outputs], analysis.literals["eval"])


def run(sample: Sample, tensors: Sequence[Tensor], literals: Iterable[tuple[Literal, int]] = ()) -> Results:
    """Call the op on clones of other tensors and with other size arguments.

    Returns:
        The outputs, and the inputs as the op left them.
    """
    clones = [tensor.detach().clone() for tensor in tensors]
    place = {id(tensor): clone for tensor, clone in zip(inputs_of(sample), clones, strict=True)}
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: place[id(t)], (list(sample.args), dict(sample.kwargs)))
    names = [argument.name for argument in find_op(sample.op)._schema.arguments]
    for literal, size in literals:
        holder, key = kwargs, literal.argument
        if literal.argument not in kwargs:
            holder, key = args, names.index(literal.argument)
        if literal.index is None:
            holder[key] = size
        else:
            holder[key] = [size if i == literal.index else old for i, old in enumerate(holder[key])]
    result = find_op(sample.op)(*args, **kwargs)
    return (list(result) if isinstance(result, (list, tuple)) else [result]), clones


def _check_answer(sample: Sample, verdict: Verdict) -> None:
    """The rule answered, in the right rank and sizes."""
    refused = any(mark in why for why in verdict.reasons for mark in UNFIT)
    wanted = "a refusal" if sample.refused else "an answer"
    assert refused == sample.refused, f"expected {wanted}, got {verdict.reasons}"
    for dims, tensor in zip(verdict.outputs, run(sample, inputs_of(sample))[0], strict=True):
        assert [size_of(dim).count for dim in dims] == list(tensor.shape), "the rule gives other sizes than the op"


def _check_count(sample: Sample, verdict: Verdict) -> None:
    """The rule fixed no more than it must."""
    expected = 0 if sample.refused else sample.opens
    assert expected is None or len(verdict.open) == expected, f"{len(verdict.open)} atoms are open, expected {expected}"


def _check_permutation(sample: Sample, verdict: Verdict) -> None:
    generator = np.random.default_rng(0)
    tensors = inputs_of(sample)
    before = run(sample, tensors)
    for chosen in _all_and_each(verdict.open):
        kept = {atom: _shuffle(atom.size.count, generator) for atom in chosen}
        after = run(sample, _picked(tensors, verdict.inputs, kept))
        _compare("permutation", after, _all_picked(before, verdict, kept), exact=not sample.noisy)


def _check_slicing(sample: Sample, verdict: Verdict) -> None:
    draw = random.Random(0)
    everything, *each = _all_and_each(verdict.open) or [[]]
    cuts = [{atom: size(atom.size.count) for atom in everything} for size in (lambda n: (n + 1) // 2, lambda n: 1)]
    cuts += [{atom: draw.randint(1, atom.size.count - 1) for atom in chosen} for chosen in (everything, *each)]
    whole = run(sample, inputs_of(sample))
    for sizes in cuts:
        _check_slice(sample, verdict, {a: min(a.size.count, max(sample.least, n)) for a, n in sizes.items()}, whole)


def _check_slice(sample: Sample, verdict: Verdict, sizes: Mapping[Atom, int], whole: Results) -> None:
    kept = {atom: np.arange(size) for atom, size in sizes.items()}
    literals = [(x, sum(len(positions(part, kept)) for part in x.parts)) for x in verdict.literals]
    tensors = inputs_of(sample)
    small = run(sample, _picked(tensors, verdict.inputs, kept), literals)
    if sample.values == "masked":
        whole = run(sample, [_masked(t, dims, kept) for t, dims in zip(tensors, verdict.inputs, strict=True)])
    exact = not sample.noisy and sample.values != "shape"
    _compare(f"slice to {list(sizes.values())}", small, _all_picked(whole, verdict, kept), exact=exact)


def _all_and_each(found: list[Atom]) -> list[list[Atom]]:
    """All atoms at once, then each on its own."""
    return [found, *([atom] for atom in found if len(found) > 1)] if found else []


def _shuffle(size: int, generator: np.random.Generator) -> np.ndarray:
    """A random order that is not the identity."""
    order = generator.permutation(size)
    return np.roll(np.arange(size), 1) if (order == np.arange(size)).all() else order


def positions(expr: Expr, kept: Kept) -> np.ndarray:
    """Which positions of a dimension stay, in order, when each atom keeps `kept[atom]` (all, where it is not named)."""
    expr = resolve(expr)
    match expr:
        case Atom():
            return kept.get(expr, np.arange(expr.size.count))
        case ProductExpr(factors):
            shape = [size_of(factor).count for factor in factors]
            numbers = np.arange(np.prod(shape, dtype=int)).reshape(shape)
            return numbers[np.ix_(*(positions(factor, kept) for factor in factors))].reshape(-1)
        case ConcatExpr(segments):
            starts = np.cumsum([0, *(size_of(segment).count for segment in segments)])
            return np.concatenate([start + positions(s, kept) for start, s in zip(starts, segments, strict=False)])


def _picked(tensors: Sequence[Tensor], all_dims: Sequence[Dims], kept: Kept) -> list[Tensor]:
    return [_along(t, dims, kept, torch.Tensor.index_select) for t, dims in zip(tensors, all_dims, strict=True)]


def _all_picked(results: Results, verdict: Verdict, kept: Kept) -> Results:
    outputs, inputs = results
    return _picked(outputs, verdict.outputs, kept), _picked(inputs, verdict.inputs, kept)


def _masked(tensor: Tensor, dims: Dims, kept: Kept) -> Tensor:
    """The tensor with zeros at every position that is not kept."""

    def clear(full: Tensor, place: int, index: Tensor) -> Tensor:
        mask = torch.zeros(full.shape[place], dtype=full.dtype)
        mask[index] = 1
        return full * mask.reshape([-1 if at == place else 1 for at in range(full.dim())])

    return _along(tensor, dims, kept, clear)


def _along(tensor: Tensor, dims: Dims, kept: Kept, change: Callable[[Tensor, int, Tensor], Tensor]) -> Tensor:
    for place, dim in enumerate(dims):
        wanted = positions(dim, kept)
        if len(wanted) != tensor.shape[place] or (wanted[1:] <= wanted[:-1]).any():
            tensor = change(tensor, place, torch.as_tensor(wanted))
    return tensor


def _compare(what: str, found: Results, expected: Results, *, exact: bool) -> None:
    """Equal shapes and, where they are to be exact, equal numbers; the outputs, then the inputs as the op left them."""
    for part, mine, theirs in zip(("output", "changed input"), found, expected, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.shape == b.shape, f"{what}: {part} of shape {list(a.shape)}, predicted {list(b.shape)}"
        if mine and exact:
            try:
                assert_close_outputs(mine, theirs, TOLERANCE)
            except AssertionError as error:
                raise AssertionError(f"{what}: {part}: {error}") from error
