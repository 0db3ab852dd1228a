"""A model as everything here takes it: plain transformers, its tokenizer, its parts by role, what was done to it."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from nnsight import NNsight, TransformersModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tracer.anatomy import Anatomy, anatomy_of
from tracer.anatomy.names import Names
from tracer.errors import AnatomyError, FactError, ModelSourceError, NumericsError, TracerWarning
from tracer.model.fingerprint import Fingerprints
from tracer.model.foreign import foreign_hooks
from tracer.model.sharded import is_sharded


class LanguageModel:
    """A causal language model, or an encoder-decoder, with its tokenizer and its anatomy.

    Attributes:
        torch: the plain transformers model, in eval mode.
        tokenizer: its fast tokenizer, or None for a model traced by token ids alone.
        anatomy: its modules by role.
        name: what it was loaded from.
        remote: where nnsight runs it if not here; `torch` has no weights then.
        decoder_starts: what an encoder-decoder's decoder reads between its start token and an answer, as text.
        edits: what `editing` has written or attached and not undone, oldest first.
        readers: what `editing` has attached that reads prompts before the model does, oldest first.
        remembered: what was measured on this model and need not be measured again, by what it depends on.
    """

    def __init__(
        self,
        torch_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        name: str,
        names: Names | None = None,
        remote: bool | str = False,
        nnsight: Any = None,
        decoder_starts: str = "",
    ) -> None:
        self.torch = torch_model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.anatomy: Anatomy = anatomy_of(torch_model, names)
        self.decoder_starts = decoder_starts
        self._sweep_fault: str | None = None
        self._known_hooks = set(foreign_hooks(torch_model))
        self._warned_hooks: set[int] = set()
        self._warned_of_readers = False
        # Kept on the torch model, so that two wrappers of it know of each other's edits.
        self.edits: list[Any] = torch_model.__dict__.setdefault("_applied_edits", [])
        self.readers: list[Any] = torch_model.__dict__.setdefault("_prompt_readers", [])
        self.remembered: dict[Any, Any] = {}
        self.remote = remote
        self._nnsight = nnsight
        self._fingerprints = Fingerprints(self)

    @property
    def nnsight(self) -> Any:
        """The same model wrapped by nnsight, for `tracer.passes` and for your own interventions."""
        if self._nnsight is None:
            # nnsight fills in a padding token: in a copy, not in the user's tokenizer.
            own = copy.deepcopy(self.tokenizer)
            if self.is_sharded:
                from tracer.model.tensor_parallel import sharded_nnsight  # which needs a recent transformers

                self._nnsight = sharded_nnsight(self.torch, own)
            else:
                plain = own is None or self.is_encoder_decoder
                self._nnsight = NNsight(self.torch) if plain else TransformersModel(self.torch, tokenizer=own)
        return self._nnsight

    @property
    def sweep_fault(self) -> str | None:
        """Why the sweep must not be used on this model as it is now; traces then use the definition.

        Its self-test failed, or modules carry hooks that were not there when it was opened: of those
        TracerWarning says once where they are.
        """
        if self._sweep_fault is not None:
            return self._sweep_fault
        late = {number: path for number, path in foreign_hooks(self.torch).items() if number not in self._known_hooks}
        if not late:
            return None
        first = next(iter(late.values()))
        fault = (
            f"{self.name} carries hooks that it did not have when it was opened, first on {first}. "
            f"The sweep packs tokens anew, so a hook that goes by position would change others."
        )
        if not late.keys() <= self._warned_hooks:
            self._warned_hooks |= late.keys()
            warnings.warn(
                f"{fault} Traces use the definition, which is slow. Take the hooks off; if they treat all tokens "
                f"alike, open the model with them: tracer.load(model.torch, tokenizer=model.tokenizer).",
                TracerWarning,
                stacklevel=3,
            )
        return fault

    @sweep_fault.setter
    def sweep_fault(self, fault: str | None) -> None:
        self._sweep_fault = fault

    @property
    def n_layers(self) -> int:
        """Number of blocks, an encoder's and its decoder's together."""
        return self.anatomy.n_layers

    @property
    def depth(self) -> int:
        """Blocks of the deepest stack: all there are, or those of the encoder or the decoder."""
        return max(len(stack.layers) for stack in self.anatomy.stacks)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt and a decoder writes the answer."""
        return self.anatomy.is_encoder_decoder

    @property
    def decoder_start_id(self) -> int:
        """The token that an encoder-decoder's decoder reads first, by its configuration.

        Raises:
            AnatomyError: the configuration does not say.
        """
        for config in (self.torch.config, getattr(self.torch, "generation_config", None)):
            for name in ("decoder_start_token_id", "pad_token_id"):
                found = getattr(config, name, None)
                if found is not None:
                    return int(found)
        raise AnatomyError(
            f"{self.name} does not say what its decoder reads first. Write model.config.decoder_start_token_id = 0, "
            f"or whichever token it was trained with, before load(model)."
        )

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.anatomy.d_model

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the token embedding (the first one, if there are several)."""
        if self.remote:
            return torch.device("cpu")
        device = next(self.anatomy.embedding.parameters()).device
        if device.type == "meta":
            raise ModelSourceError(
                f"The token embedding of {self.name} is offloaded, and nnsight sends inputs to where it is. Give a "
                f"device_map that keeps it in memory: device_map={{{self.anatomy.names.embedding!r}: 'cpu', ...}}."
            )
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the token embedding."""
        return next(self.anatomy.embedding.parameters()).dtype

    @property
    def is_offloaded(self) -> bool:
        """Whether some weights are kept elsewhere and brought in for each pass (by accelerate)."""
        return any(weight.is_meta for weight in self.torch.parameters())

    @property
    def is_sharded(self) -> bool:
        """Whether its matrices are cut over several processes: all of them must do the same, one call at a time."""
        return is_sharded(self.torch)

    @property
    def context_length(self) -> int | None:
        """Longest prompt in tokens, if the configuration says."""
        return getattr(self.torch.config.get_text_config(), "max_position_embeddings", None)

    def fingerprint(self) -> str:
        """sha256 over every weight and its name: equal weights, equal fingerprint, on any device.

        What edits have attached beside the weights counts too. Only weights that changed since the last call are read
        again. A model on another machine shows no weights: its name stands for them.
        """
        return self._fingerprints.now()

    def embedded(self, ids: Tensor) -> Tensor:
        """What the embedding module gives for token ids [...]: [..., width]."""
        if self.remote:
            from tracer.model.remote import embedded_there  # which builds on this module

            return embedded_there(self, ids)
        with torch.inference_mode():
            return self.anatomy.embedding(ids.to(self.device))

    def check_length(self, n_tokens: int) -> None:
        """Raises FactError where a text of `n_tokens` is longer than the model's context."""
        if self.context_length is not None and n_tokens > self.context_length:
            raise FactError(f"The text has {n_tokens} tokens; {self.name} takes {self.context_length}. Shorten it.")

    def check_whole(self, wanted: str) -> None:
        """Raises AnatomyError where this process holds only slices of the matrices; `wanted` uses them whole."""
        if self.is_sharded:
            raise AnatomyError(
                f"{wanted} are inside sub-layers, of whose matrices this process has but a part. Load the model "
                f"without tensor_parallel; tracer.trace, trace_heads, trace_neurons and attribute work with it."
            )

    def check_decoder_only(self, wanted: str, *, instead: str = "tracer.trace, tracer.average, tracer.locate") -> None:
        """Raises AnatomyError for an encoder-decoder: `wanted`, what a user called, cannot take it; `instead` can."""
        if self.is_encoder_decoder:
            raise AnatomyError(
                f"{wanted} works on decoder-only models, and {self.name} is an encoder-decoder. "
                f"What works on it: {instead}."
            )

    def warn_of_readers(self) -> None:
        """TracerWarning, once, where edits rewrite prompts: a trace is of the prompt as it is given."""
        if self.readers and not self._warned_of_readers:
            self._warned_of_readers = True
            warnings.warn(
                f"{self.name} has {len(self.readers)} memories of edits that rewrite prompts before it reads them. "
                f"Traces run the model on prompts as they are given, without those edits. To trace what is read: "
                f"editing.scoring.asking.routes(model, [prompt])[0].prompt.",
                TracerWarning,
                stacklevel=4,
            )

    def check_finite(self, logits: Tensor) -> None:
        """Raises NumericsError where logits hold NaN or infinity."""
        if not torch.isfinite(logits).all():
            raise NumericsError(
                f"The model's logits are NaN or infinite in {str(self.dtype).removeprefix('torch.')}. "
                f'Load it with dtype="bfloat16" or dtype="float32".'
            )

    def __repr__(self) -> str:
        return f"LanguageModel({self.name!r}, layers={self.n_layers}, d_model={self.d_model}, {self.dtype})"


def check_opened(model: object) -> None:
    """Raises ModelSourceError for what is no model of `tracer.load`."""
    if not isinstance(model, LanguageModel):
        raise ModelSourceError(f"A {type(model).__name__} is not an opened model. Write tracer.load(...) in its place.")
