"""Requests are read as the engine reads them: our reader beside vLLM's own, over a table of spellings."""

import json
from typing import Any

import pytest

from gateway.errors import ApiError
from gateway.serving.body import EngineRequest, parse_request

NUMBERS = """1 1.0 1e2 1.5 0 0.0 -0.0 -1 2 true false null "1" " 2 " "2.0" "1e0" "1_0" "0" "0.0" "-0" "0e5" "nan" "inf" "hot"
"" [] {} 123456789012345678901234567890 "\\u0031" """.replace('" 2 "', '"\\u00202\\u0020"')
BOOLEANS = """true false null "true" "True" "TRUE" "yes" "no" "1" "0" 1 0 1.0 0.0 2 0.5 -1 "on" "off" "t" "f" "y" "n" "Y"
"" "tr" "1.0" "\\u0020true" "true\\n" "enabled" [] [true] {} "tru\\u0065" """
TEXTS = """"ann" "" null 7 1.5 true [] {} "\\u00e9" """
SPELLINGS = [
    *(("stream", value) for value in BOOLEANS.split()),
    *(("stream", value) for value in ('false,"stream":true', 'true,"str\\u0065am":false')),
    *((name, value) for name in ("n", "temperature", "seed", "max_tokens") for value in NUMBERS.split()),
    *(("user", value) for value in TEXTS.split()),
    *(("stream_options", f'{{"include_usage":{value}}},"stream":true') for value in BOOLEANS.split()),
    *(("stream_options", f'{value},"stream":true') for value in ("7", "null", "[]", '"x"', "{}")),
]


def read(request: Any) -> dict[str, str]:
    """What decides, absent and the default made one; as text, for nan is not nan."""
    options = request.stream_options
    wants_usage = request.wants_usage if isinstance(request, EngineRequest) else bool(options and options.include_usage)
    values = {name: getattr(request, name) for name in ("temperature", "seed", "max_tokens", "user")}
    values |= {"stream": bool(request.stream), "n": 1 if request.n is None else request.n, "wants_usage": wants_usage}
    return {name: repr(value) for name, value in values.items()}


@pytest.mark.filterwarnings("ignore:max_tokens is deprecated")
def test_what_decides_is_read_as_vllm_reads_it() -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest  # takes seconds

    num_read = num_refused = 0
    for name, value in SPELLINGS:
        body = f'{{"model":"m","messages":[{{"role":"user","content":"Hi"}}],"{name}":{value}}}'
        try:
            theirs = ChatCompletionRequest.model_validate(json.loads(body))
        except ValueError:  # nothing is generated, whatever we read
            num_refused += 1
            continue
        try:
            ours, _ = parse_request(body.encode())
        except ApiError as refused:
            pytest.fail(f"{name}: {value} is refused: {refused}")
        assert read(ours) == read(theirs), body
        num_read += 1
    assert num_read > 90 and num_refused > 50


@pytest.mark.parametrize("name", ["stream", "n", "temperature", "seed", "user"])
def test_what_vllm_cannot_read_is_refused_before_it_is_asked(name: str) -> None:
    for value in ("[]", "{}", '"what"' if name != "user" else "7"):
        with pytest.raises(ApiError) as refused:
            parse_request(f'{{"model":"m","{name}":{value}}}'.encode())
        assert (refused.value.status, refused.value.param) == (400, name)
