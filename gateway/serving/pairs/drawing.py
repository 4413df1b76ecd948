"""Draws one candidate from an engine, whole or as a stream, and reads what came of it.

Token ids are asked for unless the app speaks of them itself, or an engine refuses them. How many are drawn at once, and which
of them are shown, is others' concern.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.errors import ApiError, UnreadableAnswer
from gateway.http.connection import EngineAnswer
from gateway.serving.attempts import ask_engine, hide_refusal, status_for_client
from gateway.serving.body import add_fields
from gateway.serving.engine_answers import EnginePiece, read_completion
from gateway.serving.exchange import Exchange
from gateway.serving.outcome import Outcome
from gateway.serving.pairs.candidates import CandidateDraft
from gateway.serving.pairs.interleave import CandidateStream
from gateway.serving.pairs.pair_request import PairRequest

logger = logging.getLogger("gateway.pairs")


@dataclass(frozen=True)
class Drawing:
    """How candidates of one request are drawn. drafts: all of them; said: what the request says of them."""

    exchange: Exchange
    said: PairRequest
    drafts: Sequence[CandidateDraft]

    async def fetch(self, draft: CandidateDraft) -> EngineAnswer:
        """A whole answer, or a refusal."""
        answer = await self._ask(draft, {"seed": draft.side.seed}, is_stream=False)
        draft.seconds_to_finish = time.monotonic() - self.exchange.started
        return answer

    async def open(self, draft: CandidateDraft) -> CandidateStream | EngineAnswer:
        """A stream whose first bytes are there, or a refusal."""
        given = self.exchange.request.stream_options
        options = {**(given or {}), "include_usage": True, "continuous_usage_stats": False}
        fields = {"seed": draft.side.seed, "stream_options": options}
        answer = await self._ask(draft, fields, is_stream=True)
        if answer.status != 200:
            return answer
        first_byte_s = time.monotonic() - self.exchange.started
        return CandidateStream(draft, answer, Outcome(draft.side.arm, first_byte_s=first_byte_s))

    async def _ask(self, draft: CandidateDraft, fields: dict[str, Any], *, is_stream: bool) -> EngineAnswer:
        exchange, checkpoint = self.exchange, draft.side.checkpoint
        others = [other for other in self.drafts if other is not draft]

        async def ask(fields: dict[str, Any]) -> EngineAnswer:
            body = add_fields(exchange.body_for(checkpoint), fields)
            return await ask_engine(
                exchange,
                checkpoint,
                body,
                is_stream=is_stream,
                suffix=f"-{draft.index}",
                has_other=lambda: any(other.is_there for other in others),
            )

        if self._adds_token_ids():
            answer = await ask({**fields, "return_token_ids": True})
            if answer.status == 400 and b"return_token_ids" in answer.body:
                if engine := exchange.context.deployment.engines.get(answer.engine):
                    engine.refuses_token_ids = True
                answer = await ask(fields)
        else:
            answer = await ask(fields)
        draft.is_there = answer.status == 200
        return answer

    def _adds_token_ids(self) -> bool:
        """Whether the engine is asked for token ids, which the app did not speak of."""
        context = self.exchange.context
        return (
            context.settings.gateway.pair_token_ids
            and not self.said.chooses_token_ids
            and not any(engine.refuses_token_ids for engine in context.deployment.engines.values())
        )


@dataclass(frozen=True, eq=False)
class Drawn:
    """What came of a candidate: its answer or error, how it ended, and what the client may see of it; None if it failed."""

    draft: CandidateDraft
    answer: EngineAnswer | BaseException
    outcome: Outcome
    completion: EnginePiece | None


def read_drawn(
    exchange: Exchange, said: PairRequest, draft: CandidateDraft, answer: EngineAnswer | BaseException
) -> Drawn:
    """Read a whole answer into its draft."""
    completion = _read_answer(exchange, said, draft, answer)
    return Drawn(draft, answer, find_outcome(draft, answer), completion)


def _read_answer(
    exchange: Exchange, said: PairRequest, draft: CandidateDraft, answer: EngineAnswer | BaseException
) -> EnginePiece | None:
    if isinstance(answer, BaseException) or answer.status != 200:
        return None
    try:
        completion = read_completion(answer.body)
    except UnreadableAnswer as error:
        logger.warning("an answer of a pair cannot be read: %s", error, extra=exchange.call.log_fields)
        return None
    draft.add(completion)
    draft.is_ended = True
    return completion if said.chooses_token_ids else completion.without_token_ids()


def find_outcome(draft: CandidateDraft, answer: EngineAnswer | BaseException) -> Outcome:
    """How an answer that is no stream ended; one that we cut short ourselves ended well."""
    outcome = Outcome(draft.side.arm, num_tokens=draft.completion_tokens)
    if isinstance(answer, EngineAnswer):
        outcome.code = 502 if answer.status == 200 and not draft.is_ended else status_for_client(answer.status)
        outcome.read_bytes(answer.body)
    elif not isinstance(answer, asyncio.CancelledError):
        outcome.code = answer.status if isinstance(answer, ApiError) else 503
    return outcome


def refuse_all(exchange: Exchange, lost: Sequence[tuple[CandidateDraft, EngineAnswer | BaseException]]) -> None:
    """No answer could be made: the engine's own refusal if there is one. Else raises."""
    for draft, answer in lost:
        if isinstance(answer, EngineAnswer) and answer.status != 200 and answer.status < 500:
            exchange.call.send(*hide_refusal(answer, draft.side.checkpoint, exchange.route.alias))
            return
    for _, answer in lost:
        if isinstance(answer, BaseException) and not isinstance(answer, asyncio.CancelledError):
            raise answer
    if any(isinstance(answer, EngineAnswer) and answer.status == 200 for _, answer in lost):
        raise ApiError(502, "The engine's answer cannot be read.", code="unreadable_answer")
    raise ApiError(503, "The engine failed to answer.", code="engine_error", headers={"retry-after": "1"})


def close_late(task: asyncio.Future[CandidateStream | EngineAnswer]) -> None:
    """Close the stream of a task that nobody waits for any more."""
    if not task.cancelled() and task.exception() is None and isinstance(stream := task.result(), CandidateStream):
        stream.answer.close()
