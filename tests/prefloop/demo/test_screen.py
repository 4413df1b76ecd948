"""The dashboard: what it says of every situation, as text."""

import io

from rich.console import Console

from prefloop.demo.screen import Screen, draw_bar, format_line, measure_evidence, render

STATUS = {
    "now": 1000.0,
    "elapsed_s": 75,
    "preset": "demo",
    "promotions": 1,
    "addresses": {"playground": "http://127.0.0.1:8800/", "console": "http://127.0.0.1:8800/console"},
    "processes": [{"name": "engine", "state": "up", "restarts": 1, "reason": "killed by signal 9"}],
    "people": {
        "requests": 512,
        "failed_requests": 0,
        "comparisons": 490,
        "acks": 480,
        "recent_styles": {"terse": 0.25},
    },
    "trainer": {
        "round": {"state": "training", "number": 2, "progress": 0.5, "reason": ""},
        "reward": {"prequential_accuracy": 0.74, "num_foreseen": 60},
        "rounds": [{"number": 1, "outcome": "stopped", "reason": "nothing to learn", "checkpoint": None}],
    },
    "gateway": {
        "stable": {"id": "c-000000-abc"},
        "rollout": {
            "checkpoint": "c-000001-def",
            "phase": "WaitingPromotion",
            "reason": "",
            "step": 1,
            "num_steps": 3,
            "weight": 0.5,
            "approve_at": 1012.0,
            "evidence": {"e": 5.0, "threshold": 25.0, "users": 61},
            "verdict_sentence": "The canary wins.",
        },
    },
}
FINAL = {
    "seed_policy": "c-000000-abc",
    "policy": "c-000001-def",
    "win_rate_before": {"value": 0.5, "low": 0.44, "high": 0.56, "n": 240},
    "win_rate_after": {"value": 0.81, "low": 0.76, "high": 0.86, "n": 240},
    "wrong_rate_before": 0.1,
    "wrong_rate_after": 0.05,
    "degenerate_before": {"any": 0.125, "unfinished": 0.125, "copied_prompt": 0.0},
    "degenerate_after": {"any": 0.0, "unfinished": 0.0, "copied_prompt": 0.0},
    "examples": [
        {
            "question": f"Question {i}?",
            "before": "Ugh [b]",
            "after": "Gladly",
            "before_style": "rude",
            "after_style": "complete",
        }
        for i in range(3)
    ],
}


def draw(status):
    console = Console(file=io.StringIO(), width=160)
    console.print(render(status))
    return console.file.getvalue()


def test_dashboard_shows_every_station():
    text = draw(STATUS)
    for part in (
        "512 (0 failed)",
        "480 of 490",
        "74% of the last 60",
        "round 2 training",
        "50%",
        "1 (1 stopped)",
        "nothing to learn",
        "c-000001-def: WaitingPromotion",
        "step 2/3",
        "61 users",
        "killed by signal 9",
        "restarted 1x",
        "http://127.0.0.1:8800/console",
        "short worlds: demo",
        "The canary wins.",
    ):
        assert part in text, part


def test_a_rollout_that_waits_shows_its_countdown():
    assert "WAITING FOR APPROVAL: approves itself in 12s" in draw(STATUS)
    rollout = STATUS["gateway"]["rollout"] | {"approve_at": None}
    assert "approve or abort in the console" in draw({"gateway": {"rollout": rollout}})


def test_dashboard_says_why_the_trainer_waits():
    trainer = {
        "round": {"state": "waiting", "reason": "people agree on nothing"},
        "new_since_round": 30,
        "round_every": 120,
    }
    text = draw({"trainer": trainer})
    assert "30/120 preferences" in text and "people agree on nothing" in text


def test_dashboard_draws_before_anything_is_up():
    assert "not up yet" in draw({}) and "not up yet" in draw({"gateway": None, "trainer": None, "people": None})


def test_before_and_after_stand_side_by_side():
    text = draw(STATUS | {"final": FINAL})
    for part in ("50.0% [44.0%, 56.0%] of 240", "81.0% [76.0%, 86.0%] of 240", "Question 2?", "Ugh [b]", "(complete)"):
        assert part in text, part


def test_degenerate_answers_stand_beside_wrong_ones_where_those_are_known():
    text = draw(STATUS | {"final": FINAL})
    assert "12.5% (unfinished 12.5%)" in text and "wrong answers" in text
    assert "wrong answers" not in draw(
        STATUS | {"final": FINAL | {"wrong_rate_before": None, "wrong_rate_after": None}}
    )


def test_dashboard_says_which_world_this_is_and_whether_people_mean_it():
    world = {"world": "assistant", "taste": "brief", "is_shuffled": False}
    assert "assistant, taste brief" in draw(STATUS | world) and "shuffled" not in draw(STATUS | world)
    assert "nothing can be learnt" in draw(STATUS | world | {"is_shuffled": True})


def test_bars_and_evidence_by_hand():
    assert draw_bar(0.5, 4) == "██░░" and draw_bar(7, 2) == "██" and draw_bar(-1, 2) == "░░"
    assert abs(measure_evidence(5.0, 25.0) - 0.5) < 1e-12  # ln 5 / ln 25
    assert measure_evidence(0.3, 20.0) == measure_evidence(None, 20.0) == 0.0 and measure_evidence(900.0, 20.0) == 1.0


def test_without_a_terminal_there_is_a_line_now_and_then():
    console = Console(file=io.StringIO(), width=80)
    with Screen(console) as screen:
        screen.show(STATUS)
        screen.show(STATUS)
    assert console.file.getvalue() == format_line(STATUS) + "\n"
    assert "requests 512" in format_line(STATUS)
    assert "; round 2 training 50%" in format_line(STATUS)
    labelling = {
        "state": "preparing",
        "number": 2,
        "progress": 0.0,
        "reason": "the reward model labels answers to 9 prompts",
    }
    assert "; round 2 preparing (the reward model labels answers to 9 prompts) |" in format_line(
        {"trainer": {"round": labelling}}
    )
    assert "rounds none yet; 30/120 preferences to the next" in format_line(
        {"trainer": {"round": {"state": "waiting"}, "new_since_round": 30, "round_every": 120}}
    )
    stopped = {
        "number": 1,
        "outcome": "stopped",
        "reason": "offline gate: answers under three words rose; tasks not available",
    }
    learning = {
        "round": {"state": "learning", "progress": 0.25},
        "rounds": [stopped],
        "new_since_round": 900,
        "round_every": 120,
    }
    line = "rounds 1 (1 stopped); round 1 stopped: offline gate: answers under three words rose; the reward model catches up 25% |"
    assert line in format_line({"trainer": learning})
    assert "engine: up, restarted 1x (killed by signal 9)" in format_line(STATUS)


def test_a_terminal_gets_the_live_dashboard():
    console = Console(file=io.StringIO(), width=160, height=60, force_terminal=True)
    with Screen(console) as screen:
        screen.show(STATUS)
    assert "512 (0 failed)" in console.file.getvalue()
