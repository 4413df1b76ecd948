"""The figures of serving beside a round, by hand."""

import pytest

from bench.round_beside_traffic.figures import Serving, TooFewRequests, compare, describe_window, find_sampling
from bench.round_beside_traffic.load import Answered, read_last


def test_a_window_counts_what_began_and_ended_in_it() -> None:
    # 200 requests, one every 0.1 s, of 0.01 s to 2 s; 5 tokens each
    answered = [Answered(0.1 * n, 0.1 * n + 0.01 * (n + 1), 5) for n in range(200)]
    found = describe_window([*answered, Answered(-1.0, 0.5, 999), Answered(20.0, 99.0, 999)], (0.0, 30.0))
    assert found.num_requests == 200 and found.seconds == 30.0
    assert found.tokens_per_s == pytest.approx(1000 / 30)
    assert (found.p50_s, found.p99_s) == pytest.approx((1.01, 1.99))


def test_too_short_a_window_says_nothing() -> None:
    with pytest.raises(TooFewRequests, match="99 requests"):
        describe_window([Answered(0.0, 1.0, 1)] * 99, (0.0, 10.0))


def test_a_round_is_held_against_the_mean_of_both_idle_windows() -> None:
    first, second = Serving(200, 0.2, 0.4, 100.0, 30.0), Serving(200, 0.2, 0.6, 140.0, 30.0)
    assert compare(first, second, Serving(200, 0.3, 0.7, 90.0, 20.0)) == {
        "p99_during_over_idle": 1.4,
        "tokens_per_s_during_over_idle": 0.75,
        "a_a_p99_ratio": 1.5,
    }


def test_a_streamed_answer_has_its_usage_in_the_last_chunk() -> None:
    stream = 'data: {"usage": null}\n\ndata: {"usage": {"completion_tokens": 7}}\n\ndata: [DONE]\n\n'
    assert read_last(stream)["usage"]["completion_tokens"] == 7
    with pytest.raises(ValueError, match="without chunks"):
        read_last("data: [DONE]\n\n")


def test_the_newest_round_says_how_fast_it_sampled() -> None:
    rounds = [{"number": 2, "metrics": {"samples_cap": 3.14159, "loss": 1.0}}, {"number": 1, "metrics": {}}]
    assert find_sampling(rounds) == {"samples_cap": 3.142}
    assert find_sampling([]) == {}
