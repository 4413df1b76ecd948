"""What a probe proves."""

import json

import pytest
from engine import BASE_LOGPROBS, PROBE_LOGPROBS, PROBE_TOKENS

from feedback.manifest import Manifest, Probe
from gateway.engines.probe import build_probe, judge_probe, read_probe_logprobs
from gateway.errors import SwapError


def manifest(logprobs: list[float], base: list[float]) -> Manifest:
    probe = Probe(prompt_token_ids=PROBE_TOKENS, logprobs=logprobs, base_logprobs=base)
    return Manifest(
        id="c", number=1, parent=None, base_digest="", rank=8, digest="", files={}, created_at=0.0, probe=probe
    )


def test_a_probe_asks_for_one_token_after_every_prefix() -> None:
    body = build_probe("c", [5, 7, 9])
    assert body["prompt"] == [[5], [5, 7]] and body["model"] == "c" and body["max_tokens"] == 1


def test_the_probe_must_lie_within_the_tolerance_and_nearer_to_the_adapter_than_to_the_base() -> None:
    trained = manifest(PROBE_LOGPROBS, BASE_LOGPROBS)
    assert judge_probe([-1.0009, -2.0, -0.5], trained, 1e-3) is None
    assert "off by 0.0011" in (judge_probe([-1.0011, -2.0, -0.5], trained, 1e-3) or "")
    assert "as the base" in (judge_probe(BASE_LOGPROBS, trained, 3.4) or "")
    assert judge_probe([float("nan"), -2.0, -0.5], trained, 1e-3) is not None
    assert judge_probe([-1.0], trained, 1e-3) is not None


def test_a_token_that_is_not_listed_is_unlikely() -> None:
    """The adapter makes the second token likely, which the base does not have among its twenty likeliest."""
    trained = manifest([-0.01, -0.5, -0.01, -0.01], [-0.01, -9.0, -0.01, -0.01])
    assert judge_probe([-0.01, -0.5, -0.01, -0.01], trained, 0.3) is None
    assert "as the base" in (judge_probe([-0.01, None, -0.01, -0.01], trained, 0.3) or "")
    unlikely = manifest([-0.01, -7.0, -0.2, -0.01], [-0.01, -9.0, -1.2, -0.01])
    assert judge_probe([-0.01, None, -0.2, -0.01], unlikely, 0.3) is None
    assert "as the base" in (judge_probe([-0.01, None, -1.2, -0.01], unlikely, 0.3) or "")
    lost = manifest([-0.01, -9.0, -0.01, -0.01], [-0.01, -0.5, -0.01, -0.01])  # by the adapter it is unlikely
    assert judge_probe([-0.01, None, -0.01, -0.01], lost, 0.3) is None
    assert "as the base" in (judge_probe([-0.01, -0.5, -0.01, -0.01], lost, 0.3) or "")


def test_an_adapter_that_changes_nothing_may_answer_as_the_base() -> None:
    assert judge_probe(BASE_LOGPROBS, manifest(BASE_LOGPROBS, BASE_LOGPROBS), 1e-3) is None


def test_the_probes_answer_is_read_by_token_and_nonsense_is_refused() -> None:
    rows = [{"token_id:7": -1.5, "token_id:8": -0.1}, {"token_id:9": -2.5}]
    choices = [{"index": i, "logprobs": {"top_logprobs": [row]}} for i, row in enumerate(rows)]
    body = json.dumps({"choices": choices[::-1]}).encode()
    assert read_probe_logprobs(body, [5, 7, 9]) == [-1.5, -2.5]
    assert read_probe_logprobs(body, [5, 7, 3]) == [-1.5, None]
    for bad in (b"", b"{}", b'{"choices": []}'):
        with pytest.raises(SwapError):
            read_probe_logprobs(bad, [5, 7, 9])


def test_a_probe_with_too_few_likely_tokens_proves_nothing() -> None:
    trained = manifest(PROBE_LOGPROBS, BASE_LOGPROBS)
    assert "only 1 of 3" in (judge_probe([PROBE_LOGPROBS[0], None, None], trained, 1e-3) or "")
