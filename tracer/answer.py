"""The answer's probability, from the last block's output.

The unembedding of a large vocabulary is the widest product of a trace: it is done in blocks of
rows and of the vocabulary that stay in the cache, each with its own log-sum-exp.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tracer.anatomy import Anatomy

ROWS = 512
VOCABULARY = 4096


def probability(logits: Tensor, token_id: int | Tensor) -> Tensor:
    """p(token), [row], of one token or of one for each row: a softmax in each sample, means come after it."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return (_picked(wide, token_id) - wide.logsumexp(-1)).exp()


def answer_probability(anatomy: Anatomy, hidden: Tensor, answer_ids: Tensor) -> Tensor:
    """p(answer) from the last block's output `hidden` [row, d_model]; answers and result [row]."""
    chunks = zip(hidden.split(ROWS), answer_ids.split(ROWS), strict=True)
    return torch.cat([_of_rows(anatomy, rows, answers) for rows, answers in chunks])


def _of_rows(anatomy: Anatomy, hidden: Tensor, answer_ids: Tensor) -> Tensor:
    normed = anatomy.before_head(hidden)
    head = anatomy.head
    if hidden.device.type != "cpu" or not _is_plain(head):
        return probability(anatomy.logits(normed), answer_ids)
    assert isinstance(head, nn.Linear)
    sums = []
    for at in range(0, len(head.weight), VOCABULARY):
        block = slice(at, at + VOCABULARY)
        bias = None if head.bias is None else head.bias[block]
        logits = anatomy.scaled(nn.functional.linear(normed, head.weight[block], bias))
        sums.append((logits if logits.dtype == torch.float64 else logits.float()).logsumexp(-1))
    bias = 0 if head.bias is None else head.bias[answer_ids]
    answers = anatomy.scaled((normed * head.weight[answer_ids]).sum(-1) + bias)
    return (answers - torch.stack(sums).logsumexp(0)).exp()


def _is_plain(head: nn.Module) -> bool:
    """A matrix and perhaps a bias, with nothing hooked onto it."""
    own = vars(head)
    moved = "_hf_hook" in own or ("forward" in own and "__nnsight__" not in own)  # nnsight's own forward adds nothing
    hooked = moved or head._forward_hooks or head._forward_pre_hooks
    return type(head) is nn.Linear and not hooked and head.weight.device.type == "cpu"


def _picked(logits: Tensor, token_id: int | Tensor) -> Tensor:
    if isinstance(token_id, int):
        return logits[..., token_id]
    return logits.gather(-1, token_id[..., None])[..., 0]
