"""Whether a model's own words are the answer asked for: exactly, or somewhere in them.

gen_exact    = 1[normalise(text up to a line break, period or end) = normalise(answer)]
gen_contains = 1[normalise(answer) occurs in normalise(that text), whole words]
"""

from __future__ import annotations

import re
import unicodedata

ARTICLES = {"a", "an", "the"}


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single blanks; dashes and slashes part words."""
    parted = "".join(
        " " if letter == "/" or unicodedata.category(letter) == "Pd" else letter for letter in text.lower()
    )
    kept = "".join(letter for letter in parted if unicodedata.category(letter)[0] != "P")
    return " ".join(word for word in kept.split() if word not in ARTICLES)


def first_statement(text: str, answer: str) -> str:
    """The text up to a line break or period; a period inside an answer such as "St. Louis" does not end it."""
    text, wanted = text.lstrip(), answer.strip().rstrip(".")
    end = re.compile(r"\n|\.(?!\d)").search(text, len(wanted) if text.startswith(wanted) else 0)
    return text[: end.start()] if end else text


def gen_exact(text: str, answer: str) -> bool:
    """The text's first statement is the answer and nothing else; an answer without words is said by no text."""
    return normalise(first_statement(text, answer)) == normalise(answer) != ""


def gen_contains(text: str, answer: str) -> bool:
    """The answer occurs, as whole words, in the text's first statement."""
    return normalise(answer) != "" and f" {normalise(answer)} " in f" {normalise(first_statement(text, answer))} "
