"""The reward of a round: a stated sum with mean 0 on the anchors."""

import math

import pytest

from tests.trainer.learn.people import build_reading_backbone, likes_short, make_pairs
from tests.trainer.tiny import make_prompt
from trainer.learn.reward.model import RewardModel
from trainer.learn.reward.outcomes import OutcomeModel
from trainer.learn.rewards.checkers import make_checkers
from trainer.learn.rewards.rewards import Part, Rewards, Sample, excess_curve, harm_part, length_part, make_rewards
from trainer.sections.reward import CheckerSection, RewardSection, RewardsSection
from trainer.text.pairs import Answer, Rated
from trainer.text.transcript import EncodedAnswer


def sample(text: str, **tags: str) -> Sample:
    return Sample(make_prompt(tags=tags), Answer(text=text), EncodedAnswer((1,), (2,)))


def count_letters(samples) -> list[float]:
    return [float(len(each.answer.text)) for each in samples]


def test_parts_are_added_with_their_weights_and_curves() -> None:
    rewards = Rewards([Part("a", 2.0, count_letters), Part("b", -1.0, count_letters, lambda value: value**2)])
    rewarded = rewards.reward([sample("x"), sample("xxx")])
    assert rewarded.totals == [2 - 1, 6 - 9]
    assert rewarded.parts == {"a": [2, 6], "b": [-1, -9]}
    assert rewarded.figures() == {"reward": -1, "reward_spread": 2, "reward_a": 4, "reward_b": -5}
    assert rewards.describe() == {"a": 2, "b": -1}


def test_the_mean_on_the_anchors_is_nought_part_by_part() -> None:
    rewards = Rewards([Part("a", 2.0, count_letters), Part("b", 1.0, count_letters)])
    anchors = [sample("x"), sample("xxx")]
    rewards.anchor(anchors)
    rewarded = rewards.reward(anchors)
    assert rewarded.figures()["reward"] == 0
    assert rewarded.parts == {"a": [-2, 2], "b": [-1, 1]}
    assert rewards.reward([sample("xx")]).totals == [0]


def test_a_part_that_says_nothing_adds_nothing() -> None:
    rewards = Rewards([Part("a", 1.0, lambda samples: [None, 3.0])])
    assert rewards.reward([sample("x"), sample("y")]).totals == [0, 3]


def test_two_parts_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="of one name"):
        Rewards([Part("a", 1.0, count_letters), Part("a", 1.0, count_letters)])


def test_length_costs_nothing_up_to_its_limit() -> None:
    assert excess_curve(10)(10) == 0
    assert excess_curve(10)(20) == pytest.approx(-math.log(2))
    rewards = Rewards([length_part(0.5, 3)])
    assert rewards.reward([sample("one two three"), sample("a b c d e f")]).totals == pytest.approx(
        [0, -0.5 * math.log(2)]
    )


def test_harm_is_taken_off() -> None:
    rewards = Rewards([harm_part(2.0, lambda text: float("bomb" in text))])
    assert rewards.reward([sample("bread"), sample("a bomb")]).totals == [0, -2]


def test_an_outcome_is_compared_with_what_its_slice_usually_has() -> None:
    """The hard task fails more often, and is answered at length more often: length is not what fails."""
    short, long = "It is so.", "It is so because of what came before it, and of what came before that, as is known."
    outcomes = []
    for i in range(200):
        is_hard = i % 2 == 0
        text = long if (i // 2) % 10 < (8 if is_hard else 2) else short
        succeeded = (i // 20) % 10 < (2 if is_hard else 8)
        outcomes.append(
            Rated(
                event_id=str(i), prompt=make_prompt(tags={"task": "hard" if is_hard else "easy"}), answer=Answer(text=text),
                kind="outcome", value=float(succeeded),
            )
        )  # fmt: skip
    model = OutcomeModel(outcomes)
    assert model.num_outcomes == 200
    chances = [model.predict(make_prompt(), Answer(text=text)) for text in (short, long)]
    assert chances == pytest.approx([0.5, 0.5], abs=0.06)


def test_outcomes_move_what_goes_with_success() -> None:
    outcomes = [
        Rated(
            event_id=str(i), prompt=make_prompt(), answer=Answer(text="- a\n- b" if i % 2 else "a and b."), kind="outcome",
            value=float(i % 2),
        )
        for i in range(80)
    ]  # fmt: skip
    thumbs = [Rated(event_id="t", prompt=make_prompt(), answer=Answer(text="x"), kind="thumb", value=1.0)]
    model = OutcomeModel(outcomes + thumbs)
    assert model.num_outcomes == 80
    assert model.describe_features()["list_markup"] > 0.5
    assert (
        model.predict(make_prompt(), Answer(text="- c\n- d"))
        > 0.7
        > 0.3
        > model.predict(make_prompt(), Answer(text="c, d."))
    )
    assert OutcomeModel([]).predict(make_prompt(), Answer(text="x")) == 0.5


def test_the_settings_state_the_sum() -> None:
    backbone = build_reading_backbone()
    model = RewardModel(backbone, RewardSection(adapter_pairs=0, head_steps=5))
    pairs = make_pairs(60, likes_short)
    model.update(pairs, [])
    settings = RewardsSection(
        length_weight=0.5,
        max_words=5,
        checkers=[CheckerSection(name="shape", kind="json", weight=3.0, tags={"kind": "Explain"})],
    )
    rewards = make_rewards(settings, model, make_checkers(settings.checkers), is_harmful=lambda text: 0.0)
    assert rewards.describe() == {"preference": 1, "length": 0.5, "harm": 2, "checker:shape": 3}
    samples = [
        Sample(pair.prompt, pair.first, backbone.transcriber.encode_pair(pair).answers[0]) for pair in pairs[:20]
    ]
    rewards.anchor(samples)
    rewarded = rewards.reward(samples)
    assert rewarded.figures()["reward"] == pytest.approx(0, abs=1e-6)
    scored = model.score([each.encoded for each in samples], [each.answer.text for each in samples]).cautious
    gaps = [rewarded.parts["preference"][i] - scored[i].item() for i in range(20)]
    assert gaps == pytest.approx([gaps[0]] * 20, abs=1e-5)
