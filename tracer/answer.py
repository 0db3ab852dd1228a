"""The answer: which token it is, and the metric from the last block's output.

The unembedding of a large vocabulary is the widest product of a trace: it is done in blocks of
rows and of the vocabulary that stay in the cache, each with its own log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tracer.anatomy import Anatomy
from tracer.fact import TokenizedFact
from tracer.metric import Metric
from tracer.model import LanguageModel
from tracer.model.inputs import inputs_of
from tracer.model.prompt_ends import prompts_end_at
from tracer.precision import wide

ROWS = 512
VOCABULARY = 4096


def probability(logits: Float[Tensor, "*row vocab"], token_id: int | Int[Tensor, "*row"]) -> Float[Tensor, "*row"]:
    """p(token), of one token or of one for each row: a softmax in each sample, means come after it."""
    of_rows = wide(logits)
    picked = of_rows[..., token_id] if isinstance(token_id, int) else of_rows.gather(-1, token_id[..., None])[..., 0]
    return (picked - of_rows.logsumexp(-1)).exp()


def traced_answers(facts: Sequence[TokenizedFact], clean_logits: Float[Tensor, "fact vocab"]) -> Int[Tensor, " fact"]:
    """The token traced for each fact: its answer, else what the clean run predicts.

    Args:
        facts: in the order of the logits.
        clean_logits: where the answer is read, nothing corrupted.
    """
    predicted = clean_logits.argmax(-1)
    given = [-1 if fact.answer_id is None else fact.answer_id for fact in facts]
    wanted = torch.tensor(given, device=predicted.device)
    return torch.where(wanted < 0, predicted, wanted)


def predicted_id(model: LanguageModel, token_ids: Sequence[int], *, n_encoder: int = 0) -> int:
    """The token that the model finds most probable after these, the first `n_encoder` being an encoder's."""
    return predicted_ids(model, token_ids, 1, n_encoder=n_encoder)[0]


def predicted_ids(model: LanguageModel, token_ids: Sequence[int], n: int, *, n_encoder: int = 0) -> tuple[int, ...]:
    """The tokens that the model finds most probable after each of the last `n` of these."""
    with torch.inference_mode(), prompts_end_at(model, [len(token_ids) - n_encoder - n]):
        ids = torch.tensor([list(token_ids)], device=model.device)
        keep = {} if n_encoder else {"logits_to_keep": n}
        logits = model.torch(**inputs_of(ids, n_encoder), **keep).logits[0, -n:]
    model.check_finite(logits)
    return tuple(logits.argmax(-1).tolist())


def values_at(
    anatomy: Anatomy,
    hidden: Float[Tensor, "row d_model"],
    metric: Metric,
    answers: Int[Tensor, " fact"],
    others: Int[Tensor, " fact"] | None,
    clean: Float[Tensor, "#fact vocab"],
    of: Int[Tensor, " row"],
) -> Float[Tensor, " row"]:
    """The metric from the last block's output.

    Args:
        anatomy: of the model.
        hidden: that output, where the answer is predicted.
        metric: what is read.
        answers: token ids.
        others: of the alternative answers.
        clean: logits of the clean runs, of each fact or of all.
        of: which fact each row belongs to.
    """
    found = []
    for rows, facts in zip(hidden.split(ROWS), of.split(ROWS), strict=True):
        if metric.name in ("probability", "log_probability") and rows.device.type == "cpu" and _is_plain(anatomy.head):
            value = _log_probability(anatomy, rows, answers[facts])
            found.append(value.exp() if metric.name == "probability" else value)
        else:
            alternatives = None if others is None else others[facts]
            reference = clean[facts] if metric.name == "kl" else clean
            found.append(metric.of(wide(anatomy.unembed(rows)), answers[facts], alternatives, wide(reference)))
    return torch.cat(found)


def _log_probability(
    anatomy: Anatomy, hidden: Float[Tensor, "row d_model"], answer_ids: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    normed = anatomy.before_head(hidden)
    head = anatomy.head
    assert isinstance(head, nn.Linear)
    sums = []
    for at in range(0, len(head.weight), VOCABULARY):
        block = slice(at, at + VOCABULARY)
        bias = None if head.bias is None else head.bias[block]
        logits = anatomy.scaled(nn.functional.linear(normed, head.weight[block], bias))
        sums.append(wide(logits).logsumexp(-1))
    bias = 0 if head.bias is None else head.bias[answer_ids]
    answers = anatomy.scaled((normed * head.weight[answer_ids]).sum(-1) + bias)
    return wide(answers) - torch.stack(sums).logsumexp(0)


def _is_plain(head: nn.Module) -> bool:
    """A matrix and perhaps a bias, with nothing hooked onto it."""
    own = vars(head)
    replaced = "forward" in own and type(own["forward"]).__module__.partition(".")[0] != "nnsight"
    moved = "_hf_hook" in own or replaced  # nnsight's own forward adds nothing
    hooked = moved or head._forward_hooks or head._forward_pre_hooks
    return type(head) is nn.Linear and not hooked and head.weight.device.type == "cpu"
