"""Studies of many facts as the README tells them: peaks, what severing costs, MLP against attention, figures.

python benchmarks/studies.py runs/known/gemma-3-270m runs/known/smollm2 --figures figures
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import tracer
from tracer.effect import AverageTrace
from tracer.fact import ROLES
from tracer.plot import plot_average, plot_lines, plot_severed, save_figure
from tracer.studies import Study

LAST_SUBJECT, LAST = "last subject token", "last token"


def main() -> None:
    """Prints a part for each study and saves its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path)
    parser.add_argument("--figures", type=Path, help="folder for figures")
    options = parser.parse_args()
    for folder in options.studies:
        study = Study.open(folder)
        average = study.average
        print("\n".join([*about(study, average), *peaks(average), *severed(average), *paired(average)]), flush=True)
        if options.figures:
            for name, plot in {"average": plot_average, "lines": plot_lines, "severed": plot_severed}.items():
                save_figure(plot(average), options.figures / f"known_{name}_{study.name}.png")


def about(study: Study, average: AverageTrace) -> list[str]:
    """How many facts there are, what became of them, and their total effect."""
    reasons = Counter(entry.reason.split(" ")[:3][-1] for entry in study.left_out)
    counts = ", ".join(f"{n} {status}" for status, n in study.manifest.counts().items())
    return [f"## {study.name}", f"{counts} ({dict(reasons)}); ATE {average.total_effect}"]


def peaks(average: AverageTrace) -> list[str]:
    """Where each map is largest, anywhere and at the two tokens that the paper names."""
    lines = ["| map | peak of AIE | at | at the last subject token | at the last token |", "|-|-|-|-|-|"]
    for kind in average.effects:
        role, layer, most = average.peak(kind)
        at = [average.peak(kind, role) for role in (LAST_SUBJECT, LAST)]
        told = " | ".join(f"{estimate} at layer {layer}" for _, layer, estimate in at)
        lines.append(f"| {kind} | {most} | layer {layer}, {role} | {told} |")
    return lines


def severed(average: AverageTrace) -> list[str]:
    """What a state restored at the last subject token loses when paths are cut, layer by layer."""
    row, lines = ROLES.index(LAST_SUBJECT), []
    for kind in (kind for kind in average.effects if "severed" in kind):
        plain, cut = (average.effects[name][:, row] for name in (kind.split(" |")[0], kind))
        for layer in range(plain.shape[1]):
            both = (tracer.Estimate.of(values[:, layer]) for values in (plain, plain - cut))
            lines.append(f"{kind}, layer {layer}: {' loses '.join(map(str, both))}")
    return lines


def paired(average: AverageTrace) -> list[str]:
    """MLP against attention, fact by fact, at both tokens."""
    return [str(tracer.paired_test(average, "mlp", "attn", role=role)) for role in (LAST_SUBJECT, LAST)]


if __name__ == "__main__":
    main()
