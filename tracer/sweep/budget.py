"""How much of a sweep is computed at once, and what happens when memory runs out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tracer.errors import OutOfMemoryError


@dataclass(frozen=True)
class Budget:
    """How much is computed at once. Results do not depend on it beyond rounding.

    Attributes:
        state_bytes: states of one walk, all threads together; more draws than fit are walked one chunk after the other.
        packed_tokens: tokens in one call of a block: enough for a good matrix product, few enough for the cache.
        bundle_pairs: pairs packed into one sequence: attention is quadratic in them.
    """

    state_bytes: int = 1 << 30
    packed_tokens: int = 1024
    bundle_pairs: int = 512

    @classmethod
    def of(cls, device: torch.device, state_bytes: int | None = None) -> Budget:
        """For this device; a GPU wants large calls."""
        packed = 1024 if device.type == "cpu" else 32768
        return cls(state_bytes or cls.state_bytes, packed)

    def halved(self) -> Budget:
        """Half of everything.

        Raises:
            OutOfMemoryError: nothing is left to halve.
        """
        if self.packed_tokens == 1:
            raise OutOfMemoryError(
                "Memory ran out with one token computed at a time. Write fewer samples, e.g. samples=1, or a smaller "
                'max_bytes, e.g. max_bytes=1 << 24; or load the model with dtype="bfloat16".'
            )
        return Budget(self.state_bytes // 2, max(1, self.packed_tokens // 2), max(1, self.bundle_pairs // 2))
