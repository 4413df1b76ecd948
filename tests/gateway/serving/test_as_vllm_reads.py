"""Requests are read as the engine reads them: our reader beside vLLM's own, over a table of spellings."""

import json
import subprocess
import sys

import pytest

from gateway.errors import ApiError
from gateway.serving.body import parse_request

NUMBERS = """1 1.0 1e2 1.5 0 0.0 -0.0 -1 2 true false null "1" "\\u00202\\u0020" "2.0" "1e0" "1_0" "0" "0.0" "-0" "0e5" "nan"
"inf" "hot" "" [] {} 123456789012345678901234567890 "\\u0031" """
BOOLEANS = """true false null "true" "True" "TRUE" "yes" "no" "1" "0" 1 0 1.0 0.0 2 0.5 -1 "on" "off" "t" "f" "y" "n" "Y"
"" "tr" "1.0" "\\u0020true" "true\\n" "enabled" [] [true] {} "tru\\u0065" """
TEXTS = """"ann" "" null 7 1.5 true [] {} "\\u00e9" """
SPELLINGS = [
    *(f'"stream":{value}' for value in BOOLEANS.split()),
    *('"stream":false,"stream":true', '"stream":true,"str\\u0065am":false'),
    *(f'"{name}":{value}' for name in ("n", "temperature", "seed", "max_tokens") for value in NUMBERS.split()),
    *(f'"user":{value}' for value in TEXTS.split()),
    *(f'"stream":true,"stream_options":{{"include_usage":{value}}}' for value in BOOLEANS.split()),
    *(f'"stream":true,"stream_options":{value}' for value in ("7", "null", "[]", '"x"', "{}")),
]
BODIES = [f'{{"model":"m","messages":[{{"role":"user","content":"Hi"}}],{field}}}' for field in SPELLINGS]

VLLM_READS = """
import json, sys, warnings
warnings.simplefilter("ignore")
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

def read(body):
    try:
        request = ChatCompletionRequest.model_validate(json.loads(body))
    except ValueError:
        return None
    wants_usage = bool(request.stream_options and request.stream_options.include_usage)
    fields = request.stream or False, wants_usage, request.n, request.temperature, request.seed, request.max_tokens, request.user
    return repr(fields)

json.dump([read(body) for body in json.load(sys.stdin)], open(sys.argv[1], "w"))
"""


def read(body: str) -> str | None:
    """What decides, as text, for nan is not nan; `n` is 1 by vLLM's default. None if it is refused."""
    try:
        ours, _ = parse_request(body.encode())
    except ApiError:
        return None
    n = 1 if ours.n is None and '"n":null' not in body else ours.n
    return repr((ours.is_stream, ours.wants_usage, n, ours.temperature, ours.seed, ours.max_tokens, ours.user))


def test_what_decides_is_read_as_vllm_reads_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    answers = tmp_path_factory.mktemp("vllm") / "answers.json"
    command = [sys.executable, "-c", VLLM_READS, str(answers)]  # a process of its own: it brings torch
    subprocess.run(command, input=json.dumps(BODIES).encode(), check=True, timeout=300)
    readings = [
        (body, theirs, read(body)) for body, theirs in zip(BODIES, json.loads(answers.read_text()), strict=True)
    ]
    taken = [(body, theirs, ours) for body, theirs, ours in readings if theirs is not None]  # else nothing is generated
    assert [(body, ours) for body, _, ours in taken] == [(body, theirs) for body, theirs, _ in taken]
    assert len(taken) > 90 and len(readings) - len(taken) > 50


@pytest.mark.parametrize("name", ["stream", "n", "temperature", "seed", "user"])
def test_what_vllm_cannot_read_is_refused_before_it_is_asked(name: str) -> None:
    for value in ("[]", "{}", '"what"' if name != "user" else "7"):
        with pytest.raises(ApiError) as refused:
            parse_request(f'{{"model":"m","{name}":{value}}}'.encode())
        assert (refused.value.status, refused.value.param) == (400, name)
