"""Draws recent prompts of people, for rounds that sample answers of their own and for judging.

One of a cluster of near-duplicates, evenly of all combinations of tags, none that a frozen set asks. Looks at a bounded
number of rows; samples nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import msgspec
import sqlalchemy as sa

from feedback.events import Choice
from feedback.inbox import preferences
from trainer.judge.frozen import digest_prompt
from trainer.run.rows.rows import PAIR_COLUMNS, is_usable
from trainer.text.pairs import PromptRow, Split, make_prompt
from trainer.text.rejected import Reject, log_rejected

ROWS_A_PROMPT = 8  # how many rows are looked at for one prompt that is taken


def draw_prompts(
    connection: sa.Connection,
    policy: str,
    limit: int,
    *,
    split: Split,
    frozen: AbstractSet[str] = frozenset(),
    reject: Reject = log_rejected,
) -> list[PromptRow]:
    """Up to `limit` recent prompts of one split, the newest first.

    frozen: prompts that are left out, as digest_prompt names them.
    """
    query = sa.select(*PAIR_COLUMNS, preferences.c.cluster).where(is_usable(policy, split))
    by_tags: dict[tuple[tuple[str, str], ...], list[PromptRow]] = {}
    seen: set[Any] = set()
    for row in connection.execute(query.order_by(preferences.c.id.desc()).limit(ROWS_A_PROMPT * limit)):
        name = row.cluster or row.prompt_key
        if name in seen:
            continue
        try:
            prompt = make_prompt(msgspec.json.decode(row.choice_json, type=Choice), row.prompt_key)
        except (ValueError, RecursionError) as error:
            reject(row.event_id, "load", error)
            continue
        if frozen and digest_prompt(prompt.messages) in frozen:
            continue  # another prompt of its cluster may be asked
        seen.add(name)
        by_tags.setdefault(tuple(sorted(prompt.tags.items())), []).append(PromptRow(row.event_id, prompt))
    return take_in_turns(list(by_tags.values()), limit)


def take_in_turns(groups: Sequence[Sequence[PromptRow]], limit: int) -> list[PromptRow]:
    """The first of each group, then the second of each that has one, up to `limit`."""
    longest = max((len(group) for group in groups), default=0)
    return [group[rank] for rank in range(longest) for group in groups if rank < len(group)][:limit]
