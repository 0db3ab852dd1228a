"""Which prompts to run together: those about as long, so that little is padding, yet not each by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def call_tokens(device: torch.device) -> float:
    """Tokens of a prompt that cost as much as running a batch at all: weights are read, modules called.

    On a CPU 43 and 48 were measured (SmolLM2, one thread, two days); elsewhere calls are all that counts.
    """
    return 48.0 if device.type == "cpu" else math.inf


def least_padding(
    lengths: Sequence[int], *, most: float, overhead: float, read: int = 0, most_seen: float = math.inf
) -> list[list[int]]:
    """Numbers of the lengths in batches for which the sum of n * longest + overhead is least.

    Args:
        lengths: in tokens.
        most: n * longest of a batch is at most this, unless it is one alone.
        overhead: what a batch costs by itself, in tokens; infinite: as few batches as `most` allows.
        read: tokens before each prompt, which are seen and not run.
        most_seen: n * (read + longest) of a batch is at most this too, unless it is one alone.

    Some best batches are runs of the sorted lengths: swapping two members so never makes a longest longer.
    """
    overhead = min(overhead, 1.0 + sum(lengths) * len(lengths))  # more than all padding can save
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    best, begins = [0.0], [0]
    for end in range(1, len(order) + 1):
        longest, least, begin = lengths[order[end - 1]], math.inf, end - 1
        for start in range(end - 1, -1, -1):
            rows, size = end - start, (end - start) * longest
            if rows > 1 and (size > most or size + rows * read > most_seen):
                break
            if best[start] + size + overhead < least:
                least, begin = best[start] + size + overhead, start
        best.append(least)
        begins.append(begin)
    batches, end = [], len(order)
    while end:
        batches.append(order[begins[end] : end])
        end = begins[end]
    return batches[::-1]
