"""What must hold for a random program once it is converted, checked without sortify's own proof.

The permutation law below reads the plan only (which axis lies where in which tensor), works out positions with numpy of
its own, and permutes the weights of the *original* module.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch
from compare import max_error
from random_models import Net, Program, examples, smaller
from torch import Tensor, nn

from sortify import sortify
from sortify.errors import AxesError, CaptureError
from sortify.graph.dims import Concat, Dim, Fixed, Named, Product

SINGLE, DOUBLE = 1e-5, 1e-9
UNFIT = ("its rule does not apply", "the result of its rule does not fit")


@dataclass(frozen=True)
class Outcome:
    """How one program fared.

    Attributes:
        status: passed; nothing elastic; refused (a CaptureError); or a fault: crashed, wrong (a law does not hold and
            the proof did not see it), caught (the proof froze axes: some rule was wrong).
        note: the error, the law that failed, or the axes that were caught.
        axes: how many are elastic. chains: how many blocks can be bypassed.
        share: numbers in parameters with an elastic dimension, as a share of all.
        unfit: reasons of rules that raised or whose result did not fit.
    """

    status: str
    note: str = ""
    axes: int = 0
    chains: int = 0
    share: float = 0.0
    unfit: tuple[str, ...] = ()
    seconds: float = 0.0
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def fault(self) -> bool:
        return self.status in ("crashed", "wrong", "caught")


def judge(program: Program, seed: int = 0, convert: Callable[..., Any] = sortify) -> Outcome:
    """Convert a program and check every law. Never raises for what sortify does."""
    start = perf_counter()
    try:
        model = convert(Net(program), examples(program))
    except AxesError as error:
        wrong = "nothing" not in str(error) or "failed its proof" in str(error)
        return Outcome("caught" if wrong else "nothing elastic", str(error), seconds=perf_counter() - start)
    except CaptureError as error:
        clear = "\n" not in str(error) and len(str(error)) > 20
        return Outcome("refused" if clear else "crashed", f"CaptureError: {error}", seconds=perf_counter() - start)
    except Exception as error:
        return Outcome("crashed", f"sortify: {type(error).__name__}: {error}", seconds=perf_counter() - start)
    caught = [frozen for frozen in model.frozen if "failed its proof" in frozen.why]
    try:
        errors = dict(laws(program, model, seed))
    except Exception as error:
        return _outcome("crashed", f"laws: {type(error).__name__}: {error}", program, model, start)
    broken = [f"{name}: {error:.3g}" for name, error in errors.items() if not error <= allowed(name)]
    if broken:
        return _outcome("wrong", "; ".join(broken), program, model, start, errors)
    if caught:
        return _outcome("caught", "; ".join(f"{f.where}: {f.why}" for f in caught), program, model, start, errors)
    return _outcome("passed", "", program, model, start, errors)


def _outcome(
    status: str, note: str, program: Program, model: Any, start: float, errors: Mapping[str, float] | None = None
) -> Outcome:
    elastic = {name for axis in model.axes.values() for name in axis.parameters}
    sizes = {name: p.numel() for name, p in Net(program).named_parameters()}
    unfit = sorted({f.why for f in model.frozen if any(words in f.why for words in UNFIT)})
    return Outcome(
        status,
        note,
        len(model.axes),
        sum(len(chain.blocks) for chain in model.chains.values()),
        sum(size for name, size in sizes.items() if name in elastic) / sum(sizes.values()),
        tuple(unfit),
        perf_counter() - start,
        errors or {},
    )


def allowed(law: str) -> float:
    """The largest error of a law."""
    return DOUBLE if law.startswith("permuted") else SINGLE


def laws(program: Program, model: Any, seed: int) -> dict[str, float]:
    """The error of each law, by name."""
    original, errors = Net(program), dict[str, float]()
    state = copy.deepcopy(original.state_dict())
    inputs, more = examples(program), examples(program, 5)
    for mode in ("eval", "train"):
        for module in (original, model):
            module.load_state_dict(state)
            module.train(mode == "train")
        errors[f"full ({mode})"] = max_error(run(model, inputs), run(original, inputs))
        if state:
            errors[f"state ({mode})"] = max_error(*(dict(sorted(m.state_dict().items())) for m in (model, original)))
    model.load_state_dict(state)
    original.load_state_dict(state)
    errors["full, other batch"] = max_error(run(model.eval(), more), run(original.eval(), more))
    generator = torch.Generator().manual_seed(seed)
    for name, subnet in (("smallest", model.space.smallest), ("random", model.space.sample(generator))):
        errors |= extraction(model, subnet, name, inputs, more)
    for mode in ("eval", "train"):
        random_ones = mode == "train" and any(step.op == "dropout" for step in program.steps)
        if model.axes and not random_ones:
            errors[f"permuted ({mode})"] = permuted(program, model, generator, mode)
    return errors


def extraction(
    model: Any, subnet: Any, name: str, inputs: tuple[Tensor, ...], more: tuple[Tensor, ...]
) -> dict[str, float]:
    """A sub-network in place against its extraction, in both modes and for another batch; and its size."""
    small, errors = model.extract(subnet=subnet), dict[str, float]()
    unread = model.cost(subnet).params - size(small)  # an extraction leaves out what no op reads
    if unread < 0 or (subnet.depths == model.space.full.depths and whole(model)):
        errors[f"{name}: parameters"] = abs(unread)
    state = copy.deepcopy(model.state_dict())
    for mode, given in (("eval", inputs), ("eval", more), ("train", inputs)):
        small.train(mode == "train")
        with model.train(mode == "train").using(subnet):
            errors[f"{name} ({mode}, batch {len(given[0])})"] = max_error(run(small, given), run(model, given))
    model.load_state_dict(state)
    return errors


def size(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def whole(model: Any) -> bool:
    """Whether every parameter of the full model is read in every position."""
    return size(model.extract(subnet=model.space.full)) == model.cost(model.space.full).params


def run(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """The output, without gradients, with the same random numbers at each call."""
    torch.manual_seed(5)
    with torch.no_grad():
        return module(*inputs)


def permuted(program: Program, model: Any, generator: torch.Generator, mode: str) -> float:
    """The change of the original's outputs in float64 when all axes are permuted in its own tensors."""
    inputs = tuple(x.double() for x in examples(program))
    module = Net(program).double().train(mode == "train")
    expected = run(module, inputs)
    module = Net(program).double().train(mode == "train")
    orders = {name: torch.randperm(axis.size, generator=generator).numpy() for name, axis in model.axes.items()}
    places = tensors_of(module, model)
    for name in {
        n.axis for key, dims in model.plan.shapes.items() if key not in places for d in dims for n in named(d)
    }:
        orders[name] = np.arange(len(orders[name]))  # carried by a constant that is nowhere in the module
    done = set[int]()
    with torch.no_grad():
        for key, tensor in places.items():
            if id(tensor) not in done:
                done.add(id(tensor))
                for dim, expr in enumerate(model.plan.shapes[key]):
                    tensor.copy_(tensor.index_select(dim, torch.from_numpy(positions(expr, orders))))
    return max_error(run(module, inputs), expected)


def tensors_of(module: nn.Module, model: Any) -> dict[str, Tensor]:
    """The module's own tensor for each tensor of the plan; constants are known by their numbers."""
    own = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    plain = [v for m in module.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    found: dict[str, Tensor] = {}
    for key in model.plan.shapes:
        if key in own:
            found[key] = own[key]
            continue
        value = model.tensors[key]
        for tensor in plain:
            if tensor.shape == value.shape and torch.equal(tensor.double(), value.double()):
                found[key] = tensor
    return found


def named(dim: Dim) -> list[Named]:
    """The axes of a dimension."""
    match dim:
        case Named():
            return [dim]
        case Product(parts) | Concat(parts):
            return [n for part in parts for n in named(part)]
    return []


def positions(dim: Dim, orders: Mapping[str, np.ndarray]) -> np.ndarray:
    """Where each position of a dimension comes from when its axes are permuted, in numpy of this file's own."""
    match dim:
        case Fixed(size):
            return np.arange(size)
        case Named(axis, _):
            return orders[axis]
        case Product(factors):
            found = [positions(f, orders) for f in factors]
            grid = np.arange(np.prod([len(f) for f in found])).reshape([len(f) for f in found])
            return grid[np.ix_(*found)].reshape(-1)
        case Concat(segments):
            found = [positions(s, orders) for s in segments]
            starts = np.cumsum([0, *(len(f) for f in found[:-1])])
            return np.concatenate([f + start for f, start in zip(found, starts, strict=True)])


def shrunk(program: Program, same: Callable[[Program], bool], tries: int = 30) -> Program:
    """The smallest program found that is still `same`: one step or one output less at a time."""
    while tries > 0:
        for candidate in _valid(program):
            tries -= 1
            if same(candidate):
                program = candidate
                break
            if tries <= 0:
                break
        else:
            return program
    return program


def _valid(program: Program) -> list[Program]:
    found = []
    for candidate in smaller(program):
        try:
            Net(candidate)
        except (ValueError, RuntimeError, AssertionError, TypeError, KeyError):
            continue
        found.append(candidate)
    return found
