"""KnowledgeEditor's network: it reads the change in words and gates the gradient by a product of rank one.

h = tanh(P [last states of a BiLSTM over "{pred} >> {new} || {prompt}"])
ca, ra, cb, rb, eta = F_W(h)                                F_W two weight-normalised layers of each matrix
A = softmax(ra) ca^T,  B = softmax(rb) cb^T
D_W = s_max sigmoid(eta) (A * grad_W L + B)                 * entry by entry; the sign is learned

A * sum_t delta_t x_t^T = sum_t (softmax(ra) * delta_t) (ca * x_t)^T, so D_W is a sum of T + 1 products of vectors
and never a matrix (De Cao et al. 2021, arXiv:2104.08164, sec. 3.2). The words are embedded by the model's own
embedding, shared and frozen: a trainable copy would outweigh the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence

from editing.meta_learning.factors import Factors
from editing.meta_learning.hypernetwork import Asked, Hypernetwork
from editing.meta_learning.matrices import Sizes
from editing.meta_learning.side_terms import SideTerm
from tracer.model import LanguageModel
from tracer.model.tokens import encode, right_padded


class KeNetwork(Hypernetwork):
    """All of it, for the matrices of one model.

    Args:
        sizes: of the matrices, by weight name.
        embedding_size: of the model's tokens.
        hidden: of the LSTM, each way.
        condition: width of h.
        inner: width between the two layers of F_W.
        largest: s_max.
        smoothing: of the labels.
        answer_tokens: of the present answer in the words that are read.
        dtype: of the network.
        seed: of its first values.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        embedding_size: int,
        hidden: int,
        condition: int,
        inner: int,
        largest: float,
        smoothing: float,
        answer_tokens: int,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        super().__init__(sizes)
        self.embedding_size = embedding_size
        self.largest, self.smoothing, self.answer_tokens = largest, smoothing, answer_tokens
        with torch.random.fork_rng(devices=[]):  # layers draw from the global generator
            torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed every GPU too
            self.reader = nn.LSTM(embedding_size, hidden, batch_first=True, bidirectional=True, dtype=dtype)
            self.project = nn.Linear(2 * hidden, condition, dtype=dtype)
            self.gates = nn.ModuleList(
                nn.Sequential(
                    weight_norm(nn.Linear(condition, inner, dtype=dtype)),
                    nn.Tanh(),
                    weight_norm(nn.Linear(inner, 2 * (n + m) + 1, dtype=dtype)),
                )
                for n, m in sizes.values()
            )

    def terms(
        self, model: LanguageModel, factors: Mapping[str, Factors], asked: Sequence[Asked]
    ) -> dict[str, SideTerm]:
        """The changes, from the gradient and from what is asked in words."""
        read = self.condition(model, asked)
        found = {}
        for gate, (weight, (n, m)) in zip(self.gates, self.sizes.items(), strict=True):
            parts = gate(read)[:, None].split((n, m, n, m, 1), dim=-1)
            found[weight] = self._term(factors[weight], *parts)
        return found

    def condition(self, model: LanguageModel, asked: Sequence[Asked]) -> Tensor:
        """What was read of each edit: h, [row, condition]."""
        texts = [f"{one.predicted} >> {one.new} || {one.prompt}" for one in asked]
        ids, mask = right_padded([encode(model.tokenizer, text).ids for text in texts], device=model.device)
        with torch.no_grad():
            embedded = model.anatomy.embedding(ids).to(self.project.weight)
        lengths = mask.sum(1).cpu()
        # Packed by length: what a text is padded with is never read.
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        _, (last, _) = self.reader(packed)
        return self.project(last.transpose(0, 1).flatten(1)).tanh()

    def _term(self, factors: Factors, ca: Tensor, ra: Tensor, cb: Tensor, rb: Tensor, eta: Tensor) -> SideTerm:
        step = self.largest * eta.sigmoid()
        # Padding needs no care: its delta is zero. Of a gate [row, 1, width] each token gets the same.
        out = torch.cat((ra.softmax(-1) * factors.deltas, rb.softmax(-1)), dim=1)
        into = torch.cat((ca * factors.inputs, cb), dim=1)
        return SideTerm(step * out, into)
