"""The paths of an engine that apps may ask for, and what is refused on each before it reaches one.

Whether an engine has them all depends on its model: what it does not have, it answers with 404.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.errors import bad_request
from gateway.serving.body import EngineRequest

_NO_PROMPT_LOGPROBS = "Log-probabilities of the prompt are not given."


@dataclass(frozen=True)
class Endpoint:
    """One path. `may_pair`: its answers can be shown two at a time; `generates`: they are texts, which are
    recorded for signals, and observed for the guardrails."""

    path: bytes
    generates: bool = False
    may_pair: bool = False
    is_stateless: bool = False

    def refuse(self, request: EngineRequest, *, prompt_logprobs: bool) -> None:
        """Raises ApiError 400 for what only a server that keeps state could answer, and for `prompt_logprobs` if it says so.

        vLLM answers `echo` with the prompt's log-probabilities too: of chats always, of completions with `logprobs`.
        """
        if prompt_logprobs:
            if request.prompt_logprobs is not None:
                raise bad_request(_NO_PROMPT_LOGPROBS, param="prompt_logprobs")
            if request.echo and (self.may_pair or request.logprobs is not None):
                raise bad_request(_NO_PROMPT_LOGPROBS, param="echo")
        if not self.is_stateless:
            return
        if request.previous_response_id is not None:
            raise bad_request("Responses are not kept: send the whole input.", param="previous_response_id")
        if request.background:
            raise bad_request("Responses are not kept: ask in the foreground.", param="background")


CHAT = Endpoint(b"/v1/chat/completions", generates=True, may_pair=True)
RESPONSES = Endpoint(b"/v1/responses", generates=True, is_stateless=True)
ENDPOINTS = {
    endpoint.path: endpoint
    for endpoint in (
        CHAT,
        Endpoint(b"/v1/completions", generates=True),
        Endpoint(b"/v1/embeddings"),
        RESPONSES,
        Endpoint(b"/tokenize"),
        Endpoint(b"/detokenize"),
    )
}
