"""Every command that talks to a gateway, run against a live one: right arguments, wrong ones, and no gateway at all.

No command may end in a traceback: what is wrong is said in red, and the exit status is not 0. The terminal is 80 columns wide,
and no id may be cut there.
"""

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from prefloop.cli import app
from tests.prefloop.live_gateway import LiveGateway, run_live_gateway, wait_until
from trainer.run.status.board import Board
from trainer.run.status.server import start_status_server

runner = CliRunner(env={"COLUMNS": "80"})


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    with run_live_gateway(tmp_path_factory.mktemp("gateway")) as running:
        yield running


def run(*arguments: str, code: int = 0, said: str = "", **env: str) -> Result:
    """Run a command to its end, which is an exit and no exception. said: what a person types."""
    result = runner.invoke(app, list(arguments), env=env, input=said)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert result.exit_code == code, result.output
    return result


def ask(gateway: LiveGateway, *arguments: str, code: int = 0, said: str = "", **env: str) -> Result:
    """Run a command for this gateway, with the admin key that its state directory holds."""
    place = {"PREFLOOP_GATEWAY_URL": gateway.url + "/", "PREFLOOP_STATE_DIR": str(gateway.state_dir)}
    return run(*arguments, code=code, said=said, **{**place, **env})


def ask_json(gateway: LiveGateway, *arguments: str, code: int = 0, **env: str) -> Any:
    """What a command prints with --json, which must be one document and nothing else."""
    return json.loads(ask(gateway, *arguments, "--json", code=code, **env).stdout)


def test_a_rollout_from_start_to_rollback(gateway: LiveGateway) -> None:
    seed = gateway.call("GET", "/operator/v1/status")["stable"]["id"]
    assert "No rollout is active" in ask(gateway, "rollout", "show", code=1).stderr
    assert "Nothing served before" in ask(gateway, "rollout", "rollback", code=1).stderr

    queued, words = ask(gateway, "rollout", "start", "--aa").stdout.split(" ", 1)
    assert queued.startswith("a-000001-") and words == "waits for its trial\n"
    rollout = gateway.wait_for_phase("Progressing")
    assert f"{rollout} Paused" in ask(gateway, "rollout", "pause").stdout
    assert "Paused" in ask(gateway, "rollout", "pause", rollout, code=1).stderr
    assert f"{rollout} Progressing" in ask(gateway, "rollout", "resume", rollout).stdout
    assert "is for WaitingPromotion" in ask(gateway, "rollout", "approve", code=1).stderr
    shown = ask(gateway, "rollout", "show").stdout
    assert queued in shown and "guardrail" in shown and "Resumed" in shown
    assert json.loads(ask(gateway, "rollout", "show", rollout, "--json").stdout)["checkpoint"] == queued
    assert f"{rollout} Aborting" in ask(gateway, "rollout", "abort", "--note", "[/odd] 'words'").stdout
    wait_until(lambda: not gateway.active(), "the rollout ended")
    assert "[/odd] 'words'" in ask(gateway, "rollout", "show", rollout).stdout

    ask(gateway, "rollout", "start", "--checkpoint", queued)
    gateway.promote()
    assert "Aborting" in ask(gateway, "rollout", "rollback").stdout  # while baking: back at once
    wait_until(lambda: gateway.call("GET", "/operator/v1/status")["stable"]["id"] == seed, "the seed serves")
    wait_until(lambda: not gateway.active(), "the rollout ended")

    ask(gateway, "rollout", "start", "--checkpoint", queued)
    gateway.promote()
    wait_until(lambda: not gateway.active(), "baking is over")
    assert ask(gateway, "rollout", "rollback", "--note", "It lies").stdout.endswith(" RollingBack\n")
    wait_until(lambda: gateway.call("GET", "/operator/v1/status")["stable"]["id"] == seed, "the seed serves")
    wait_until(lambda: not gateway.active(), "the rollout ended")
    last = gateway.call("GET", "/operator/v1/rollouts")["data"][0]
    assert (last["phase"], last["reason"], last["note"], last["num_tries"]) == ("Degraded", "RolledBack", "It lies", 3)
    assert "No decision was made" in ask(gateway, "rollout", "replay", last["id"]).stdout
    assert "waits for its trial" in ask(gateway, "rollout", "retry", last["id"]).stdout
    ask(gateway, "rollout", "abort", gateway.wait_for_phase("Progressing"))
    wait_until(lambda: not gateway.active(), "the rollout ended")
    listed = ask(gateway, "rollout", "list").stdout
    assert listed.count(queued) == 4


def test_a_rollout_is_approved(tmp_path: Path) -> None:
    with ExitStack() as stack, run_live_gateway(tmp_path) as gateway:
        better = gateway.publish(1, gateway.call("GET", "/operator/v1/status")["stable"]["id"])
        gateway.wait_for_phase("Progressing")
        for start in range(0, 400, 50):
            gateway.let_people_choose(50, likes=1, start=start)
            if gateway.active()["phase"] == "WaitingPromotion":
                break
        gateway.wait_for_phase("WaitingPromotion")
        refused = ask(gateway, "rollout", "approve", code=1, said="n\n")
        assert refused.stdout == "" and "Nothing was done." in refused.stderr
        assert "nobody said yes" in ask(gateway, "rollout", "approve", code=1).stderr
        seen = gateway.active()
        assert seen["phase"] == "WaitingPromotion"
        watching = stack.enter_context(start_watching(gateway))
        approved = ask(gateway, "rollout", "approve", said="y\n")
        assert approved.stdout == f"{seen['id']} Promoting\n"
        for shown in (better, seen["decision_digest"], f"generation {seen['generation']}", "every guardrail passes"):
            assert shown in approved.stderr, shown
        assert "evidence" in approved.stderr and f"Approve {better}? [y/N]" in approved.stderr
        wait_until(lambda: gateway.call("GET", "/operator/v1/status")["stable"]["id"] == better, "it is stable")
        assert watching.wait(60) == 0
        assert watching.stdout is not None
        lines = watching.stdout.read().splitlines()
        assert all("Baking" not in line or "old weight" in line for line in lines)
        assert "WaitingPromotion" in lines[0] and "Healthy" in lines[-1] and len(lines) >= 3
        replayed = ask_json(gateway, "rollout", "replay", seen["id"])["decisions"]
        assert replayed and all(decision["is_same"] for decision in replayed)
        assert "same" in ask(gateway, "rollout", "replay", seen["id"]).stdout
        assert "picked" in ask(gateway, "bias").stdout and ask_json(gateway, "bias")["shown_first"]["num"] > 0


@contextmanager
def start_watching(gateway: LiveGateway) -> Iterator[subprocess.Popen[str]]:
    """`rollout watch` in a process of its own, which has said its first line; it is stopped at the end."""
    with subprocess.Popen(
        [sys.executable, "-m", "prefloop.cli", "rollout", "watch", "--interval", "0.1"],
        env={**os.environ, "PREFLOOP_GATEWAY_URL": gateway.url, "PREFLOOP_STATE_DIR": str(gateway.state_dir)},
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert select.select([process.stdout], [], [], 60)[0]
            yield process
        finally:
            process.kill()


def test_a_decision_that_moved_on_while_the_operator_read_is_refused(gateway: LiveGateway) -> None:
    ask(gateway, "rollout", "start", "--aa")
    rollout = gateway.wait_for_phase("Progressing")
    stale = {"generation": 1, "decision_digest": ""}
    answer = gateway.http.post(f"/operator/v1/rollouts/{rollout}:approve", json=stale)
    assert answer.status_code == 409
    asked = ask(gateway, "rollout", "promote", said="the cause is known\n")
    assert "guardrails that have not passed" in asked.stderr and "Why it is promoted" in asked.stderr
    gateway.wait_for_phase("Promoting", "Baking")
    assert ask_json(gateway, "rollout", "abort", "--note", "back")["phase"] == "Aborting"
    wait_until(lambda: not gateway.active(), "the rollout ended")
    ended = ask(gateway, "rollout", "watch", rollout, code=1)  # over already: one line, and it was not promoted
    assert "Degraded" in ended.stdout and len(ended.stdout.splitlines()) == 1
    [line] = ask(gateway, "rollout", "watch", rollout, "--json", code=1).stdout.splitlines()
    events = json.loads(line)["events"]
    assert [event["note"] for event in events if event["to"] == "Promoting"] == ["the cause is known"]


def test_checkpoints_and_engines_are_shown_whole(gateway: LiveGateway) -> None:
    seed = gateway.call("GET", "/operator/v1/status")["stable"]["id"]
    ids = [row["id"] for row in gateway.call("GET", "/operator/v1/checkpoints")["data"]]
    child = gateway.publish(50, seed)
    gateway.wait_for_phase("Progressing")
    ask(gateway, "rollout", "abort")
    wait_until(lambda: not gateway.active(), "the rollout ended")
    listed = ask(gateway, "checkpoints", "list").stdout
    assert all(name in listed for name in (*ids, child))
    assert {row["id"] for row in ask_json(gateway, "checkpoints", "list")["data"]} == {*ids, child}
    shown = ask(gateway, "checkpoints", "show", child).stdout
    assert f"descends from  {seed}" in shown and "Degraded" in shown
    assert ask_json(gateway, "checkpoints", "show", child)["ancestors"] == [seed]
    assert f"second  {child}" in ask(gateway, "checkpoints", "compare", seed, child).stdout
    assert ask_json(gateway, "checkpoints", "compare", seed, child)["second"]["id"] == child
    [engine] = ask_json(gateway, "engines")["data"]
    shown = ask(gateway, "engines").stdout
    assert engine["url"] in shown and f"holds  {seed}\n" in shown and "  up, 0 in flight" in shown


def test_keys_from_creation_to_revocation(gateway: LiveGateway) -> None:
    name = "[/red] shop [bold]"  # a name is no markup
    assert ask(gateway, "keys", "create", name, "--requests-per-minute", "60").stdout.startswith("pl_")
    [row] = [row for row in gateway.call("GET", "/operator/v1/keys")["data"] if row["name"] == name]
    listed = ask(gateway, "keys", "list").stdout
    assert "[/red] shop" in listed and "[bold]" in listed and "60 requests/minute" in listed
    limited = ask(gateway, "keys", "limit", row["id"], "--tokens-per-day", "5", "--requests-per-minute", "none")
    assert limited.stdout == "5 tokens/day\n"
    rotated = ask(gateway, "keys", "rotate", row["id"], "--grace", "1h").stdout
    assert rotated.startswith(f"pl_{row['id']}_")
    assert "ends 20" in ask(gateway, "keys", "expire", row["id"], "90d").stdout
    listed = ask(gateway, "keys", "list").stdout
    assert "old until 20" in listed and "ends 20" in listed and row["id"] in listed
    assert ask(gateway, "keys", "expire", row["id"], "never").stdout == "never ends\n"
    made = ask_json(gateway, "keys", "create", "phone", "--app", "shop", "--expires-in", "12h")
    assert (
        made["app"] == "shop" and 43_000 < made["expires_at"] - time.time() < 43_201 and made["key"].startswith("pl_")
    )
    gateway.call("POST", "/v1/chat/completions", {"model": "default", "messages": [{"role": "user", "content": "Hi"}]})
    [used] = ask_json(gateway, "keys", "usage", "--days", "1")["data"]
    assert used["name"] == "admin" and used["total"]["requests"] >= 1
    shown = ask(gateway, "keys", "usage").stdout
    assert used["id"] in shown and "admin" in shown and "completion" in shown
    assert f"{used['total']['requests']:,}" in ask(gateway, "keys", "usage", used["id"]).stdout
    assert ask_json(gateway, "keys", "usage", row["id"])["days"] == []
    assert ask(gateway, "keys", "revoke", row["id"]).stdout == f"revoked {row['id']}\n"
    assert "no such key" in ask(gateway, "keys", "revoke", "nobody", code=1).stderr


def test_status_shows_gateway_and_trainer(gateway: LiveGateway) -> None:
    nowhere = {"PREFLOOP_TRAINER_URL": "http://127.0.0.1:9"}
    assert "no trainer answers" in ask(gateway, "status", **nowhere).stdout
    assert json.loads(ask(gateway, "status", "--json", **nowhere).stdout)["trainer"] is None
    board = Board()
    server = start_status_server("127.0.0.1", 0, board, CollectorRegistry())
    trainer = {"PREFLOOP_TRAINER_URL": f"http://127.0.0.1:{server.server_port}/"}
    try:
        assert "waiting: the trainer is starting" in ask(gateway, "status", **trainer).stdout
        board.begin_round(3, "1,000 new preferences")
        board.show_round("training", "1,000 new preferences", progress=0.4)
        board.update(drift=["refusals: 20% in traffic, 2% when it was judged (100 prompts)"])
        shown = ask(gateway, "status", **trainer).stdout
        assert "training round 3, 40%: 1,000 new preferences" in shown
        assert "refusals: 20% in traffic" in shown
        assert json.loads(ask(gateway, "status", "--json", **trainer).stdout)["trainer"]["round"]["number"] == 3
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rollout", "show", "no/such?rollout"], "404"),
        (["rollout", "show", ".."], "4"),
        (["rollout", "approve", "nobody"], "404"),
        (["rollout", "abort", "nobody", "--note", ""], "404"),
        (["rollout", "pause", "nobody"], "404"),
        (["rollout", "resume", "\x00\udcff"], "400"),
        (["rollout", "start"], "either --aa or --checkpoint"),
        (["rollout", "start", "--aa", "--checkpoint", "c"], "either --aa or --checkpoint"),
        (["rollout", "start", "--checkpoint", "c-000009-none"], "404"),
        (["rollout", "watch"], "No rollout is active"),
        (["rollout", "promote", "nobody", "--note", "x"], "404"),
        (["rollout", "skip", "nobody"], "404"),
        (["checkpoints", "show", "c-000009-none"], "no checkpoint c-000009-none"),
        (["checkpoints", "compare", "c-000009-none", "x"], "no checkpoint c-000009-none"),
        (["keys", "create", ""], "400"),
        (["keys", "create", "shop", "--scope", "king"], "400"),
        (["keys", "create", "\udcff"], "400"),
        (["keys", "create", "shop", "--budget-per-day", "5"], "needs prices"),
        (["keys", "limit", "nobody", "--tokens-per-day", "5"], "404"),
        (["keys", "limit", "nobody", "--tokens-per-day", "9" * 30], "400"),
        (["keys", "limit", "nobody"], "at least one limit"),
        (["keys", "rotate", "nobody"], "404"),
        (["keys", "usage", "nobody"], "404"),
        (["keys", "rotate", "nobody", "--grace", "soon"], "no length of time"),
        (["keys", "expire", "nobody", "never"], "404"),
        (["keys", "create", "shop", "--expires-in", "1 day"], "no length of time"),
        (["keys", "revoke", ""], "40"),
        (["keys", "list", "--key", "pl_wrong_key"], "401"),
        (["keys", "list", "--key", "ключ"], "no key has"),
        (["status", "--key", "a\nb"], "no key has"),
        (["status", "--state-dir", "no/such/state"], "No key"),
        (["status", "--gateway", "http://127.0.0.1:9"], "No gateway answers"),
        (["status", "--gateway", "localhost:8800"], "no address"),
        (["status", "--gateway", "http://[::1"], "no address"),
        (["rollout", "list", "--gateway", "http://127.0.0.1:many"], "no address"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(gateway: LiveGateway, arguments: list[str], words: str) -> None:
    result = ask(gateway, *arguments, code=1)
    assert words in result.stderr and result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["rollout", "list"], ["engines"], ["bias"], ["checkpoints", "list"], ["rollout", "list", "--json"],
     ["rollout", "show"], ["rollout", "rollback"], ["keys", "list"], ["keys", "create", "shop"], ["rollout", "start", "--aa"]],
)  # fmt: skip
@pytest.mark.parametrize("answer", ["hello", "[]", "{}", '{"data": [1]}'])
def test_a_server_that_is_no_gateway_is_said_so(arguments: list[str], answer: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer.encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        result = run(*arguments, "--gateway", url, "--key", "pl_a_b", code=1)
        server.shutdown()
    assert "cannot read" in result.stderr
