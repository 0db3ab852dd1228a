"""How much faster is the sweep than the straightforward procedure, and what does a trace cost?

The straightforward procedure is that of the published tracer: for each site one forward of samples + 1 rows
(the first one clean), hooks that copy the clean value into the others, the softmax at the last position; a
severed site takes two such forwards. It is timed on some sites of each map, mixed with the sweep's runs, and
scaled by the number of sites.

python benchmarks/tracing.py ratios --model smollm2
python benchmarks/tracing.py growth --out runs/tracing
python benchmarks/tracing.py ratios --shape gpt2-xl --device cuda --dtype bfloat16
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from growth import growth
from operations import counted_operations, least_operations, peak_rate
from prompts import FACTS, SAMPLES, SHAPES, Prompt, clock, fact_prompt, random_model, random_prompt
from straightforward import MAPS, Straightforward, sweep_map

import tracer
from tracer.model import LanguageModel
from tracer.storage import write_json
from tracer.sweep import Sweep


@dataclass
class Timing:
    """Seconds of one map, by both procedures, and the sweep's operations.

    Attributes:
        operations: floating-point operations of the sweep's matrix products.
        least: of the fewest that the exact savings leave.
        difference: largest difference of a restored probability on the sites timed.
    """

    map: str
    straightforward: float
    sweep: float
    operations: float
    least: float
    difference: float

    @property
    def ratio(self) -> float:
        """How many times faster."""
        return self.straightforward / self.sweep


def compare(
    model: LanguageModel, prompt: Prompt, *, samples: int = SAMPLES, sites: int = 24, repeats: int = 3
) -> list[Timing]:
    """Times every map both ways, `repeats` times, the two mixed; medians. Recording the run is in the sweep's time."""
    slow, draw = Straightforward(model, prompt, samples), random.Random(0)
    timings = []
    for name in MAPS:
        rounds = [_round(model, prompt, slow, name, draw, -(-sites // repeats)) for _ in range(repeats)]
        slow_times, fast_times, differences = zip(*rounds, strict=True)
        counted, least = counted_operations(model, prompt, name), least_operations(model, prompt, name, samples)
        median = statistics.median
        timings.append(Timing(name, median(slow_times), median(fast_times), counted, least, max(differences)))
    return timings


def _round(
    model: LanguageModel, prompt: Prompt, slow: Straightforward, name: str, draw: random.Random, sites: int
) -> tuple[float, float, float]:
    """Seconds of a whole map by the straightforward procedure (from some sites) and the sweep; their difference."""
    n_tokens, n_layers = prompt.ids.shape[1], model.n_layers
    begin = clock()
    sweep = Sweep(model, prompt.ids, prompt.span, prompt.noise)
    answer = int(sweep.clean_logits.argmax())
    found = sweep_map(sweep, name, answer, list(range(n_tokens)))
    fast = clock() - begin
    chosen = [(draw.randrange(n_tokens), draw.randrange(n_layers)) for _ in range(sites)]
    begin = clock()
    values = [slow.restored(name, *site, answer) for site in chosen]
    seconds = (clock() - begin) / sites * n_tokens * n_layers
    pairs = zip(chosen, values, strict=True)
    return seconds, fast, max(abs(value - float(found[token, layer].mean())) for (token, layer), value in pairs)


def ratios(options: argparse.Namespace) -> None:
    """Prints the table of ratios for two facts, or for two random prompts of a shape."""
    if options.shape:
        model = random_model(SHAPES[options.shape], options.device, options.dtype)
        prompts = {
            "10 tokens, subject 0-3": random_prompt(model, 10, (0, 4), SAMPLES),
            "8 tokens, subject 4-5": random_prompt(model, 8, (4, 6), SAMPLES),
        }
    else:
        model = tracer.load(options.model, device=options.device, dtype=options.dtype)
        prompts = {name: fact_prompt(model, name) for name in FACTS}
    peak = peak_rate(model)
    print(
        f"{options.shape or options.model}, {options.device}, {options.dtype}: peak {peak / 1e9:.0f} GFLOP/s",
        flush=True,
    )
    print("| prompt | map | straightforward | sweep | ratio | operations / least | of peak | largest difference |")
    print("|---|---|---|---|---|---|---|---|")
    record = {}
    for name, prompt in prompts.items():
        record[name] = compare(model, prompt, sites=options.sites)
        for t in record[name]:
            print(
                f"| {name} | {t.map} | {t.straightforward:.1f} s | {t.sweep:.2f} s | {t.ratio:.1f}x "
                f"| {t.operations / t.least:.2f} | {t.operations / t.sweep / peak:.0%} | {t.difference:.0e} |",
                flush=True,
            )
    file = f"ratios-{options.shape or options.model}-{options.device}-{options.dtype}.json"
    write_json(Path(options.out) / file, {name: [asdict(t) for t in found] for name, found in record.items()})


def memory(options: argparse.Namespace) -> None:
    """Prints time and the process's peak memory for one budget; run it once a budget, memory only grows."""
    model = tracer.load(options.model, device=options.device, dtype=options.dtype)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    fact = tracer.Fact(*FACTS["Eiffel Tower"])
    begin = clock()
    tracer.trace(model, fact, kinds=("state",), max_bytes=options.max_bytes, progress=False)
    seconds = clock() - begin
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"max_bytes {options.max_bytes}: {seconds:.1f} s, peak memory {before:.0f} -> {after:.0f} MiB")


def profile(options: argparse.Namespace) -> None:
    """Prints where the time of one map goes, by operation, on one thread."""
    model = tracer.load(options.model, device=options.device, dtype=options.dtype)
    prompt = fact_prompt(model, "Eiffel Tower")
    torch.set_num_threads(1)
    sweep = Sweep(model, prompt.ids, prompt.span, prompt.noise)
    with torch.profiler.profile() as profiler:
        sweep_map(sweep, options.map, int(sweep.clean_logits.argmax()), list(range(prompt.ids.shape[1])))
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=14))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ratios", "growth", "memory", "profile"))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this shape in place of a model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--sites", type=int, default=24, help="sites of each map that the slow procedure is timed on")
    parser.add_argument("--map", choices=MAPS, default="state")
    parser.add_argument("--max-bytes", type=int)
    parser.add_argument("--out", default="runs/tracing")
    options = parser.parse_args()
    {"ratios": ratios, "growth": growth, "memory": memory, "profile": profile}[options.what](options)


if __name__ == "__main__":
    main()
