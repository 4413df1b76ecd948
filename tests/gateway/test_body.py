"""The bytes of a request: which `model` is replaced, and nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.body import add_fields, find_model, parse_chat_request, replace_span, restore_model
from gateway.errors import ApiError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8) | st.just('"model":'),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.just("model"), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.text(max_size=6), JSON, max_size=4), st.booleans(), st.sampled_from([(",", ":"), (" , ", " : ")])
)
def test_only_the_top_level_model_is_replaced(
    extra: dict[str, object], is_ascii: bool, separators: tuple[str, str]
) -> None:
    body = {**extra, "model": "default", "messages": [{"role": "user", "content": "hi"}]}
    encoded = json.dumps(body, ensure_ascii=is_ascii, separators=separators).encode("utf-8", "replace")
    replaced = replace_span(encoded, find_model(encoded), 'c-"1')
    assert json.loads(replaced) == {**json.loads(encoded), "model": 'c-"1'}
    assert len(replaced) - len(encoded) == len(b'"c-\\"1"') - len(b'"default"')


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b"}',
        b'{"model":"a","x":{"model":"c"},"model":"b"}',
        b'{"\\u006dodel":"a"}',
        b'{"model":"a","\\u006dodel":"b"}',
    ],
)
def test_two_readers_never_see_two_models(body: bytes) -> None:
    with pytest.raises(ApiError):
        find_model(body)


def test_a_key_that_ends_in_model_is_not_the_model() -> None:
    body = b'{"a \\"model":1,"model":"default","b":"\\\\"}'
    assert body[slice(*find_model(body))] == b'"default"'


def test_fields_added_at_the_end_win() -> None:
    assert json.loads(add_fields(b'{"seed":null,"model":"a"} \n', {"seed": 7})) == {"seed": 7, "model": "a"}


def test_an_answer_that_talks_about_its_model_keeps_its_words() -> None:
    said = json.dumps('I am "model":"c-1"')
    answer = f'{{"id":"x","model":"c-1","choices":[{{"message":{{"content":{said}}}}}]}}'.encode()
    assert restore_model(answer, "c-1", "default") == answer.replace(b'"model":"c-1"', b'"model":"default"', 1)
    assert restore_model(b'{"model" : "c-1"}', "c-1", "default") == b'{"model":"default"}'


def test_a_number_too_large_or_text_for_a_number_is_refused() -> None:
    with pytest.raises(ApiError) as refused:
        parse_chat_request(b'{"model":"m","messages":[{}],"temperature":"hot"}')
    assert refused.value.param == "temperature"
