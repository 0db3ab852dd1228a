"""A machine that runs what nnsight sends it and has no `tracer`, as NDIF; started by test_remote.py.

    python far_machine.py FOLDER
Each request is its length in 8 bytes and nnsight's payload; each answer likewise, with the saved values.
"""

from __future__ import annotations

import io
import sys
from typing import Any

import torch
from nnsight import CONFIG, TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.tracing import tracer as tracing

sys.modules["tracer"] = None  # pyright: ignore[reportArgumentType] - importing it fails from here on


def answer(model: TransformersModel, payload: bytes) -> bytes:
    """Runs the block on the model; everything it saved, by name."""
    sent: Any = RequestModel.deserialize(payload, model._remoteable_persistent_objects(), CONFIG.API.COMPRESS)
    before = set(sent.info.frame.f_locals)
    tracing.inc()  # as entering a trace does
    try:
        sent.execute(sent.info.code)
    finally:
        tracing.dec()
    saved = {name: value for name, value in sent.info.frame.f_locals.items() if name not in before}
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    return buffer.getvalue()


def main(folder: str) -> None:
    model = TransformersModel(folder, task="text-generation", dispatch=True, dtype=torch.float32)
    model._module.eval()
    while header := sys.stdin.buffer.read(8):
        found = answer(model, sys.stdin.buffer.read(int.from_bytes(header, "big")))
        sys.stdout.buffer.write(len(found).to_bytes(8, "big") + found)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1])
