"""How many operations the sweep does, the fewest there can be, and how fast they can go."""

from __future__ import annotations

import torch
from prompts import Prompt, clock
from straightforward import WINDOW, sweep_map
from torch.utils.flop_counter import FlopCounterMode

from tracer.model import LanguageModel
from tracer.sweep import Sweep
from tracer.sweep.packing import severed_rows, state_rows, window_rows


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
