"""Random small models: programs of ops that are plain data, drawn from a source of random numbers.

A program prints as a few lines, is read back by `Program.of`, and builds the same module each time:

    x0: image (3, 8, 8)
    x1 = conv(x0, out=12, kernel=3, stride=1, groups=1, bias=True)
    x2, x3 = chunk(x1, count=2)
    x4 = conv(x2, ...) again            (the module of an earlier step once more)
    return head(x3), head(x4)

The source of random numbers is `random.Random(seed)`, or one that hypothesis controls.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import random_attention  # noqa: F401  its ops enter the table
import random_images  # noqa: F401  its ops enter the table
import torch
from random_ops import KINDS, OPS, WIDTHS, Op, Shape, channels, project
from torch import Tensor, nn

BATCH = 3
LARGEST, NUMBERS = 50.0, 4000  # of a value in the pool, and how many numbers it may hold for one sample


class Stem(Op):
    """The layer that an input goes through, so that what follows has widths of its own."""

    def make(self, shape: Shape) -> None:
        self.layer = project(shape, self.out)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Head(Op):
    """Five numbers from a tensor of any kind."""

    def make(self, shape: Shape) -> None:
        self.layer = nn.Linear(channels(shape), 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.mean((2, 3)) if x.dim() == 4 else x.mean(1) if x.dim() == 3 else x)


OFTEN = {"conv": 3, "attention": 4, "grouped_query": 2, "linear": 2, "depthwise": 2, "split": 2, "by_group": 2}
DRAWN = [name for name in OPS if name not in ("stem", "head") for _ in range(OFTEN.get(name, 1))]


@dataclass(frozen=True)
class Step:
    """One op: its name, the values it reads, its options, and the earlier step whose module it uses again."""

    op: str
    reads: tuple[int, ...]
    options: dict[str, Any]
    again: int | None = None


@dataclass(frozen=True)
class Program:
    """Inputs, steps and the values returned. Values are numbered: first the inputs, then what each step gives."""

    inputs: tuple[Shape, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]

    @classmethod
    def of(cls, data: dict[str, Any]) -> Program:
        """Read what `asdict` wrote, perhaps through JSON."""
        steps = (Step(s["op"], tuple(s["reads"]), _tuples(s["options"]), s["again"]) for s in data["steps"])
        return cls(tuple(map(tuple, data["inputs"])), tuple(steps), tuple(data["outputs"]))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"x{i}: {KINDS[len(shape)]} {shape}" for i, shape in enumerate(self.inputs)]
        for step, made in zip(self.steps, Net(self).made, strict=True):
            words = [*(f"x{i}" for i in step.reads), *(f"{k}={v!r}" for k, v in step.options.items())]
            left = ", ".join(f"x{i}" for i, _ in made)
            shapes = ", ".join(str(shape) for _, shape in made)
            again = "" if step.again is None else f" again the module of step {step.again}"
            lines.append(f"{left} = {step.op}({', '.join(words)}){again}  # {shapes}")
        return "\n".join([*lines, "return " + ", ".join(f"x{i}" for i in self.outputs)])


def _tuples(options: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


class Net(nn.Module):
    """Runs a program. The same program gives the same weights; none stands at a constructor's 0 or 1.

    Attributes:
        made: for each step, the numbers and shapes of its values.

    Raises:
        ValueError: the program does not run, or its numbers grow too large to compare.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.steps = nn.ModuleList()
        self.made: list[list[tuple[int, Shape]]] = []
        values = list(examples(program))
        for step in program.steps:
            values += self.extend(step, values)

    def extend(self, step: Step, values: list[Tensor]) -> list[Tensor]:
        """Add a step and run it on the values so far; returns what it gives."""
        read = [values[i] for i in step.reads]
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(len(values))
            if step.again is None:
                self.steps.append(_stirred(OPS[step.op](*(tuple(x.shape[1:]) for x in read), **step.options)))
            else:
                self.steps.append(self.steps[step.again])
            given = _several(self.steps[-1].eval()(*read))
        for x in given:
            if x.dim() not in (2, 3, 4) or not x.isfinite().all() or x.abs().max() > LARGEST or x[0].numel() > NUMBERS:
                raise ValueError(f"{step}: its numbers are too large or too many")
        self.train()
        self.made.append([(len(values) + i, tuple(x.shape[1:])) for i, x in enumerate(given)])
        return given

    def forward(self, *inputs: Tensor) -> Any:
        values = list(inputs)
        for step, module in zip(self.program.steps, self.steps, strict=True):
            values += _several(module(*(values[i] for i in step.reads)))
        found = tuple(values[i] for i in self.program.outputs)
        return found if len(found) > 1 else found[0]


def _several(given: Any) -> list[Tensor]:
    return list(given) if isinstance(given, (tuple, list)) else [given]


def _stirred(module: nn.Module) -> nn.Module:
    """Every parameter and running statistic moved away from where its constructor left it."""
    for parameter in module.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    for name, buffer in module.named_buffers():
        if "running_mean" in name:
            buffer.normal_(0, 0.2)
        elif "running_var" in name:
            buffer.uniform_(0.5, 1.5)
    return module


def examples(program: Program, batch: int = BATCH) -> tuple[Tensor, ...]:
    """Inputs of the right shapes, the same each time."""
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(batch, *shape, generator=generator) for shape in program.inputs)


# -- drawing


def draw(rng: random.Random, most: int = 9) -> Program:
    """A random program of 3 to `most` steps between stems and heads."""
    builder = _Builder(rng)
    for _ in range(rng.randint(3, most)):
        builder.add()
    return builder.finish()


class _Builder:
    """A program so far, and the pool of values that the next step may read."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        kinds = rng.choice(
            (
                ("image",),
                ("sequence",),
                ("image",),
                ("sequence",),
                ("vector",),
                ("image", "vector"),
                ("sequence", "vector"),
                ("sequence", "sequence"),
                ("image", "image"),
            )
        )
        self.program = Program(tuple(map(self.shape, kinds)), (), ())
        self.net = Net(self.program)
        self.values = list(examples(self.program))
        self.free = set[int]()
        for i in range(len(kinds)):
            for _ in range(rng.choice((1, 1, 2))):
                self.append(Step("stem", (i,), {"out": rng.choice(WIDTHS)}))

    def shape(self, kind: str) -> Shape:
        width = self.rng.choice((3, 4, 6))
        if kind == "image":
            return (width, self.rng.choice((4, 6, 6, 8)), self.rng.choice((4, 6, 6)))
        return (self.rng.choice((4, 5, 6, 8)), width) if kind == "sequence" else (width + 4,)

    def append(self, step: Step) -> bool:
        """Add a step if it runs."""
        try:
            given = self.net.extend(step, self.values)
        except ValueError:
            del self.net.steps[len(self.program.steps) :]
            return False
        first = len(self.values)
        self.values += given
        self.free = (self.free - set(step.reads)) | set(range(first, len(self.values)))
        self.program = replace(self.program, steps=(*self.program.steps, step))
        return True

    def add(self) -> None:
        """Draw ops until one applies."""
        for _ in range(30):
            step = self.repeated() if self.rng.random() < 0.06 else self.fresh(self.rng.choice(DRAWN))
            if step is not None and self.append(step):
                return

    def fresh(self, name: str) -> Step | None:
        """A step of the given op over values that it can read."""
        op, reads = OPS[name], list[int]()
        for kind in op.takes:
            fit = [i for i in self.pool() if self.fits(op, kind, i, reads)]
            if not fit:
                return None
            fresh = [i for i in fit if i in self.free and i not in reads]
            reads.append(self.rng.choice(fresh if fresh and self.rng.random() < 0.75 else fit))
        options = op.options(self.rng, *map(self.shape_of, reads))
        return None if options is None else Step(name, tuple(reads), options)

    def pool(self) -> range:
        return range(len(self.program.inputs), len(self.values))

    def shape_of(self, value: int) -> Shape:
        return tuple(self.values[value].shape[1:])

    def fits(self, op: type[Op], kind: str, value: int, reads: list[int]) -> bool:
        """Whether an op may read a value next to what it reads so far."""
        shape = self.shape_of(value)
        if channels(shape) < 2 or (kind != "any" and KINDS[len(shape)] != kind):
            return False
        if not reads or not op.alike:
            return True
        first = self.shape_of(reads[0])
        if op.alike == "all":
            return shape == first and value not in reads
        same = len(shape) == len(first)
        return same and (shape[1:] == first[1:] if len(shape) == 3 else shape[:-1] == first[:-1])

    def repeated(self) -> Step | None:
        """An earlier module once more, over other values of the same shapes."""
        places = [i for i, step in enumerate(self.program.steps) if step.op not in ("stem", "head")]
        if not places:
            return None
        at = self.rng.choice(places)
        step, reads = self.program.steps[at], list[int]()
        for read in step.reads:
            fit = [i for i in self.pool() if self.shape_of(i) == self.shape_of(read) and i != read]
            if not fit:
                return None
            reads.append(self.rng.choice(fit))
        return replace(step, reads=tuple(reads), again=at if step.again is None else step.again)

    def finish(self) -> Program:
        """Every value that nobody reads goes through a head, or now and then out as it is."""
        outputs = []
        for value in sorted(self.free):
            if self.rng.random() < 0.04 or not self.append(Step("head", (value,), {})):
                outputs.append(value)
            else:
                outputs.append(len(self.values) - 1)
        return replace(self.program, outputs=tuple(outputs))


# -- shrinking


def smaller(program: Program) -> Iterator[Program]:
    """Programs with one step less, the reads of what it gave led to what it read; or with one output less."""
    for output in program.outputs:
        if len(program.outputs) > 1:
            yield _pruned(replace(program, outputs=tuple(o for o in program.outputs if o != output)))
    made = Net(program).made
    shapes = dict(enumerate(program.inputs)) | {i: shape for given in made for i, shape in given}
    for at, step in reversed(list(enumerate(program.steps))):
        gone = {i: next((r for r in step.reads if shapes[r] == shape), None) for i, shape in made[at]}
        if any(later.again == at for later in program.steps) or any(r is None for r in gone.values()):
            continue
        steps = [replace(s, reads=tuple(gone.get(i, i) for i in s.reads)) for s in program.steps]
        outputs = tuple(gone.get(i, i) for i in program.outputs)
        yield _pruned(replace(program, steps=tuple(steps), outputs=outputs))


def _pruned(program: Program) -> Program:
    """Without the steps that no output needs; values and modules numbered anew."""
    made = Net(replace(program, outputs=program.outputs)).made
    needed, kept = set(program.outputs), set[int]()
    for at in reversed(range(len(program.steps))):
        step = program.steps[at]
        if at in kept or any(i in needed for i, _ in made[at]):
            kept |= {at} if step.again is None else {at, step.again}
            needed |= set(step.reads)
    values = [*range(len(program.inputs)), *(i for at in sorted(kept) for i, _ in made[at])]
    number = {old: new for new, old in enumerate(values)}
    place = {old: new for new, old in enumerate(sorted(kept))}
    steps = (program.steps[at] for at in sorted(kept))
    renumbered = tuple(
        replace(s, reads=tuple(number[i] for i in s.reads), again=None if s.again is None else place[s.again])
        for s in steps
    )
    return Program(program.inputs, renumbered, tuple(number[i] for i in program.outputs))
