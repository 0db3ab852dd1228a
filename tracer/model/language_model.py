"""Open a model: embedded default, hub name, local folder, GGUF file or an already loaded object."""

from __future__ import annotations

import copy
import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from nnsight import NNsight, TransformersModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tracer.anatomy import Anatomy, anatomy_of
from tracer.anatomy.hidden import hidden_of
from tracer.anatomy.names import Names
from tracer.anatomy.parts import check_parts
from tracer.errors import AnatomyError, FactError, ModelSourceError, NumericsError, TracerError, TracerWarning
from tracer.model.embedded import DEFAULT
from tracer.model.foreign import foreign_hooks
from tracer.model.parallel import is_out_of_memory
from tracer.model.sharded import is_sharded, slice_here, whole
from tracer.model.source import from_pretrained, loaded_model

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
        self._digests: dict[str, tuple[tuple, str]] = {}

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
        if self.remote:
            return hashlib.sha256(f"remote {self.name}".encode()).hexdigest()
        whole = hashlib.sha256()
        for name, parameter in sorted(self._weights().items()):
            whole.update(f"{name}:{self._digest(name, parameter)}".encode())
        for edit in self.edits:
            whole.update(edit.digest().encode())
        return whole.hexdigest()

    def embedded(self, ids: Tensor) -> Tensor:
        """What the embedding module gives for token ids [...]: [..., width]."""
        if self.remote:
            from tracer.model.remote import embedded_there  # which builds on this module

            return embedded_there(self, ids)
        with torch.inference_mode():
            return self.anatomy.embedding(ids.to(self.device))

    def _weights(self) -> dict[str, Tensor]:
        if self.is_offloaded:
            from accelerate.utils.modeling import get_state_dict_offloaded_model  # it offloaded them

            return get_state_dict_offloaded_model(self.torch)
        return self.torch.state_dict(keep_vars=True)

    def _digest(self, name: str, parameter: Tensor) -> str:
        # `.data` writes do not raise `_version`, so a checksum of all bits goes into the state too.
        version = 0 if parameter.is_inference() else parameter._version
        here = slice_here(parameter.detach())
        bits = here.contiguous().view(_INTEGERS[here.element_size()])
        checksum = int(bits.sum(dtype=torch.int64))
        state = (here.data_ptr(), version, tuple(parameter.shape), parameter.dtype, checksum)
        known = self._digests.get(name)
        if known is None or known[0] != state:
            raw = whole(parameter.detach()).cpu().contiguous().reshape(-1).view(torch.uint8)
            label = f"{tuple(parameter.shape)}{parameter.dtype}"
            known = (state, hashlib.sha256(label.encode() + raw.numpy().tobytes()).hexdigest())
            self._digests[name] = known
        return known[1]

    def check_length(self, n_tokens: int) -> None:
        """Raises FactError where a text of `n_tokens` is longer than the model's context."""
        if self.context_length is not None and n_tokens > self.context_length:
            raise FactError(f"The text has {n_tokens} tokens; {self.name} takes {self.context_length}. Shorten it.")

    def check_whole(self, wanted: str) -> None:
        """Raises AnatomyError where this process holds only slices of the attention's matrices; `wanted` uses them."""
        if self.is_sharded:
            raise AnatomyError(
                f"{wanted} look inside attention, and of its heads this process has but a part. Load the model without "
                f"tensor_parallel; tracer.trace, trace_heads and attribute work with it."
            )

    def check_decoder_only(self, wanted: str) -> None:
        """Raises AnatomyError for an encoder-decoder, which `wanted` (what a user called) cannot take."""
        if self.is_encoder_decoder:
            raise AnatomyError(
                f"{wanted} works on decoder-only models, and {self.name} is an encoder-decoder. What works on it: "
                f"tracer.trace, tracer.average, tracer.locate, and the editors FT (FT-L, FT-M) and KN."
            )

    def check_unembedding(self) -> None:
        """Raises AnatomyError where the model does not run, or `anatomy.unembed` does not give its own logits."""
        logits, last = self._logits_and_last_state()
        if last is None or not torch.isfinite(logits).all():
            return  # `check_parts` says which parts do not run, each trace which logits are not finite
        try:
            with torch.inference_mode():
                same = torch.allclose(self.anatomy.unembed(last), logits, rtol=0.02, atol=0.02)
        except (RuntimeError, TypeError, IndexError):  # modules that take something else
            same = False
        if not same:
            raise AnatomyError(
                f"{self.name}: after_blocks={self.anatomy.names.after_blocks!r} and the head do not give the model's "
                f"own logits from its last block's output. If these names are yours, write the final norm and all "
                f"else between; else its head does more (a scale, a bias?), and this family is not supported yet."
            )

    def _logits_and_last_state(self) -> tuple[Tensor, Tensor | None]:
        """Of three tokens: [1, token, vocab], and the last block's output if it runs, [1, token, d_model]."""
        ids = torch.arange(1, 4, device=self.device)[None]
        last: list[Tensor] = []
        handle = self.anatomy.blocks[-1].register_forward_hook(lambda _m, _a, output: last.append(hidden_of(output)))
        try:
            with torch.inference_mode():
                decoder = {"decoder_input_ids": ids} if self.is_encoder_decoder else {}
                return self.torch(input_ids=ids, **decoder).logits, last[0] if last else None
        except Exception as error:  # whatever a model does whose parts do not fit together
            if is_out_of_memory(error):
                raise
            said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            raise AnatomyError(
                f"{self.name} does not run on three tokens ({said}). Try model(input_ids=...) by itself: are all its "
                f"parts of one dtype and where their inputs are?"
            ) from error
        finally:
            handle.remove()

    def warn_of_readers(self) -> None:
        """TracerWarning, once, where edits rewrite prompts: a trace is of the prompt as it is given."""
        if self.readers and not self._warned_of_readers:
            self._warned_of_readers = True
            warnings.warn(
                f"{self.name} has {len(self.readers)} memories of edits that rewrite prompts before it reads them. "
                f"Traces run the model on prompts as they are given, without those edits. To trace what is read: "
                f"editing.asking.routes(model, [prompt])[0].prompt.",
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


def load(
    source: str | Path | PreTrainedModel = DEFAULT,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    names: Names | None = None,
    check: bool = True,
    tensor_parallel: bool = False,
    remote: bool | str = False,
    decoder_starts: str | None = None,
    **options: Any,
) -> LanguageModel:
    """Opens a language model for tracing and editing.

    Args:
        source: "gemma-3-270m" (the embedded default) or "smollm2"; a hub name; a local folder; a
            `.gguf` file; or a transformers model that is already loaded (it is put in eval mode).
        tokenizer: only for a loaded model, or to replace the one that comes with the weights.
        device: "cpu", "cuda", "cuda:1"; "auto" spreads the model over all devices. Default: the first GPU, else CPU.
        dtype: "float32" (the default), "bfloat16", "float64" or "float16" (which many models overflow).
        names: module paths, for a family that `tracer.anatomy` neither lists nor finds.
        check: whether names given are of the parts they say; compare the sweep with the definition on a
            made-up prompt, and where they disagree, or the sweep cannot run, say so and trace by the definition.
        tensor_parallel: cut the model over the processes that torchrun started, each with a GPU of its own if
            there are GPUs; all of them run the same script.
        remote: True for a model that NDIF runs, by its hub name, or the address of another such server; its weights
            stay there and the definition traces it. "local" rehearses that on this machine.
        decoder_starts: of an encoder-decoder (T5), what its decoder reads between its start token and the answer.
            "<extra_id_0>" for one trained to fill in spans alone: a prompt without it gets it at its end. Default:
            the sentinel that a prompt has, else nothing, as for models trained to answer questions.
        **options: passed on to `AutoModelForCausalLM.from_pretrained` (`AutoModelForSeq2SeqLM`).

    Raises:
        ModelSourceError: nothing loadable there.
        AnatomyError: a model type whose parts are not known, names of other parts, or a model that
            the definition cannot trace.
    """
    if tensor_parallel:
        options["tensor_parallel"] = True
    if remote and isinstance(source, str | Path):
        from tracer.model.remote import remote_model  # which builds on this module

        return remote_model(str(source), remote, tokenizer, names, here={"device": device, "dtype": dtype, **options})
    opened = loaded_model(source, tokenizer, device=device, dtype=dtype, options=options)
    if opened is None:
        opened = from_pretrained(str(source), tokenizer, device=device, dtype=dtype, options=options)
    model, own_tokenizer, name = opened
    found = LanguageModel(model, own_tokenizer, name=name, names=names, decoder_starts=decoder_starts or "")
    if decoder_starts is not None and not found.is_encoder_decoder:
        raise ModelSourceError(f"{name} has no decoder apart from what reads the prompt: leave out decoder_starts.")
    return _checked(found, check, names_given=names is not None)


def _checked(model: LanguageModel, check: bool, *, names_given: bool) -> LanguageModel:
    model.check_unembedding()
    check_parts(model.torch, model.anatomy.names, given=names_given and check)
    if not check:
        return model
    from tracer.sweep.self_test import by_definition, self_test  # which traces models

    try:
        passes = by_definition(model)
    except NumericsError:
        return model  # each trace checks its own logits and says what to do
    try:
        self_test(model, passes)
    except Exception as error:  # a block of a family that nobody tried may fail in any way
        if is_out_of_memory(error):
            raise
        known = isinstance(error, TracerError)
        model.sweep_fault = str(error) if known else f"The sweep cannot run {model.name}: {error!r}."
        warnings.warn(
            f"{model.sweep_fault} Traces of this model use the definition, which is slow. Please report it.",
            TracerWarning,
            stacklevel=3,
        )
    return model
