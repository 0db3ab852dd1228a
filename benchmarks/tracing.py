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
import json
import random
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

import tracer
from tracer.answer import probability
from tracer.corrupt import GaussianNoise
from tracer.hidden import hidden_of, with_hidden
from tracer.model import LanguageModel
from tracer.packing import severed_rows, state_rows, window_rows
from tracer.site import window_layers
from tracer.storage import write_json
from tracer.sweep import Sweep

FACTS = {
    "Eiffel Tower": ("The Eiffel Tower is located in the city of", "The Eiffel Tower"),
    "Angela Merkel": ("The mother tongue of Angela Merkel is", "Angela Merkel"),
}
SHAPES = {
    "gpt2-xl": GPT2Config(n_layer=48, n_embd=1600, n_head=25),
    "llama-8b": LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
    ),
}
MAPS = ("state", "mlp", "attn", "state | mlp severed")
WINDOW, SAMPLES = 10, 10


@dataclass(frozen=True)
class Prompt:
    """A prompt as ids [1, token], its subject's tokens and the noise on them."""

    ids: Tensor
    span: tuple[int, int]
    noise: Tensor


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


class Straightforward:
    """One forward of samples + 1 rows for each site, with plain hooks."""

    def __init__(self, model: LanguageModel, prompt: Prompt, samples: int) -> None:
        self.model, self.prompt = model, prompt
        self.rows = prompt.ids.expand(samples + 1, -1)
        self.modules = {
            "state": model.anatomy.blocks,
            "mlp": [model.anatomy.site_module("mlp", layer) for layer in range(model.n_layers)],
            "attn": [model.anatomy.site_module("attn", layer) for layer in range(model.n_layers)],
        }

    def restored(self, name: str, token: int, layer: int, answer: int) -> float:
        """p(answer) with one site of the map `name` restored, the mean over the samples."""
        if "severed" not in name:
            layers = window_layers(layer, WINDOW, self.model.n_layers) if name != "state" else [layer]
            return self._forward({(name, at): "clean" for at in layers}, token, answer)
        kept: dict[tuple[str, int], Tensor] = {}
        every = [("mlp", at) for at in range(self.model.n_layers)]
        self._forward({}, token, answer, keep=(every, kept))
        return self._forward({**{site: kept[site] for site in every}, ("state", layer): "clean"}, token, answer)

    def _forward(
        self,
        held: dict[tuple[str, int], Tensor | str],
        token: int,
        answer: int,
        keep: tuple[list[tuple[str, int]], dict[tuple[str, int], Tensor]] | None = None,
    ) -> float:
        begin, end = self.prompt.span

        def corrupt(_module: object, _args: object, output: Tensor) -> Tensor:
            output = output.clone()
            output[1:, begin:end] += self.prompt.noise.to(output)
            return output

        def hold(value: Tensor | str) -> Callable:
            def hook(_module: object, _args: object, output: Tensor | tuple) -> Tensor | tuple:
                hidden = hidden_of(output).clone()
                hidden[1:, token] = hidden[0, token] if isinstance(value, str) else value
                return with_hidden(output, hidden)

            return hook

        def keep_value(site: tuple[str, int], store: dict) -> Callable:
            def hook(_module: object, _args: object, output: Tensor | tuple) -> None:
                store[site] = hidden_of(output)[1:, token].clone()

            return hook

        with ExitStack() as hooks, torch.inference_mode():
            hooks.callback(self.model.anatomy.embedding.register_forward_hook(corrupt).remove)
            for (kind, layer), value in held.items():
                hooks.callback(self.modules[kind][layer].register_forward_hook(hold(value)).remove)
            for kind, layer in keep[0] if keep else ():
                hook = keep_value((kind, layer), keep[1])
                hooks.callback(self.modules[kind][layer].register_forward_hook(hook).remove)
            logits = self.model.torch(input_ids=self.rows).logits
            return float(probability(logits[1:, -1], answer).mean())


def sweep_map(sweep: Sweep, name: str, answer: int, tokens: list[int]) -> Tensor:
    """The map `name` by the sweep, [token, layer, sample]."""
    if name == "state":
        return sweep.state_map(answer, tokens)
    if "severed" in name:
        return sweep.severed_map("mlp", answer, tokens)
    return sweep.window_map(name, answer, tokens, WINDOW)


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


def counted_operations(model: LanguageModel, prompt: Prompt, name: str | None) -> float:
    """Operations that the sweep does for a map, counted as they run, recording included; None: recording alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the counter sees its own thread alone
    try:
        with FlopCounterMode(display=False) as counter:
            sweep = Sweep(model, prompt.ids, prompt.span, prompt.noise)
            if name is not None:
                sweep_map(sweep, name, int(sweep.clean_logits.argmax()), list(range(prompt.ids.shape[1])))
        return float(counter.get_total_flops())
    finally:
        torch.set_num_threads(threads)


def least_operations(model: LanguageModel, prompt: Prompt, name: str, samples: int) -> float:
    """The fewest: for each row that differs, one product with each weight for each token that can differ.

    Attention scores, norms and the recorded pass are left out; the last block counts its last token alone.
    """
    n_tokens, first, n_layers = prompt.ids.shape[1], prompt.span[0], model.n_layers
    block = sum(p.numel() for p in model.anatomy.blocks[0].parameters() if p.dim() == 2)
    mlp = sum(p.numel() for p in model.anatomy.blocks[0].get_submodule(model.anatomy.names.mlp).parameters())
    groups = range(first, n_tokens)
    pairs = sum(n_tokens - i for i in groups)
    if name == "state":
        rows = state_rows(n_layers)
    elif "severed" in name:
        rows = severed_rows(n_layers, from_below=False)
    else:
        rows = window_rows(WINDOW, n_layers)
    total = 0
    for row in rows:
        clean = 1 if name == "state" else 0  # the first restored token stays clean
        total += max(0, n_layers - 1 - row.start) * (pairs - clean) * block + len(groups) * block
        if name == "mlp" or "severed" in name:
            total -= len([at for at in row.held if at >= row.start]) * len(groups) * mlp
        total += len(groups) * model.anatomy.head.weight.numel()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    return 2.0 * samples * total


def peak_rate(model: LanguageModel, seconds: float = 2.0) -> float:
    """The best rate of a matrix product of the sweep's shapes here, operations per second."""
    best, rows = 0.0, 1024 if model.device.type == "cpu" else 16384
    shapes = {tuple(p.shape): p for p in model.anatomy.blocks[0].parameters() if p.dim() == 2}
    for weight in shapes.values():
        hidden = torch.randn(rows, weight.shape[1], device=weight.device, dtype=weight.dtype)
        end = clock() + seconds / len(shapes)
        while clock() < end:
            begin = clock()
            for _ in range(10):
                torch.nn.functional.linear(hidden, weight)
            best = max(best, 10 * 2.0 * rows * weight.numel() / (clock() - begin))
    return best


def random_model(config: object, device: str = "cpu", dtype: str = "float32") -> LanguageModel:
    """Random weights of a shape, made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return tracer.load(model.eval().requires_grad_(False))


def random_prompt(model: LanguageModel, n_tokens: int, span: tuple[int, int], samples: int) -> Prompt:
    """Random tokens, noise of three times the embeddings' spread."""
    ids = torch.randint(10, 1000, (1, n_tokens), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        sigma = float(model.anatomy.embedding(ids.to(model.device)).float().std())
    noise = GaussianNoise(3, sigma)
    width = model.anatomy.embedding_size
    return Prompt(
        ids.to(model.device), span, noise.draws(samples=samples, n_subject=span[1] - span[0], d_model=width, seed=1)
    )


def fact_prompt(model: LanguageModel, name: str, samples: int = SAMPLES) -> Prompt:
    """One of FACTS, its noise that of `tracer.trace`."""
    fact = tracer.Fact(*FACTS[name]).preflight(model)
    sigma = tracer.embedding_sigma(model, [subject for _, subject in FACTS.values()])
    begin, end = fact.subject_span
    width = model.anatomy.embedding_size
    noise = GaussianNoise(3, sigma).draws(samples=samples, n_subject=end - begin, d_model=width, seed=1)
    return Prompt(torch.tensor([fact.token_ids], device=model.device), fact.subject_span, noise)


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


def growth(options: argparse.Namespace) -> None:
    """Times a state map against tokens, layers and samples, on random weights; a table and a figure."""
    base = {"tokens": 12, "layers": 12, "samples": 10}
    rows = []
    for axis, values in {"tokens": (6, 12, 24, 48), "layers": (6, 12, 24, 48), "samples": (1, 5, 10, 20)}.items():
        for value in values:
            size = {**base, axis: value}
            slow, fast = growth_point(options, **size)
            rows.append({"axis": axis, **size, "straightforward": slow, "sweep": fast})
            print(json.dumps(rows[-1]), flush=True)
    write_json(Path(options.out) / "growth.json", rows)
    print(growth_table(rows))
    plot_growth(rows, Path(options.out) / "growth.png")


def growth_point(options: argparse.Namespace, *, tokens: int, layers: int, samples: int) -> tuple[float, float]:
    """Seconds of a state map, straightforward (from six sites) and by the sweep (the better of two)."""
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=32000,
        tie_word_embeddings=True,
    )
    model = random_model(config, options.device, options.dtype)
    prompt = random_prompt(model, tokens, (1, 3), samples)
    fast = []
    for _ in range(2):
        begin = clock()
        Sweep(model, prompt.ids, prompt.span, prompt.noise).state_map(7, list(range(tokens)))
        fast.append(clock() - begin)
    procedure, sites = Straightforward(model, prompt, samples), 6
    begin = clock()
    for at in range(sites):
        procedure.restored("state", tokens - 2, at % layers, 7)
    return (clock() - begin) / sites * tokens * layers, min(fast)


def growth_table(rows: list[dict]) -> str:
    """Markdown."""
    lines = ["| tokens | layers | samples | straightforward | sweep | ratio |", "|---|---|---|---|---|---|"]
    for r in rows:
        lines.append(
            f"| {r['tokens']} | {r['layers']} | {r['samples']} | {r['straightforward']:.1f} s | {r['sweep']:.2f} s "
            f"| {r['straightforward'] / r['sweep']:.1f}x |"
        )
    return "\n".join(lines)


def plot_growth(rows: list[dict], path: Path) -> None:
    """Seconds a map against tokens, layers and samples, both procedures."""
    import matplotlib.pyplot as plt

    from tracer.plot import save_figure

    figure, panels = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
    for axis, panel in zip(("tokens", "layers", "samples"), panels, strict=True):
        own = [row for row in rows if row["axis"] == axis]
        at = [row[axis] for row in own]
        for name, colour in (("straightforward", "#8a8a8a"), ("sweep", "#7b3fa0")):
            seconds = [row[name] for row in own]
            panel.plot(at, seconds, marker="o", color=colour, linewidth=2, label=name)
        for x, row in zip(at, own, strict=True):
            ratio = f"{row['straightforward'] / row['sweep']:.0f}x"
            panel.annotate(
                ratio, (x, row["sweep"]), (0, -13), textcoords="offset points", ha="center", fontsize=8, color="#7b3fa0"
            )
        panel.set(xscale="log", yscale="log", xlabel=axis, xticks=at, xticklabels=at)
        panel.yaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.25)
    panels[0].set_ylabel("seconds a state map")
    panels[0].legend(frameon=False)
    low = min(row["sweep"] for row in rows)
    panels[0].set_ylim(bottom=low / 2)
    save_figure(figure, path)


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


def clock() -> float:
    """Seconds, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


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
