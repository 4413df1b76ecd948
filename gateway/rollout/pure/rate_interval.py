"""The interval of a rate, valid however often one looks. Pure.

The rates that a test by Beta-mixed likelihood ratios does not reject (Robbins 1970; Howard et al., arXiv 1810.08240, 3.3).
"""

import math
from collections.abc import Callable

_PRIOR = 0.5  # Beta(1/2, 1/2): Jeffreys'


def bound_rate(num_users: int, num_events: int, alpha: float) -> tuple[float, float]:
    """Lower and upper end at 1 - alpha; (0, 1) without users. One observation a user."""
    if num_users == 0:
        return 0.0, 1.0
    events, others = num_events, num_users - num_events
    mixed = _log_beta(_PRIOR + events, _PRIOR + others) - _log_beta(_PRIOR, _PRIOR)
    line = -math.log(alpha)

    def is_rejected(rate: float) -> bool:
        return mixed - events * math.log(rate) - others * math.log1p(-rate) >= line

    seen = events / num_users
    low = 0.0 if events == 0 else _bisect(0.0, seen, is_rejected)
    high = 1.0 if others == 0 else _bisect(1.0, seen, is_rejected)
    return low, high


def _bisect(outside: float, inside: float, is_rejected: Callable[[float], bool]) -> float:
    """Between a rejected rate and one that is not; log E is convex in the rate, so there is one border."""
    for _ in range(40):
        middle = (outside + inside) / 2
        if is_rejected(middle):
            outside = middle
        else:
            inside = middle
    return outside


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
