"""How every editor here begins and ends: requests are checked, what was trained is attached and scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from editing.attachment import Attachment
from editing.edit import Edit
from editing.request import EditRequest, check_requests, listed
from editing.scoring.scores import target_scores
from editing.shortfall import warn_unsaid
from editing.writing import writing
from tracer.model import LanguageModel


@contextmanager
def started(model: LanguageModel, requests: Sequence[EditRequest], settings: Mapping[str, Any]) -> Iterator[Edit]:
    """An edit of these requests, nothing attached yet; it is undone when the block fails.

    Raises:
        RequestError: no list of requests, or two that contradict each other.
    """
    requests = listed(requests)
    check_requests(model, requests)
    edit = Edit(tuple(requests), (), settings, model.fingerprint())
    with writing(edit, model):
        yield edit


def attach_and_score(
    edit: Edit,
    attachments: Sequence[Attachment],
    notes: Sequence[Mapping[str, Any]],
    *,
    advice: str,
    stacklevel: int = 5,
) -> None:
    """Attaches to the edit's model and fills in its diagnostics.

    Args:
        edit: started, with nothing attached yet.
        attachments: what it adds.
        notes: what else is known of each request.
        advice: what to try where answers stay improbable.
        stacklevel: of that warning, so that it points at the user's line.
    """
    model, pairs = edit.applied_to, [(request.prompt, request.new) for request in edit.requests]
    before = target_scores(model, pairs)
    edit.attachments = tuple(attachments)
    edit.attach_all()
    after = target_scores(model, pairs)
    edit.diagnostics = tuple(
        {
            "subject": request.subject,
            "new": request.new,
            "probability_before": old.prob,
            "probability_written": now.prob,
            **note,
        }
        for request, old, now, note in zip(edit.requests, before, after, notes, strict=True)
    )
    warn_unsaid(edit, advice=advice, stacklevel=stacklevel)
