"""What is refused on each path before an engine sees it."""

import pytest

from gateway.errors import ApiError
from gateway.serving.body import parse_request
from gateway.serving.endpoints import ENDPOINTS

CHAT, TEXT = b"/v1/chat/completions", b"/v1/completions"


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, b'"prompt_logprobs":0', "prompt_logprobs"),
        (CHAT, b'"prompt_logprobs":null', None),
        (CHAT, b'"echo":true', "echo"),  # vLLM makes prompt_logprobs=0 of it
        (CHAT, b'"echo":"false"', None),
        (CHAT, b'"logprobs":true', None),
        (TEXT, b'"prompt_logprobs":"1"', "prompt_logprobs"),
        (TEXT, b'"echo":1,"logprobs":1', "echo"),
        (TEXT, b'"echo":true', None),
        (TEXT, b'"logprobs":1', None),
    ],
)
def test_what_kills_an_engine_is_refused_unless_the_engine_survives_it(
    path: bytes, fields: bytes, param: str | None
) -> None:
    request, _ = parse_request(b'{"model":"m",' + fields + b"}")
    ENDPOINTS[path].refuse(request, prompt_logprobs=False)
    if param is None:
        ENDPOINTS[path].refuse(request, prompt_logprobs=True)
        return
    with pytest.raises(ApiError) as refused:
        ENDPOINTS[path].refuse(request, prompt_logprobs=True)
    assert (refused.value.status, refused.value.param) == (400, param)
