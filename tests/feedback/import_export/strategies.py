"""Any choice and any signal that the log can hold."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from feedback.events import PREFERRED, Candidate, Choice, Comparison, Outcome, Signal

words = st.text(max_size=8)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
times = st.floats(0, 4e9)
numbers = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(-(2**63), 2**63 - 1)
plain = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": words})
json = st.recursive(
    st.none() | st.booleans() | counts | numbers | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
    max_leaves=4,
)
parts = st.fixed_dictionaries({"role": words, "content": st.lists(st.fixed_dictionaries({"text": words}), max_size=2)})
messages: Any = st.lists(plain | parts | st.dictionaries(words, json, max_size=2), max_size=3)
tags = st.dictionaries(words, words, max_size=2)
objects = st.lists(st.dictionaries(words, json, max_size=2), max_size=2)


def maybe(strategy: Any) -> Any:
    return st.none() | strategy


arms = st.sampled_from(["stable", "canary"])
candidates = st.builds(
    Candidate,
    completion_id=words,
    text=words,
    checkpoint=words,
    digest=words,
    arm=arms,
    finish_reason=words,
    prompt_tokens=counts,
    completion_tokens=counts,
    seed=maybe(counts),
    temperature=maybe(numbers),
    max_tokens=maybe(counts),
    seconds_to_finish=maybe(numbers),
)
comparisons = st.builds(
    Comparison,
    id=names,
    policy=words,
    app=words,
    user=words,
    conversation=words,
    messages=messages,
    first=candidates,
    second=candidates,
    asked=st.sampled_from(["explore", "duel", "random", "gold"]),
    propensity=numbers,
    engine=words,
    rollout=maybe(words),
    weight=numbers,
    created_at=numbers,
    expires_at=numbers,
    finished_first=maybe(st.sampled_from(["first", "second"])),
    tags=tags,
)
choices = st.builds(
    Choice,
    comparison=comparisons,
    preferred=st.sampled_from(PREFERRED),
    strength=maybe(numbers),
    harmful=st.booleans(),
    seconds_to_decide=numbers,
    channel=words,
    chosen_at=numbers,
)
outcomes = st.builds(Outcome, name=maybe(words), success=maybe(st.booleans()), score=maybe(numbers))
signals = st.builds(
    Signal,
    completion_id=names,
    kind=words,
    value=json,
    messages=maybe(messages),
    answer=maybe(words),
    created_at=numbers,
    prompt=maybe(words),
    index=counts,
    is_recorded=st.booleans(),
    completed_at=maybe(numbers),
    policy=words,
    app=words,
    user=words,
    conversation=words,
    checkpoint=words,
    digest=words,
    arm=maybe(arms),
    thumb=maybe(st.sampled_from(["up", "down"])),
    rating=maybe(numbers),
    scale=maybe(counts),
    edited_text=maybe(words),
    outcome=maybe(outcomes),
    comment=maybe(words),
    tags=tags,
    tools=maybe(objects),
    chat_template_kwargs=maybe(st.dictionaries(words, json, max_size=2)),
    prompt_token_ids=maybe(st.lists(counts, max_size=2)),
    token_ids=maybe(st.lists(counts, max_size=2)),
    finish_reason=maybe(words),
    reasoning=maybe(words),
    tool_calls=maybe(objects),
)
