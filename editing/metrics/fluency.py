"""How a model writes after an edit: does it repeat itself, does it speak of what it was taught?

GE (fluency)     = (1/3) H_2 + (2/3) H_3, H_n the entropy in bits of a text's n-gram frequencies
RS (consistency) = cosine of the TF-IDF vectors of the model's texts and of reference texts
Both are defined on words (Meng et al. 2022, sec. 3.3); published tables multiply them by 100.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from editing.errors import EvaluationError
from tracer.facts.readers import read_records

WORDS = "Treebank-style words 1"  # the rules below, for the record
CLITICS = r"(?i)(?<=\w)('s|'re|'ve|'ll|'d|'m|n't)\b"
TFIDF_WORD = re.compile(r"\b\w\w+\b")
Snippets = Mapping[tuple[str, str], Sequence[str]]


def treebank_words(text: str) -> list[str]:
    """Words as the Penn Treebank splits them: clitics, punctuation and a sentence's last period stand alone."""
    found = []
    for sentence in re.split(r"(?<=[.!?])\s+", text.strip()):
        spaced = re.sub(CLITICS, r" \1", sentence)
        spaced = re.sub(r"(\.\.\.|--|[;@#$%&?!\"()\[\]{}<>]|[,:](?!\d))", r" \1 ", spaced)
        spaced = re.sub(r"(?<![.\s])\.(?=[\s'\")\]]*$)", " .", spaced)
        found += spaced.split()
    return found


def published_form(text: str) -> str:
    """A sampled text as it is scored: compatibility characters decomposed, paragraphs joined."""
    return unicodedata.normalize("NFKD", text).replace("\n\n", " ")


def ngram_entropy(words: Sequence[str], n: int) -> float:
    """H_n in bits; 0 for fewer than n words."""
    counts = Counter(zip(*(words[at:] for at in range(n)), strict=False))
    total = sum(counts.values())
    return sum(count / total * math.log2(total / count) for count in counts.values())


def fluency(texts: Sequence[str]) -> float:
    """GE: the mean over texts."""
    return float(np.mean([_entropy(treebank_words(published_form(text))) for text in texts]))


def _entropy(words: Sequence[str]) -> float:
    return ngram_entropy(words, 2) / 3 + 2 * ngram_entropy(words, 3) / 3


@dataclass(frozen=True)
class TfIdf:
    """Term weights: tf = count, idf = ln((1 + n) / (1 + df)) + 1, over lower-case words of two letters or more."""

    idf: Mapping[str, float] = field(repr=False)

    @classmethod
    def fitted(cls, texts: Iterable[str]) -> TfIdf:
        """Weights of the words of these texts; words that are not in them count for nothing."""
        occurrences = [set(_tfidf_words(text)) for text in texts]
        n, in_texts = len(occurrences), Counter(word for words in occurrences for word in words)
        return cls({word: math.log((1 + n) / (1 + count)) + 1 for word, count in in_texts.items()})

    def cosine(self, first: str, second: str) -> float:
        """Of the two texts' vectors; 0 where one has no known word."""
        left, right = self._vector(first), self._vector(second)
        norms = [math.sqrt(sum(value * value for value in side.values())) for side in (left, right)]
        dot = sum(value * right.get(word, 0.0) for word, value in left.items())
        return dot / (norms[0] * norms[1]) if all(norms) else 0.0

    def _vector(self, text: str) -> dict[str, float]:
        counts = Counter(_tfidf_words(text))
        return {word: count * self.idf[word] for word, count in counts.items() if word in self.idf}


def consistency(texts: Sequence[str], references: Sequence[str], weights: TfIdf) -> float:
    """RS: how alike the model's texts and the references are, each side joined by blanks."""
    return weights.cosine(" ".join(map(published_form, texts)), " ".join(references))


def read_snippets(path: str | Path) -> dict[tuple[str, str], list[str]]:
    """Reference texts by (relation, id of the object), from a file of CounterFact's attribute snippets.

    Raises:
        EvaluationError: records without relation_id, target_id and samples with a text each.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for number, record in enumerate(read_records(path)):
        try:
            key = record["relation_id"], record["target_id"]
            found.setdefault(key, []).extend(sample["text"] for sample in record["samples"])
        except (KeyError, TypeError) as error:
            raise EvaluationError(
                f"{path}, record {number}, holds no snippets ({error}): they have relation_id, target_id and samples "
                f"with a text each."
            ) from error
    return found


def _tfidf_words(text: str) -> list[str]:
    return TFIDF_WORD.findall(text.lower())
