"""One round as a job: takes in the log, trains what is due, publishes, and ends with a line that says what came of it.

Exit status 0 also where nothing was due. 75 (EX_TEMPFAIL) if another trainer works or the gateway does not answer: try again. A
job that was killed is tried again and goes on with its round, as a trainer that stays would.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from feedback.database import wait_for_database
from feedback.errors import DatabaseError
from feedback.outages import describe_error
from feedback.schema import migrate_url
from trainer.learn.isolation import RoundAborted
from trainer.parts import TEMPORARY, Parts, build_learner, load_base
from trainer.process import is_base_ready
from trainer.run import rounds
from trainer.run.intake.clusters import place_undecided
from trainer.run.intake.consumer import consume_all
from trainer.run.learner import Learner
from trainer.run.status.requests import RoundRequest

log = logging.getLogger("trainer")

GATEWAY_WAIT_S = 60.0
PAUSE_S = 0.5


def run_once(parts: Parts, request: RoundRequest | None) -> int:
    """One round, or none; prints what came of it. request: a round that is to begin, due or not. Returns the exit status."""
    section, url = parts.settings.trainer, parts.settings.trainer_database
    try:
        wait_for_database(url, section.database_wait_s)
        migrate_url(url, "trainer")
        if not wait_for_lease(parts):
            return TEMPORARY
        if not is_base_ready(parts.settings):
            print(f"failed: no base policy in {parts.settings.base}")
            return 1
        parts.lease.start()
        parts.show_leading()
        if request is not None:
            parts.requests.ask(request)
        return train(parts)
    except (RoundAborted, DatabaseError) as error:
        print(f"stopped: {describe_error(error)}")
        return TEMPORARY
    except Exception as error:  # a job says why it failed, and is tried again
        log.exception("the job failed")
        print(f"failed: {describe_error(error)}")
        return 1
    finally:
        parts.intake.stop()
        parts.curves.close()
        parts.writer.close()
        parts.lease.stop()


def wait_for_lease(parts: Parts) -> bool:
    """Take the lease; wait for that of a trainer that died. False if another trainer works."""
    seen, deadline = None, time.monotonic() + 2 * parts.settings.trainer.lease_s
    while not parts.lease.try_take():
        holding = parts.lease.read_holding()
        ends_at = holding and (holding.holder, round(time.time() + holding.seconds_left, 1))
        seen = seen or ends_at
        is_renewed = bool(seen and ends_at and ends_at[0] == seen[0] and ends_at[1] > seen[1] + PAUSE_S)
        if holding is None or is_renewed or time.monotonic() > deadline:
            owner = holding.holder if holding else parts.lock.name_owner()
            print(f"another trainer works: {owner}")
            return False
        if parts.stopping.wait(PAUSE_S):
            return False
    return True


def train(parts: Parts) -> int:
    """Take in the log, and train the round that is due."""
    parts.intake.start(follows=False)
    take_in(parts)
    before = find_last(parts)
    learner = build_learner(parts, load_base(parts))
    learner.prepare()  # closes a round that was published before the last attempt died
    done = run_round(parts, learner, before)
    problem = wait_for_registration(parts, learner)
    if done is not None:
        what = f"published {done['checkpoint']}" if done["checkpoint"] else f"stopped: {done['reason']}"
        print(f"round {done['number']} {what}" + (f"; {problem}" if problem else ""))
    else:
        print(f"no round: {parts.board.read().round.reason}" + (f"; {problem}" if problem else ""))
    return TEMPORARY if problem or (done is None and learner.is_gateway_away) else 0


def take_in(parts: Parts) -> None:
    """Store all that the log holds now."""
    settings = parts.settings
    source = settings.open_log()
    try:
        partitions, limit = source.partitions(settings.topic), settings.trainer.consume_batch
        while consume_all(source, settings.topic, partitions, parts.database, parts.writer, limit, parts.metrics):
            pass
    finally:
        source.close()
    while parts.writer.run(place_undecided).result():
        pass


def run_round(parts: Parts, learner: Learner, before: int) -> dict[str, Any] | None:
    """Step until a round has ended; None if there is nothing more to do. Waits for a gateway that does not answer."""
    deadline = time.monotonic() + GATEWAY_WAIT_S
    while True:
        with parts.database.connect() as connection:
            if (last := rounds.find_last_finished(connection)) > before:
                return rounds.find_round(connection, last)
        if learner.step():
            continue
        if not learner.is_gateway_away or time.monotonic() > deadline or parts.stopping.wait(PAUSE_S):
            return None


def wait_for_registration(parts: Parts, learner: Learner) -> str:
    """Why the gateway does not know a published checkpoint, after some time; "" once it knows all of them."""
    deadline = time.monotonic() + GATEWAY_WAIT_S
    while missing := learner.find_unregistered():
        if time.monotonic() > deadline or parts.stopping.wait(PAUSE_S):
            return f"the gateway does not know {', '.join(missing)}: {parts.board.read().registry_error}"
    return ""


def find_last(parts: Parts) -> int:
    with parts.database.connect() as connection:
        return rounds.find_last_finished(connection)
