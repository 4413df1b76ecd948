"""Chats and answers as token ids: those that were recorded, else what the chat template makes of the text.

Promises never to make ids of half a row: what cannot be shown to the policy as it was shown to the engine raises UnusableRow
with a reason. How contents become text is in text/messages. Pure; tokenizers may raise what they like.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.text.messages import UnusableRow, flatten_messages, refuse_unspeakable
from trainer.text.pairs import DECISIVE, Answer, Pair, Prompt, PromptRow
from trainer.text.rejected import Reject

__all__ = ["EncodedAnswer", "EncodedPair", "Transcriber", "UnusableRow", "flatten_messages"]

MAX_UNSAID_TAIL = 32  # characters of an answer's ids behind its text: the stop string that ended it
REPLACEMENT = "\ufffd"  # what half a character decodes to, where an answer was cut


@dataclass(frozen=True)
class EncodedAnswer:
    """Token ids of a prompt and of one answer, the turn end included if the policy ended it."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of both."""
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class EncodedPair:
    """A pair with its token ids, the answers in the order in which they were shown."""

    pair: Pair
    prompt: tuple[int, ...]
    first: tuple[int, ...]
    second: tuple[int, ...]

    @property
    def decisive(self) -> bool:
        """Whether one of the answers was preferred."""
        return self.pair.is_decisive

    @property
    def chosen(self) -> tuple[int, ...]:
        """The preferred answer's ids. Raises ValueError where none was preferred."""
        return self._pick("first")

    @property
    def rejected(self) -> tuple[int, ...]:
        """The other answer's ids. Raises ValueError where none was preferred."""
        return self._pick("second")

    @property
    def length(self) -> int:
        """Tokens of the pair in one row: the prompt once, and both answers."""
        return len(self.prompt) + len(self.first) + len(self.second)

    @property
    def answers(self) -> tuple[EncodedAnswer, EncodedAnswer]:
        """Both answers, each with the prompt, in the order in which they were shown."""
        return EncodedAnswer(self.prompt, self.first), EncodedAnswer(self.prompt, self.second)

    def _pick(self, preferred: str) -> tuple[int, ...]:
        if self.pair.preferred not in DECISIVE:
            raise ValueError(f"{self.pair.event_id} is {self.pair.preferred}: none of its answers was preferred")
        return self.first if self.pair.preferred == preferred else self.second


class Transcriber:
    """Makes token ids with one tokenizer. turn_ends: the tokens that end an answer, the one to append first."""

    def __init__(self, tokenizer: Any, turn_ends: Sequence[int], max_tokens: int) -> None:
        if not turn_ends:
            raise ValueError("some token must end an answer")
        self._tokenizer = tokenizer
        self.turn_ends = tuple(turn_ends)
        self.max_tokens = max_tokens
        self._num_tokens = len(tokenizer)

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """The ids the engine read, up to where the answer begins. Raises UnusableRow."""
        messages = flatten_messages(prompt.messages)
        if prompt.ids is None:
            ids = self._tokenize(self._render(prompt, messages))
        else:
            ids = prompt.ids
            self._refuse_other_prompt(ids, messages)
        if len(ids) >= self.max_tokens:
            raise UnusableRow("too_long", f"the prompt is {len(ids):,} tokens, the limit {self.max_tokens:,}")
        return ids

    def encode_answer(self, prompt: Prompt, answer: Answer) -> EncodedAnswer:
        """Ids of prompt and answer. Raises UnusableRow."""
        return self._encode(prompt, self.encode_prompt(prompt), answer)

    def encode_pair(self, pair: Pair) -> EncodedPair:
        """Ids of both answers to their prompt. Raises UnusableRow if one of them is unusable."""
        ids = self.encode_prompt(pair.prompt)
        first, second = (self._encode(pair.prompt, ids, answer).answer for answer in (pair.first, pair.second))
        return EncodedPair(pair, ids, first, second)

    def encode_pairs(self, pairs: Iterable[Pair], part: str, reject: Reject) -> list[EncodedPair]:
        """The pairs that can be encoded, in their order; the others go to `reject` with the part they failed in."""
        encoded = []
        for pair in pairs:
            try:
                encoded.append(self.encode_pair(pair))
            except Exception as error:  # templates and tokenizers raise what they like
                reject(pair.event_id, part, error)
        return encoded

    def list_usable(self, rows: Iterable[PromptRow], part: str, reject: Reject) -> list[PromptRow]:
        """The prompts that can be encoded, in their order; the others go to `reject` with the part they failed in."""
        usable = []
        for row in rows:
            try:
                self.encode_prompt(row.prompt)
            except Exception as error:  # templates and tokenizers raise what they like
                reject(row.event_id, part, error)
            else:
                usable.append(row)
        return usable

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _encode(self, prompt: Prompt, prompt_ids: tuple[int, ...], answer: Answer) -> EncodedAnswer:
        refuse_unspeakable(answer.text, "the answer")
        if prompt.ids is not None and answer.ids is not None:
            ids = self._strip_turn_end(answer.ids)
            self._refuse_other_answer(ids, answer)
            is_ended = answer.is_finished and len(ids) < len(answer.ids)
            ids = answer.ids if is_ended else ids
        else:
            ids = self._tokenize(self._render_answer(prompt, answer))
            if not ids:
                raise UnusableRow("empty_answer", "the answer is empty")
            if answer.is_finished:
                ids = (*ids, self.turn_ends[0])
        if len(prompt_ids) + len(ids) > self.max_tokens:
            total = len(prompt_ids) + len(ids)
            raise UnusableRow("too_long", f"prompt and answer are {total:,} tokens, the limit {self.max_tokens:,}")
        return EncodedAnswer(prompt_ids, ids)

    def _strip_turn_end(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        return ids[:-1] if ids and ids[-1] in self.turn_ends else ids

    def _tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids)

    # Recorded ids

    def _refuse_unknown_ids(self, ids: Sequence[int], whose: str) -> None:
        if not ids:
            raise UnusableRow("ids_mismatch", f"{whose} has no recorded token ids")
        if min(ids) < 0 or max(ids) >= self._num_tokens:
            raise UnusableRow("ids_mismatch", f"{whose} has token ids of another vocabulary")

    def _refuse_other_prompt(self, ids: Sequence[int], messages: Sequence[dict[str, Any]]) -> None:
        """The last thing a user said must be in the prompt's ids: else they are another model's."""
        self._refuse_unknown_ids(ids, "the prompt")
        said = [message["content"] for message in messages if message["role"] == "user"]
        if said and _squeeze(said[-1]) not in _squeeze(str(self._tokenizer.decode(list(ids)))):
            raise UnusableRow("ids_mismatch", "the prompt's recorded token ids do not spell what was asked")

    def _refuse_other_answer(self, ids: Sequence[int], answer: Answer) -> None:
        """ids: without the turn end. Reasoning and tool calls stand in the ids beside the text."""
        if not ids:
            raise UnusableRow("empty_answer", "the answer is empty")
        self._refuse_unknown_ids(ids, "the answer")
        text = _squeeze(answer.text).rstrip(REPLACEMENT)
        for skip in (True, False):  # the app may have asked for special tokens in the text
            spelled = _squeeze(str(self._tokenizer.decode(list(ids), skip_special_tokens=skip))).rstrip(REPLACEMENT)
            if answer.reasoning or answer.tool_calls:
                if text in spelled and all(name in spelled for name in _list_called(answer)):
                    return
            elif spelled.startswith(text) and len(spelled) - len(text) <= MAX_UNSAID_TAIL:
                return
        raise UnusableRow("ids_mismatch", "the answer's recorded token ids do not spell its text")

    # The chat template

    def _apply(self, messages: Sequence[dict[str, Any]], prompt: Prompt, *, tools: Any, generate: bool) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages),
                    tools=tools,
                    add_generation_prompt=generate,
                    tokenize=False,
                    **(prompt.template_kwargs or {}),
                )
            )
        except Exception as error:  # Jinja's, or what the template raises itself
            raise UnusableRow("template", f"the chat template refuses it: {error!s:.200}") from error

    def _render(self, prompt: Prompt, messages: Sequence[dict[str, Any]]) -> str:
        """The prompt's text. Raises UnusableRow if the template leaves out tools, tool calls or what somebody said."""
        text = self._apply(messages, prompt, tools=prompt.tools, generate=True)
        if prompt.tools and text == self._apply(messages, prompt, tools=None, generate=True):
            raise UnusableRow("tools_missing", "the chat template does not show the tools")
        _refuse_dropped(text, messages)
        return text

    def _render_answer(self, prompt: Prompt, answer: Answer) -> str:
        """The answer as the policy would write it, without its turn end."""
        if answer.reasoning and _squeeze(answer.reasoning) not in _squeeze(answer.text):
            raise UnusableRow(
                "reasoning_stripped", "the answer's reasoning was cut out, and its token ids are not known"
            )
        if not answer.tool_calls:
            return answer.text
        messages = flatten_messages(prompt.messages)
        turn = flatten_messages([{"role": "assistant", "content": answer.text, "tool_calls": answer.tool_calls}])
        before = self._apply(messages, prompt, tools=prompt.tools, generate=True)
        after = self._apply([*messages, *turn], prompt, tools=prompt.tools, generate=False)
        if not after.startswith(before):
            raise UnusableRow("template", "the chat template shows an answer's tool calls in another place")
        _refuse_dropped(after, turn)
        written = after[len(before) :].rstrip()
        for end in self.turn_ends:
            written = written.removesuffix(str(self._tokenizer.convert_ids_to_tokens(end))).rstrip()
        return written


def _list_called(answer: Answer) -> list[str]:
    """The names of the tools that it calls."""
    [turn] = flatten_messages([{"role": "assistant", "content": "", "tool_calls": answer.tool_calls}])
    return [_squeeze(str(call["function"].get("name", ""))) for call in turn.get("tool_calls", ())]


def _squeeze(text: str) -> str:
    """Text without white space, in one Unicode form: tokenizers and templates change both."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def _refuse_dropped(text: str, messages: Sequence[dict[str, Any]]) -> None:
    """Whatever was said must be in the rendered text; thoughts before `</think>` of earlier turns need not."""
    squeezed = _squeeze(text)
    for message in messages:
        said = _squeeze(message["content"].rpartition("</think>")[2])
        if said not in squeezed and _squeeze(json.dumps(said, ensure_ascii=False)[1:-1]) not in squeezed:
            raise UnusableRow("content_part", f"the chat template leaves out what the {message['role']} said")
        for call in message.get("tool_calls", ()):
            if _squeeze(str(call["function"].get("name", ""))) not in squeezed:
                raise UnusableRow("tools_missing", "the chat template leaves out tool calls")
