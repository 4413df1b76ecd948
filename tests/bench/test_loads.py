"""What the load generators say, and the requests they send."""

import json

import pytest

from bench.gateway.loads import NUM_EVENTS, Load, LoadFailed, build_request, read_sample

WRK = """Running 3s test @ http://127.0.0.1:1
  1 threads and 16 connections
Requests/sec:  50.00
{"seconds":2.000000,"answers":100,"failed":0,"whole_p50_us":180,"whole_p99_us":420}
"""
CLIENT = (
    '{"seconds":4.0,"asked":12,"answers":10,"failed":1,"events":640,"first_p50_us":55.5,"first_p99_us":90.1,'
    '"whole_p50_us":1000.0,"whole_p99_us":1500.0}\n'
)


def test_wrk_is_read_from_its_last_line() -> None:
    sample = read_sample(WRK, "gateway", Load.SIXTEEN, 3, cpu_s=0.5)
    assert (sample.peer, sample.load, sample.round) == ("gateway", Load.SIXTEEN, 3)
    assert sample.answers_s == 50.0
    assert sample.cpu_us == 5000.0  # half a second over a hundred answers
    assert (sample.whole_p50_us, sample.whole_p99_us, sample.events) == (180, 420, 0)


def test_cpu_of_a_stream_is_counted_by_event() -> None:
    sample = read_sample(CLIENT, "gateway", Load.PACED, 0, cpu_s=0.064)
    assert sample.events_s == 160.0
    assert sample.cpu_us == pytest.approx(100.0)
    assert sample.first_p50_us == 55.5
    assert sample.failed == 1


@pytest.mark.parametrize("output", ["", "unable to connect\n", "[1]\n", '{"seconds":1.0}\n'])
def test_a_load_that_says_something_else_has_failed(output: str) -> None:
    with pytest.raises(LoadFailed, match="unable to write"):
        read_sample(output, "gateway", Load.ONE, 0, 0.0, "unable to write")


@pytest.mark.parametrize("stream", [False, True])
def test_every_request_has_478_bytes_and_names_the_model_first(stream: bool) -> None:
    body = build_request(stream=stream)
    assert len(body) == 478
    assert body.startswith(b'{"model":"default",')
    said = json.loads(body)
    assert (said["stream"], said["max_tokens"]) == (stream, NUM_EVENTS)
