"""Assignment to arms: monotone, keyed, in proportion."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.rollout.pure.assignment import choose_arm, may_duel, unit


@given(st.binary(min_size=1, max_size=32), st.text(max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_a_user_on_the_canary_stays_there_when_the_weight_rises(
    salt: bytes, user: str, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    if choose_arm(salt, user, low) == "canary":
        assert choose_arm(salt, user, high) == "canary"


def test_the_share_of_users_follows_the_weight() -> None:
    share = sum(choose_arm(b"salt", f"user{n}", 0.25) == "canary" for n in range(4000)) / 4000
    assert abs(share - 0.25) < 0.03


def test_another_salt_exposes_other_users() -> None:
    both = sum(unit(b"one", f"u{n}") < 0.5 and unit(b"two", f"u{n}") < 0.5 for n in range(4000)) / 4000
    assert abs(both - 0.25) < 0.03


def test_nobody_is_on_the_canary_at_weight_zero_and_everybody_at_one() -> None:
    assert {choose_arm(b"s", f"u{n}", 0.0) for n in range(50)} == {"stable"}
    assert {choose_arm(b"s", f"u{n}", 1.0) for n in range(50)} == {"canary"}


def test_duels_follow_the_larger_of_weight_and_duel_share() -> None:
    user = "u1"
    u = unit(b"s", user)
    assert may_duel(b"s", user, 0.0, min(1.0, u + 1e-9))
    assert may_duel(b"s", user, min(1.0, u + 1e-9), 0.0)
    assert not may_duel(b"s", user, u, u)
