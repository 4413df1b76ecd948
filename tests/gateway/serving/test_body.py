"""The bytes of a request: which `model` is replaced, and nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ApiError
from gateway.serving.body import add_fields, find_model, find_restorer, parse_request, replace_span

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
    assert find_restorer("c-1", "default")(answer) == answer.replace(b'"model":"c-1"', b'"model":"default"', 1)
    assert find_restorer("c-1", "default")(b'{"model" : "c-1"}') == b'{"model":"default"}'


def test_fields_whose_types_only_the_engine_can_judge_pass() -> None:
    body = b'{"model":"m","messages":[{}],"top_p":"hot","logprobs":"2","stream":"true","x":[1]}'
    request, span = parse_request(body)
    assert body[slice(*span)] == b'"m"'
    assert (request.is_stream, request.logprobs, request.read_messages()) == (True, "2", [{}])
    assert parse_request(b'{"model":"m","messages":7}')[0].read_messages() == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"messages":[]}', "model"),
        (b'{"model":7}', "model"),
        (b'{"model":"m","priority":-1}', "priority"),
        (b'{"model":"m","prior\\u0069ty":5}', "priority"),
        (b'{"model":"m","stream":"maybe"}', "stream"),
        (b'{"model":"m","stream":2}', "stream"),
        (b'{"model":"m","temperature":"hot"}', "temperature"),
        (b'{"model":"m","temperature":1e999}', "temperature"),
        (b'{"model":"m","n":1.5}', "n"),
        (b'{"model":"m","seed":[]}', "seed"),
        (b'{"model":"m","user":7}', "user"),
        (b'{"model":"m","safety_identifier":{"id":7}}', "safety_identifier"),
        (b'{"model":"m","stream":"true","stream_options":7}', "stream_options"),
        (b'{"stream":"true"}', "model"),
        (b"[]", None),
        (b'{"model":"m"', None),
        (b'{"model":"\xff"}', None),
    ],
)
def test_what_is_refused_before_an_engine_sees_it(body: bytes, param: str | None) -> None:
    with pytest.raises(ApiError) as refused:
        parse_request(body)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_no_priority_is_none() -> None:
    assert parse_request(b'{"model":"m","priority":null}')[0].model == "m"


@pytest.mark.parametrize(
    "answer",
    [
        b'{"model":"c-1","model" : "c-1"}',
        b'{"model":"c-1","\\u006dodel":"c-1"}',
        b'{"\\u006dodel":\n"c-1","x":"\\ud800","\\ud800":"c-1"}',
    ],
)
def test_no_spelling_of_the_model_keeps_the_checkpoint(answer: bytes) -> None:
    restored = find_restorer("c-1", "default")(answer)
    assert b'"default"' in restored
    assert restored.count(b"c-1") == answer.count(b'd800":"c-1"')


SPELT = '"system_fingerprint":"a\\\\","b'


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (b'{"id":"x","system_fingerprint":"fp-1","usage":{}}', b'{"id":"x","usage":{}}'),
        (b'{"id":"x","system_fingerprint":null}', b'{"id":"x"}'),
        (b'{"system_fingerprint":"fp-1","id":"x"}', b'{"id":"x"}'),
        (b'{"system_fingerprint": "fp-1"}', b"{}"),
        (b'{"id":"x" , "system_fingerprint" : "f\\"p" , "y":1}', b'{"id":"x"  , "y":1}'),
        (
            b'data: {"a":1,"system_fingerprint":"f"}\n\ndata: {"a":2,"system_fingerprint":null}\n\n',
            b'data: {"a":1}\n\ndata: {"a":2}\n\n',
        ),
        (json.dumps({"content": SPELT}).encode(), json.dumps({"content": SPELT}).encode()),
        (b'{"token":"system_fingerprint","b":["system_fingerprint"]}',) * 2,
        (b'{"top_logprobs":[{"system_fingerprint":-1.5}]}',) * 2,
    ],
)
def test_a_fingerprint_is_taken_out_and_nothing_else(answer: bytes, shown: bytes) -> None:
    assert find_restorer("c-1", "default")(answer) == shown
    assert find_restorer("c-1", "default", shows_engine=True)(answer) == answer


@given(st.dictionaries(st.text(max_size=4) | st.just("system_fingerprint"), JSON | st.just(SPELT), max_size=4))
def test_what_is_left_without_the_fingerprint_is_the_same(answer: dict[str, object]) -> None:
    answer["system_fingerprint"] = "fp-1"
    shown = json.loads(find_restorer("c-1", "default")(json.dumps(answer).encode()))
    del answer["system_fingerprint"]
    assert shown == answer


@pytest.mark.parametrize(
    "messages",
    [b"[]", b"7", b'[{"x":1e999}]', b'[{"x":"\xff"}]', b'[{"x":' + b"[" * 250 + b"]" * 250 + b"}]"],
)
def test_messages_that_nobody_could_read_again_are_not_to_be_stored(messages: bytes) -> None:
    request, _ = parse_request(b'{"model":"m","messages":' + messages + b"}", allow_remote_media=True)
    assert request.read_storable_messages() is None


@pytest.mark.parametrize(
    "part",
    [
        '{"image_url":"ftp://inside/x"}',
        '{"type":"image_url","image_url":{"url":" HTTPS://inside/x"}}',
        '{"type":"image_url","image_url":"http://inside/x"}',
        '{"type":"image_url","image\\u005furl":{"url":"http://inside/x"}}',
        '{"type":"input_audio","input_audio":{"url":"file:///etc/passwd"}}',
    ],
)
def test_remote_media_is_refused_unless_allowed(part: str) -> None:
    body = f'{{"model":"m","messages":[{{"role":"user","content":[{part}]}}]}}'.encode()
    with pytest.raises(ApiError):
        parse_request(body)
    parse_request(body, allow_remote_media=True)
    for scheme in (b"http", b"HTTPS", b"file", b"ftp"):
        body = body.replace(scheme, b"data")
    parse_request(body)


@pytest.mark.parametrize(
    "asked",
    [
        '"messages":[{"role":"user","content":"x","cont\\u0065nt":[{"image_url":"http://inside/x"}]}]',
        '"messages":[{"role":"user","content":"x","content":[{"image_url":"http://inside/x"}]}]',
        '"input":[{"type":"computer_call_output","output":{"image_url":"http://inside/x"}}]',
        '"messages":[],"input":[{"role":"user","content":[{"type":"input_image","image_url":"http://inside/x"}]}]',
        '"prompt":[{"image_url":"http://inside/x"}]',
    ],
)
def test_remote_media_is_found_wherever_engines_would_look(asked: str) -> None:
    with pytest.raises(ApiError):
        parse_request(f'{{"model":"m",{asked}}}'.encode())


def test_text_that_speaks_of_media_is_text() -> None:
    parse_request(
        b'{"model":"m","messages":[{"content":"\\"image_url\\":\\"http://x\\""},{"content":null},{}],"prompt":"http:"}'
    )


def test_a_tool_that_has_an_image_url_is_no_media() -> None:
    parse_request(b'{"model":"m","messages":[],"tools":[{"image_url":{"url":"http://x"}}]}')


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","x\xff":{"model":1}}',  # looked at only where the key occurs more than once
        b'{"model":"a","messages":[{"content":[]}],"x":"x\xff"}',  # only where there is more than text
        b'{"model":"a","input":[],"x":1e999}',
    ],
)
def test_what_cannot_be_read_to_its_end_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_request(body)
    assert caught.value.status == 400
