"""Self-speculative decoding: a small member of a sorted LLaMA drafts, the full one verifies; one set of weights.

    python -m examples.speculative [--weights DIR] [--folder out/speculative] [--page docs/speculative.md]

DIR holds stories260K.bin and tok512.bin of llama2.c. The model tells stories; it is sorted and trained on these for a
few minutes, smaller members distilled from the full one. Without DIR a model of the same sizes is made from its config
and trained on the bytes of this project's pages: to see it work, not to judge it. Members are then models of their own
class (`to_native`) that share the full one's weights (`share_weights`), and draft in transformers' assisted generation:
`full.generate(..., assistant_model=draft)`. Its greedy tokens have to be the full model's own.

What was sampled and trained stays in the folder, rows that are in the output file are not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from examples import llama2c
from sortify import (
    Native,
    SortedModel,
    Subnet,
    TrainConfig,
    Trainer,
    load,
    load_data,
    share_weights,
    sortify,
    to_native,
)
from sortify.files import replacing

LEVELS = {"depth": (0.2, 0.4, 0.6, 0.8, 1.0), "width": (0.75, 1.0)}
"""What is trained."""
MEMBERS: dict[str, dict[str, float]] = {
    **{f"depth {depth:g}": {"depth": depth} for depth in LEVELS["depth"][:-1]},
    **{f"width {width:g}": {"width": width} for width in LEVELS["width"][:-1]},
    "width 0.75, depth 0.4": {"width": 0.75, "depth": 0.4},
}
"""What drafts."""
FULL = "full"
DRAFTED = (2, 5)
"""Tokens that are drafted for each call of the full model."""
PROMPTS = (
    "Once upon a time, there was a little girl named Lily.",
    "One day, a boy named Tim went to the park",
    "The big red ball",
    "There was a dog who",
    "Mom said, ",
    "Ben and Sam like to",
    "In the forest there lived a",
    "It was raining, so",
    "The cat was sad because",
    "Sue had a new toy.",
    "A bird sat in a tree",
    "They were very happy",
)
PAGES_FOLDER = Path(__file__).parent.parent / "docs"
LENGTH = 256
"""Tokens of a sample."""
TESTED = 64
"""Samples that no training sees."""
console = Console(width=120)
Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What is written, how often that is timed, and samples `[N, LENGTH]` that no training sees."""

    prompts: list[list[int]]
    tokens: int
    rounds: int
    tested: Tensor


@dataclass(frozen=True)
class Subject:
    """A language model, what to train it on, and its tokens of a text and back."""

    module: Any
    samples: Callable[[int], Tensor]
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]


def stories(folder: Path) -> Subject:
    """The model of llama2.c, and the stories that it tells."""
    module = llama2c.read_model(folder / "stories260K.bin")
    words = llama2c.Tokenizer(folder / "tok512.bin", module.config.vocab_size)
    return Subject(module, lambda count: sampled(module, count), words.encode, words.decode)


def sampled(module: Any, count: int) -> Tensor:
    """What a model says by itself, `[count, LENGTH]`: one story after the other, drawn from its own distribution."""
    torch.manual_seed(0)
    stop, module.generation_config.eos_token_id = module.generation_config.eos_token_id, None
    rows = []
    for begin in torch.full((count, 1), llama2c.BEGIN).split(256):
        settings = {"do_sample": True, "top_k": 0, "max_new_tokens": LENGTH - 1, "pad_token_id": 0}
        rows.append(module.generate(begin, attention_mask=torch.ones_like(begin), **settings))
        console.print(f"told {sum(map(len, rows))} of {count} samples")
    module.generation_config.eos_token_id = stop
    return torch.cat(rows)


def pages() -> Subject:
    """A model of the same sizes with random weights, and the bytes of this project's pages."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=256,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    text = b"".join(path.read_bytes() for path in sorted(PAGES_FOLDER.glob("*.md")))
    rows = torch.frombuffer(bytearray(text), dtype=torch.uint8)[: len(text) // LENGTH * LENGTH].view(-1, LENGTH)
    mixed = rows[torch.randperm(len(rows))].long()
    return Subject(
        transformers.LlamaForCausalLM(config).eval(),
        lambda count: mixed[:count],
        lambda text: list(text.encode()),
        lambda tokens: bytes(tokens).decode(errors="replace"),
    )


# -- training


def families(subject: Subject, options: argparse.Namespace) -> tuple[SortedModel, SortedModel]:
    """The sorted model before and after its training; what is in the folder is taken from there, or goes on."""
    tokens, ordered, place = (options.folder / name for name in ("tokens.npz", "ordered", "sorted"))
    if not tokens.exists():
        samples = subject.samples(options.samples + TESTED).numpy()
        with replacing(tokens) as draft, draft.open("wb") as file:
            np.savez(file, x_train=samples[TESTED:], x_test=samples[:TESTED])
    data = load_data(str(tokens), batch_size=options.batch_size)
    if not ordered.exists():
        model = sortify(subject.module, {"input_ids": torch.randint(10, 100, (2, 16))})
        model.order("activation", data.train)
        model.save(ordered)
    if not (place / "sortify.json").exists():
        Trainer(load(ordered), data, training(options), directory=place).run(resume=(place / "training").exists())
    return load(ordered).eval(), load(place).eval()


def training(options: argparse.Namespace) -> TrainConfig:
    """Every step the full member learns from the samples, and the smallest and one at random from the full one."""
    return TrainConfig(
        dims=tuple(LEVELS),
        levels=LEVELS,
        sampler="sandwich",
        accumulate=3,
        objective="distill",
        teacher=1.0,
        steps=options.steps,
        lr=options.lr,
        save_minutes=1.0,
        log="none",
        device="cpu",
    )


# -- drafting


def drafting(full: Any, draft: Any, drafted: int) -> dict[str, int]:
    """Let a draft share the full member's weights and always propose some tokens; the bytes that both hold.

    A schedule or a threshold of confidence would let it propose more or fewer.
    """
    alone, apart = held(full), held(full, draft)
    share_weights(draft, full)
    draft.generation_config.num_assistant_tokens = drafted
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    return {"alone": alone, "apart": apart, "shared": held(full, draft)}


def held(*modules: nn.Module) -> int:
    """Bytes of the weights of modules, each place in memory once."""
    storages = [parameter.untyped_storage() for module in modules for parameter in module.parameters()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def greedy(module: Any, prompt: list[int], tokens: int, **more: Any) -> list[int]:
    """The tokens that follow a prompt, the likeliest at each place."""
    given = torch.tensor([prompt])
    settings = {"do_sample": False, "max_new_tokens": tokens, "pad_token_id": 0}
    found = module.generate(given, attention_mask=torch.ones_like(given), **settings, **more)
    return found[0, len(prompt) :].tolist()


@contextmanager
def calls(module: nn.Module) -> Iterator[list[None]]:
    """Counts the calls of a module: the length of the list."""
    seen: list[None] = []
    hook = module.register_forward_pre_hook(lambda *_: seen.append(None))
    try:
        yield seen
    finally:
        hook.remove()


def counted(full: Any, draft: Any, bench: Bench) -> Row:
    """Whether texts are the same, and what they took.

    A call of the full model gives one token of its own and those before it that it accepts; a call of the draft
    proposes one. So the tokens less the calls of the full model are those that were accepted; one that ends a text
    counts as its own.
    """
    found = {"prompts": len(bench.prompts), "identical": 0, "tokens": 0, "calls": 0, "proposed": 0}
    for prompt in bench.prompts:
        with calls(full) as verified, calls(draft) as proposed:
            text = greedy(full, prompt, bench.tokens, assistant_model=draft)
        found["identical"] += text == greedy(full, prompt, bench.tokens)
        found["tokens"] += len(text)
        found["calls"] += len(verified)
        found["proposed"] += len(proposed)
    return found | {"acceptance": (found["tokens"] - found["calls"]) / found["proposed"]}


def timed(full: Any, draft: Any, bench: Bench) -> Row:
    """Medians of ratios of neighbours in time: speed with the draft over plain, a draft's token over a full one's."""
    speed, call = [], []
    for prompt in bench.prompts * bench.rounds:
        plain = seconds_each(full, prompt, bench.tokens)
        speed.append(plain / seconds_each(full, prompt, bench.tokens, assistant_model=draft))
        call.append(seconds_each(draft, prompt, bench.tokens) / plain)
    return {"speed": statistics.median(speed), "call": statistics.median(call)}


def seconds_each(module: Any, prompt: list[int], tokens: int, **more: Any) -> float:
    """The time that a token takes."""
    begin = time.perf_counter()
    found = greedy(module, prompt, tokens, **more)
    return (time.perf_counter() - begin) / len(found)


def loss_of(module: Any, tokens: Tensor) -> float:
    """Nats a token."""
    with torch.no_grad():
        return float(torch.stack([module(input_ids=part, labels=part).loss for part in tokens.split(16)]).mean())


@dataclass(frozen=True)
class Family:
    """A sorted model, and its full member as a model of transformers."""

    model: SortedModel
    full: Any

    def member(self, name: str) -> Native:
        """One that drafts."""
        return to_native(self.model, self.model.space.subnet(**MEMBERS[name]))


def row_of(before: Family, after: Family, member: str, drafted: int, bench: Bench) -> Row:
    """One member that drafts some tokens at a time; what it was before the training, too."""
    small, untrained = after.member(member), before.member(member).module
    found: Row = {"member": member, "drafted": drafted, "changes": dict(small.changes)}
    found["bytes"] = drafting(after.full, small.module, drafted)
    found |= counted(after.full, small.module, bench) | timed(after.full, small.module, bench)
    found["flops"] = share = flops(after.model, small.subnet) / flops(after.model, after.model.space.full)
    found["ideal"] = found["tokens"] / (found["calls"] + share * found["proposed"])
    found["loss"] = loss_of(small.module, bench.tested)
    drafting(before.full, untrained, drafted)
    return found | {"before": counted(before.full, untrained, bench) | {"loss": loss_of(untrained, bench.tested)}}


def whole(before: Family, after: Family, bench: Bench) -> Row:
    """The full member: its loss before and after, as the training is not to harm it."""
    losses = [loss_of(family.full, bench.tested) for family in (before, after)]
    return {"member": FULL, "drafted": 0, "before": {"loss": losses[0]}, "loss": losses[1]}


def tested(folder: Path) -> Tensor:
    """Samples that no training sees."""
    with np.load(folder / "tokens.npz") as stored:
        return torch.from_numpy(stored["x_test"])


def flops(model: SortedModel, subnet: Subnet) -> int:
    """Of one token."""
    return model.cost(subnet, batch=1, sequence=1).flops


# -- the page

HEADS = ("draft", "FLOPs", "loss", "drafted", "same text", "calls", "accepted", "untrained", "cost", "ideal", "speed")
PAGE = """# Drafting for the full model

A language model can write faster where a smaller one drafts: the small one proposes some tokens, the full one looks at
all of them in a single call, keeps those that it would have written itself, and adds one of its own. The text is the
full model's, token by token. A sorted model brings its drafts along: members that were trained with it, whose weights
are the beginning of its own.

```python
from sortify import load, share_weights, to_native

model = load("sorted")
full = to_native(model, model.space.full).module
draft = to_native(model, model.space.subnet(depth=0.4)).module
share_weights(draft, full)  # one copy in memory

full.generate(input_ids, do_sample=False, assistant_model=draft)
```

Both are models of transformers, of the original's own class, and the drafting is transformers' assisted generation.
Where the two likeliest tokens are as good as equal, rounding may choose: one call of several tokens does not round as
several calls of one do.

## {title}

{about}
Made by `{command}` (torch {torch}, transformers {transformers}, {threads} thread).
"""
ABOUT = """{data}

Trained for {steps} steps of {batch} samples of {length} tokens: in each the full member learns from the
samples, and the smallest and one at random learn from the full one (`objective="distill"`).
The full member's loss on {tested} other samples is {loss:.3f} nats a token, before the training it was {before:.3f}:
what is verified is the trained one's text, not the original's. {prompts} prompts, up to {tokens} tokens each.

{table}

- *Loss*: of the member alone, on the same samples.
- *Drafted*: tokens that are proposed before each call of the full model; always that many.
- *Same text*: prompts after which all tokens equal those of the full model's greedy decoding.
- *Calls*: of the full model, in percent of the tokens written, counted by hooks; plain decoding has 100.
- *Accepted*: of the proposed tokens. *Untrained*: the same with weights from before the training (units ordered by
  `activation`), of the member and of the full one.
- *Cost*: what a token of the draft takes over one of the full model, measured, each writing alone; *FLOPs* is what it
  would be by numbers.
- *Ideal*: the speed over plain decoding if each call cost the FLOPs of one token and nothing else, as where weights are
  waited for.
- *Speed*: over plain decoding, measured: the median of {pairs} pairs of neighbours in time.

{verdict}

The full member's weights take {alone:,} bytes; together with a draft that has weights of its own it is
{apart} bytes, with one that shares them {shared}.
"""
STORIES = """Stories260K, a LLaMA of 260 thousand weights, read from the files of llama2.c
(github.com/karpathy/llama2.c), and {samples} samples of stories that it told itself (no other data)."""
PAGES = """A LLaMA of five layers with random weights, and the bytes of this project's pages: to see it work, not to
judge it."""


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table."""
    return (
        row["member"],
        f"{row['flops']:.0%}",
        f"{row['loss']:.3f}",
        str(row["drafted"]),
        f"{row['identical']}/{row['prompts']}",
        f"{row['calls'] / row['tokens']:.0%}",
        f"{row['acceptance']:.0%}",
        f"{row['before']['acceptance']:.0%}",
        f"{row['call']:.0%}",
        f"{row['ideal']:.2f}",
        f"{row['speed']:.2f}",
    )


def verdict(rows: list[Row]) -> str:
    """What came of it, and why it is no more."""
    best, fastest = (max(rows, key=lambda row: row[name]) for name in ("ideal", "speed"))
    same, asked = (sum(row[name] for row in rows) for name in ("identical", "prompts"))
    bound = best["tokens"] / (best["calls"] + best["call"] * best["proposed"])
    return wrapped(
        f"{same} of {asked} texts are the same. By its calls and FLOPs {told(best)} would be the fastest, "
        f"{best['ideal']:.2f} times plain decoding; measured it is {best['speed']:.2f} times, and the fastest, "
        f"{told(fastest)}, {fastest['speed']:.2f} times. Between the two stands a model so small that Python takes "
        f"longer than the numbers: with {best['flops']:.0%} of the FLOPs a token of the draft takes {best['call']:.0%} "
        f"of the time, which alone makes it {bound:.2f} times; the rest is what assisted generation does around calls."
    )


def told(row: Row) -> str:
    """A member and how much it drafts."""
    return f"*{row['member']}* ({row['drafted']} drafted)"


def page(rows: list[Row], bench: Bench, options: argparse.Namespace) -> str:
    """The rows as Markdown, with what they mean."""
    (full,) = (row for row in rows if row["member"] == FULL)
    rows = [row for row in rows if row["member"] != FULL]
    lines = [f"| {' | '.join(HEADS)} |", f"|---|{'---:|' * (len(HEADS) - 1)}"]
    sizes = [row["bytes"] for row in rows]
    about = ABOUT.format(
        data=STORIES.format(samples=options.samples) if options.weights else PAGES,
        table="\n".join([*lines, *(f"| {' | '.join(cells(row))} |" for row in rows)]),
        steps=options.steps,
        batch=options.batch_size,
        length=LENGTH,
        tested=TESTED,
        loss=full["loss"],
        before=full["before"]["loss"],
        prompts=len(bench.prompts),
        tokens=bench.tokens,
        pairs=len(bench.prompts) * bench.rounds,
        verdict=verdict(rows),
        alone=sizes[0]["alone"],
        apart=between([size["apart"] for size in sizes]),
        shared=between([size["shared"] for size in sizes]),
    )
    names = ("steps", "samples", "batch_size", "lr", "tokens", "rounds")
    given = " ".join(f"--{name.replace('_', '-')} {getattr(options, name)}" for name in names)
    return PAGE.format(
        title="A model that tells stories" if options.weights else "A model of these pages",
        about=about,
        command=f"python -m examples.speculative {'--weights DIR ' if options.weights else ''}{given} --page PAGE",
        torch=torch.__version__,
        transformers=transformers.__version__,
        threads=torch.get_num_threads(),
    )


def wrapped(text: str) -> str:
    """In lines of 120 characters."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def between(numbers: list[int]) -> str:
    """The least and the largest."""
    ends = sorted({min(numbers), max(numbers)})
    return " to ".join(f"{end:,}" for end in ends)


def show(row: Row) -> None:
    """A line on the terminal."""
    names = ("identical", "acceptance", "flops", "call", "ideal", "speed", "loss")
    console.print(row["member"], row["drafted"], *(f"{name} {row[name]:.3g}" for name in names if name in row))


def asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of stories260K.bin and tok512.bin")
    parser.add_argument("--folder", type=Path, help="of samples and sorted models; out/speculative/... without it")
    parser.add_argument("--out", type=Path, help="rows as JSON lines; in the folder without it")
    parser.add_argument("--page", type=Path, help="write the outcome to this file")
    parser.add_argument("--samples", type=int, default=4096, help="to train on")
    parser.add_argument("--steps", type=int, default=900, help="of the training")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--tokens", type=int, default=96, help="to write after each prompt, at most")
    parser.add_argument("--rounds", type=int, default=1, help="how often each prompt is timed")
    options = parser.parse_args(arguments)
    options.folder = options.folder or Path("out/speculative", "stories" if options.weights else "pages")
    options.out = options.out or options.folder / "rows.jsonl"
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or take what was trained; measure, print, and write the page."""
    options = asked(arguments)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()  # it warns of a way in which it calls itself
    subject = stories(options.weights) if options.weights else pages()
    before, after = (Family(model, to_native(model, model.space.full).module) for model in families(subject, options))
    prompts = [subject.encode(text) for text in PROMPTS]
    bench = Bench(prompts, options.tokens, options.rounds, tested(options.folder))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    known: dict[tuple[str, int], Row] = {(row["member"], row["drafted"]): row for row in map(json.loads, lines)}
    wanted = [(FULL, 0), *((member, drafted) for member in MEMBERS for drafted in DRAFTED)]
    for member, drafted in wanted:
        if (member, drafted) not in known:
            new = whole(before, after, bench) if member == FULL else row_of(before, after, member, drafted, bench)
            known[member, drafted] = new
            with options.out.open("a") as file:
                file.write(json.dumps(new) + "\n")
        show(known[member, drafted])
    table = Table(*HEADS)
    for member in wanted[1:]:
        table.add_row(*cells(known[member]))
    console.print(table)
    text = subject.decode(greedy(after.full, prompts[0], options.tokens))
    console.print(f"{PROMPTS[0]} ... {text}", markup=False)
    if options.page:
        options.page.write_text(page([known[member] for member in wanted], bench, options), "utf-8")


if __name__ == "__main__":
    main()
