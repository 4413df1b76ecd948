"""The two answers of a comparison as they were drawn, and the record and token made of them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec.structs import replace

from feedback.events import Asked, Candidate, Comparison, Position
from feedback.tool_calls import append_tool_calls
from gateway.access.tokens import ComparisonToken, sign_token, text_digest
from gateway.serving.engine_answers import EnginePiece, Function
from gateway.serving.exchange import Exchange
from gateway.serving.pairs.asking import Ask, Side, is_last_asked_first, is_swapped
from gateway.serving.pairs.pair_request import PairRequest
from gateway.serving.recording.comparison_lookup import name_pair

_SAYS_NOTHING = PairRequest()


@dataclass
class CandidateDraft:
    """One answer while it is made; `index` is its place in what the client sees."""

    side: Side
    index: int
    text: str = ""
    tool_calls: dict[int, Function] = field(default_factory=dict)
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_chunks: int = 0  # of a stream, so far
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    reasoning: str | None = None
    is_there: bool = False  # whole, or its stream's first bytes
    is_ended: bool = False
    has_failed: bool = False
    seconds_to_finish: float | None = None

    @property
    def content(self) -> str:
        """The text by which two answers are told apart: what is said, then the tools that are called."""
        return append_tool_calls(self.text, self.list_tool_calls())

    def list_tool_calls(self) -> list[dict[str, Any]]:
        """The tools that are called, as OpenAI writes them, without ids."""
        return [{"type": "function", "function": self.tool_calls[key]} for key in sorted(self.tool_calls)]

    def add(self, piece: EnginePiece) -> None:
        """Take what a whole answer, or one more chunk of a stream, says."""
        self.text += piece.message.content or ""
        for rank, call in enumerate(piece.message.tool_calls or ()):
            known = self.tool_calls.setdefault(rank if call.index is None else call.index, Function("", ""))
            given = call.function or Function()
            known.name = (known.name or "") + (given.name or "")
            known.arguments = (known.arguments or "") + (given.arguments or "")
        if (reasoning := piece.message.read_reasoning()) is not None:
            self.reasoning = (self.reasoning or "") + reasoning
        if piece.prompt_token_ids is not None:
            self.prompt_token_ids = piece.prompt_token_ids
        if piece.token_ids is not None:
            self.token_ids = (self.token_ids or []) + piece.token_ids
        self.finish_reason = piece.finish_reason or self.finish_reason
        if piece.usage is not None:
            self.prompt_tokens = piece.usage.prompt_tokens or 0
            self.completion_tokens = piece.usage.completion_tokens or 0

    def read_token_ids(self) -> list[int] | None:
        """The answer's ids; None unless there is one for every token that the engine counted."""
        return self.token_ids if self.token_ids and len(self.token_ids) == self.completion_tokens else None

    def read_prompt_token_ids(self) -> list[int] | None:
        """The prompt's ids, in the same way."""
        ids = self.prompt_token_ids
        return ids if ids and len(ids) == self.prompt_tokens else None


@dataclass(frozen=True)
class Pair:
    """Two answers on their way: the ids the client will see, the drafts in display order and as engines are asked.

    said: what the request says that only the record needs. unshown: further candidates, which were drawn and count as used. One
    draft alone stands twice where nothing else succeeded: nobody is asked about it.
    """

    comparison_id: str
    completion_id: str
    created: int
    drafts: tuple[CandidateDraft, CandidateDraft]
    asked: tuple[CandidateDraft, CandidateDraft]
    said: PairRequest = _SAYS_NOTHING
    unshown: tuple[CandidateDraft, ...] = ()

    @property
    def is_duel(self) -> bool:
        """Whether one is the canary's and one is stable's."""
        return self.drafts[0].side.arm != self.drafts[1].side.arm


def draft_pair(sides: tuple[Side, Side], order_key: bytes, said: PairRequest = _SAYS_NOTHING) -> Pair:
    """Two candidates to be made, with ids, and the order that follows from them."""
    return join_drafts([CandidateDraft(side, 0) for side in sides], order_key, said)


def join_drafts(
    candidates: Sequence[CandidateDraft],
    order_key: bytes,
    said: PairRequest = _SAYS_NOTHING,
    unshown: Sequence[CandidateDraft] = (),
) -> Pair:
    """Give two candidates, or the one there is, their ids and their places, which follow from the ids."""
    comparison_id, completion_id = name_pair(uuid.uuid4().hex)
    one, other = candidates[0], candidates[-1]
    first, second = (other, one) if is_swapped(comparison_id, order_key) else (one, other)
    second.index, first.index = 1, 0
    drafts = (first, second)
    asked = (second, first) if is_last_asked_first(comparison_id, order_key) else drafts
    return Pair(comparison_id, completion_id, int(time.time()), drafts, asked, said, tuple(unshown))


def build_comparison(exchange: Exchange, ask: Ask, pair: Pair, engine: str, now: float) -> Comparison:
    """The record of what was shown."""
    first, second = pair.drafts
    asked: Asked = "duel" if pair.is_duel else "random" if ask.reason == "random" else "explore"
    return Comparison(
        id=pair.comparison_id,
        policy=exchange.context.settings.policy,
        app=exchange.identity.app,
        user=exchange.who.user,
        conversation=exchange.who.conversation,
        messages=exchange.request.read_storable_messages() or [],
        first=_candidate(exchange, pair, first),
        second=_candidate(exchange, pair, second),
        asked=asked,
        propensity=ask.propensity,
        engine=engine,
        rollout=exchange.view.rollout,
        weight=exchange.view.trial_weight,
        created_at=now,
        expires_at=now + exchange.context.settings.gateway.comparison_ttl_s,
        tags=pair.said.tags,
        finished_first=find_first_to_finish(first.seconds_to_finish, second.seconds_to_finish),
        prompt_token_ids=_agree(first.read_prompt_token_ids(), second.read_prompt_token_ids()),
        tools=pair.said.tools,
        chat_template_kwargs=pair.said.chat_template_kwargs,
        share=ask.share,
    )


def drop_token_ids(comparison: Comparison) -> Comparison:
    """The same without what only saves learning from guessing."""
    first, second = (replace(each, token_ids=None) for each in (comparison.first, comparison.second))
    return replace(comparison, prompt_token_ids=None, first=first, second=second)


def _agree(one: list[int] | None, other: list[int] | None) -> list[int] | None:
    """What both engines read, if it is the same."""
    return one if one == other else None


def find_first_to_finish(first_s: float | None, second_s: float | None) -> Position | None:
    """Which of two answers was complete before the other; None if that is not known, or neither was."""
    if first_s is None or second_s is None or first_s == second_s:
        return None
    return "first" if first_s < second_s else "second"


async def offer_comparison(exchange: Exchange, ask: Ask, pair: Pair, engine: str) -> dict[str, Any] | None:
    """Record the comparison; what the client needs to answer it, or None if it must not be asked.

    None if the answers are the same, too long for an event, or the row did not commit in time; all are counted.
    """
    context = exchange.context
    first, second = pair.drafts
    if first.content == second.content:
        count_unasked(exchange, "identical")
        return None
    comparison = build_comparison(exchange, ask, pair, engine, time.time())
    max_bytes = context.settings.gateway.max_event_bytes
    if len(msgspec.json.encode(comparison)) > max_bytes:
        comparison = drop_token_ids(comparison)
        if len(msgspec.json.encode(comparison)) > max_bytes:  # longer than was foreseen
            count_unasked(exchange, "size")
            return None
    wait_s = context.settings.gateway.comparison_commit_ms / 1000
    if not await context.recorder.record(comparison, wait_s, exchange.call.log_fields):
        count_unasked(exchange, "database" if context.recorder.is_failing else "late")
        return None
    exchange.is_asked = True
    context.asks.note_shown(comparison.id, time.time())
    context.deployment.counters.comparisons += 1
    context.metrics.comparisons.labels(comparison.asked).inc()
    if pair.is_duel:
        _measure(exchange, pair)
    else:
        context.metrics.asks.labels(ask.share).inc()
        context.scorer.num_by_share[ask.share] += 1
    if exchange.call.record is not None:
        exchange.call.record.comparison = comparison.id
    expires_at = int(comparison.expires_at)
    token = sign_token(
        ComparisonToken(
            comparison=comparison.id,
            app=comparison.app,
            chooser=comparison.user,
            order=(comparison.first.completion_id, comparison.second.completion_id),
            digests=(text_digest(first.content), text_digest(second.content)),
            expires_at=expires_at,
        ),
        context.secrets,
    )
    return {"id": comparison.id, "token": token, "expires_at": expires_at}


def _measure(exchange: Exchange, pair: Pair) -> None:
    """Have the canary's answer compared with what stable would have said."""
    draft = next(draft for draft in pair.drafts if exchange.view.trial_arm(draft.side.arm) == "canary")
    is_alone = exchange.context.settings.rollout.evidence_unit == "comparison"
    user = pair.comparison_id if is_alone and exchange.who.user else exchange.who.user
    exchange.context.divergences.offer(exchange.view, user, draft.read_prompt_token_ids(), draft.read_token_ids())


def count_unasked(exchange: Exchange, reason: str) -> None:
    """Two answers were made, but nobody can be asked about them."""
    exchange.context.deployment.counters.not_paired[reason] += 1
    exchange.context.metrics.count_not_paired(reason)


def record_alone(exchange: Exchange, pair: Pair, draft: CandidateDraft) -> None:
    """Have an answer that nobody is asked about recorded as a single one, which signals name by the pair's id."""
    if not exchange.is_recorded:
        return
    context, who, side = exchange.context, exchange.who, draft.side
    message: dict[str, Any] = {"role": "assistant", "content": draft.text}
    if draft.tool_calls:
        message["tool_calls"] = draft.list_tool_calls()
    if draft.reasoning is not None:
        message["reasoning"] = draft.reasoning
    choice = {"index": 0, "message": message, "finish_reason": draft.finish_reason}
    context.completions.note(
        (
            time.time(),
            pair.completion_id,
            exchange.identity.app,
            who.user,
            who.named_conversation,
            context.settings.policy,
            side.checkpoint,
            side.arm,
            exchange.body,
            msgspec.json.encode({"id": pair.completion_id, "choices": [choice]}),
            False,
        )
    )


def merge_usage(drafts: list[CandidateDraft]) -> dict[str, int]:
    """Usage as OpenAI counts n=2: the prompt once, completions summed."""
    prompt = max((draft.prompt_tokens for draft in drafts), default=0)
    completion = sum(draft.completion_tokens for draft in drafts)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _candidate(exchange: Exchange, pair: Pair, draft: CandidateDraft) -> Candidate:
    return Candidate(
        completion_id=f"{pair.completion_id}-{draft.index}",
        text=draft.content,
        checkpoint=draft.side.checkpoint,
        digest=exchange.context.swap.digest(draft.side.checkpoint),
        arm=exchange.view.trial_arm(draft.side.arm),
        finish_reason=draft.finish_reason,
        prompt_tokens=draft.prompt_tokens,
        completion_tokens=draft.completion_tokens,
        seed=draft.side.seed,
        temperature=exchange.request.temperature,
        max_tokens=exchange.request.token_limit,
        seconds_to_finish=draft.seconds_to_finish,
        token_ids=draft.read_token_ids(),
        reasoning=draft.reasoning,
        tool_calls=draft.list_tool_calls() or None,
        top_p=pair.said.top_p,
    )
