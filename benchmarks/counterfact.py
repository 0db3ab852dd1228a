"""ROME on CounterFact records, at one layer or several; resumable, one JSON line a case.

    python benchmarks/counterfact.py DATA --layers 3,4,5 --n 50 --out runs/counterfact

The records are drawn evenly over DATA. The table goes to stdout, the lines to OUT.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import tracer
from editing import ROME
from editing.evaluation import CaseScores, evaluate_counterfact, summary
from editing.locate_then_edit.covariance import second_moments
from tracer.facts.readers import read_records
from tracer.storage import write_json


def main() -> None:
    """Evaluates and prints one table a layer."""
    options = arguments()
    model = tracer.load(options.model)
    data = read_records(options.data)
    records = data[options.offset :: max(1, len(data) // options.n)][: options.n]
    layers = [int(layer) for layer in options.layers.split(",")]
    second_moments(model, layers, corpus=options.corpus, tokens=options.tokens)  # one pass for all layers
    for layer in layers:
        rome = ROME(layer=layer, corpus=options.corpus, tokens=options.tokens, variant=options.variant,
                    clamp=options.clamp, decay=options.decay)  # fmt: skip
        text = Path(options.corpus).name if options.corpus else "own"
        setting = f"{options.model}-{options.variant}-clamp{options.clamp}-decay{options.decay}-{text}"
        folder = Path(options.out) / setting / f"layer-{layer}"
        cases = evaluate(model, rome, records, folder)
        table = summary(cases).pivot(index="score", columns="when", values=["mean", "half_width"])
        change = sum(case.diagnostics.get("relative_change", 0.0) for case in cases) / len(cases)
        print(f"\n{setting} layer {layer}, n={len(cases)}, mean |D|/|W| {change:.3f}\n{table.round(1).to_string()}")


def evaluate(model: tracer.LanguageModel, rome: ROME, records: list[dict], folder: Path) -> list[CaseScores]:
    """Scores every record; a record whose file is there already is read, not edited again."""
    cases = []
    for record in records:
        path = folder / f"{record['case_id']}.json"
        if not path.is_file():
            (case,) = evaluate_counterfact(model, rome, [record], progress=False)
            write_json(
                path, {"before": dict(case.before), "after": dict(case.after), "diagnostics": dict(case.diagnostics)}
            )
        cases.append(CaseScores(str(record["case_id"]), **json.loads(path.read_text(encoding="utf-8"))))
    return cases


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="counterfact.json, also gzipped")
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--layers", required=True, help="comma-separated")
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--offset", type=int, default=0)
    parser.add_argument("--variant", default="r-rome")
    parser.add_argument("--clamp", type=float, default=4.0)
    parser.add_argument("--decay", type=float, default=0.5)
    parser.add_argument("--corpus", help="text file for the key statistics; default: the model's own text")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--out", default="runs/counterfact")
    return parser.parse_args()


if __name__ == "__main__":
    main()
