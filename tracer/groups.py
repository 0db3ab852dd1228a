"""Groups of tokens that are restored together: the whole subject, all tokens of a role, chosen positions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral

from tracer.errors import SiteError
from tracer.fact import ROLES, TokenizedFact, token_roles

Group = str | Sequence[int]
SUBJECT = "subject"


def group_name(group: Group) -> str:
    """What a group is called: "subject", a role, or "tokens 3, 5".

    Raises:
        SiteError: no group.
    """
    if isinstance(group, str):
        if group != SUBJECT and group not in ROLES:
            raise SiteError(
                f"There is no group {group!r}. Choose from {SUBJECT}, {', '.join(ROLES)}, or give positions."
            )
        return group
    tokens = whole_numbers(group)
    if not tokens or min(tokens) < 0:
        raise SiteError(f"{group!r} is not a group of tokens. Write e.g. (3, 5): positions in the prompt, from 0.")
    return f"token{'s' if len(tokens) > 1 else ''} {', '.join(map(str, sorted(set(tokens))))}"


def whole_numbers(given: object) -> tuple[int, ...]:
    """The numbers in a sequence or array, empty where it is none of whole numbers."""
    numbers = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else ()
    right = all(isinstance(number, Integral) and not isinstance(number, bool) for number in numbers)
    return tuple(map(int, numbers)) if right else ()


def group_tokens(fact: TokenizedFact, group: Group) -> tuple[int, ...]:
    """Its positions in this prompt; none, where no token has that role.

    Raises:
        SiteError: a position that the prompt does not have.
    """
    n_tokens = len(fact.token_ids)
    if group == SUBJECT:
        return tuple(range(*fact.subject_span))
    if isinstance(group, str):
        return tuple(n for n, role in enumerate(token_roles(n_tokens, fact.subject_span)) if role == group)
    if max(group) >= n_tokens:
        raise SiteError(
            f"The prompt has tokens 0 to {n_tokens - 1}, not {max(group)}. fact.preflight(model) shows them."
        )
    return tuple(sorted(set(group)))


def check_groups(groups: Sequence[Group]) -> None:
    """Raises SiteError for what is no sequence of groups."""
    if isinstance(groups, str):
        raise SiteError(f"groups is a sequence: write groups=({groups!r},).")
    names = [group_name(group) for group in groups]
    if len(set(names)) < len(names):
        raise SiteError(f"A group is given twice: {', '.join(names)}. Name each once.")
