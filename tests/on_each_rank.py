"""What every process of a sharded model does; run by torchrun in test_sharded.py.

    torchrun on_each_rank.py FOLDER...
where each folder holds a model; results go beside it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

import tracer
from editing.change import writable
from editing.errors import BaseModelError
from tracer.errors import TracerError
from tracer.facts import bundled

FACT = tracer.Fact("The capital of France is", "France")
PLAN = tracer.Plan(window=2, samples=2, corruption=tracer.GaussianNoise(3, 0.3), severed=("mlp", "attn"))
NEURONS = [(0, 1), (1, 40), (3, 25)]  # of 48: some in each half
FACTS = [tracer.Fact(fact.prompt, fact.subject, relation=fact.relation) for fact in bundled()[:4]]


def traced(model: tracer.LanguageModel) -> dict[str, torch.Tensor]:
    """Everything that is traced, by name."""
    found = {}
    for engine in ("sweep", "passes"):
        options = {"samples": 2, "corruption": PLAN.corruption, "engine": engine}
        maps = tracer.trace(model, FACT, window=2, severed=("mlp", "attn"), **options)
        found |= {f"{engine} {name}": values for name, values in maps.restored.items()}
        found[f"{engine} heads"] = tracer.trace_heads(model, FACT, **options).restored
        found[f"{engine} neurons"] = tracer.trace_neurons(model, FACT, NEURONS, **options).restored
    found["attribute"] = tracer.attribute(model, FACT, samples=2, corruption=PLAN.corruption).restored["state"]
    return {name: torch.from_numpy(values) for name, values in found.items()}


def refused(action, *arguments, **options) -> str:
    try:
        action(*arguments, **options)
    except (TracerError, BaseModelError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def on_this_rank(folder: Path, rank: int) -> None:
    model = tracer.load(folder, tensor_parallel=True)
    torch.save(traced(model), folder / f"traced-{rank}.pt")
    study = tracer.run_study(model, FACTS, folder / "study", plan=PLAN)
    if rank == 0:
        before = {path: path.read_bytes() for path in (folder / "study").rglob("*.safetensors")}
        next(iter(before)).unlink()
    torch.distributed.barrier()
    tracer.run_study(model, FACTS, folder / "study", plan=PLAN)
    average = tracer.average(model, FACTS, samples=2, kinds=("state",), folder=folder / "average")
    weight = model.anatomy.value_weight_name(1)
    about = {
        "sharded": model.is_sharded,
        "fault": model.sweep_fault,
        "fingerprint": model.fingerprint(),
        "study is elsewhere": study.folder != folder / "study",
        "continued alike": rank > 0 or all(path.read_bytes() == content for path, content in before.items()),
        "average": str(average.total_effect),
        "refused": [
            refused(writable, model, weight),
            refused(tracer.attribute_edges, model, FACT),
            refused(tracer.attribute_neurons, model, FACT),
            refused(tracer.attribute_queries_and_keys, model, FACT),
            refused(tracer.run_study, model, FACTS, folder / "other", plan=PLAN, workers=2),
        ],
    }
    (folder / f"about-{rank}.json").write_text(json.dumps(about))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        on_this_rank(Path(name), int(os.environ["RANK"]))
    torch.distributed.destroy_process_group()
