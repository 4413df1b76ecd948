"""Lines of `prefloop status`."""

from prefloop.status import AskingLine, describe_asking


def test_the_status_says_how_comparisons_were_picked_and_why_they_are_random() -> None:
    assert describe_asking(AskingLine("", {"telling": 2, "random": 1})) == "random 1, telling 2"
    problem = "asks are random because the scorer is away"
    assert describe_asking(AskingLine(problem, {"random": 3})) == f"random 3; {problem}"
    assert describe_asking(AskingLine(problem, {})) == f"nobody yet; {problem}"
