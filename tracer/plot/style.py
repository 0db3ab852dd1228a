"""The one look of all figures: fonts, line widths, colours. Chosen to be told apart by colour-blind readers."""

from __future__ import annotations

from typing import Any

from tracer.site import severed_name

COLOURS = {"state": "Purples", "mlp": "Greens", "attn": "Reds", "cross": "Oranges"}
BAR_COLOURS = {"state": "#6a51a3", severed_name("mlp"): "#41ab5d", severed_name("attn"): "#ef6548"}
BAR_COLOURS[severed_name("cross")] = "#fe9929"
SEVERED_WORDS = {
    "state": "state restored",
    severed_name("mlp"): "state restored, MLP severed",
    severed_name("attn"): "state restored, attention severed",
    severed_name("cross"): "state restored, cross-attention severed",
}
ROLE_COLOURS = ("#9ecae1", "#4292c6", "#08306b", "#fdae6b", "#bdbdbd", "#a63603")
ROLE_MARKS = "o^sDvP"
TWO_SIDED = "PuOr"
NOT_TRACED = "#e3e3e3"
SPECIAL = "#9a9a9a"
SUFFIXES = (".png", ".pdf", ".svg")
PANELS_A_ROW = 3
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "figure.titlesize": 11.0,
    "text.parse_math": False,  # a token may hold dollar signs
    "pdf.fonttype": 42,
    "svg.fonttype": "none",  # words stay words: to search, to edit, to read aloud
}
