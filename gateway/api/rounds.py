"""What operators see of learning: what the trainer does and why, its rounds, and all that is on record of one.

The trainer says it over HTTP; where it is away, that is said. Whose words are in it: a round's samples are answers that
policies wrote to prompts of people.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.access.keys import Identity
from gateway.api.learning_view import Doing, Learnt
from gateway.api.routes import OperatorRoutes
from gateway.api.trainer_client import TrainerProblem, ask_trainer, command_trainer
from gateway.errors import ApiError, not_found, unavailable
from gateway.serving.context import Context

_MAX_ROUND = 1_000_000_000


class RewardView(Learnt, frozen=True, kw_only=True):
    """The reward model. version is the newest, version_in_use the one that rounds use; refused: why that is an older one."""

    accuracy_heldout: float | None = None
    num_heldout: int = 0
    version_in_use: int = 0
    refused: str = ""


class SamplingView(msgspec.Struct, frozen=True):
    """How fast the trainer samples beside people: at most `cap` answers at a time, and why no more or fewer."""

    cap: int | None = None
    reason: str = ""


class WinRate(msgspec.Struct, frozen=True):
    """A share of prompts, with its interval."""

    value: float
    low: float
    high: float


class Rung(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint beside checkpoint 0. judge: what said which answer is better; frozen: its figures on the frozen sets."""

    checkpoint: str
    first: str
    win_rate: WinRate
    judge: str
    frozen: dict[str, float] = {}


class RoundView(msgspec.Struct, frozen=True, kw_only=True):
    """A round that ended: published a checkpoint, or stopped for a reason. Times in epoch seconds, phases in seconds.

    rung: where its checkpoint stands on the ladder, None where that was not measured.
    """

    number: int
    kind: str = ""
    outcome: str | None = None
    checkpoint: str | None = None
    reason: str = ""
    start: str = ""
    started_at: float | None = None
    finished_at: float | None = None
    metrics: dict[str, float] = {}
    phases: dict[str, float] = {}
    rung: Rung | None = None


class TrainerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the trainer says of itself.

    uses: choices by what became of them. set aside are: dead_letters, which could not be read, and quarantined, which learning
    could not use. lag: records of the log that it has not read. drift: what stable does otherwise than when it was judged.
    """

    preferences: int = 0
    decisive: int = 0
    uses: dict[str, int] = {}
    new_since_round: int = 0
    round_every: int = 0
    lag: int | None = None
    consumer_error: str = ""
    registry_error: str = ""
    dead_letters: int = 0
    quarantined: int = 0
    checkpoint: str | None = None
    reward: RewardView = RewardView()
    round: Doing = Doing()
    sampling: SamplingView = SamplingView()
    drift: list[str] = []


class LearningView(msgspec.Struct, frozen=True):
    """problem: why the trainer says nothing, empty if it does."""

    problem: str
    trainer: TrainerStatus | None


class RoundList(msgspec.Struct, frozen=True):
    """Rounds that ended, oldest first."""

    data: list[RoundView]


class RoundDetail(RoundView, frozen=True, kw_only=True):
    """All that is on record of one round. details: what it was made of; num_rows: rows that its checkpoint learnt from.

    curve: the training's figures by `share` done; samples: {prompt, before, after}. Both are kept beside its report.
    """

    attempts: int = 0
    num_left: int = 0
    num_rows: int = 0
    has_report: bool = False
    details: dict[str, Any] = {}
    curve: list[dict[str, float | None]] = []
    samples: list[dict[str, str]] = []


class NewRound(msgspec.Struct, frozen=True):
    """from_base: begin from the base, on a full replay of what is stored; else from stable."""

    from_base: bool = False


class RoundAsked(msgspec.Struct, frozen=True):
    """What the trainer did when a round was asked for, which it begins next."""

    state: str = ""
    reason: str = ""


def add_round_routes(routes: OperatorRoutes, context: Context) -> None:
    """GET /operator/v1/learning, GET and POST /operator/v1/rounds, and GET /operator/v1/rounds/{number}."""

    @routes.add("GET", "/learning", "Show what the trainer does, and why it does not train", {200: LearningView})
    async def show_learning(_: Identity) -> LearningView:
        try:
            return LearningView("", await ask_trainer(context, "/status", TrainerStatus))
        except TrainerProblem as problem:
            return LearningView(str(problem), None)

    @routes.add("GET", "/rounds", "List the rounds that ended", {200: RoundList})
    async def list_rounds(_: Identity) -> RoundList:
        try:
            return await ask_trainer(context, "/rounds", RoundList)
        except TrainerProblem as problem:
            raise unavailable(str(problem)) from problem

    @routes.add("POST", "/rounds", "Have the trainer run a round now", {202: RoundAsked}, 409, body=NewRound)
    async def run_round(_: Identity, body: NewRound) -> RoundAsked:
        try:
            answer = await command_trainer(context, "/rounds", msgspec.to_builtins(body))
            return msgspec.json.decode(answer, type=RoundAsked)
        except TrainerProblem as problem:
            if (
                problem.status is not None and problem.status < 500
            ):  # one is under way, or it takes no commands from here
                raise ApiError(409, str(problem), code="conflict") from problem
            raise unavailable(str(problem)) from problem
        except ValueError:
            return RoundAsked()  # of a trainer that says it otherwise: it has been asked

    @routes.add("GET", "/rounds/{number}", "Show a round", {200: RoundDetail}, 404)
    async def show_round(_: Identity, number: str) -> RoundDetail:
        if not number.isdecimal() or int(number) > _MAX_ROUND:
            raise not_found("There is no such round.")
        try:
            return await ask_trainer(context, f"/rounds/{int(number)}", RoundDetail)
        except TrainerProblem as problem:
            if problem.status == 404:
                raise not_found(f"There is no round {int(number)}.") from problem
            raise unavailable(str(problem)) from problem
