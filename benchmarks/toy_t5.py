"""Editors on a toy T5 that knows which country four cities lie in, each made to lie in every other one.

PYTHONPATH=tests python benchmarks/toy_t5.py

The toys are the tests' own (tests/encoder_decoders.py). IKE and SERAC, which put a sentence in front of the question,
edit a toy that was also taught to believe one. MEND and KE are trained on the four cities themselves.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from encoder_decoders import LIES_IN, WAYS, closing_tokenizer, knowing_t5, taught
from test_t5_learned import EDITORS as LEARNED
from test_t5_learned import records
from transformers import PreTrainedTokenizerFast

import tracer
from editing import IKE, SERAC, CaliNet, EditRequest, TPatcher, TrainingPlan
from editing.editors import Editor
from editing.fine_tuning.ft import FT
from editing.scoring.scores import target_scores
from tracer.model.inputs import sentence

FRONT = ("{}. {}", "New Fact: {}\nPrompt: {}")


def main() -> None:
    """Prints a line for each editor: exact matches in percent."""
    warnings.simplefilter("ignore")  # that an edit is weak, its scores say
    tokenizer = closing_tokenizer()
    knowing, believing = knowing_t5(tokenizer), believing_t5(tokenizer)
    print("| | reliability | in other words | others stay |\n|---|---|---|---|")
    for name, model, editor in editors(knowing, believing):
        scores = " | ".join(f"{100 * share:.0f}" for share in exact_shares(model, editor))
        print(f"| {name} | {scores} |", flush=True)


def believing_t5(tokenizer: PreTrainedTokenizerFast) -> tracer.LanguageModel:
    """Knows the countries, and answers what a sentence in front of the question says."""
    own = [(way.format(city), country) for way in WAYS for city, country in LIES_IN.items()]
    told = [
        (front.format(sentence(WAYS[0].format(city), country).removesuffix("."), way.format(city)), country)
        for city in LIES_IN
        for country in LIES_IN.values()
        for way in WAYS
        for front in FRONT
    ]
    return taught(tokenizer, own + told, steps=600)


def editors(
    knowing: tracer.LanguageModel, believing: tracer.LanguageModel
) -> Iterator[tuple[str, tracer.LanguageModel, Editor]]:
    """Each with its name and the toy that it edits."""
    yield "FT-L", knowing, FT(layer=4, loss="prompt_last", radius=0.5, rate=5e-2, steps=50)
    yield "FT-M", knowing, FT(layer=4, rate=5e-2, steps=50)
    yield "CaliNet", knowing, CaliNet(layers=(4,), slots=16, rate=0.01, steps=200)
    yield "T-Patcher", knowing, TPatcher(memory=400, steps=600)
    plan = TrainingPlan(steps=40, batch=8, together=8, every=20, held_out=6)
    for name, editor in LEARNED.items():
        yield name, knowing, editor.fit(knowing, records(), plan=plan, progress=False)
    yield "IKE, each edit in front of all", believing, IKE(count=0)
    yield "IKE, the nearest edit", believing, IKE(count=0, route="nearest", threshold=0.7)
    yield "SERAC", believing, SERAC().fit(None, progress=False)


def exact_shares(model: tracer.LanguageModel, editor: Editor) -> list[float]:
    """Of all edits: the share of edited prompts, of the same in other words, and of other cities' answers."""
    matches: list[list[bool]] = [[], [], []]
    for city, known in LIES_IN.items():
        for new in LIES_IN.values():
            if new == known:
                continue
            others = [(way.format(other), at) for way in WAYS for other, at in LIES_IN.items() if other != city]
            with editor.apply(model, [EditRequest(WAYS[0].format(city), city, new)], progress=False):
                scores = target_scores(model, [*((way.format(city), new) for way in WAYS), *others])
            for kind, some in zip(matches, (scores[:1], scores[1:2], scores[2:]), strict=True):
                kind += [score.tf_exact for score in some]
    return [sum(kind) / len(kind) for kind in matches]


if __name__ == "__main__":
    main()
