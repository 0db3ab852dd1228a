"""Tables of scores for readers: a row a score, `mean ± half-width`, as Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import starmap

import pandas as pd

from editing.evaluation.summary import scale

HUGE = 1e5
LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "±": r"$\pm$"}


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A summary as text: scores down; before and after, batch sizes or numbers of edits across.

    A last column says over how many cases, where that does not differ between the others.
    """
    keys = [key for key in ("size", "edits", "when") if key in table]
    cells = table.assign(
        cell=list(starmap(shown, zip(table["score"], table["mean"], table["half_width"], strict=True))),
        column=table[keys].astype(str).agg(" ".join, axis=1),
    )
    wide = cells.pivot(index="score", columns="column", values="cell").fillna("")
    wide = wide.loc[list(dict.fromkeys(table["score"])), list(dict.fromkeys(cells["column"]))]
    counts = table.groupby("score")["n"].agg(["min", "max"]).loc[wide.index]
    wide["n"] = [f"{low}" if low == high else f"{low}-{high}" for low, high in counts.itertuples(index=False)]
    return wide.reset_index().rename_axis(columns=None)


def shown(score: str, mean: float, half_width: float) -> str:
    """A mean with its half-width: of percentages one decimal, of nats and ratios three, of huge ones the magnitude.

    Cases that all say the same have no half-width to show: 0 would claim that no other case could differ.
    """
    form = ".1e" if abs(mean) >= HUGE else ".1f" if scale(score) == 100 else ".3f"
    return f"{mean:{form}} ± {half_width:{form}}" if half_width > 0 else f"{mean:{form}}"


def as_markdown(table: pd.DataFrame) -> str:
    """The table's cells as they are, in pipes."""
    rule = ["---"] * len(table.columns)
    return "\n".join(f"| {' | '.join(row)} |" for row in [_text(table.columns), rule, *map(_text, table.to_numpy())])


def as_latex(table: pd.DataFrame) -> str:
    """The table's cells as a `tabular` with the rules of booktabs."""
    head, *body = [" & ".join(map(_escaped, _text(row))) + r" \\" for row in [table.columns, *table.to_numpy()]]
    columns = "l" + "r" * (len(table.columns) - 1)
    begin = rf"\begin{{tabular}}{{{columns}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


def _text(row: Iterable[object]) -> list[str]:
    return [str(cell) for cell in row]


def _escaped(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)
