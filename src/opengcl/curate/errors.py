"""What can go wrong when data are bought: each error says whether the rest of the work can go on."""

from __future__ import annotations


class CurateError(ValueError):
    """The work cannot go on; what was paid for is kept, and the same command goes on from there."""


class BudgetReachedError(CurateError):
    """The next request could cost more than the budget allows."""


class RefusedError(CurateError):
    """A service refuses every request: a wrong key, a wrong address, a model that is not there."""


class CallError(ValueError):
    """One request failed for good; others may go on."""


class NotKeptError(CallError):
    """A reply that is not in the journal, while nobody may be asked."""


class StoppedError(CallError):
    """A request that was not begun, because the work ended early."""


class ReplyError(ValueError):
    """A reply that came, and cannot be used."""
