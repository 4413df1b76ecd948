"""Reference log-probabilities are computed once, kept, and never taken for another reference's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trainer.tiny import TEXTS, build_tiny_backbone, encode
from trainer.learn import references
from trainer.learn.isolation import NotFinite, RoundAborted
from trainer.learn.references import References
from trainer.model.logprobs import score_answers
from trainer.text.transcript import EncodedAnswer


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many answers each call computed."""
    counts: list[int] = []

    def count(backbone, answers, adapter):  # type: ignore[no-untyped-def]
        counts.append(len(answers))
        return score_answers(backbone, answers, adapter)

    monkeypatch.setattr(references, "score_answers", count)
    return counts


def test_what_is_known_is_not_computed_again_not_even_by_another_process(tmp_path: Path, scored: list[int]) -> None:
    backbone = build_tiny_backbone()
    answers = [encode(backbone, text) for text in TEXTS]
    expected = score_answers(backbone, answers, None)[0]
    got = References(tmp_path, "b").get(backbone, [*answers[:2], answers[0]], None, "base")
    assert torch.equal(got, expected[[0, 1, 0]])
    again = References(tmp_path, "b").get(backbone, answers, None, "base")
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)
    assert torch.equal(References(tmp_path, "b").get(backbone, answers, None, "base"), again)
    assert scored == [2, 2]


def test_what_is_there_before_a_stop_is_kept_and_the_share_is_heard(
    tmp_path: Path, scored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "BLOCK", 1)
    backbone = build_tiny_backbone()
    answers = [encode(backbone, text) for text in TEXTS[:4]]
    heard: list[float] = []

    def hear(share: float) -> None:
        heard.append(share)
        if len(heard) == 3:
            raise RoundAborted

    with pytest.raises(RoundAborted):
        References(tmp_path, "b").get(backbone, answers, None, "base", hear)
    References(tmp_path, "b").get(backbone, answers, None, "base", heard.append)
    assert heard == [0, 0.25, 0.5, 0, 0.5] and scored == [1, 1, 1, 1]


def test_another_base_reference_dtype_or_boundary_is_another_figure(tmp_path: Path, scored: list[int]) -> None:
    backbone = build_tiny_backbone()
    answer = encode(backbone, TEXTS[1])
    moved = EncodedAnswer((*answer.prompt, answer.answer[0]), answer.answer[1:])
    References(tmp_path, "b").get(backbone, [answer], None, "base")
    References(tmp_path, "b").get(backbone, [answer], "stable", "c-1")
    References(tmp_path, "other").get(backbone, [answer], None, "base")
    References(tmp_path, "b").get(backbone, [moved], None, "base")
    References(tmp_path, "b").get(build_tiny_backbone(dtype="bfloat16"), [answer], None, "base")
    assert scored == [1] * 5


def test_a_kill_costs_one_block_and_a_damaged_file_nothing_but_time(
    tmp_path: Path, scored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = build_tiny_backbone()
    answers = [encode(backbone, text) for text in TEXTS]
    monkeypatch.setattr(references, "BLOCK", 2)
    got = References(tmp_path, "b").get(backbone, answers, None, "base")
    assert scored == [2, 2]
    [path] = tmp_path.iterdir()
    path.write_bytes(b"{}")
    assert torch.equal(References(tmp_path, "b").get(backbone, answers, None, "base"), got)


def test_what_is_not_finite_is_not_kept(tmp_path: Path) -> None:
    backbone = build_tiny_backbone()
    with torch.no_grad():
        for parameter in backbone.adapters.parameters_of("stable").values():
            parameter.fill_(float("nan"))
    with pytest.raises(NotFinite):
        References(tmp_path, "b").get(backbone, [encode(backbone, TEXTS[1])], "stable", "c-1")
    assert list(tmp_path.iterdir()) == []
