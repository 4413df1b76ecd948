"""What vLLM's own OpenAI server does, seen through the gateway on real vLLM: nothing but the model's name differs.

Follows the behaviours that vLLM tests under tests/entrypoints/openai. One engine serves the whole module.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from ports import find_free_port

from gateway.engines.next_tokens import build_next_tokens, build_whole, read_next_tokens, read_whole
from gateway.rollout.pure.divergence import compare_next_tokens

TIMEOUT_S = 600.0
CHAT_PATH = "/v1/chat/completions"
MESSAGES: Any = [{"role": "user", "content": "What is the capital of France?"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {
            "type": "object",
            "properties": {"sure": {"type": "boolean"}},
            "required": ["sure"],
            "additionalProperties": False,
        },
    },
}

pytestmark = pytest.mark.engine


class Machine:
    """A running `prefloop up`: its addresses, and clients for it."""

    def __init__(self, port: int, state_dir: Path) -> None:
        self.url, self.engine_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"
        self._state_dir = state_dir

    @property
    def admin(self) -> dict[str, str]:
        return {"authorization": f"Bearer {(self._state_dir / 'secrets' / 'admin_key').read_text().strip()}"}

    @cached_property
    def key(self) -> str:
        """An app's: operators see more."""
        body = {"name": "tests", "scope": "app"}
        answer = httpx.post(f"{self.url}/operator/v1/keys", json=body, headers=self.admin).raise_for_status()
        return str(answer.json()["key"])

    @property
    def stable(self) -> str:
        return str(self.get("/operator/v1/status")["stable"]["id"])

    def get(self, path: str) -> Any:
        return httpx.get(self.url + path, headers=self.admin).raise_for_status().json()

    def client(self, **headers: str) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=120,
            default_headers={name.replace("_", "-"): value for name, value in headers.items()},
        )  # fmt: skip

    def post_both(self, path: str, body: dict[str, Any]) -> tuple[httpx.Response, httpx.Response]:
        """The same request to the gateway and, under the checkpoint's name, to the engine itself."""
        ours = httpx.post(
            self.url + path, json={"model": "default", **body}, timeout=120,
            headers={"authorization": f"Bearer {self.key}"},
        )  # fmt: skip
        return ours, httpx.post(self.engine_url + path, json={"model": self.stable, **body}, timeout=120)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, seed_policy: Path) -> Iterator[Machine]:
    port, state_dir = find_free_port(), tmp_path_factory.mktemp("up")
    log = state_dir / "up.log"
    argv = [sys.executable, "-m", "prefloop.cli", "up", "--model", str(seed_policy)]
    argv += ["--engine-arg=--enable-auto-tool-choice", "--engine-arg=--tool-call-parser=hermes"]
    duels = {"DUEL_SHARE": "1", "KL__SHARE": "1", "KL__MAX_PER_S": "100"}
    env = os.environ | {f"PREFLOOP_ROLLOUT__{name}": value for name, value in duels.items()}
    with log.open("w") as out:
        process = subprocess.Popen(
            [*argv, "--state-dir", str(state_dir), "--port", str(port)], stdout=out, stderr=out, env=env
        )
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not is_ready(f"http://127.0.0.1:{port}/readyz"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield Machine(port, state_dir)
    finally:
        process.terminate()
        process.wait(60)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def without_ids(answer: Any) -> Any:
    """An answer without what differs between any two requests, and what names the engine."""
    return {k: value for k, value in answer.items() if k not in ("id", "created", "model", "system_fingerprint")}


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 8, "temperature": 0},
        {"max_tokens": 8, "temperature": 0, "logprobs": True, "top_logprobs": 3},
        {"max_tokens": 12, "n": 3, "seed": 5, "temperature": 1.0},
        {"max_tokens": 40, "temperature": 0, "stop": [" "]},
        {"max_tokens": 8, "temperature": 0, "min_tokens": 8, "ignore_eos": True, "return_token_ids": True},
        {"max_completion_tokens": 5, "temperature": 0, "add_generation_prompt": False},
    ],
)
def test_a_chat_answer_is_the_engines_but_for_the_model(machine: Machine, fields: dict[str, Any]) -> None:
    ours, theirs = machine.post_both(CHAT_PATH, {"messages": MESSAGES, **fields})
    assert (ours.status_code, theirs.status_code) == (200, 200)
    assert without_ids(ours.json()) == without_ids(theirs.json())
    assert ours.json()["model"] == "default"
    assert "system_fingerprint" not in ours.json()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "The capital of France", "max_tokens": 6, "temperature": 0, "logprobs": 2}),
        ("/v1/completions", {"prompt": ["One", "Two"], "max_tokens": 4, "temperature": 0}),
        ("/tokenize", {"prompt": "The capital of France"}),
        ("/detokenize", {"tokens": [5, 6, 7]}),
    ],
)
def test_other_paths_answer_as_the_engine_does(machine: Machine, path: str, body: dict[str, Any]) -> None:
    ours, theirs = machine.post_both(path, body)
    assert (ours.status_code, theirs.status_code) == (200, 200)
    assert without_ids(ours.json()) == without_ids(theirs.json())


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": "hello"},
        {"messages": MESSAGES, "temperature": -1},
        {"messages": MESSAGES, "max_tokens": 0},
        {"messages": MESSAGES, "top_logprobs": 100, "logprobs": True},
        {"messages": MESSAGES, "stream_options": {"include_usage": True}},
        {"messages": [{"role": "user", "content": "word " * 5000}]},
        {"messages": MESSAGES, "response_format": {"type": "nonsense"}},
    ],
)
def test_the_engines_refusals_keep_status_and_shape(machine: Machine, fields: dict[str, Any]) -> None:
    ours, theirs = machine.post_both(CHAT_PATH, fields)
    assert ours.status_code == theirs.status_code == 400
    assert ours.json()["error"].keys() >= {"message", "type", "param", "code"}
    assert ours.json()["error"]["message"] == theirs.json()["error"]["message"]


@pytest.mark.parametrize(
    "fields", [{"n": "many"}, {"stream": "maybe"}, {"temperature": "hot"}, {"seed": 1.5}, {"user": 7}]
)
def test_what_decides_is_refused_where_the_engine_refuses_it(machine: Machine, fields: dict[str, Any]) -> None:
    ours, theirs = machine.post_both(CHAT_PATH, {"messages": MESSAGES, **fields})
    assert ours.status_code == theirs.status_code == 400
    assert ours.json()["error"]["param"] == next(iter(fields))


def test_a_stream_says_what_the_whole_answer_says_and_usage_on_demand(machine: Machine) -> None:
    client = machine.client()
    whole = client.chat.completions.create(model="default", messages=MESSAGES, temperature=0, max_tokens=16)
    for options in ({}, {"stream_options": {"include_usage": True}}):
        stream = client.chat.completions.create(
            model="default", messages=MESSAGES, temperature=0, max_tokens=16, stream=True, **options
        )  # type: ignore[call-overload]
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert {chunk.model for chunk in chunks} == {"default"}
        assert [chunk.usage for chunk in chunks if chunk.usage] == ([whole.usage] if options else [])


def test_tools_and_json_mode_answer_as_the_engine_does(machine: Machine) -> None:
    choice = {"type": "function", "function": {"name": "look_up"}}
    asked = {"messages": MESSAGES, "tools": [TOOL], "tool_choice": choice, "max_tokens": 64, "temperature": 0}
    calls = [answer.json()["choices"][0]["message"]["tool_calls"] for answer in machine.post_both(CHAT_PATH, asked)]
    assert [call["function"] for call in calls[0]] == [call["function"] for call in calls[1]]
    assert calls[0][0]["function"]["name"] == "look_up"
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": TOOL["function"]["parameters"]}}
    asked = {"messages": MESSAGES, "response_format": schema, "max_tokens": 64, "temperature": 0}
    ours, theirs = (answer.json()["choices"][0]["message"]["content"] for answer in machine.post_both(CHAT_PATH, asked))
    assert ours == theirs
    assert ours.lstrip().startswith("{")  # as far as so small a policy gets


@pytest.mark.parametrize("is_stream", [False, True])
def test_pairs_work_with_tools_and_json_mode(machine: Machine, is_stream: bool) -> None:
    body = {
        "model": "default", "messages": MESSAGES, "max_tokens": 64, "temperature": 1.5, "stream": is_stream,
        "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look_up"}},
    }  # fmt: skip
    headers = {"authorization": f"Bearer {machine.key}", "x-prefloop-compare": "always", "x-prefloop-user": "ann"}
    seen: set[int] = set()
    for _ in range(12):  # now and then both say the same, and one is left out
        answer = httpx.post(machine.url + CHAT_PATH, json=body, headers=headers, timeout=120)
        assert answer.status_code == 200
        events = [line[6:] for line in answer.text.split("\n") if line.startswith("data: {")]
        chunks = [json.loads(event) for event in events] if is_stream else [answer.json()]
        assert {chunk["model"] for chunk in chunks} == {"default"}
        assert machine.stable not in answer.text
        seen |= {choice["index"] for chunk in chunks for choice in chunk["choices"]}
        if any("comparison" in chunk for chunk in chunks):
            break
    assert seen == {0, 1}
    assert any("comparison" in chunk for chunk in chunks)


def test_a_path_that_the_engine_lacks_is_told_so(machine: Machine) -> None:
    ours, _ = machine.post_both("/v1/embeddings", {"input": "hello"})
    assert ours.status_code in (400, 404)
    assert ours.json()["error"]["message"]


def test_responses_are_stateless(machine: Machine) -> None:
    client = machine.client()
    answer = client.responses.create(model="default", input="What is the capital of France?", max_output_tokens=16)
    assert answer.model == "default"
    assert machine.stable not in answer.model_dump_json()
    for field in ({"previous_response_id": answer.id}, {"background": True}):
        with pytest.raises(openai.BadRequestError):
            client.responses.create(model="default", input="And of Spain?", **field)  # type: ignore[call-overload]


def test_a_client_that_leaves_stops_the_engine(machine: Machine) -> None:
    client = machine.client()
    stream = client.chat.completions.create(
        model="default", messages=MESSAGES, stream=True, max_tokens=200, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 10
    while read_running(machine) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert read_running(machine) == 0


def read_running(machine: Machine) -> float:
    """Requests that the engine works on."""
    lines = httpx.get(f"{machine.engine_url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running"))


def test_the_engine_says_how_likely_next_tokens_are_in_both_ways_that_it_is_asked(machine: Machine) -> None:
    prompt = [5, 6, 7, 8, 9, 10]
    url = machine.engine_url + "/v1/completions"
    places = [prompt[:end] for end in (3, 5)]
    body = {**build_next_tokens(machine.stable, places), "priority": 100}
    some = read_next_tokens(httpx.post(url, json=body, timeout=120).raise_for_status().content, 2)
    whole = read_whole(
        httpx.post(url, json=build_whole(machine.stable, prompt), timeout=120).raise_for_status().content, 3
    )
    assert [len(row) for row in some] == [20, 20]
    for row, other in ((some[0], whole[0]), (some[1], whole[2])):
        assert compare_next_tokens(row, other) == pytest.approx(0, abs=1e-4)
    assert compare_next_tokens(some[0], whole[1]) > 1e-3  # another place: ten times what the same place may differ


def test_a_canary_with_the_same_weights_is_no_nats_from_stable(machine: Machine) -> None:
    """An A/A rollout: every user's first duel is measured on the engine."""
    httpx.post(f"{machine.url}/operator/v1/rollouts", json={"aa": True}, headers=machine.admin).raise_for_status()
    body = {"name": "pairs", "scope": "app", "pairs": True}
    key = (
        httpx.post(f"{machine.url}/operator/v1/keys", json=body, headers=machine.admin).raise_for_status().json()["key"]
    )

    def find_rollout() -> Any:
        return machine.get("/operator/v1/status")["rollout"]

    wait_for(lambda: (find_rollout() or {}).get("phase") == "Progressing")
    for user in range(6):
        asked = {"model": "default", "messages": MESSAGES, "max_tokens": 12, "temperature": 1.0}
        names = {"authorization": f"Bearer {key}", "x-prefloop-user": f"u{user}", "x-prefloop-compare": "always"}
        httpx.post(machine.url + CHAT_PATH, json=asked, headers=names, timeout=120).raise_for_status()
    kl = wait_for(
        lambda: next((one for one in find_rollout()["guardrails"] if one["name"] == "kl" and one["seen"] > 3), None)
    )
    assert kl["status"] == "not enough data" and 0 <= kl["canary"] < 1e-3
    httpx.post(f"{machine.url}/operator/v1/rollouts/{find_rollout()['id']}:abort", json={}, headers=machine.admin)


def wait_for(find: Callable[[], Any]) -> Any:
    """What `find` returns once it is true; fails after a minute."""
    deadline = time.monotonic() + 60
    while not (found := find()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found
