"""A limit on requests and cost that holds under concurrency and over restarts."""

from __future__ import annotations

import math
import threading

from opengcl.curate.errors import BudgetReachedError
from opengcl.curate.journal import Spent


class Budget:
    """What may still be sent.

    A request is allowed only if the most that it can cost fits beside everything spent and everything under way;
    when its true cost is known, the rest is given back.

    Args:
        requests: Requests in all, over all runs in a work folder.
        cost: Cost in all, in the currency of the prices; None for no limit.
        spent: What was used before.
    """

    def __init__(self, requests: int, cost: float | None, spent: Spent) -> None:
        self._requests = requests
        self._cost = math.inf if cost is None else cost
        self._spent = Spent(spent.requests, spent.cost)
        self._lock = threading.Lock()

    @property
    def spent(self) -> Spent:
        """Requests and cost so far, those under way included at their most."""
        with self._lock:
            return Spent(self._spent.requests, self._spent.cost)

    def reserve(self, most: float) -> None:
        """Takes one request of this cost out of the budget.

        Raises:
            BudgetReachedError: If it does not fit.
        """
        with self._lock:
            if self._spent.requests + 1 > self._requests:
                raise BudgetReachedError(
                    f"the budget of {self._requests:,} requests is used up. What was paid for is kept: raise "
                    "budget.requests and run again, or make a data set of what there is with --rescore"
                )
            if self._spent.cost + most > self._cost:
                raise BudgetReachedError(
                    f"{self._spent.cost:.4f} of the budget of {self._cost:g} is spent, and the next request can cost "
                    f"{most:.4f}. What was paid for is kept: raise budget.cost and run again, or make a data set of "
                    "what there is with --rescore"
                )
            self._spent.requests += 1
            self._spent.cost += most

    def settle(self, most: float, cost: float) -> None:
        """Replaces the reserved cost of a request by its true one."""
        with self._lock:
            self._spent.cost += cost - most
