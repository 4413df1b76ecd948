"""What a notice says, and its signature against the example of Standard Webhooks."""

import json
from dataclasses import replace

from gateway.notices.message import Transition, build_slack, build_webhook, describe, sign
from gateway.sections.notices import read_secret

MOVED = Transition(
    7, 1_700_000_000.25, "default", "r-000003", "c-000003-aaaaaaaaaaaa", "c-000002-bbbbbbbbbbbb", "Progressing",
    "WaitingPromotion", "controller", "Superior", "",
)  # fmt: skip


def test_a_notice_is_signed_as_standard_webhooks_says() -> None:
    secret = read_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_a_webhook_has_type_time_and_the_names_of_the_audit_trail() -> None:
    body = json.loads(build_webhook(MOVED))
    assert (body["type"], body["timestamp"]) == ("rollout.transition", "2023-11-14T22:13:20.250Z")
    data = body["data"]
    assert (data["rollout"], data["from"], data["to"]) == ("r-000003", "Progressing", "WaitingPromotion")
    assert (data["checkpoint"], data["stable"], data["actor"]) == (MOVED.checkpoint, MOVED.stable, "controller")
    assert data["sentence"] == describe(MOVED) and data["reason"] == "Superior" and data["reason_text"]


def test_who_must_act_is_told_how() -> None:
    assert describe(MOVED).endswith("Approve or abort it: prefloop rollout approve r-000003.")
    assert "Approve" not in describe(replace(MOVED, to_phase="Aborting", reason="Inferior"))
    assert describe(replace(MOVED, from_phase="", to_phase="Pending", reason="Created")).startswith(
        "Rollout r-000003 of c-000003-aaaaaaaaaaaa: new -> Pending"
    )


def test_a_note_mentions_nobody_in_slack() -> None:
    text = json.loads(build_slack(replace(MOVED, note="<!channel> a & b")))["text"]
    assert "&lt;!channel&gt; a &amp; b" in text and "<" not in text


def test_every_notice_has_an_id_of_its_own_that_stays() -> None:
    ids = {MOVED.id, replace(MOVED, event=8).id, replace(MOVED, at=MOVED.at + 1).id, replace(MOVED, policy="b").id}
    assert len(ids) == 4 and replace(MOVED).id == MOVED.id and MOVED.id.startswith("msg_")
