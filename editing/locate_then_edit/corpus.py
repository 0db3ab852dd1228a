"""Ordinary text for key statistics: a file's, or what the model writes itself, cut into batches of tokens."""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from editing.errors import CovarianceError
from editing.scoring.generation import sample_length, sample_texts
from tracer.model import LanguageModel
from tracer.model.tokens import encode, right_padded
from tracer.storage import cache_folder, file_sha256, write_json

BATCH = 16  # texts in one pass
OWN_TOP_K = 50  # of the text that the model writes itself
MOST_TURNS = 100


def batches_of(model: LanguageModel, texts: Iterator[str], wanted: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Padded batches of texts, cut at `sample_length` tokens, until `wanted` tokens were given."""
    sequences: list[tuple[int, ...]] = []
    given = 0
    for text in texts:
        ids = encode(model.tokenizer, text).ids[: min(sample_length(model), wanted - given)]
        if not ids:
            continue
        given += len(ids)
        sequences.append(ids)
        if len(sequences) == BATCH or given >= wanted:
            yield right_padded(sequences, device=model.device)
            sequences = []
        if given >= wanted:
            return
    if sequences:
        yield right_padded(sequences, device=model.device)


def texts_of(
    model: LanguageModel, corpus: str | Path | None, wanted: int, seed: int, cache: bool, progress: bool | None
) -> Iterator[str]:
    """The corpus; or the model's own text, as much as is asked for, kept beside the statistics for other layers."""
    if corpus is not None:
        yield from _paragraphs(Path(corpus))
        return
    length = sample_length(model)
    count = -(-wanted // length)
    for turn in range(MOST_TURNS):  # texts may end early, so one turn seldom is enough
        own_seed, name = seed + 1000 * turn, f"{model.fingerprint()[:24]}-{count}x{length}-top{OWN_TOP_K}"
        kept = cache_folder() / "own_text" / f"{name}-seed{own_seed}.json"
        written = None
        if cache and kept.is_file():
            with contextlib.suppress(ValueError):  # damaged: written again
                written = json.loads(kept.read_text(encoding="utf-8"))
        if written is None:
            written = sample_texts(model, count, length=length, seed=own_seed, top_k=OWN_TOP_K, progress=progress)
            if cache:
                write_json(kept, written)
        yield from written
        count = max(8, count // 8)


def _paragraphs(path: Path) -> Iterator[str]:
    """The file's lines that have at least a few words, as they are."""
    opened: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            for line in file:
                if len(line.split()) >= 5:
                    yield line.strip()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise CovarianceError(f"{path} is no text file in UTF-8 ({error}). Give plain or gzipped text.") from error


def identity_of(corpus: str | Path | None, seed: int) -> tuple[str, str]:
    """A name for reports and a digest for the cache key."""
    if corpus is None:
        return "written by the model", f"own-{seed}"
    path = Path(corpus)
    if not path.is_file():
        raise CovarianceError(f"There is no corpus file {path}. Give a text file, or None for the model's own text.")
    return path.name, file_sha256(path)
