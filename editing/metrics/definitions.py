"""What every number means: formula, prompts, unit and source of each metric that a run emits, by its name.

A metric of a case is a statistic of a group of prompts, so its definition is put together from the two. `LEGEND` has
the symbols of the formulas.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from editing.errors import EvaluationError
from editing.metrics.alarms import PASSAGES
from editing.metrics.of_cases import metric_name
from editing.scoring.distributions import MAX_BYTES

ROME = "Meng et al. 2022 (ROME), sec. 3.4"
MEMIT = "Meng et al. 2023 (MEMIT), sec. 5.2 (zsRE)"
SURVEY = "Yao et al. 2023, sec. 3 and 5"
KNOWEDIT = "Zhang et al. 2024 (KnowEdit), sec. 4"
MQUAKE = "Zhong et al. 2023 (MQuAKE), sec. 4"
HERE = "as measured here"
LEGEND = """x: a prompt; y = y_1..y_T: its answer; z: the answer it competes with; p: the model now; p0: before the edit
a_t = argmax p(. | x, y_<t); n(y) = -(1/T) sum_t log p(y_t | x, y_<t)"""
BY_CASE = "mean over the prompts of a case, then over cases"


@dataclass(frozen=True)
class Definition:
    """One metric.

    Attributes:
        formula: of one prompt, edit or case.
        prompts: what is asked.
        unit: of the number in tables.
        source: where it was published; for one that is only measured here, where its prompts were.
        note: what it is easily taken for.
    """

    name: str
    formula: str
    prompts: str
    unit: str
    source: str
    note: str = ""

    def __str__(self) -> str:
        said = {"formula": self.formula, "asked": self.prompts, "unit": self.unit, "source": self.source}
        lines = [self.name, *(f"  {key:8} {value}" for key, value in said.items())]
        return "\n".join([*lines, *([f"  {'note':8} {self.note}"] if self.note else [])])


GROUPS: Mapping[str, tuple[str, str]] = {
    "rewrite": ("the edit's own prompt; y the new answer, z the old one", ROME),
    "paraphrase": ("the edit's prompt in other words; y the new answer, z the old one", ROME),
    "neighborhood": ("another subject, y its right answer (CounterFact: the edit's old one, z the new one)", ROME),
    "subject_replace": ("the edit's prompt about the subject under another name; y the new answer", SURVEY),
    "reversed_relation": ("a question about the new answer; y the edit's subject", SURVEY),
    "one_hop": ("a question that needs the edit and one more fact; y its answer under the edit", SURVEY),
    "one_hop_known": ("as one_hop, where the unedited model knows the other fact", SURVEY),
    "reasoning": ("a question that builds on the edited fact; y its answer under the edit", KNOWEDIT),
    "subject_aliasing": ("the edit's prompt about the subject under another name; y the new answer", KNOWEDIT),
    "logical_generalization": ("what follows from the edit by logic, e.g. its reverse; y its answer", KNOWEDIT),
    "other_relation": ("another relation of the edit's subject; y its right answer", SURVEY),
    "distracting_neighborhood": ("a neighbour's prompt behind the edited fact; y the old answer, z the new", SURVEY),
    "relation_specificity": ("another relation of the edit's subject; y its right answer", KNOWEDIT),
    "forgetfulness": ("another right answer of the edit's relation, the new one excluded", KNOWEDIT),
    "other_task": ("a goal with two ways to reach it; y the right one, z the other", "Bisk et al. 2020; " + SURVEY),
}
LOST = "n: cases after which the model gives numbers"
KEPT = f" and whose distributions before fit into {MAX_BYTES / 2**20:.0f} MiB"
TEXT = f"a fixed text: its first passages (--text N), after the steps of a sequence all {len(PASSAGES)}"
BEST = "of several right answers the best one counts"
STATISTICS: Mapping[str, tuple[str, str, str]] = {
    "preferred": ("1[n(y) < n(z)]; a tie is a failure", "per cent", ""),
    "preferred_sum": ("1[T n(y) < T' n(z)], the sums over both answers' tokens", "per cent", "favours short answers"),
    "margin": ("e^-n(y) - e^-n(z)", "per cent", '"EM" elsewhere means exact match'),
    "token_acc": ("(1/T) sum_t 1[a_t = y_t]", "per cent", "forced with the right tokens before t"),
    "tf_exact": ("prod_t 1[a_t = y_t]", "per cent", BEST),
    "gen_exact": ("1[normalised greedy text up to its first period = normalised y]", "per cent", BEST),
    "gen_contains": ("1[normalised y occurs in the greedy text up to its first period]", "per cent", BEST),
    "nll": ("n(y)", "nats a token", LOST),
    "nll_sum": ("T n(y)", "nats", LOST),
    "agree": (
        "(1/T) sum_t 1[a_t of p = a_t of p0]",
        "per cent",
        "with the model's own predictions before, right or wrong",
    ),
    "agree_exact": ("prod_t 1[a_t of p = a_t of p0]", "per cent", ""),
    "kept": (
        "(1/T) sum_t 1[a_t = y_t], where p0 has every token right",
        "per cent",
        "n: cases with such prompts",
    ),
    "kl": ("(1/T) sum_t KL(p0(. | x, y_<t), p(. | x, y_<t))", "nats a token", LOST + KEPT),
}
NOTES: Mapping[str, str] = {
    "specificity_accuracy": "against the benchmark's answer; specificity or locality in papers (ROME, MEMIT: zsRE)",
    "locality_agreement": "with the model before the edit; papers call it locality (MEND, survey). Not "
    "specificity_accuracy, which counts right answers",
}


# Who published a statistic of a group; of most pairs nobody did.
SOURCES: Mapping[tuple[str, str], str] = {
    **{(group, kind): ROME for group in ("rewrite", "paraphrase", "neighborhood") for kind in ("preferred", "margin")},
    **{(group, "token_acc"): SURVEY for group in ("rewrite", "paraphrase")},
    ("neighborhood", "token_acc"): MEMIT,
    ("neighborhood", "agree"): SURVEY,
    ("distracting_neighborhood", "preferred"): "Hoelscher-Obermaier et al. 2023 (CounterFact+)",
    ("other_task", "preferred"): GROUPS["other_task"][1],
    ("other_task", "preferred_sum"): GROUPS["other_task"][1],
    **{
        (group, kind): source
        for group, (_, source) in GROUPS.items()
        for kind in ("token_acc", "agree")
        if source in (SURVEY, KNOWEDIT)
    },
}


def _composed(group: str, statistic: str) -> Definition:
    prompts, of_prompts = GROUPS[group]
    source = SOURCES.get((group, statistic), f"{HERE}; the prompts: {of_prompts}")
    formula, unit, note = STATISTICS[statistic]
    name = metric_name(group, statistic)
    return Definition(name, f"{formula}; {BY_CASE}", prompts, unit, source, NOTES.get(name, note))


def _whole(*rows: tuple[str, str, str, str, str]) -> dict[str, Definition]:
    return {name: Definition(name, formula, prompts, unit, source) for name, formula, prompts, unit, source in rows}


DEFINITIONS: Mapping[str, Definition] = {
    metric_name(group, statistic): _composed(group, statistic) for group in GROUPS for statistic in STATISTICS
} | _whole(
    ("S", "3 / (1/ES + 1/PS + 1/NS) of the means over cases; 0 if one is 0", "those of ES, PS, NS", "per cent", ROME),
    (
        "accuracy_S",
        "harmonic mean of reliability_token_acc, generalization_token_acc and specificity_accuracy",
        "those of its parts",
        "per cent",
        MEMIT,
    ),
    (
        "fluency",
        "(1/3) H_2 + (2/3) H_3, H_n the entropy of a text's n-gram frequencies; mean over texts, then over cases",
        "texts sampled from generation prompts",
        "bits x 100",
        ROME + " (GE)",
    ),
    (
        "consistency",
        "cosine of the TF-IDF vectors of the model's texts and of reference texts about the new answer",
        "texts sampled from generation prompts",
        "per cent",
        ROME + " (RS)",
    ),
    ("perplexity_ratio", "exp(mean nll a token now) / exp(the same before)", TEXT, "ratio", HERE),
    ("text_kl", "mean KL(p0, p) a token", TEXT, "nats a token", HERE),
    ("relative_change", "max over edited weights of |W_k - W_0| / |W_0|, Frobenius", "nothing", "ratio", HERE),
    ("edit_wise", "share of a case's edits with every token right on their own prompts", "cloze prompts", "per cent",
     MQUAKE),
    ("instance_wise", "1 if every hop of a case, asked by itself, is answered as edited", "single hops", "per cent",
     MQUAKE),
    ("multi_hop", "1 if any phrasing is answered with the new answer or an alias, normalised", "multi-hop questions",
     "per cent", MQUAKE),
    ("multi_hop_exact", "as multi_hop, letter by letter", "multi-hop questions", "per cent", MQUAKE),
    ("unanswered", "share without any answer", "multi-hop questions and their single hops", "per cent", HERE),
    (
        "edit_seconds",
        "median over edits of the wall-clock time of apply, device synchronised; with quartiles. The first 2 are "
        "left out; of edits computed at once, which share their time, all of the first group where others follow. In "
        "the table of costs the median of three edits made one by one, after a first one",
        "nothing",
        "s",
        HERE,
    ),
    (
        "one_off_seconds",
        "making the editor and its first edit, less a later edit: statistics not in a cache, training done by it",
        "nothing",
        "s",
        HERE,
    ),
    ("peak_bytes", "most memory during an edit, less that before it", "nothing", "bytes", HERE),
    ("absolute_peak_bytes", "most memory during an edit, the model included", "nothing", "bytes", HERE),
    ("persistent_bytes", "size of the saved edit of one fact", "nothing", "bytes", HERE),
    ("training_seconds", "training, validation and writing of what the editor was made from, as its folder says",
     "nothing", "s", HERE),
    ("training_bytes", "size of the file of what was trained", "nothing", "bytes", HERE),
    ("latency_ratio", "median over repeats of seconds edited / seconds unedited, equal prompts and new tokens",
     "edited prompts, of the edit that is applied and of others, answered greedily", "ratio", HERE),
    ("last", "mean over the edits of a sequence's last step alone; the score beside it is of all edits so far",
     "those of the score", "as the score", HERE),
)  # fmt: skip


def definition(name: str, among: Mapping[str, Definition] = DEFINITIONS) -> Definition:
    """What a metric means.

    Raises:
        EvaluationError: there is no metric of this name.
    """
    if name in among:
        return among[name]
    alike = difflib.get_close_matches(name, among, n=3, cutoff=0.7)
    meant = f"Did you mean {', '.join(alike)}?" if alike else "`editing explain-metric` without a name lists them."
    raise EvaluationError(f"There is no metric {name!r}. {meant}")
