"""How much faster edits are made than by the straightforward procedure, in one run on the same requests.

python benchmarks/edits.py --model smollm2 --layer 8 --n 8 --data counterfact.json

Straightforward: one request at a time, every gradient step runs every layer on every token of every context
row, and the head on every position, as the published code does. Both find the same values. "In turns":
two random prefixes a step, others at the next, which finds other values. "Operations allow" is the ratio
of the products that both need, were all done equally fast and nothing else cost time.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tracer
from editing import MEMIT, ROME, EditRequest, layers_around
from editing.datasets.benchmarks import read_benchmark
from editing.locate_then_edit.covariance import second_moments
from editing.locate_then_edit.editor import LocateThenEdit, editable
from editing.locate_then_edit.rows import Rows, request_rows
from editing.locate_then_edit.suffix import Part
from editing.locate_then_edit.values import Search, Value
from tracer.anatomy.hidden import by_token, hidden_of, with_hidden
from tracer.facts import bundled, spread_over_relations
from tracer.model import LanguageModel
from tracer.storage import write_json


def main() -> None:
    """Prints one line a comparison and writes all of them as JSON."""
    options = arguments()
    torch.set_num_threads(options.threads)
    model = tracer.load(options.model)
    requests = requests_of(options.data, options.n)
    layers = layers_around(options.layer, model.n_layers)
    rome = ROME(layer=options.layer, corpus=options.corpus, tokens=options.tokens)
    memit = MEMIT(layers=layers, corpus=options.corpus, tokens=options.tokens)
    records = []
    for compared in (
        lambda: values_compared(model, rome, requests, options.slow),
        lambda: values_compared(model, memit, requests, options.slow),
        lambda: statistics_compared(model, layers, 4096),
    ):
        records.append(record := compared())
        shown = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in record.items()}
        print(", ".join(f"{key} {value}" for key, value in shown.items()), flush=True)
    about = {"model": options.model, "layer": options.layer, "requests": options.n, "threads": options.threads}
    write_json(Path(options.out) / f"{options.model}-layer{options.layer}.json", {**about, "records": records})


def values_compared(
    model: LanguageModel, editor: LocateThenEdit, requests: Sequence[EditRequest], n_slow: int
) -> dict[str, Any]:
    """Seconds an edit: straightforward, with cached states one by one, and all requests together."""
    (layer, parts), prefixes = editor.target(model), editor.prefixes(model, 0)
    editor.statistics(model, 0, None)  # one-off, as the contexts are

    quicker = dataclasses.replace(editor, contexts_a_step=2)

    def slow() -> list[Value]:
        rows = [request_rows(model, [request], prefixes) for request in requests[:n_slow]]
        return [straightforward_value(model, layer, one, editor.search(model), parts[0]) for one in rows]

    def alone() -> list[Value]:
        return [editor.values(model, [request], 0)[0] for request in requests[:n_slow]]

    def together() -> list[Value]:
        return editor.values(model, requests, 0)

    def insert() -> None:
        editor.apply(model, requests, progress=False).undo()

    with editable(model):
        slow_seconds, slow_values = timed(slow)
        alone_seconds, _ = timed(alone)
        seconds, values = timed(together)
        in_turns, turned = timed(lambda: quicker.values(model, requests, 0))
    whole, _ = timed(insert)
    per_edit = {"straightforward": slow_seconds / n_slow, "cached": alone_seconds / n_slow}
    # `apply` writes ROME's requests one after the other: what it does beside the values is the same either way.
    rest = max(0.0, whole / len(requests) - (per_edit["cached"] if editor.one_by_one else seconds / len(requests)))
    together_seconds = seconds / len(requests)
    return {
        "what": type(editor).__name__,
        **per_edit,
        "together": together_seconds,
        "rest_of_the_edit": rest,
        "ratio_of_values": per_edit["straightforward"] / together_seconds,
        "operations_allow": operations_allow(model, [request_rows(model, [one], prefixes) for one in requests], layer),
        "ratio_of_edits": (per_edit["straightforward"] + rest) / (together_seconds + rest),
        "relative_difference": max(_apart(one, other) for one, other in zip(slow_values, values, strict=False)),
        "steps": [value.steps for value in values[:n_slow]],
        "in_turns": in_turns / len(requests),
        "ratio_in_turns": per_edit["straightforward"] / (in_turns / len(requests)),
        "probability": [round(value.probability[1], 2) for value in values],
        "probability_in_turns": [round(value.probability[1], 2) for value in turned],
    }


def operations_allow(model: LanguageModel, each: Sequence[Rows], layer: int, steps: int = 20) -> float:
    """Products of the straightforward procedure over the fewest with states cached, for these requests.

    A step runs forwards, and backwards down to the delta. Attention scores and norms are left out.
    """
    block = sum(p.numel() for p in model.anatomy.blocks[0].parameters() if p.dim() == 2)
    head = model.anatomy.head.weight.numel()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    above, straight, least = model.n_layers - layer - 1, 0, 0
    for rows in each:
        tokens = rows.ids.numel()
        lengths = rows.attention_mask.sum(1)
        reached = int((lengths - rows.lookup)[:-1].sum()) + 1  # the essence prompt is read at its lookup
        straight += steps * tokens * ((model.n_layers + above) * block + 2 * head)
        least += steps * 2 * (reached * above * block + (len(rows.target_rows) + 1) * head)
        least += int(lengths.sum()) * model.n_layers * block
    return straight / least


def straightforward_value(model: LanguageModel, layer: int, rows: Rows, search: Search, part: Part) -> Value:
    """One request's value with whole forward passes."""
    each = torch.arange(len(rows.ids), device=rows.ids.device)
    site = model.anatomy.value_matrix(layer) if part == "mlp" else model.anatomy.blocks[layer]
    state: dict[str, Tensor] = {}

    def add(_module: object, _inputs: object, output: Any) -> Any:
        hidden = hidden_of(output)
        tokens = by_token(hidden, len(rows.ids)).clone()
        state.setdefault("initial", tokens[0, rows.lookup[0]].detach().clone())
        if "delta" in state:
            tokens[each, rows.lookup] = tokens[each, rows.lookup] + state["delta"]
        return with_hidden(output, tokens.reshape(hidden.shape))

    handle = site.register_forward_hook(add)
    try:
        with torch.no_grad():
            model.torch(input_ids=rows.ids, attention_mask=rows.attention_mask)
        state["delta"] = torch.zeros_like(state["initial"], requires_grad=True)
        return _descended(model, rows, search, state["initial"], state["delta"])
    finally:
        handle.remove()


def _descended(model: LanguageModel, rows: Rows, search: Search, initial: Tensor, delta: Tensor) -> Value:
    unit = float(initial.square().mean().sqrt()) if search.relative else 1.0
    optimiser, base, clamped, losses = torch.optim.Adam([delta], lr=search.rate * unit), None, 0, []
    for step in range(search.steps):
        logits = model.torch(input_ids=rows.ids, attention_mask=rows.attention_mask).logits.float()
        scores = logits.log_softmax(-1)
        found = scores[rows.target_rows, rows.target_places].gather(1, rows.target_ids[:, None])[:, 0]
        nll = -(found / rows.target_lengths[rows.target_rows]).sum() / (rows.each - 1)
        essence = scores[-1, rows.lookup[-1]]
        base = essence.detach() if base is None else base
        drift = search.kl * (essence.exp() * (essence - base)).sum()
        shrink = search.decay * delta.norm() / initial.norm() ** 2
        loss = nll + drift + shrink
        losses.append({"nll": nll.item(), "kl": drift.item(), "decay": shrink.item()})
        if loss.item() < 0.05 or step == search.steps - 1:
            break
        (delta.grad,) = torch.autograd.grad(loss, delta)
        optimiser.step()
        with torch.no_grad():
            most = search.clamp * initial.norm()
            if delta.norm() > most:
                delta.mul_(most / delta.norm())
                clamped += 1
    reached = float(torch.tensor(-losses[-1]["nll"]).exp())
    return Value(delta.detach()[None], initial[None], (0.0, reached), losses[-1], len(losses) - 1, clamped)


def statistics_compared(model: LanguageModel, layers: Sequence[int], tokens: int) -> dict[str, Any]:
    """Seconds for the key statistics of some layers over the bundled facts: a pass for each, and one for all."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "facts.txt"
        corpus.write_text("\n".join(f"{fact.prompt} {fact.answer}." for fact in bundled()), encoding="utf-8")
        options: dict[str, Any] = {"corpus": corpus, "tokens": tokens, "cache": False, "progress": False}
        each, _ = timed(lambda: [second_moments(model, [layer], **options) for layer in layers])
        once, _ = timed(lambda: second_moments(model, layers, **options))
    return {"what": "statistics", "layers": len(layers), "a_pass_each": each, "one_pass": once, "ratio": each / once}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of CPU time (the machine may be shared), and what came of it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begun = time.perf_counter() if torch.cuda.is_available() else time.process_time()
    found = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter() - begun, found
    return time.process_time() - begun, found


def requests_of(data: str | None, n: int) -> list[EditRequest]:
    """The first requests of a CounterFact file, or bundled facts, each to become another answer of its relation."""
    if data is not None:
        return [case.request for case in read_benchmark(data, n=n).cases if case.request is not None]
    facts = [fact for fact in spread_over_relations(bundled()) if fact.answer]
    chosen, requests = facts[: 6 * n], []
    for fact in chosen:
        other = next((o for o in facts if o.relation == fact.relation and o.answer != fact.answer), None)
        if other is not None and len(requests) < n:
            requests.append(EditRequest(fact.prompt, fact.subject, other.answer or "", subject_at=fact.subject_at))
    return requests


def _apart(one: Value, other: Value) -> float:
    return float((one.delta - other.delta).norm() / one.delta.norm())


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--layer", type=int, default=8)
    parser.add_argument("--data", help="CounterFact file of the requests; default: made of the bundled facts")
    parser.add_argument("--n", type=int, default=8, help="requests")
    parser.add_argument("--slow", type=int, default=2, help="of them are edited straightforwardly")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--corpus", help="text file for the key statistics")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--out", default="runs/editing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
