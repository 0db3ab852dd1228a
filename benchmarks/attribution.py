"""First-order maps against exact ones: rank correlation and CPU time, on facts the model knows; resumable.

python benchmarks/attribution.py --model smollm2 --n 50 --minutes 6 --out runs/attribution
python benchmarks/attribution.py --study runs/known/smollm2 --n 50    # against exact maps that a study has kept
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import tracer
from tracer.answer import predicted_id
from tracer.errors import TracerError
from tracer.facts import bundled, spread_over_relations
from tracer.first_order.screen import rank_correlation
from tracer.site import KINDS
from tracer.storage import write_json
from tracer.studies import Study


def main() -> None:
    """Compares fact by fact, then prints one line a map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--n", type=int, default=50, help="facts compared at most")
    parser.add_argument("--minutes", type=float, default=60.0, help="no new fact is begun after this")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--window", type=int, default=1)
    parser.add_argument("--out", default="runs/attribution")
    parser.add_argument("--study", type=Path, help="take facts and exact maps from this study")
    parser.add_argument("--timed", type=int, default=3, help="facts of the study traced anew, for the time")
    options = parser.parse_args()
    if options.study:
        print("\n".join(table(list(against(Study.open(options.study), options.n, options.timed)))))
        return
    folder = Path(options.out) / f"{Path(options.model).name}-window{options.window}-samples{options.samples}"
    model, begun, records = tracer.load(options.model), time.monotonic(), []
    noise = tracer.GaussianNoise(3.0, tracer.embedding_sigma(model, [fact.subject for fact in bundled()]))
    for number, fact in enumerate(spread_over_relations(bundled())):
        if len(records) == options.n or time.monotonic() - begun > 60 * options.minutes:
            break
        path = folder / f"{number}.json"
        if path.is_file():
            records.append(json.loads(path.read_text(encoding="utf-8")))
            continue
        tokenized = fact.preflight(model, warn=False)
        if predicted_id(model, tokenized.token_ids) != tokenized.answer_id:
            continue
        records.append(compared(model, tokenized, options.samples, options.window, noise))
        write_json(path, records[-1])
    print("\n".join(table(records)))


def against(study: Study, n: int, timed: int) -> Iterator[dict]:
    """`compared` on facts spread over a study, whose maps are not traced again but for the time of the first few."""
    model = tracer.load(study.manifest.model["name"])
    if model.fingerprint() != study.manifest.model["fingerprint"]:
        raise TracerError(f"The study is of other weights than {study.manifest.model['name']} has now. Trace it again.")
    traces = list(study.traces())
    for number, (_, exact) in enumerate(traces[:: max(1, len(traces) // n)][:n]):
        settings = exact.settings
        noise = tracer.GaussianNoise(3.0, float(settings.corruption.split("sigma=")[1].split(",")[0].rstrip(")")))
        options = {"samples": settings.samples, "window": settings.window, "corruption": noise, "seed": settings.seed}
        begun = time.process_time()
        estimate = tracer.attribute(model, exact.fact, **options)
        middle = time.process_time()
        np.testing.assert_allclose(estimate.corrupted_samples, exact.corrupted_samples, atol=1e-4)  # the same draws
        record: dict = {"first order": middle - begun, "n_tokens": len(exact.fact.tokens)} | maps(estimate, exact)
        if number < timed:
            tracer.trace(model, exact.fact, progress=False, **options)
            record["exact"] = time.process_time() - middle
        yield record


def compared(
    model: tracer.LanguageModel, fact: tracer.TokenizedFact, samples: int, window: int, noise: tracer.GaussianNoise
) -> dict:
    """`maps` and CPU seconds."""
    options = {"samples": samples, "window": window, "corruption": noise}
    model.fingerprint()  # read once, not on the first one's clock
    begun = time.process_time()
    estimate = tracer.attribute(model, fact, **options)
    middle = time.process_time()
    exact = tracer.trace(model, fact, progress=False, **options)
    record: dict = {"first order": middle - begun, "exact": time.process_time() - middle, "n_tokens": len(fact.tokens)}
    return record | maps(estimate, exact)


def maps(estimate: tracer.TraceResult, exact: tracer.TraceResult) -> dict:
    """Of each map: rank correlation over the cells from the subject on, share of the exact largest 20 found."""
    first, found = exact.fact.subject_span[0], {}
    for kind in KINDS:
        one, other = (result.indirect_effect[kind][first:].ravel() for result in (estimate, exact))
        shared = set(np.argsort(-abs(one))[:20]) & set(np.argsort(-abs(other))[:20])
        found[kind] = {"correlation": rank_correlation(one, other), "top 20": len(shared) / min(20, len(one))}
    return found


def table(records: list[dict]) -> list[str]:
    """Means over facts with their 95 % intervals, a line a map; then the times."""
    lines = [
        f"{len(records)} facts",
        "| map | rank correlation | lowest | share of the largest 20 found |",
        "|-|-|-|-|",
    ]
    for kind in KINDS:
        correlations = np.array([record[kind]["correlation"] for record in records])
        shared = tracer.Estimate.of(np.array([record[kind]["top 20"] for record in records]))
        lines.append(f"| {kind} | {tracer.Estimate.of(correlations)} | {correlations.min():.3f} | {shared} |")
    timed = [record for record in records if "exact" in record]
    seconds = {name: np.mean([record[name] for record in timed]) for name in ("first order", "exact")}
    ratios = tracer.Estimate.of(np.array([record["exact"] / record["first order"] for record in timed]))
    lines.append(
        f"CPU seconds a fact: first order {seconds['first order']:.2f}, exact {seconds['exact']:.2f}; ratio {ratios}"
    )
    return lines


if __name__ == "__main__":
    main()
