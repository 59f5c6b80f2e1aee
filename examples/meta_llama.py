"""Convert language models that do not fit in memory: on the meta device, without weights.

    python examples/meta_llama.py [--size 8B|70B]

Prints what was found (axes, depth, exact cost of the full, half and smallest sub-network), the seconds of each stage,
and the peak memory. Nothing is run, so nothing is proven; the model says so.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import Counter

import torch
import transformers

from sortify import sortify

SIZES = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}
COMMON = {"num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192}


def main() -> None:
    """Convert one size and print."""
    parser = argparse.ArgumentParser(description="Convert a LLaMA-3 configuration on the meta device.")
    parser.add_argument("--size", choices=list(SIZES), default="8B")
    size = parser.parse_args().size
    with torch.device("meta"):
        module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES[size], **COMMON)).eval()
        inputs = {"input_ids": torch.zeros(2, 16, dtype=torch.long)}
    start = time.perf_counter()
    model = sortify(module, inputs)
    total = time.perf_counter() - start
    print(f"LLaMA-3 {size}: {sum(p.numel() for p in module.parameters()):,} parameters on the meta device")
    print("axes:", dict(Counter(axis.kind for axis in model.axes.values())))
    print("depth:", {chain.name: len(chain.blocks) for chain in model.chains.values()})
    space = model.space
    for name, subnet in {
        "full": space.full,
        "half": space.subnet(**dict.fromkeys(space.groups, 0.5)),
        "smallest": space.smallest,
    }.items():
        cost = model.cost(subnet)
        print(f"{name}: {cost.params:,} parameters, {cost.flops:,} FLOPs of one call of 2 x 16 tokens")
    assert model.report is not None
    print("proof:", model.report.rows[0].note)
    stages = {name: round(seconds, 1) for name, seconds in model.report.seconds.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"seconds: {stages}, {total:.1f} in all; peak memory {peak:.1f} GiB; torch {torch.__version__}")


if __name__ == "__main__":
    main()
