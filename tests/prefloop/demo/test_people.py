"""The simulated people: their taste, their choices, and their manners as clients of the public API."""

import ast
import asyncio
import json
import random
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from prefloop.demo import examination, intervals, people, replies, report, stats, tastes
from prefloop.demo.people import run_people
from prefloop.demo.stats import Stats, resume_stats
from prefloop.demo.tastes import Crowd, Tastes, choose, draw_people, load_tastes, parse_tastes
from prefloop.demo.worlds.catalogue import WORLDS

ROOT = Path(people.__file__).parents[2]
OWN = (people, tastes, replies, stats, examination, intervals)  # the modules of the people's process alone
QUESTION = "What is the capital of France?"
KIND, TERSE = "The capital of France is Paris. Happy to help!", "Paris."


def test_people_import_nothing_of_the_server_s_packages():
    for module in OWN:
        tree = ast.parse(Path(module.__file__).read_text())
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {name.split(".")[0] for name in imported} & {"gateway", "trainer", "feedback"}
        ours = {name for name in imported if name.startswith("prefloop")}
        assert {name for name in ours if not name.startswith("prefloop.demo.worlds.")} <= {
            part.__name__ for part in (*OWN, report)
        }


def test_nobody_else_reads_the_file_that_says_what_people_like():
    packages = ("prefloop", "gateway", "trainer", "feedback")
    others = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    for module in (people, tastes):
        others.remove(Path(module.__file__))
    for path in others:
        text = path.read_text()
        for name in ("people.toml", "brief.toml", "warm-lists.toml", "load_tastes", "parse_tastes"):
            assert name not in text, path


def test_default_world_says_what_the_defaults_say():
    assert load_tastes(tastes.find_tastes(tastes.DEFAULT_TASTE)) == Tastes()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"taste": {}}, "unknown section taste"),
        ({"utilities": {"polite": 1.0}}, r"unknown key in \[utilities\]: polite"),
        ({"people": {"num": 3}}, r"unknown key in \[people\]: num"),
        ({"people": {"count": 1.5}}, "count must be a whole number"),
        ({"people": {"consistency": 1.2}}, "a chance"),
        ({"utilities": {"terse": "much"}}, "terse must be a number"),
        ({"world": "moon"}, "world must be one of capitals, assistant"),
        ({"world": "assistant", "utilities": {"terse": 1.0}}, r"unknown key in \[utilities\]: terse"),
        ({"people": {"skip_share": 2.0}}, "skip_share is a chance"),
        ({"people": {"typical_gap": -1.0}}, "must not be negative"),
        ({"people": {"consistency": 1.0, "typical_gap": 1.0}}, "always choose alike"),
    ],
)
def test_a_world_that_cannot_be_is_refused_with_the_reason(document, message):
    with pytest.raises(tastes.TastesError, match=message):
        parse_tastes(document)


def test_a_world_file_error_names_the_file(tmp_path):
    path = tmp_path / "odd.toml"
    path.write_text("[utilities]\npolite = 1\n")
    with pytest.raises(tastes.TastesError, match=r"odd\.toml"):
        load_tastes(path)


def test_true_utility_adds_each_token():
    parsed = parse_tastes({"utilities": {"terse": 0.2, "per_token": -0.05}})
    judged = tastes.judge_truly(parsed, QUESTION, TERSE)  # "Paris" and "." are two tokens
    assert judged.style == "terse" and judged.utility == pytest.approx(0.1)
    assert tastes.judge_truly(Tastes(), QUESTION, "Rome.").style == "wrong"


def test_the_same_seed_draws_the_same_people_with_tastes_of_their_own():
    drawn = draw_people(Tastes(), 7)
    assert [(p.name, p.taste) for p in drawn] == [(p.name, p.taste) for p in draw_people(Tastes(), 7)]
    assert len({p.name for p in drawn}) == 200
    tastes = [taste for person in drawn for taste in person.taste.values()]
    mean = sum(tastes) / 1000
    assert len(tastes) == 1000 and abs(mean) < 0.04  # four standard errors: 4 * 0.3 / sqrt(1000)
    assert 0.27 < (sum((taste - mean) ** 2 for taste in tastes) / 1000) ** 0.5 < 0.33


def test_people_pick_the_better_answer_as_often_as_their_consistency_says():
    rng = random.Random(1)
    picks = Counter(choose(1.0, 0.2, Crowd(), rng) for _ in range(4000))
    assert picks["first"] / 4000 == pytest.approx(0.8, abs=0.025)  # four standard errors
    picks = Counter(choose(0.2, 1.0, Crowd(consistency=1.0), rng) for _ in range(100))
    assert picks == {"second": 100}


def test_close_answers_tie_and_close_bad_ones_are_both_bad():
    rng = random.Random(1)
    assert choose(0.50, 0.54, Crowd(), rng) == "tie"
    assert choose(-0.50, -0.54, Crowd(), rng) == "both_bad"
    assert choose(0.01, -0.01, Crowd(), rng) == "tie"
    assert choose(0.50, 0.56, Crowd(consistency=1.0), rng) == "second"


def test_bradley_terry_people_see_wide_gaps_more_surely():
    crowd = Crowd(consistency=0.8, typical_gap=1.0)  # log-odds ln 4 a unit
    assert tastes.find_chance(1.0, 0.0, crowd) == pytest.approx(0.8)
    assert tastes.find_chance(0.0, 2.0, crowd) == pytest.approx(16 / 17)
    assert tastes.find_chance(0.5, 0.0, crowd) == pytest.approx(2 / 3)
    assert tastes.find_chance(9.0, 0.0, Crowd(consistency=0.8)) == 0.8  # without a typical gap all are alike


def test_position_bias_helps_the_first_shown_whichever_is_better():
    crowd = Crowd(consistency=0.8, typical_gap=1.0, position_bias=0.405465)  # ln 1.5
    assert tastes.find_chance(1.0, 0.0, crowd) == pytest.approx(6 / 7, abs=1e-6)  # odds 4 * 1.5
    assert tastes.find_chance(0.0, 1.0, crowd) == pytest.approx(8 / 11, abs=1e-6)  # odds 4 / 1.5


def test_people_skip_their_share_and_no_more_dice_fall_without_one():
    rng = random.Random(1)
    picks = Counter(choose(1.0, 0.2, Crowd(skip_share=0.25), rng) for _ in range(4000))
    assert picks["skip"] / 4000 == pytest.approx(0.25, abs=0.028)  # four standard errors
    rng, twin = random.Random(2), random.Random(2)
    choose(1.0, 0.2, Crowd(), rng)
    assert twin.random() and rng.getstate() == twin.getstate()


def test_of_shuffled_choices_nothing_is_left_but_how_often_people_tie():
    rng, shuffle = random.Random(1), random.Random(2)
    picks = Counter(choose(1.0, 0.2, Crowd(), rng, shuffle) for _ in range(4000))
    assert picks["first"] / 4000 == pytest.approx(0.5, abs=0.032)  # four standard errors
    assert {choose(0.5, 0.5, Crowd(), rng, shuffle) for _ in range(20)} == {"tie"}


@pytest.mark.parametrize("taste", ["brief", "warm-lists"])
def test_shipped_tastes_of_a_real_model_have_noise_bias_and_skips(taste):
    crowd = load_tastes(tastes.find_tastes(taste)).people
    assert crowd.typical_gap > 0 and crowd.position_bias > 0 and crowd.skip_share > 0


def test_an_unknown_taste_is_refused_with_those_there_are():
    with pytest.raises(
        tastes.TastesError, match=r"no taste sour \(known: brief, people, plain-prose, thorough, warm-lists\)"
    ):
        tastes.find_tastes("sour")
    with pytest.raises(tastes.TastesError):
        tastes.find_tastes("../demo/people")


class FakeGateway:
    """Answers like the gateway: pairs, streams, and acknowledges choices after `num_refusals` 503s each."""

    def __init__(self, num_refusals=0, choice_status=200, chat_status=200, paired=True, finish_reason="stop"):
        self.finish_reason = finish_reason
        self.num_refusals, self.choice_status, self.chat_status = num_refusals, choice_status, chat_status
        self.paired = paired
        self.attempts, self.choices, self.requests = Counter(), {}, []

    def application(self):
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/comparisons/{id}/choice", self.choice)
        return app

    async def chat(self, request):
        body = await request.json()
        self.requests.append((request.headers.get("X-Prefloop-User"), request.headers.get("X-Prefloop-Compare"), body))
        if self.chat_status != 200:
            return web.json_response({"error": {"message": "no"}}, status=self.chat_status)
        number = len(self.requests)
        answers = [KIND, TERSE] if self.paired else [KIND]
        extra = {"comparison": {"id": f"cmp-{number}", "token": f"t-{number}"}} if self.paired else {}
        base = {"id": f"chat-{number}", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            choices = [
                {"index": i, "finish_reason": self.finish_reason, "message": {"role": "assistant", "content": text}}
                for i, text in enumerate(answers)
            ]
            return web.json_response(base | {"object": "chat.completion", "choices": choices} | extra)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        pieces = [(i, piece) for i, text in enumerate(answers) for piece in (text[:4], text[4:])]
        for turn, (i, piece) in enumerate(pieces):
            chunk = base | {"object": "chat.completion.chunk"}
            finish_reason = self.finish_reason if turn % 2 else None
            chunk["choices"] = [{"index": i, "delta": {"content": piece}, "finish_reason": finish_reason}]
            chunk |= extra if turn == len(pieces) - 1 else {}
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    async def choice(self, request):
        comparison = request.match_info["id"]
        self.attempts[comparison] += 1
        if self.attempts[comparison] <= self.num_refusals:
            return web.json_response({"error": {"message": "later"}}, status=503)
        body = await request.json()
        self.choices[comparison] = body
        return web.json_response({"id": comparison, "preferred": body["preferred"]}, status=self.choice_status)


async def talk_to(gateway, *, stop_after_requests=None, **options):
    stats, stop, rows = Stats(), asyncio.Event(), []
    async with TestServer(gateway.application()) as server:
        if stop_after_requests:

            async def watch():
                while stats.requests < stop_after_requests:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                stop.set()

            watcher = asyncio.create_task(watch())
        await run_people(
            str(server.make_url("/")),
            "pl_key",
            Tastes(),
            3,
            stats,
            stop,
            concurrency=4,
            history=rows.append,
            questions=[QUESTION],
            **options,
        )
        if stop_after_requests:
            await watcher
    return stats, rows


async def test_people_compare_choose_and_are_acknowledged_streaming_or_not():
    gateway = FakeGateway()
    stats, rows = await talk_to(gateway, until_choices=40)
    assert stats.acks >= 40 and stats.failed_requests == 0
    assert stats.requests == stats.comparisons == stats.choices == stats.acks == len(rows) == len(gateway.choices)
    assert {bool(body.get("stream")) for _, _, body in gateway.requests} == {True, False}
    assert all(user.startswith("person-") and compare == "auto" for user, compare, _ in gateway.requests)
    assert {row["comparison"]: row["preferred"] for row in rows} == {
        name: body["preferred"] for name, body in gateway.choices.items()
    }
    assert all(body["token"] == name.replace("cmp", "t") for name, body in gateway.choices.items())
    assert stats.preferred["first"] > stats.preferred["second"]  # the kind answer comes first here
    turns = Counter(user for user, _, _ in gateway.requests)
    assert max(turns.values()) == 1  # 200 people: nobody speaks twice before the others


async def test_shuffled_people_choose_the_better_answer_half_the_time():
    gateway = FakeGateway()
    stats, _ = await talk_to(gateway, until_choices=200, is_shuffled=True)
    assert 0.3 < stats.preferred["first"] / (stats.preferred["first"] + stats.preferred["second"]) < 0.7


async def test_people_ask_as_their_world_says():
    gateway = FakeGateway()
    await talk_to(gateway, until_choices=4)
    assert {(body["max_tokens"], body["temperature"]) for _, _, body in gateway.requests} == {(48, 0.7)}


async def test_people_see_that_an_answer_was_cut(monkeypatch):
    gateway, seen = FakeGateway(finish_reason="length"), []
    judge = tastes.judge_truly
    monkeypatch.setattr(tastes, "judge_truly", lambda *given: seen.append(given[3]) or judge(*given))
    await talk_to(gateway, until_choices=20)
    assert set(seen) == {True}  # of whole answers and of streamed ones


async def test_people_post_a_choice_again_until_it_is_acknowledged(monkeypatch):
    monkeypatch.setattr(people, "FIRST_RETRY_S", 0.01)
    gateway = FakeGateway(num_refusals=2)
    stats, rows = await talk_to(gateway, until_choices=5)
    assert stats.acks == len(rows) == len(gateway.choices) and stats.retried_choices == 2 * stats.acks


async def test_people_give_up_a_choice_that_is_refused_for_good():
    gateway = FakeGateway(choice_status=410)
    stats, rows = await talk_to(gateway, stop_after_requests=8)
    assert stats.acks == 0 and not rows and stats.refused_choices == stats.choices == sum(gateway.attempts.values())


async def test_people_do_not_choose_where_there_is_one_answer():
    gateway = FakeGateway(paired=False)
    stats, _ = await talk_to(gateway, stop_after_requests=8)
    assert stats.comparisons == stats.choices == 0 and stats.failed_requests == 0 and stats.first_answer_at


async def test_a_request_that_finally_fails_is_counted():
    gateway = FakeGateway(chat_status=400)
    stats, _ = await talk_to(gateway, stop_after_requests=4)
    assert stats.failed_requests == stats.requests >= 4 and "no" in stats.last_error


async def test_a_refused_choice_is_no_failed_request():
    stats, _ = await talk_to(FakeGateway(choice_status=409), stop_after_requests=4)
    assert stats.failed_requests == 0


def test_stats_go_on_after_a_restart_of_the_same_run_only(tmp_path):
    path = tmp_path / "people.json"
    stats = Stats(run="a", requests=9, preferred=Counter(first=2))
    stats.recent_styles.extend(["terse", "wrong"])
    report.write_json(path, stats.as_dict())
    assert resume_stats(path, "a").requests == 9
    assert resume_stats(path, "a").preferred == {"first": 2}
    assert resume_stats(path, "b").requests == resume_stats(path, "").requests == 0
    assert resume_stats(tmp_path / "none.json", "a") == Stats(run="a")


async def test_the_examination_asks_each_policy_and_keeps_the_seed_s_answers(tmp_path):
    gateway = FakeGateway(paired=False)
    async with TestServer(gateway.application()) as server:
        held = partial(
            examination.examine, api_url=str(server.make_url("/v1")), api_key="pl_key", seed_policy="c-0", seed=0,
            out=tmp_path / "final.json", progress_file=tmp_path / "progress.json",
            world=WORLDS["capitals"], judge=partial(tastes.judge_truly, Tastes()),
        )  # fmt: skip
        await held(policy=None)
        num_questions = len(WORLDS["capitals"].held_out_questions())
        assert len(gateway.requests) == 2 * num_questions and not (tmp_path / "final.json").exists()
        await held(policy="c-1")
    asked = Counter(body["model"] for _, _, body in gateway.requests)
    assert asked == {"c-0": 2 * num_questions, "c-1": num_questions} and num_questions >= 200
    result = json.loads((tmp_path / "final.json").read_text())
    assert result["win_rate_before"]["value"] == result["win_rate_after"]["value"] == 0.5
    assert len(result["examples"]) == 3


async def test_an_examination_of_a_real_model_is_by_family_topic_and_fault(tmp_path):
    world, asked = WORLDS["assistant"], tastes.load_tastes(tastes.find_tastes("brief"))
    gateway = FakeGateway(paired=False, finish_reason="length")
    async with TestServer(gateway.application()) as server:
        await examination.examine(
            api_url=str(server.make_url("/v1")), api_key="pl_key", seed_policy="c-0", policy="c-1", seed=0,
            out=tmp_path / "final.json", progress_file=tmp_path / "progress.json",
            world=world, judge=partial(tastes.judge_truly, asked),
        )  # fmt: skip
    assert {body["max_tokens"] for _, _, body in gateway.requests} == {160} and len(gateway.requests) == 3 * 96
    result = json.loads((tmp_path / "final.json").read_text())
    assert (result["win_rate_after"]["n"], result["win_rate_after"]["clusters"]) == (96, 48)
    assert list(result["by_family"]) and {share["n"] for share in result["by_family"].values()} == {16}
    assert result["degenerate_after"]["unfinished"] == 1.0 and result["wrong_rate_after"] is None
    assert {example["after_style"] for example in result["examples"]} == {"degenerate"}


@pytest.mark.parametrize(("text", "code"), [("", 0), ("[people]\ncount = 3\n", 0), ("[utilities]\npolite = 1\n", 2)])
def test_a_file_of_tastes_is_checked_without_a_gateway(tmp_path, text, code, capsys):
    (tmp_path / "mine.toml").write_text(text)
    assert people.main(["--check", "--world", str(tmp_path / "mine.toml")]) == code
    said = capsys.readouterr()
    assert ("polite" in said.err) == bool(code)
    assert code or json.loads(said.out) == {"world": "capitals", "taste": "mine"}


def test_a_shipped_taste_is_found_by_its_name(capsys):
    assert people.main(["--check", "--taste", "warm-lists"]) == 0
    assert json.loads(capsys.readouterr().out) == {"world": "assistant", "taste": "warm-lists"}
    assert people.main(["--check", "--taste", "sour"]) == 2 and "known: brief" in capsys.readouterr().err
