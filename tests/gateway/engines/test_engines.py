"""One engine's breaker, hangs and restarts by hand-computed times, and the choice among several."""

from collections import Counter

from gateway.engines.engine import Breaker, BreakerLimits, EngineState, choose_engine

LIMITS = BreakerLimits(max_failures=3, first_backoff_s=1.0, max_backoff_s=5.0)


def make_engines(*loads: int) -> list[EngineState]:
    return [EngineState(f"http://10.0.0.{i}:8000", up=True, num_in_flight=load) for i, load in enumerate(loads)]


def test_the_breaker_opens_on_failures_in_a_row_only() -> None:
    breaker = Breaker(LIMITS)
    for _ in range(2):
        breaker.note_failure(10.0)
    breaker.note_success()
    for _ in range(2):
        breaker.note_failure(10.0)
    assert breaker.phase == "closed"
    breaker.note_failure(10.0)
    assert (breaker.phase, breaker.retry_at) == ("open", 11.0)


def test_an_open_breaker_allows_one_trial_when_its_time_is_over() -> None:
    breaker = Breaker(LIMITS)
    breaker.trip(10.0)
    assert not breaker.begin_trial(10.9)
    assert breaker.begin_trial(11.0)
    assert breaker.phase == "half-open" and not breaker.begin_trial(11.0)


def test_every_failed_trial_doubles_the_pause_up_to_its_bound_and_a_passed_one_forgets_it() -> None:
    breaker, now, pauses = Breaker(LIMITS), 0.0, []
    breaker.trip(now)
    for _ in range(5):
        pauses.append(breaker.retry_at - now)
        now = breaker.retry_at
        assert breaker.begin_trial(now)
        breaker.end_trial(now, has_passed=False)
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert breaker.begin_trial(now + 5.0)
    breaker.end_trial(now + 5.0, has_passed=True)
    assert (breaker.phase, breaker.num_failures) == ("closed", 0)
    breaker.trip(100.0)
    assert breaker.retry_at == 101.0


def test_answers_to_requests_from_before_it_opened_neither_close_it_nor_prolong_it() -> None:
    breaker = Breaker(LIMITS)
    breaker.trip(10.0)
    breaker.note_success()
    breaker.note_failure(10.5)
    assert (breaker.phase, breaker.retry_at) == ("open", 11.0)
    breaker.begin_trial(11.0)
    breaker.note_success()
    breaker.note_failure(11.5)
    assert breaker.phase == "half-open"


def test_a_lost_connection_takes_the_engine_out_until_it_is_looked_at_again() -> None:
    [engine] = make_engines(0)
    engine.note_failure(1.0)
    assert engine.is_usable
    engine.note_failure(1.0, is_lost=True)
    assert not engine.is_usable
    engine.record_inspection(2.0, frozenset(), 5.0, None)
    assert engine.is_usable


def test_silence_counts_from_the_first_request_in_flight_and_ends_with_bytes_or_tokens() -> None:
    [engine] = make_engines(0)
    engine.begin()
    began = engine.last_progress_at
    assert began > 0 and not engine.is_silent(began + 29.9, 30.0) and engine.is_silent(began + 30.1, 30.0)
    engine.note_progress(began + 20.0)
    assert not engine.is_silent(began + 49.9, 30.0) and engine.is_silent(began + 50.1, 30.0)
    engine.record_inspection(began + 45.0, frozenset(), 5.0, 1000.0)
    engine.record_inspection(began + 60.0, frozenset(), 5.0, 1000.0)  # no token since
    assert not engine.is_silent(began + 74.9, 30.0) and engine.is_silent(began + 75.1, 30.0)
    engine.end()
    assert not engine.is_silent(began + 1000.0, 30.0)


def test_answers_that_are_held_back_are_no_silence_of_the_engine() -> None:
    [engine] = make_engines(0)
    engine.begin()
    engine.note_paused(True)
    engine.last_progress_at = 0.0
    assert not engine.is_silent(1000.0, 30.0)
    engine.begin()  # is waited for: silence counts from here
    began = engine.last_progress_at
    assert began > 0 and not engine.is_silent(began + 29.9, 30.0) and engine.is_silent(began + 30.1, 30.0)
    engine.end()
    engine.last_progress_at = 0.0
    assert not engine.is_silent(1000.0, 30.0)
    engine.note_paused(False)
    again = engine.last_progress_at
    assert again > 0 and not engine.is_silent(again + 29.9, 30.0) and engine.is_silent(again + 30.1, 30.0)


def test_an_engine_that_hangs_is_out_until_its_trial_has_passed() -> None:
    [engine] = make_engines(1)
    engine.proven = frozenset({"c"})
    calls: list[str] = []
    engine.on_hang = lambda: calls.append("hang")
    engine.mark_hung(10.0)
    assert engine.is_hung and not engine.is_usable and calls == ["hang"]
    assert not engine.begin_trial(10.5)
    assert engine.begin_trial(11.0) and not engine.proven
    engine.end_trial(12.0, has_passed=False)
    assert not engine.begin_trial(13.9) and engine.begin_trial(14.0)
    engine.end_trial(15.0, has_passed=True)
    assert engine.is_usable and not engine.is_hung and not engine.is_silent(44.9, 30.0)


def test_an_engine_that_started_anew_has_proven_nothing_whoever_loaded_its_adapters() -> None:
    [engine] = make_engines(0)
    names = frozenset({"base", "c"})
    engine.record_inspection(1.0, names, 100.0, None)
    engine.proven = frozenset({"c"})
    engine.up = False
    engine.record_inspection(2.0, names, 100.0, None)
    assert engine.proven == {"c"}  # the same process
    engine.record_inspection(3.0, names, None, None)
    assert engine.proven == {"c"}  # its metrics did not come once
    engine.record_inspection(4.0, names, 200.0, None)
    assert not engine.proven


def test_without_start_times_an_engine_that_was_down_counts_as_started_anew() -> None:
    [engine] = make_engines(0)
    engine.record_inspection(1.0, frozenset({"c"}), None, None)
    engine.proven = frozenset({"c"})
    engine.record_inspection(2.0, frozenset({"c"}), None, None)
    assert engine.proven == {"c"}
    engine.up = False
    engine.record_inspection(3.0, frozenset({"c"}), None, None)
    assert not engine.proven


def test_an_adapter_that_is_no_longer_listed_is_no_longer_proven() -> None:
    [engine] = make_engines(0)
    engine.record_inspection(1.0, frozenset({"a", "b"}), 100.0, None)
    engine.proven = frozenset({"a", "b"})
    engine.record_inspection(2.0, frozenset({"b"}), 100.0, None)
    assert engine.proven == {"b"}
    engine.note_missing("b")
    assert not engine.proven


def test_without_a_conversation_the_engine_with_least_in_flight_answers() -> None:
    engines = make_engines(3, 1, 2)
    assert choose_engine(engines) is engines[1]


def test_a_conversation_keeps_its_engine_and_conversations_spread_evenly() -> None:
    engines = make_engines(0, 0, 0, 0, 0)
    chosen = {f"conversation {i}": choose_engine(engines, f"conversation {i}") for i in range(5000)}
    assert all(choose_engine(engines[::-1], name) is engine for name, engine in chosen.items())
    counts = Counter(engine.url for engine in chosen.values())
    assert len(counts) == 5 and all(850 < count < 1150 for count in counts.values()), counts  # 1000 +- 5 deviations


def test_an_engine_that_leaves_moves_its_own_conversations_only() -> None:
    engines = make_engines(0, 0, 0, 0)
    for i in range(1000):
        before = choose_engine(engines, f"conversation {i}")
        after = choose_engine(engines[:-1], f"conversation {i}")
        assert after is before or before is engines[-1]


def test_a_conversation_moves_when_its_engine_has_clearly_more_in_flight_than_the_least_loaded() -> None:
    engines = make_engines(0, 0, 0)
    home = choose_engine(engines, "conversation")
    others = [engine for engine in engines if engine is not home]
    others[0].num_in_flight = others[1].num_in_flight = 10
    home.num_in_flight = 19  # 1.5 * 10 + 4
    assert choose_engine(engines, "conversation") is home
    home.num_in_flight = 20
    second = choose_engine(engines, "conversation")
    assert second is choose_engine(others, "conversation")  # the next in its order
    second.num_in_flight = 20
    assert choose_engine(engines, "conversation") not in (home, second)
