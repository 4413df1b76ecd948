"""What the swap bench counts as right, truncated and wrong, and its figures."""

from bench.swap.__main__ import describe, quantile
from bench.swap.load import Tally
from bench.swap.sentences import SENTENCES, judge, sentence_of
from bench.swap.swaps import Timing


def test_every_answer_tells_who_gave_it() -> None:
    assert sentence_of("c-000005-abcdef012345") == SENTENCES[1]
    assert judge(SENTENCES[1] + " ", "c-000005-abc") == "right"
    assert judge(SENTENCES[2], "c-000005-abc") == "wrong"
    assert judge(SENTENCES[1][:30], "c-000005-abc") == "truncated"
    assert judge("", "c-000005-abc") == "truncated"


def test_an_answer_that_another_checkpoint_ended_is_wrong() -> None:
    words = [sentence.split() for sentence in SENTENCES]
    for first in range(len(words)):
        for second in range(len(words)):
            if first != second:
                assert words[first][0] != words[second][0] and words[first][-1] != words[second][-1]
                half = " ".join(words[first][:4] + words[second][4:])
                assert judge(half, f"c-{first:06d}-abc") == judge(half, f"c-{second:06d}-abc") == "wrong"


def test_figures_are_in_milliseconds_and_counts() -> None:
    tally = Tally(failed=1, truncated=2, wrong_checkpoint=3, longest_gap_s=0.25)
    tally.requests.update({"single": 6, "pair": 4})
    figures = describe(tally, [Timing(i / 1000, 0.5) for i in range(1, 101)], 5.0, 8, 0)
    assert (figures["swaps"], figures["requests"], figures["requests_per_s"]) == (100, 10, 2.0)
    assert (figures["failed"], figures["truncated"], figures["wrong_checkpoint"]) == (1, 2, 3)
    assert (figures["swap_p50_ms"], figures["swap_p99_ms"], figures["longest_gap_ms"]) == (50.5, 100.0, 250.0)


def test_a_quantile_is_one_of_the_values() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([5.0], 0.99) == 5.0
