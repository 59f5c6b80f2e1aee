"""What a training step of a sub-network costs inside the family, over the same step of the extracted model.

    python examples/bench_step.py [--models resnet18 bert] [--seconds 10] [--threads 1] [--device cpu] [--compile]
                                  [--page FILE]

A step is forward and backward, with the gradients landed in the parameters: of the family in those of full size
(`sortify.SortedUpdate`), of the extracted model in its own. Both take turns in one process and the median of the ratios
of neighbours counts, so that other work on the machine hurts both alike. `first` is the step after gradients were
dropped, as in a loop with one draw for each optimiser step; `more` adds to gradients that are there. The full family
is compared with the original module, and the optimiser's step (AdamW, on all parameters) is told beside it.

Memory is counted, not measured: bytes that autograd keeps for the backward pass (`activations`), and the most that is
alive at once with weights and gradients (`peak`, of the full family over the original).

With `--compile` both sides run through `torch.compile`: the family with widths as symbols (`SortedModel.compile`), what
it is compared with as constants. Memory is not counted then.
"""

from __future__ import annotations

import argparse
import inspect
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

from sortify import SortedModel, SortedUpdate, Subnet, sortify
from sortify.models.peak import peak

WIDTHS = (0.25, 0.5, 0.75, 1.0)
STEP_GOAL, WHOLE_GOAL, ACTIVATIONS_GOAL, PEAK_GOAL = 1.05, 1.02, 1.05, 1.02
COMPILED_GOAL = 1.10


Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A model to train, a call of it, and what its output costs."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    loss: Callable[[Any], Tensor]


def _images(module: nn.Module, batch: int, size: int) -> Case:
    name = next(iter(inspect.signature(module.forward).parameters))
    images = {name: torch.rand(batch, 3, size, size)}
    return Case(
        module,
        images,
        lambda output: nn.functional.cross_entropy(output, torch.arange(batch, device=output.device) % 10),
    )


def _resnet18() -> Case:
    return _images(torchvision.models.resnet18(num_classes=10), 32, 64)


def _vit_tiny() -> Case:
    return _images(timm.create_model("vit_tiny_patch16_224", num_classes=10), 8, 224)


def _bert() -> Case:
    config = transformers.BertConfig(
        num_hidden_layers=4, hidden_size=256, intermediate_size=1024, num_attention_heads=4
    )
    module = transformers.BertForSequenceClassification(config)
    tokens = {"input_ids": torch.randint(0, 30000, (32, 64))}

    def loss(output: Any) -> Tensor:
        return nn.functional.cross_entropy(output["logits"], torch.arange(32, device=output["logits"].device) % 2)

    return Case(module, tokens, loss)


def _llama() -> Case:
    config = transformers.LlamaConfig(
        vocab_size=2048, hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=8
    )
    tokens = torch.randint(0, 2048, (16, 128))

    def loss(output: Any) -> Tensor:
        return nn.functional.cross_entropy(
            output["logits"][:, :-1].flatten(0, 1), tokens[:, 1:].flatten().to(output["logits"].device)
        )

    return Case(transformers.LlamaForCausalLM(config), {"input_ids": tokens}, loss)


def on(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The same inputs on a device."""
    return {name: tensor.to(device) for name, tensor in inputs.items()}


CASES: Mapping[str, Callable[[], Case]] = {
    "resnet18": _resnet18,
    "vit_tiny": _vit_tiny,
    "bert": _bert,
    "llama": _llama,
}


# -- one step ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Always:
    """A sampler that draws one sub-network for ever."""

    name: ClassVar[str] = "always"
    shares_batch: ClassVar[bool] = True
    usual_count: ClassVar[int] = 1

    subnet: Subnet

    def draw(self, generator: torch.Generator, step: int) -> list[Subnet]:
        """That one."""
        return [self.subnet]


def family_step(model: SortedModel, subnet: Subnet, case: Case) -> Step:
    """The step of a sub-network inside the family."""
    update = SortedUpdate(model, Always(subnet))
    return lambda: update(lambda: case.loss(model(**case.inputs)))


def plain_step(model: nn.Module, case: Case) -> Step:
    """The step of a model on its own."""
    return lambda: case.loss(model(**case.inputs)).backward()


def after_dropping(model: nn.Module, step: Step) -> Step:
    """The same step as the first one after an optimiser's."""

    def first() -> None:
        model.zero_grad(set_to_none=True)
        step()

    return first


def paired(one: Step, other: Step, seconds: float, device: torch.device) -> list[float]:
    """Ratios of the time of `one` to that of `other`, which take turns."""
    ratios: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(ratios) < 5:
        a, b = (other, one) if len(ratios) % 2 else (one, other)
        first, second = timed(a, device), timed(b, device)
        ratios.append(second / first if len(ratios) % 2 else first / second)
    return ratios


def timed(call: Step, device: torch.device) -> float:
    """Seconds of one call, to its end."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def saved_bytes(model: nn.Module, call: Callable[[], object]) -> int:
    """Bytes that autograd keeps for the backward pass, parameters and buffers aside; each storage counts once."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}
    held = []  # so that no storage is given to another tensor while counting

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage.nbytes()
            held.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return sum(found.values())


# -- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One sub-network: milliseconds of the plain step, and the family's over it.

    Attributes:
        first: the ratio of steps after gradients were dropped; more: of those that add to gradients that are there.
        activations: the ratio of bytes kept for backward; goal: for `more`.
    """

    model: str
    what: str
    plain: float
    first: float
    more: float
    activations: float | None
    goal: float = STEP_GOAL
    peak: float | None = None

    @property
    def reached(self) -> bool:
        """Whether all goals are."""
        peak_reached = self.peak is None or self.peak <= PEAK_GOAL
        kept_reached = self.activations is None or self.activations <= ACTIVATIONS_GOAL
        return self.more <= self.goal and kept_reached and peak_reached


def rows_of(name: str, case: Case, seconds: float, device: torch.device, compiles: bool = False) -> Iterator[Row]:
    """Every sub-network of a model, then the whole family against the original."""
    few = {key: value[:2] for key, value in case.inputs.items()}
    original = case.module.train()
    model = sortify(original, few).to(device).train()
    original.to(device)
    case = Case(original, on(case.inputs, device), case.loss)
    alone: Callable[[nn.Module], nn.Module] = _compiled if compiles else _as_it_is
    if compiles:
        model.compile()
    subnets = [(f"width {width:g}", model.space.subnet(width=width)) for width in WIDTHS]
    if "depth" in model.space.groups:
        subnets.append(("depth 0.5", model.space.subnet(depth=0.5)))
    for what, subnet in subnets:
        small = alone(model.extract(subnet=subnet).train())
        row = _row(name, what, model, subnet, small, case, seconds, device)
        yield replace(row, goal=COMPILED_GOAL if compiles else STEP_GOAL)
    full = model.space.full
    whole = _row(name, "full, over the original", model, full, alone(original), case, seconds, device)
    if compiles:
        yield replace(whole, goal=COMPILED_GOAL)
        return
    both = (after_dropping(model, family_step(model, full, case)), after_dropping(original, plain_step(original, case)))
    ours, theirs = (_peak(m, step, device) for m, step in zip((model, original), both, strict=True))
    yield replace(whole, goal=WHOLE_GOAL, peak=ours / theirs)


def _compiled(module: nn.Module) -> nn.Module:
    found: nn.Module = torch.compile(module, dynamic=False)
    return found


def plain_module(module: nn.Module) -> nn.Module:
    """What was compiled, or the module itself."""
    return getattr(module, "_orig_mod", module)


def _as_it_is(module: nn.Module) -> nn.Module:
    return module


def _row(
    name: str,
    what: str,
    model: SortedModel,
    subnet: Subnet,
    small: nn.Module,
    case: Case,
    seconds: float,
    device: torch.device,
) -> Row:
    own, plain = family_step(model, subnet, case), plain_step(small, case)
    first, plain_first = after_dropping(model, own), after_dropping(small, plain)
    for step in (own, plain):
        timed(step, device)
    step = paired(first, plain_first, seconds / 2, device)
    more = paired(own, plain, seconds / 2, device)
    alone = statistics.median(timed(plain_first, device) for _ in range(5))
    kept = None if small is not plain_module(small) else saved_bytes(model, own) / saved_bytes(small, plain)
    return Row(name, what, 1e3 * alone, statistics.median(step), statistics.median(more), kept)


def _peak(model: nn.Module, step: Step, device: torch.device) -> int:
    model.zero_grad(set_to_none=True)
    return peak(step, [*model.parameters(), *model.buffers()], device)


def optimizer_ms(module: nn.Module, case: Case, device: torch.device) -> float:
    """Milliseconds of one step of AdamW on all parameters."""
    optimizer = torch.optim.AdamW(module.parameters())
    plain_step(module, case)()
    optimizer.step()
    return 1e3 * statistics.median(timed(optimizer.step, device) for _ in range(9))


PAGE = """# What a training step costs

Forward and backward of a sub-network inside the family, with its gradients landed in the parameters of full size
(`sortify.SortedUpdate`), over the same step of the extracted model: the median of the ratios of steps that take turns
in one process. *More* adds to gradients that are there, as all draws of an update but the first do; *first* also makes
the gradients of full size, with zeros where the sub-network has none. *Activations* are the bytes that autograd keeps
for the backward pass, *peak* the most that is alive at once, over those of the extracted model, or of the original.

Made by `make bench` (torch {torch}, {threads} thread{s}, {device}). The goal is for *more*.
What is left at the smaller widths of the ResNet are, by torch's profiler, the landing itself (`_SlicesBackward`,
`_foreach_add_`) and copies of kernels: the slice of one has gaps, and convolutions copy what has gaps.

"""
HEAD = (
    "| model | sub-network | plain step, ms | family over it: more | first | activations | peak | goal |\n"
    "|---|---|---:|---:|---:|---:|---:|---|"
)


def line(row: Row) -> str:
    """A row of the table, in Markdown."""
    kept, peak_text = ("" if ratio is None else f"{ratio:.3f}" for ratio in (row.activations, row.peak))
    return (
        f"| {row.model} | {row.what} | {row.plain:.1f} | {row.more:.3f} | {row.first:.3f} | {kept} "
        f"| {peak_text} | {row.goal:g} {'reached' if row.reached else 'missed'} |"
    )


def main() -> int:
    """Print the table; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each row")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="both sides through torch.compile")
    parser.add_argument("--page", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, rows, text = torch.device(options.device), list[Row](), [HEAD]
    print(HEAD, flush=True)
    for name in options.models:
        torch.manual_seed(0)
        case = CASES[name]()
        for row in rows_of(name, case, options.seconds, device, options.compile):
            rows.append(row)
            text.append(line(row))
            print(text[-1], flush=True)
        placed = Case(case.module, on(case.inputs, device), case.loss)
        text.append(f"| {name} | a step of AdamW | {optimizer_ms(case.module, placed, device):.1f} | | | | | |")
        print(text[-1], flush=True)
    if options.page:
        about = {"torch": torch.__version__, "threads": options.threads, "s": "s"[: options.threads - 1]}
        options.page.write_text(PAGE.format(**about, device=device) + "\n".join([*text, ""]), "utf-8")
    return 0 if all(row.reached for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
