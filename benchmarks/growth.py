"""How the time of a state map grows with tokens, layers and samples, by both procedures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from prompts import clock, random_model, random_prompt
from straightforward import Straightforward
from transformers import LlamaConfig

from tracer.storage import write_json
from tracer.sweep import Sweep


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
