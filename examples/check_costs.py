"""Costs of random sub-networks of library models, predicted and counted: python examples/check_costs.py --out FILE.

For each sub-network, every axis and chain at a size of its own, the parameters and FLOPs that the plan predicts are
compared with the extracted model: its own parameters, and `FlopCounterMode` while it runs, also with
another batch size and other sequence lengths. One JSON line per model; those that stand in the file are not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
import transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sortify import SortedModel, Subnet, sortify

Inputs = tuple[Any, ...] | Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A model and its example inputs."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]


def picture(size: int) -> Callable[[], Inputs]:
    """Two square pictures."""
    return lambda: (torch.rand(2, 3, size, size),)


def tokens(*names: str) -> Callable[[], Inputs]:
    """Two sequences of 12 tokens for each input."""
    return lambda: {name: torch.randint(0, 90, (2, 12)) for name in names}


SMALL = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
VIT: dict[str, Any] = {"image_size": 32, "patch_size": 8, "num_layers": 4, "num_heads": 4}
CASES = {
    "torchvision/resnet18": Case(lambda: torchvision.models.resnet18(), picture(64)),
    "torchvision/mobilenet_v2": Case(lambda: torchvision.models.mobilenet_v2(), picture(64)),
    "torchvision/shufflenet_v2_x0_5": Case(lambda: torchvision.models.shufflenet_v2_x0_5(), picture(64)),
    "torchvision/VisionTransformer": Case(
        lambda: torchvision.models.VisionTransformer(**VIT, hidden_dim=32, mlp_dim=64), picture(32)
    ),
    "timm/levit_128s": Case(lambda: timm.create_model("levit_128s"), picture(224)),
    "timm/convnext_atto": Case(lambda: timm.create_model("convnext_atto"), picture(64)),
    "timm/vit_tiny_patch16_224": Case(lambda: timm.create_model("vit_tiny_patch16_224", img_size=64), picture(64)),
    "timm/mixer_s32_224": Case(lambda: timm.create_model("mixer_s32_224", img_size=64), picture(64)),
    "transformers/bert": Case(
        lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL)),
        tokens("input_ids", "attention_mask"),
    ),
    "transformers/gpt2": Case(
        lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=99, n_embd=32, n_layer=4, n_head=4, use_cache=False)
        ),
        tokens("input_ids"),
    ),
    "transformers/llama": Case(
        lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**SMALL, num_key_value_heads=2, use_cache=False)
        ),
        tokens("input_ids"),
    ),
    "transformers/t5": Case(
        lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4, use_cache=False
            )
        ),
        tokens("input_ids", "decoder_input_ids"),
    ),
}


def random_subnet(model: SortedModel, chance: torch.Generator) -> Subnet:
    """Every axis and chain at a fraction of its own."""
    names = [*model.axes, *model.chains]
    parts = torch.randint(1, 17, (len(names),), generator=chance).tolist()
    return model.space.subnet(**{name: part / 16 for name, part in zip(names, parts, strict=True)})


def variants(model: SortedModel) -> list[tuple[dict[str, int], Any]]:
    """Calls at other sizes: as in the example, with twice the batch, with sequences that are a third shorter."""
    opens, (args, kwargs) = model.open_sizes, model.examples
    found: list[tuple[dict[str, int], Any]] = [({}, (args, kwargs))]
    map_only = torch.utils._pytree.tree_map_only
    if "batch" in opens:
        twice = map_only(torch.Tensor, lambda t: torch.cat([t, t]), (args, kwargs))
        found.append(({"batch": 2 * opens["batch"]}, twice))
    shorter = {name: 2 * size // 3 for name, size in opens.items() if name.startswith("sequence")}
    if shorter:
        cut = map_only(torch.Tensor, lambda t: t[:, : 2 * t.shape[1] // 3], (args, kwargs))
        found.append((shorter, cut))
    return found


def differences(model: SortedModel, count: int, seed: int = 0) -> list[str]:
    """Where prediction and count differ, one line each."""
    chance = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        subnet = random_subnet(model, chance)
        small = model.extract(subnet=subnet).eval()
        for sizes, (args, kwargs) in variants(model):
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                small(*args, **kwargs)
            predicted = model.cost(subnet, **sizes)
            counted = sum(p.numel() for p in small.parameters()), counter.get_total_flops()
            if (predicted.params, predicted.flops) != counted:
                found.append(f"{number} at {sizes}: predicted {predicted}, counted {counted}")
    return found


def main() -> int:
    """Check all models; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/check_costs.jsonl"))
    parser.add_argument("--subnets", type=int, default=50)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = {row["model"]: row for row in map(json.loads, lines)}
    for name, case in CASES.items():
        if name not in done:
            started = time.monotonic()
            torch.manual_seed(0)
            model = sortify(case.build().eval(), case.inputs(), source=name)
            wrong = differences(model, options.subnets)
            done[name] = {
                "model": name,
                "subnets": options.subnets,
                "axes": len(model.axes),
                "blocks": sum(len(chain.blocks) for chain in model.chains.values()),
                "open": model.open_sizes,
                "differences": len(wrong),
                "first": wrong[:3],
                "seconds": round(time.monotonic() - started),
            }
            with options.out.open("a") as file:
                file.write(json.dumps(done[name]) + "\n")
        print(json.dumps(done[name]), flush=True)
    wrong_ones = sum(row["differences"] for row in done.values())
    print(f"{len(done)} models, {sum(row['subnets'] for row in done.values())} sub-networks, {wrong_ones} differences")
    return int(wrong_ones > 0)


if __name__ == "__main__":
    sys.exit(main())
