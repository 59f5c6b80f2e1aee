"""What loading a sorted checkpoint costs beside `from_pretrained` of the original: time, memory and size.

    python examples/bench_load.py [--rounds 7] [--page FILE] [--layers 12] [--width 768]

A BERT of some 110 million parameters with random weights is saved by `save_pretrained` and by `SortedModel.save`. Each
is loaded in a fresh process, taking turns; the median over the rounds counts. `load` is the call alone, with everything
imported before; `process` all from the start of Python to the loaded model, imports included. `first call` adds one
call of the model, which reads every weight, as both libraries map files and read what is used. Memory is the most that
the process has held at once (resident set), and what it held before the weights were touched is told beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

GOAL, SIZE_GOAL = 1.2, 1.01
KINDS = ("from_pretrained", "sortify.load", "sortify.load, verify=True")
LOADERS = {
    KINDS[0]: "from transformers import BertModel as library; read = library.from_pretrained",
    KINDS[1]: "import sortify as library; read = library.load",
    KINDS[2]: "import sortify as library; read = lambda path: library.load(path, verify=True)",
}
CHILD = """
import time; start = time.perf_counter()
import json, resource, sys
import torch
torch.set_num_threads(1)
{loader}
import transformers.modeling_outputs
def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
imported = time.perf_counter()
model = read(sys.argv[1])
loaded, held = time.perf_counter(), most()
with torch.no_grad():
    model.eval()(input_ids=torch.arange(32)[None])
    touched = sum(float(tensor.sum()) for tensor in model.state_dict().values())
called = time.perf_counter()
load, process, call = loaded - imported, loaded - start, called - imported
print(json.dumps(dict(load=load, process=process, call=call, memory=most(), held=held)))
"""
ROWS = {
    "load": "the call alone",
    "call": "the call, then one call of the model that reads every weight",
    "process": "from the start of Python, imports included",
    "memory": "most memory held, every weight read",
    "held": "most memory held when the call returns",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--page", type=Path, help="write the table to this page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        original, ours = Path(folder, "original"), Path(folder, "sorted")
        parameters = make(original, ours, options.layers, options.width)
        times: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for number in range(options.rounds + 1):
            for kind in KINDS:
                row = measure(kind, original if kind == KINDS[0] else ours)
                if number:  # the first round fills the system's cache of files
                    times[kind].append(row)
        sizes = [sum(file.stat().st_size for file in place.iterdir()) for place in (original, ours)]
        graph = (ours / "graph.json").stat().st_size + (ours / "sortify.json").stat().st_size
    medians = {
        kind: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for kind, rows in times.items()
    }
    text = table(medians, sizes, graph, parameters, options.rounds)
    print(text)
    if options.page:
        options.page.write_text(page(text))
    found = [medians[KINDS[1]][key] / medians[KINDS[0]][key] for key in ("load", "call", "process", "memory")]
    return int(max(found) > GOAL or sizes[1] > SIZE_GOAL * sizes[0])


def make(original: Path, ours: Path, layers: int, width: int) -> int:
    """Save a model both ways, in a process of its own; the number of its parameters."""
    code = f"""
import sys, torch, transformers
from sortify import sortify
config = transformers.BertConfig(num_hidden_layers={layers}, hidden_size={width}, intermediate_size={4 * width})
model = transformers.BertModel(config).eval()
model.save_pretrained(sys.argv[1])
sortify(model, {{"input_ids": torch.arange(32)[None].repeat(2, 1)}}, training=False).save(sys.argv[2])
print(sum(p.numel() for p in model.parameters()))
"""
    return int(run(code, original, ours).splitlines()[-1])


def measure(kind: str, folder: Path) -> dict[str, float]:
    """Load in a fresh process: seconds and bytes."""
    time.sleep(0.2)
    found: dict[str, float] = json.loads(run(CHILD.format(loader=LOADERS[kind]), folder).splitlines()[-1])
    return found


def run(code: str, *arguments: Path) -> str:
    words = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def table(
    medians: Mapping[str, Mapping[str, float]], sizes: list[int], graph: int, parameters: int, rounds: int
) -> str:
    """The medians side by side, as Markdown."""
    lines = [
        f"A BERT of {parameters / 1e6:.0f} million parameters; medians of {rounds} rounds, one thread.",
        "",
        f"| | {' | '.join(KINDS)} | ratio of the second to the first |",
        "|---|---|---|---|---|",
    ]
    for key, words in ROWS.items():
        found = [medians[kind][key] for kind in KINDS]
        told = [f"{x / 1e6:.0f} MB" if key in ("memory", "held") else f"{x:.2f} s" for x in found]
        lines.append(f"| {words} | {' | '.join(told)} | {found[1] / found[0]:.2f} |")
    lines += [
        "",
        f"On disk: {sizes[0]:,} bytes by `save_pretrained`, {sizes[1]:,} by `save`, "
        f"a ratio of {sizes[1] / sizes[0]:.4f}; of these {graph:,} are the graph and the plan.",
    ]
    return "\n".join(lines)


def page(text: str) -> str:
    return f"""# What loading costs

Made by `make bench-load`. Each figure is of a fresh process; the files are in the system's cache. How it is measured:
`examples/bench_load.py`. What is checked when a folder is read: [saved models](format.md).

{text}
"""


if __name__ == "__main__":
    sys.exit(main())
