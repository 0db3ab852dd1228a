"""Editors whose effect is known, and cases to score them on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from editing import EditRequest, RequestError
from editing.change import LowRank
from editing.edit import Edit
from editing.evaluation import Ask, Case, Group
from tracer.facts import bundled

RECORD = {
    "case_id": 3,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "subject": "Angela Merkel",
        "relation_id": "P103",
        "target_new": {"str": "French", "id": "Q150"},
        "target_true": {"str": "German", "id": "Q188"},
    },
    "paraphrase_prompts": ["Angela Merkel speaks", "At home Angela Merkel spoke"],
    "neighborhood_prompts": ["The mother tongue of Johann Sebastian Bach is"],
    "generation_prompts": ["Angela Merkel was born in", "Angela Merkel was born in"],
}
SUBJECTS = ("France", "Spain", "Rome", "London", "Berlin", "Japan")


def flat_records(count: int) -> list[dict]:
    """Records of a flat CounterFact file, of bundled facts."""
    facts = bundled()
    return [
        {**{"case_id": at, "prompt": one.prompt, "subject": one.subject, "target_new": "Rome"}}
        | {"ground_truth": one.answer, "rephrase_prompt": f"Now, {one.prompt}"}
        | {"locality_prompt": facts[at + 5].prompt, "locality_ground_truth": facts[at + 5].answer}
        for at, one in enumerate(facts[:count])
    ]


class HookedEdit(Edit):
    """An edit that is hooks alone; undoing takes them off."""

    handles: Sequence = ()

    def undo(self) -> None:
        for handle in self.handles:
            handle.remove()
        super().undo()


class Planted:
    """An editor that adds a bias to the logits of chosen words, and is undone like any other."""

    def __init__(self, bias: dict[str, float] | None = None) -> None:
        self.bias = bias or {}

    def apply(self, model, requests, *, seed: int = 0, progress: bool | None = None) -> Edit:
        ids = {model.tokenizer(f" {word}").input_ids[0]: value for word, value in self.bias.items()}

        def shift(_module, _inputs, output):
            for token, value in ids.items():
                output[..., token] += value
            return output

        edit = HookedEdit(
            tuple(requests), (), {"method": "planted"}, model.fingerprint(), ({"relative_change": 0.0},) * len(requests)
        )
        edit.start(model)
        edit.handles = [model.anatomy.head.register_forward_hook(shift)]
        return edit


class Refuses:
    """An editor that can write nothing."""

    def apply(self, model, requests, *, seed=0, progress=None):
        raise RequestError("no subject")


class Dictated:
    """An editor after which the model says the new answer to the prompts of its last `memory` requests, exactly.

    It replaces the whole output of the model, as an editor with a memory does.
    """

    def __init__(self, memory: int = 10**6) -> None:
        self.memory = memory
        self.written: list[EditRequest] = []

    def apply(self, model, requests, *, seed=0, progress=None) -> Edit:
        self.written = [*self.written, *requests]
        edit = HookedEdit(tuple(requests), (), {"method": "dictated"}, model.fingerprint())
        edit.start(model)
        edit.handles = [
            model.torch.register_forward_hook(
                lambda _module, _inputs, inputs, output: self._dictate(model, inputs["input_ids"], output),
                with_kwargs=True,
            )
        ]
        return edit

    def _dictate(self, model, ids, output):
        for request in self.written[-self.memory :]:
            line = model.tokenizer(f"{request.prompt} {request.new.strip()}").input_ids
            prompt = len(model.tokenizer(request.prompt).input_ids)
            for row in range(len(ids)):
                for end in range(prompt, len(line)):
                    if ids.shape[1] >= end and ids[row, :end].tolist() == line[:end]:
                        output.logits[row, end - 1] = -30.0
                        output.logits[row, end - 1, line[end]] = 30.0
        return output


class Copies:
    """An editor after which the model repeats at each place the token that it reads there.

    A scorer that forgets to shift the target by one takes this for a perfect answer.
    """

    def apply(self, model, requests, *, seed=0, progress=None) -> Edit:
        def copy(_module, _inputs, given, output):
            output.logits.fill_(-30.0)
            read = given["input_ids"][..., -output.logits.shape[-2] :]
            output.logits.scatter_(-1, read.unsqueeze(-1), 30.0)
            return output

        edit = HookedEdit(tuple(requests), (), {"method": "copies"}, model.fingerprint())
        edit.start(model)
        edit.handles = [model.torch.register_forward_hook(copy, with_kwargs=True)]
        return edit


class RankOne:
    """An editor that adds a random rank-one change for each request, drawn from its prompt; `each` makes them apart."""

    def __init__(self, scale: float = 0.1, layer: int = 1) -> None:
        self.scale, self.layer, self.calls = scale, layer, []

    def apply(self, model, requests, *, seed=0, progress=None) -> Edit:
        self.calls.append(len(requests))
        return self._edit(model, requests).apply(model)

    def each(self, model, requests, *, seed=0, progress=None) -> list[Edit]:
        self.calls.append(len(requests))
        return [self._edit(model, [request]) for request in requests]

    def _edit(self, model, requests) -> Edit:
        weight = model.anatomy.value_weight_name(self.layer)
        changes = [LowRank(weight, *self._factors(model, request.prompt)) for request in requests]
        records = tuple({"subject": request.subject} for request in requests)
        return Edit(tuple(requests), tuple(changes), {"method": "random"}, model.fingerprint(), records)

    def _factors(self, model, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        shape = model.torch.get_parameter(model.anatomy.value_weight_name(self.layer)).shape
        inner = next(size for size in shape if size != model.d_model)
        generator = torch.Generator().manual_seed(sum(prompt.encode()))
        draw = [torch.randn(size, 1, generator=generator, dtype=torch.float64) for size in (model.d_model, inner)]
        return self.scale * draw[0], draw[1]


def simple_cases(count: int = 3, answer: str = "Paris") -> list[Case]:
    """Cases of one rewrite prompt and one neighbour each."""
    return [
        Case(
            id=str(number),
            request=EditRequest(f"The capital of {subject} is", subject, answer, id=str(number)),
            groups=(
                Group("rewrite", (Ask(f"The capital of {subject} is", answer),)),
                Group("neighborhood", (Ask(f"The people of {subject} speak", "French"),), stays=True),
            ),
        )
        for number, subject in enumerate(SUBJECTS[:count])
    ]
