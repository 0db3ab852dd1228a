"""Every editor on every model: tables and figures of what benchmarks/results.py packed.

python benchmarks/all_editors.py

Reads benchmarks/results/MODEL.csv.gz, writes the tables beside them (README.md) and figures/editors_*.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from editor_figures import TITLES, plot_course, plot_singles

from editing.comparison.tables import SCORES
from editing.editors import EDITORS
from editing.evaluation.tables import as_markdown, shown
from tracer.plot import save_figure
from tracer.storage import atomic_path

NAMES = {
    "r-rome": "r-ROME",
    "p-rome": "p-ROME",
    "alphaedit": "AlphaEdit",
    "t-patcher": "T-Patcher",
    "calinet": "CaliNet",
    "memprompt": "MemPrompt",
    "mello": "MeLLo",
    "ike-nearest": "IKE, nearest",
}
VARIANTS = {"ike-nearest": "ike"}  # tables of the settings, and whose they are
MODELS = {"gemma-3-270m": "Gemma-3-270M", "smollm2": "SmolLM2-135M"}
FILES = {
    "portability.counterfact_locality": "CounterFact, with other relations and distracting neighbours",
    "portability.counterfact_subject_replace": "CounterFact, with other names of the subject",
    "portability.zsre_onehop": "zsRE's false answers, with questions one hop on",
    "portability.zsre_inverse_relation": "zsRE's false answers, with reversed relations",
    "counterfact.dev": "CounterFact",
    "counterfact_flat.edit": "CounterFact, flat edition: a prompt, a paraphrase and a neighbour each",
    "zsre.eval.dev": "zsRE's true answers",
    "mquake.cf3k_qa": "MQuAKE's multi-hop questions",
}
OVERVIEW = {
    "portability.counterfact_locality": (
        "CounterFact",
        ("S", "reliability_token_acc", "generalization_token_acc", "locality_agreement", "other_relation_agreement"),
    ),
    "portability.counterfact_subject_replace": ("CounterFact", ("subject_replace_token_acc",)),
    "portability.zsre_onehop": (
        "zsRE",
        ("reliability_token_acc", "generalization_token_acc", "locality_agreement", "one_hop_token_acc"),
    ),
    "portability.zsre_inverse_relation": ("zsRE", ("reversed_relation_token_acc",)),
}
FIGURES = {
    ("portability.counterfact_locality", "single"): "editors_counterfact",
    ("portability.zsre_onehop", "single"): "editors_zsre",
    ("zsre.eval.dev", "batch"): "editors_batch",
    ("zsre.eval.dev", "sequential"): "editors_sequence",
}
PROTOCOLS = {
    "single": "each edit alone",
    "batch": "edits at once",
    "sequential": "edits one after another",
    "multi-hop": "each case's edits alone",
}
ABOUT = """# Every editor

Written by `python benchmarks/all_editors.py` from the means in this folder (MODEL.csv.gz; MODEL.tar.gz has the records
they are of, made by `benchmarks/compare.sh`). Percentages with 95 % intervals over the records. Without one: all
records say the same, or it is one number, as of a single edit and of the perplexity after a batch or a sequence. Of a
batch all its records are asked, of a sequence all edits made so far, its locality on 50 other questions. How many
passages of the fixed text a perplexity ratio is over differs between files and protocols (1 or 3; 12 after the edits of
a sequence): compare it within a table. A sequence rings the alarm where it passes 1.5.
`editing explain-metric NAME` has a score's formula and source. Perplexity ratios are cut at 1e12, in figures at 10. An
empty cell: not run, or nothing to compare with.
"""


def main() -> None:
    """Writes the tables and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--figures", type=Path, default=Path("figures"))
    options = parser.parse_args()
    frame = read_results(options.results)
    with atomic_path(options.results / "README.md") as temporary:
        temporary.write_text("\n\n".join([ABOUT.strip(), overview(frame), *tables(frame)]) + "\n", encoding="utf-8")
    for (data, protocol), name in FIGURES.items():
        rows = of_kind(frame, data, protocol)
        if len(rows):
            figure = plot_singles(rows) if protocol == "single" else plot_course(rows, protocol)
            save_figure(figure, options.figures / f"{name}.png")


def read_results(folder: Path) -> pd.DataFrame:
    """Every mean with its model and its editor's name in the literature (`key`: of `EDITORS`), in that order."""
    frames = {path.name.removesuffix(".csv.gz"): pd.read_csv(path) for path in sorted(folder.glob("*.csv.gz"))}
    frame = pd.concat([one.assign(model=MODELS.get(name, name)) for name, one in frames.items()], ignore_index=True)
    frame = frame.loc[frame["cases"] == "all"].sort_values("editor", key=_places, kind="stable")
    return frame.assign(key=frame["editor"].replace(VARIANTS), editor=frame["editor"].map(_name))


def _places(editors: pd.Series) -> pd.Series:
    order = list(EDITORS)
    return editors.replace(VARIANTS).map(lambda key: order.index(key) if key in order else len(order))


def _name(key: str) -> str:
    return NAMES.get(key, key.upper() if key in EDITORS else key)


def of_kind(frame: pd.DataFrame, data: str, protocol: str) -> pd.DataFrame:
    """The rows of one data file and one protocol."""
    return frame.loc[(frame["data"] == data) & (frame["protocol"] == protocol)]


def _kinds(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Data files and protocols that are there: those of `FILES` and `PROTOCOLS` in their order, then others."""
    there = set(frame[["data", "protocol"]].itertuples(index=False, name=None))
    known = [(data, protocol) for protocol in PROTOCOLS for data in FILES if (data, protocol) in there]
    return known + sorted(there - set(known))


def tables(frame: pd.DataFrame) -> Iterator[str]:
    """Markdown of every data file, protocol and model."""
    for data, protocol in _kinds(frame):
        rows = of_kind(frame, data, protocol)
        yield f"## {FILES.get(data, data)}: {PROTOCOLS.get(protocol, protocol)}"
        for model in sorted(set(rows["model"])):
            of_model = rows.loc[rows["model"] == model]
            yield f"{model}, {data}, {of_model['slice'].iloc[0]}:"
            yield by_editor(of_model) if len(of_model["edits"].unique()) == 1 else by_edits(of_model)


def overview(frame: pd.DataFrame) -> str:
    """Single edits, an editor a row; each cell has the models one after another, without intervals."""
    singles = frame.loc[(frame["protocol"] == "single") & frame["data"].isin(list(OVERVIEW))]
    columns = [(data, score) for data, (_, scores) in OVERVIEW.items() for score in scores]
    models = sorted(set(singles["model"]))
    cells = [[label, *(_of_models(of, *column, models) for column in columns)] for label, of in _lines(singles).items()]
    names = [f"{OVERVIEW[data][0]}: {TITLES[score]}" for data, score in columns]
    table = as_markdown(pd.DataFrame(cells, columns=["editor", *names]))
    return f"## At a glance\n\nSingle edits, {' / '.join(models)}, per cent; a dash: not run.\n\n{table}"


def _lines(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of the unedited model, then those after each editor."""
    before, after = rows.loc[rows["when"] == "before"], rows.loc[rows["when"] == "after"]
    names = dict.fromkeys(after["editor"])
    unedited = {"unedited": before}
    if set(rows["protocol"]) == {"multi-hop"}:  # where each editor asks in a way of its own
        unedited = {f"unedited, as {name} asks": before.loc[before["editor"] == name] for name in names}
    return unedited | {name: after.loc[after["editor"] == name] for name in names}


def _of_models(rows: pd.DataFrame, data: str, score: str, models: Sequence[str]) -> str:
    there = rows.loc[(rows["data"] == data) & (rows["score"] == score)]
    means = [there.loc[there["model"] == model, "mean"] for model in models]
    return " / ".join(f"{mean.iloc[0]:.0f}" if len(mean) else "-" for mean in means) if len(there) else ""


def by_editor(rows: pd.DataFrame) -> str:
    """Editors down, scores across; the unedited model first, where it was asked."""
    lines = {label: of for label, of in _lines(rows).items() if len(of)}
    names = [name for name in SCORES if name in set(rows.loc[rows["when"] == "after", "score"])]
    cells = [[label, *(_cell(of.loc[of["score"] == name]) for name in names)] for label, of in lines.items()]
    return as_markdown(pd.DataFrame(cells, columns=["editor", *names]))


def by_edits(rows: pd.DataFrame) -> str:
    """Editors and scores down, numbers of edits across; the unedited model, asked the same, first."""
    counts, cells = sorted(set(rows["edits"])), []
    for label, of in _lines(rows).items():
        for name in (name for name in SCORES if name in set(of["score"])):
            of_score = of.loc[of["score"] == name]
            cells.append([label, name, *(_cell(of_score.loc[of_score["edits"] == count]) for count in counts)])
    columns = ["editor", "score", *(f"{count} edit{'s' * (count > 1)}" for count in counts)]
    return as_markdown(pd.DataFrame(cells, columns=columns))


def _cell(one: pd.DataFrame) -> str:
    return "" if one.empty else shown(one["score"].iloc[0], one["mean"].iloc[0], one["half_width"].iloc[0])


if __name__ == "__main__":
    main()
