"""How a worker gets the model that the work is about."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

import torch
from transformers.utils import logging

from tracer.anatomy.names import Names
from tracer.errors import WorkerError
from tracer.model import LanguageModel, load
from tracer.model.foreign import foreign_hooks


@dataclass(frozen=True)
class Recipe:
    """What a worker needs to compute as the process that wants the answers would.

    Attributes:
        names: of the model's parts, which may have been given by hand.
        fingerprint: of its weights.
        threads: of PyTorch, in each worker.
        folder: where relative paths begin.
    """

    name: str
    device: str
    dtype: torch.dtype
    names: Names
    decoder_starts: str
    fingerprint: str
    sweep_fault: str | None
    threads: int
    folder: str

    @classmethod
    def of(cls, model: LanguageModel, threads: int) -> Recipe:
        """The recipe for `model`, which workers load by its name.

        Raises:
            WorkerError: it has hooks, which workers would not have.
        """
        for path in foreign_hooks(model.torch).values():
            raise WorkerError(
                f"The model carries a hook on {path!r}, which workers that load {model.name!r} would not have. "
                f"Remove it, or write workers=0."
            )
        return cls(
            model.name,
            str(model.device),
            model.dtype,
            model.anatomy.names,
            model.decoder_starts,
            model.fingerprint(),
            model.sweep_fault,
            threads,
            os.getcwd(),
        )

    def opened(self) -> LanguageModel:
        """The model, with this process set up for it.

        Raises:
            WorkerError: what is loaded under this name has other weights.
        """
        torch.set_num_threads(self.threads)
        logging.disable_progress_bar()  # of transformers: workers would write over each other's
        with suppress(OSError):  # another machine may not have it: then paths must be whole
            os.chdir(self.folder)
        model = load(
            self.name,
            device=self.device,
            dtype=self.dtype,
            names=self.names,
            decoder_starts=self.decoder_starts or None,
            check=False,
        )
        if model.fingerprint() != self.fingerprint:
            raise WorkerError(
                f"Workers load the model by its name, and {self.name!r} has other weights than yours. Save yours "
                f"with save_pretrained, load it from that folder, and go on with that; or write workers=0."
            )
        model.sweep_fault = self.sweep_fault
        return model
