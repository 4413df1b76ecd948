"""A long run of one policy: 3,000 choices, rounds as they come, every promoted checkpoint examined.

`python -m bench.learning.ladder [--choices N] [--drift] [--shuffled]`. A round's checkpoint is judged offline and then tried by
people, whose duels are choices, too. Promoted ones are examined on facts that neither people nor the gate ask about, against
checkpoint 0 and against the one before. With --drift another style becomes the best half-way, and what counts is how many
choices later the policy follows. Goals: three promotions or more, none clearly worse than the one before, the last at least .80
against checkpoint 0; drift followed within 1,000 choices; nothing promoted where choices are shuffled. The last line is one
JSON object. A run that is killed begins again.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.learning.arms import CLEVER, FREQUENT, get_preset
from bench.learning.asking import ask_people
from bench.learning.learner import Learner, Manner
from bench.learning.people import Taste, draw_people
from bench.learning.seeds import build_policy
from bench.learning.stage import Asked, Stage
from bench.learning.trial import MAX_USERS, Trial, run_trial
from bench.learning.worlds import WRONG, Question, World, load_world
from prefloop.demo.intervals import Share, measure_share, score_pair
from trainer.judge.auditor import SPLIT, Auditor
from trainer.judge.frozen import FrozenRow, FrozenSets
from trainer.judge.gate import Verdict
from trainer.judge.judge import judge_checkpoint
from trainer.learn.sampling.sampler import SamplingParameters
from trainer.model.backbone import Backbone
from trainer.sections.judging import GateSection
from trainer.sections.model import ModelSection
from trainer.sections.training import DpoSection

ROOT = Path(__file__).parents[2] / "state"
AUDITED_SHARE = 0.1  # of choices, which the auditor alone learns from
NUM_HELDOUT = 24  # prompts that the gate asks beside the frozen facts
OUR_DPO = get_preset("tiny")["dpo"]
FOLLOWED = 0.6  # win rate under the new taste, against the checkpoint that served when taste changed


@dataclass(frozen=True)
class Rung:
    """A promoted checkpoint, examined: wins over checkpoint 0 and over the one before, by what people like then."""

    choices: int
    over_first: Share
    over_last: Share
    wrong: float


def make_frozen(world: World) -> tuple[FrozenSets, list[Question], list[Question]]:
    """For the gate one phrasing of each asked fact, and some of a few facts that nobody asks about, as an operator's set would have.

    Returns it with the questions that are left to people, and those that are left to be examined.
    """
    asked: dict[str, Question] = {}
    for question in world.asked():
        asked.setdefault(question.fact, question)
    untaught = {fact: number for number, fact in enumerate(dict.fromkeys(q.fact for q in world.held_out()))}
    is_gates = {fact: number % 3 == 0 for fact, number in untaught.items()}
    others = [q for number, q in enumerate(world.held_out()) if is_gates[q.fact] and number % 3 == 0]
    rows = [
        FrozenRow(kind="fact", prompt=q.prompt, accepted=(world.facts[q.fact],), references=tuple(list_right(world, q)))
        for q in [*asked.values(), *others]
    ]
    left = [question for question in world.asked() if question not in asked.values()]
    return FrozenSets(tuple(rows), path="the world"), left, [q for q in world.held_out() if not is_gates[q.fact]]


def list_right(world: World, question: Question) -> list[str]:
    """Every right answer to a question."""
    templates = [template for name, style in world.styles.items() if name != WRONG for template in style.templates]
    return [template.format(key=question.fact, value=world.facts[question.fact]) for template in templates]


def change_taste(world: World) -> World:
    """The same world where the best style and the second best of the true ones change places."""
    best, second = sorted((n for n in world.styles if n != WRONG), key=lambda n: -world.styles[n].utility)[:2]
    one, other = world.styles[best], world.styles[second]
    styles = {**world.styles, best: replace(one, utility=other.utility), second: replace(other, utility=one.utility)}
    return replace(world, styles=styles)


class Climb:
    """The policy, its reward model and auditor, and the checkpoints so far."""

    def __init__(self, stage: Stage, seed: int, noise: float, manner: Manner, *, is_shuffled: bool = False) -> None:
        self.stage, self.seed = stage, seed
        self.frozen, questions, self.examined = make_frozen(stage.world)  # type: ignore[arg-type]
        rng = random.Random(f"ladder-{seed}")
        self.heldout = rng.sample(questions, NUM_HELDOUT)
        stage.questions = [question for question in questions if question not in self.heldout]
        stage.pool = [each for each in stage.pool if each.question in stage.questions]
        stage.backbone.adapters.reset("auditor")
        stage.backbone.adapters.reset("stable")
        self.auditor = Auditor(stage.backbone, seed=seed)
        self.learner = Learner(stage, stage.draw_crowd(noise, seed, is_shuffled=is_shuffled), manner, seed)
        self.num_choices, self.num_judged, self.num_beside = 0, 0, 0
        self.first = self.last = self.answer(None)
        self._rng = rng
        self._audited: list[Any] = []

    def answer(self, adapter: str | None) -> list[Asked]:
        """The examined questions with two answers each, drawn by the same dice."""
        return self.stage.ask(self.examined, adapter, 2, 3000 + self.seed)

    def ask(self, number: int) -> None:
        """So many choices; a tenth goes to the auditor, asked at random."""
        audited = round(AUDITED_SHARE * number)
        self.learner.ask(number - audited)
        self.num_choices += number
        new = ask_people(
            self.stage, self.learner.people, audited, self._rng, adapter="stable" if self.learner.num_learnt else None,
            shares=replace(CLEVER, random=1.0, informative=0.0, telling=0.0), reward=None, first_number=100_000 + self.num_choices,
        )  # fmt: skip
        pairs = [replace(pair, split=SPLIT) for pair in new]
        self.auditor.update(pairs, self._rng.sample(self._audited, min(len(pairs), len(self._audited))))
        self._audited += pairs

    def run_round(self) -> tuple[Verdict, Trial | None, dict[str, float]]:
        """A round from stable, its verdict and its trial; what is not promoted is undone."""
        adapters = self.stage.backbone.adapters
        figures = self.learner.run_round()
        self.num_judged += 1
        self.num_beside += 1
        verdict = judge_checkpoint(
            self.stage.backbone, self.stage.sampler, self.learner.reward, self.auditor if self.auditor.may_judge else None,
            self.frozen, GateSection(), parameters=self.stage.how, heldout=[q.prompt for q in self.heldout],
            look=self.num_beside, seed=self.num_judged,
        )  # fmt: skip
        trial = self._try() if verdict.ok else None
        if trial is not None and trial.outcome == "promoted":
            self.learner.keep_round()
            adapters.reset("stable", like="policy")
            self.num_beside = 0
        else:
            self.learner.drop_round()
            adapters.reset("policy", like="stable")
        if trial is not None:
            self.learner.take(trial.pairs)
            self.num_choices += len(trial.pairs)
        return verdict, trial, figures

    def _try(self) -> Trial:
        """Before people of their own: who has chosen in one trial comes in no other."""
        people, features = self.learner.people, self.stage.world.private_features
        crowd = draw_people(replace(people.crowd, count=MAX_USERS), features, 1000 * (self.seed + 1) + self.num_judged)
        return run_trial(self.stage, people, crowd, self._rng, 200_000 + self.num_choices)

    def examine(self) -> Rung:
        """Stable beside checkpoint 0 and beside the one before, by what people like now; it becomes the one before."""
        now = self.answer("stable")
        wrong = [self.stage.world.is_wrong(a.question, x.text, not x.is_finished) for a in now for x in a.answers]
        rung = Rung(
            self.num_choices, self.compare(now, self.first), self.compare(now, self.last), sum(wrong) / len(wrong)
        )
        self.last = now
        return rung

    def compare(self, answers: list[Asked], others: list[Asked]) -> Share:
        """The share of questions that the answers win, clustered by fact."""
        scores, facts = [], []
        for one, other in zip(answers, others, strict=True):
            for a in one.answers:
                for b in other.answers:
                    scores.append(score_pair(self.stage.value(one.question, a), self.stage.value(one.question, b)))
                    facts.append(one.question.fact)
        return measure_share(scores, facts)


def climb(state: Climb, total: int, every: int, drift_at: int | None, log: list[dict[str, Any]]) -> dict[str, Any]:
    """Ask and learn until there are `total` choices; returns the last line."""
    rungs: list[Rung] = []
    at_drift: list[Asked] | None = None
    followed_after: int | None = None
    while state.num_choices < total:
        if drift_at is not None and at_drift is None and state.num_choices >= drift_at:
            at_drift = state.answer("stable")
            world = change_taste(state.stage.world)  # type: ignore[arg-type]
            state.stage.world, state.stage.taste = world, Taste(world.measure, world.utilities)
            state.first = state.answer(None)
        state.ask(every)
        verdict, trial, figures = state.run_round()
        row: dict[str, Any] = {
            "choices": state.num_choices,
            "ok": verdict.ok,
            "reason": verdict.reason[:160],
            "kl": figures.get("kl", 0),
        }
        if trial is not None:
            row |= {"trial": trial.outcome, "users": trial.users, "net": round(trial.net, 3)}
        if trial is not None and trial.outcome == "promoted":
            rung = state.examine()
            rungs.append(rung)
            row |= {"over_first": rung.over_first.value, "over_last": rung.over_last.value, "wrong": rung.wrong}
            if at_drift is not None and followed_after is None:
                followed = state.compare(state.last, at_drift)
                row["over_before_drift"] = followed.value
                if followed.value >= FOLLOWED and followed.low > 0.5:
                    followed_after = state.num_choices - (drift_at or 0)
        log.append(row)
        print(json.dumps(row), flush=True)
    return summarise(rungs, len(log), drift_at is not None, followed_after)


def summarise(rungs: list[Rung], num_rounds: int, is_drifting: bool, followed_after: int | None) -> dict[str, Any]:
    """Figures beside the goals. A checkpoint is clearly worse than the one before if its interval lies below one half."""
    last = rungs[-1].over_first if rungs else None
    summary: dict[str, Any] = {
        "rounds": num_rounds,
        "promotions": len(rungs),
        "clearly_worse": sum(rung.over_last.high < 0.5 for rung in rungs),
        "last_over_first": None if last is None else [round(each, 3) for each in (last.value, last.low, last.high)],
        "wrong": round(rungs[-1].wrong, 3) if rungs else None,
    }
    return summary | ({"followed_after": followed_after} if is_drifting else {})


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.learning.ladder", description=__doc__)
    parser.add_argument("--world", default="capitals")
    parser.add_argument("--choices", type=int, default=3000)
    parser.add_argument("--every", type=int, default=200, help="choices that make a round due")
    parser.add_argument("--noise", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--restart-every", type=int, default=DpoSection().restart_every)
    parser.add_argument("--epochs", type=int, default=OUR_DPO["epochs"])
    parser.add_argument(
        "--max-steps", type=int, default=OUR_DPO["max_steps"], help="of a round; 0: as many as the passes take"
    )
    parser.add_argument("--labelled-share", type=float, default=0.0, help="of a round's pairs")
    parser.add_argument("--beta", type=float, default=OUR_DPO["beta"])
    parser.add_argument("--shuffled", action="store_true", help="people say nothing: nothing may be promoted")
    parser.add_argument("--drift", action="store_true", help="another style becomes the best half-way")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--state-dir", type=Path, default=ROOT)
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(arguments.threads)
    directory = arguments.state_dir / "bench-learning"
    world = load_world(arguments.world)
    policy = build_policy(world, arguments.seed, directory / "policies")
    kept = directory / "stages" / f"tiny-{world.name}-{arguments.seed}"
    backbone = Backbone.load(policy, ModelSection(), seed=arguments.seed)
    stage = Stage(backbone, world, kept, SamplingParameters(temperature=0.7, top_p=1.0, max_tokens=48))
    given = vars(arguments)
    dpo = OUR_DPO | {name: given[name] for name in ("epochs", "max_steps", "labelled_share", "beta", "restart_every")}
    manner = Manner((), shares=CLEVER, dpo=dpo, reward=FREQUENT)
    state = Climb(stage, arguments.seed, arguments.noise, manner, is_shuffled=arguments.shuffled)
    log: list[dict[str, Any]] = []
    summary = climb(state, arguments.choices, arguments.every, arguments.choices // 2 if arguments.drift else None, log)
    kinds = [kind for kind in ("drift", "shuffled") if given[kind]]
    name = "-".join(["ladder", world.name, str(arguments.seed), *kinds]) + ".json"
    (directory / name).write_text(json.dumps({"rounds": log, "summary": summary}, indent=1), encoding="utf-8")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
