"""Average causal trace over bundled facts; resumable, figures and a table of peaks.

python benchmarks/average.py --model gemma-3-270m --n 60 --out runs/average
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import tracer
from tracer.facts import bundled


def main() -> None:
    """Traces, saves the average and prints its peaks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--n", type=int, default=60)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--window", type=int, default=10)
    parser.add_argument("--out", default="runs/average")
    options = parser.parse_args()
    model = tracer.load(options.model)
    facts = random.Random(0).sample(bundled(), len(bundled()))
    folder = Path(options.out) / f"{options.model}-window{options.window}"
    settings = {"samples": options.samples, "window": options.window, "most": options.n}
    average = tracer.average(model, facts, severed=("mlp", "attn"), folder=folder / "facts", progress=True, **settings)
    average.save(folder / "average.safetensors")
    print(f"{options.model}: n={average.n}, left out {len(average.skipped)}, ATE {average.total_effect}")
    for kind in average.effects:
        for role in (None, "last subject token"):
            found, layer, estimate = average.peak(kind, role)
            print(f"| {kind} | {found} | {layer} | {estimate} |")
    print(tracer.locate(average))


if __name__ == "__main__":
    main()
