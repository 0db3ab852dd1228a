"""What an edit may put beside the weights: a branch at a module's output, or a memory that reads prompts.

    attached    the model answers otherwise, every weight is as it was
    detached    it answers as before, bit for bit

A method defines its own subclass and names its kind, under which files know it:
    class Codebook(Attachment, kind="grace codebook")
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar, Self

from torch import Tensor

from tracer.model import LanguageModel


class Attachment(ABC):
    """Something that makes a model answer otherwise without changing a weight.

    Attributes:
        kind: of a subclass, as files name it.
        branches: whether it hooks modules inside the model, so that it may depend on where a prompt ends.
    """

    kind: ClassVar[str] = ""
    branches: ClassVar[bool] = True

    @property
    def store(self) -> str:
        """The name of what edits of equal settings share, such as a codebook or a memory; "" where nothing is."""
        return ""

    def __init_subclass__(cls, *, kind: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if kind:
            assert kind not in ATTACHMENTS, f"two kinds of attachment are called {kind!r}"
            cls.kind = kind
            ATTACHMENTS[kind] = cls

    @abstractmethod
    def attach(self, model: LanguageModel) -> Callable[[], None]:
        """Puts it on `model`, after all that is there; what is returned takes it off again, whatever came since."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What a file must hold, by name."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What a file must hold beside the tensors, as JSON has it."""

    @classmethod
    @abstractmethod
    def restored(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """From what `about` and `tensors` gave."""

    def check_file(self) -> None:  # noqa: B027 - most can be kept
        """Raises EditFailedError where no file can hold it."""

    @cached_property
    def digest(self) -> str:
        """sha256 of all that it holds, which does not change."""
        found = hashlib.sha256(json.dumps([self.kind, self.about()], sort_keys=True).encode())
        for name, tensor in sorted(self.tensors().items()):
            raw = tensor.detach().cpu().double().contiguous().numpy().tobytes()
            found.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode() + raw)
        return found.hexdigest()


ATTACHMENTS: dict[str, type[Attachment]] = {}
