"""What weights a model has, in 64 hexadecimal digits: equal weights, equal fingerprint, on any device."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tracer.model.sharded import slice_here, whole

if TYPE_CHECKING:
    from tracer.model.language_model import LanguageModel

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
AT_ONCE = 1 << 18  # entries in one sum


class Fingerprints:
    """Fingerprints of one model; only weights that changed since the last one are read again."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._digests: dict[str, tuple[tuple, str]] = {}

    def now(self) -> str:
        """sha256 over every weight and its name, and over what edits have attached beside them.

        A model on another machine shows no weights: its name stands for them.
        """
        if self.model.remote:
            return hashlib.sha256(f"remote {self.model.name}".encode()).hexdigest()
        found = hashlib.sha256()
        for name, parameter in sorted(self._weights().items()):
            found.update(f"{name}:{self._digest(name, parameter)}".encode())
        for edit in self.model.edits:
            found.update(edit.digest().encode())
        return found.hexdigest()

    def _weights(self) -> dict[str, Tensor]:
        if self.model.is_offloaded:
            from accelerate.utils.modeling import get_state_dict_offloaded_model  # it offloaded them

            return get_state_dict_offloaded_model(self.model.torch)
        return self.model.torch.state_dict(keep_vars=True)

    def _digest(self, name: str, parameter: Tensor) -> str:
        # `.data` writes do not raise `_version`, so a checksum of all bits goes into the state too.
        version = 0 if parameter.is_inference() else parameter._version
        here = slice_here(parameter.detach())
        bits = here.contiguous().view(_INTEGERS[here.element_size()])
        # In parts: torch widens to int64 what it sums, all of it before it begins.
        checksum = sum(int(part.sum(dtype=torch.int64)) for part in bits.reshape(-1).split(AT_ONCE))
        state = (here.data_ptr(), version, tuple(parameter.shape), parameter.dtype, checksum)
        known = self._digests.get(name)
        if known is None or known[0] != state:
            raw = whole(parameter.detach()).cpu().contiguous().reshape(-1).view(torch.uint8)
            label = f"{tuple(parameter.shape)}{parameter.dtype}"
            digest = hashlib.sha256(label.encode())
            digest.update(raw.numpy().data)
            known = (state, digest.hexdigest())
            self._digests[name] = known
        return known[1]
