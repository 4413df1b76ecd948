"""Prompts that a round samples on: recent, each once, of all tags alike, and none that a frozen set asks."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from feedback.inbox import preferences
from tests.trainer.run.arrivals import choose, send
from trainer.judge.frozen import digest_prompt
from trainer.run.rows.prompts import draw_prompts
from trainer.text.pairs import PromptRow


def asked(rows: Sequence[PromptRow]) -> list[str]:
    return [row.prompt.messages[0]["content"] for row in rows]


def test_prompts_are_recent_deduplicated_and_even_over_tags(connection: sa.Connection) -> None:
    for number in range(12):
        tags = {"domain": "law" if number == 0 else "chat"}
        send(connection, choose(number // 2, split="heldout", tags=tags))
    drawn = draw_prompts(connection, "default", 3, split="heldout")
    assert asked(drawn) == ["question 5", "question 4", "question 3"]
    assert [row.event_id for row in drawn] == ["event-11", "event-9", "event-7"]
    assert draw_prompts(connection, "default", 4, split="train") == []


def test_every_combination_of_tags_has_its_turn(connection: sa.Connection) -> None:
    for number in range(6):
        send(connection, choose(number, tags={"domain": "law" if number < 2 else "chat"}))
    drawn = draw_prompts(connection, "default", 4, split="train")
    assert asked(drawn) == ["question 5", "question 1", "question 4", "question 0"]


def test_a_prompt_of_a_frozen_set_is_not_drawn(connection: sa.Connection) -> None:
    for number in range(3):
        send(connection, choose(number))
    frozen = {digest_prompt([{"role": "user", "content": "Question 2?"}])}
    assert asked(draw_prompts(connection, "default", 2, split="train", frozen=frozen)) == ["question 1", "question 0"]


def test_what_cannot_be_read_is_rejected_and_left_out(connection: sa.Connection) -> None:
    send(connection, choose(0), choose(1))
    connection.execute(sa.update(preferences).where(preferences.c.id == 2).values(choice_json=b"{"))
    rejected: list[str] = []
    drawn = draw_prompts(
        connection, "default", 2, split="train", reject=lambda event_id, part, error: rejected.append(event_id)
    )
    assert (asked(drawn), rejected) == (["question 0"], ["event-1"])
