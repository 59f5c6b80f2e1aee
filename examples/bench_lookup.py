"""How long a budget takes in a space of a million members, every one of which is looked at: on one core.

    python examples/bench_lookup.py [--seconds 20]

A LLaMA of eight layers whose feed-forward widths move on their own, four levels each, with as many of width and heads:
1,048,576 sub-networks. Prints seconds, the median of five lookups, by FLOPs, latency and memory.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sortify import sortify

BUDGETS = ("50%", "95% latency", "85% memory")
SIZES = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}


def main() -> None:
    """Profile, look up, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="time to measure the machine for")
    options = parser.parse_args()
    torch.set_num_threads(1)
    module = LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=8)).eval()
    model = sortify(module, {"input_ids": torch.randint(0, 60, (2, 12))})
    model.profile(seconds=options.seconds, batch=1)
    space = model.space.using({"width": 4, "heads": 4, "depth": (1.0,)}, untied=["inner"])
    print(f"{space.count:,} members of {len(space.knobs)} knobs")
    for budget in BUDGETS:
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            found = space.at(budget)
            seconds.append(time.perf_counter() - started)
        print(f"  {budget}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}): {found}")


if __name__ == "__main__":
    main()
