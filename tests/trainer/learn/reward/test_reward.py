"""The reward model on tiny backbones of random weights: it learns tastes from few choices, and only its own adapter moves."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from tests.trainer.learn.people import (
    build_reading_backbone,
    likes_prose,
    likes_short,
    make_pairs,
    write_answer,
)
from tests.trainer.tiny import build_tiny_backbone, encode, make_prompt
from trainer.learn.reward.head import bootstrap_weights
from trainer.learn.reward.model import RewardModel
from trainer.learn.reward.scores import make_scores
from trainer.math.weights import estimate_reliability
from trainer.model.adapters import AdapterMismatch
from trainer.model.backbone import Backbone
from trainer.model.logprobs import score_answers
from trainer.sections.reward import RewardSection
from trainer.text.pairs import Answer, Pair, Rated

KIND, GRUFF = "Gladly: Paris is the capital of France.", "Go away."
FAST = RewardSection(adapter_pairs=0, head_steps=10)


def likes_science(first: Answer, second: Answer) -> float:
    """A taste that no feature of style sees."""
    return float("Scientists" in first.text) - float("Scientists" in second.text)


def kind_pairs(number: int, seed: int = 0) -> list[Pair]:
    """People who always like the kind answer, shown first half of the time."""
    pairs = []
    for i in range(number):
        is_first = (i * 7 + seed) % 2 == 0
        first, second = (KIND, GRUFF) if is_first else (GRUFF, KIND)
        pairs.append(
            Pair(
                event_id=f"{seed}-{i}", user=str(i), prompt=make_prompt(), first=Answer(text=first),
                second=Answer(text=second), preferred="first" if is_first else "second",
            )
        )  # fmt: skip
    return pairs


def learn(reward: RewardModel, pairs: list[Pair], step: int = 32) -> dict[str, float]:
    figures: dict[str, float] = {}
    for start in range(0, len(pairs), step):
        figures = reward.update(pairs[start : start + step], pairs[max(0, start - step) : start])
    return figures


def score(reward: RewardModel, *answers: str) -> torch.Tensor:
    return reward.score([encode(reward.backbone, answer) for answer in answers], answers).mean


@pytest.fixture(scope="module")
def reading() -> Backbone:
    return build_reading_backbone()


@pytest.mark.parametrize(("taste", "number"), [(likes_short, 100), (likes_prose, 50)])
def test_an_easy_taste_is_learnt_from_few_choices_of_people_who_err(reading: Backbone, taste, number: int) -> None:
    """85% consistent people: .85 is all that can be foreseen of them."""
    right = total = 0
    for seed in range(2):
        reward = RewardModel(reading, FAST, seed=seed)
        learn(reward, make_pairs(number, taste, seed=seed))
        one, all_of_them = reward.accuracy(make_pairs(100, taste, seed=100 + seed))
        right, total = right + one, total + all_of_them
    assert right / total >= 0.75


def test_fifty_choices_for_brevity_are_enough_on_average(reading: Backbone) -> None:
    right = total = 0
    for seed in range(6):
        reward = RewardModel(reading, FAST, seed=seed)
        learn(reward, make_pairs(50, likes_short, seed=seed), step=50)
        one, all_of_them = reward.accuracy(make_pairs(100, likes_short, seed=100 + seed))
        right, total = right + one, total + all_of_them
    assert right / total >= 0.72


def test_the_weights_of_style_say_what_people_like(reading: Backbone) -> None:
    reward = RewardModel(reading, FAST)
    figures = learn(reward, make_pairs(100, likes_prose))
    weights = reward.describe_features()
    assert min(weights, key=lambda name: weights[name]) == "list_markup"
    assert figures["taste_list_markup"] == weights["list_markup"] < -1


def test_the_head_learns_what_style_does_not_see(reading: Backbone) -> None:
    reward, blind = (RewardModel(reading, FAST.model_copy(update={"head_steps": steps})) for steps in (40, 0))
    pairs, held_out = make_pairs(160, likes_science), make_pairs(150, likes_science, consistency=1, seed=9)
    figures = learn(reward, pairs)
    learn(blind, pairs)
    (right, total), (right_blind, _) = reward.accuracy(held_out), blind.accuracy(held_out)
    assert right / total > 0.8
    assert right > right_blind + 10
    assert figures["head_share"] >= 0.5


def test_the_adapter_learns_too_and_is_believed_by_what_it_foresaw() -> None:
    backbone = build_tiny_backbone()
    reward = RewardModel(backbone, RewardSection(head_steps=0))
    before = backbone.adapters.state("reward")
    for turn in range(4):
        figures = reward.update(kind_pairs(32, seed=turn), [])
    after = backbone.adapters.state("reward")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert figures["adapter_share"] > 0
    assert reward.accuracy(kind_pairs(20, seed=9)) == (20, 20)
    kind, gruff = score(reward, KIND, GRUFF)
    assert kind > gruff


def test_learning_rewards_leaves_the_policy_alone() -> None:
    backbone = build_tiny_backbone()
    rows = [encode(backbone, KIND)]
    before = [score_answers(backbone, rows, adapter)[0].item() for adapter in ("policy", "stable", "auditor", None)]
    RewardModel(backbone).update(kind_pairs(16), [])
    assert [
        score_answers(backbone, rows, adapter)[0].item() for adapter in ("policy", "stable", "auditor", None)
    ] == before


def test_every_choice_is_foreseen_before_it_is_learnt_from() -> None:
    reward = RewardModel(build_tiny_backbone(), FAST)
    reward.update(kind_pairs(32, seed=0), [])
    assert reward.record.count == (0, 0)  # the first update's choices could not be foreseen
    figures = reward.update(kind_pairs(32, seed=1), kind_pairs(32, seed=0))
    assert reward.record.count == (32, 32)  # what is replayed was foreseen when it was new
    assert (figures["accuracy_prequential"], figures["num_foreseen"], figures["num_pairs"]) == (1, 32, 64)
    assert reward.version == 2


def test_what_a_version_says_of_later_choices_is_what_it_would_have_foreseen() -> None:
    reward = RewardModel(build_tiny_backbone(), FAST)
    reward.update(kind_pairs(32), [])
    later = kind_pairs(16, seed=1)
    again = reward.foresee(later)
    assert len(reward.record.rows) == 0  # it is asked, and learns nothing
    reward.update(later, [])
    assert [row.logit for row in again] == pytest.approx([row.logit for row in reward.record.rows], abs=1e-3)
    assert [row.event_id for row in again] == [pair.event_id for pair in later]


def test_ties_count_and_skips_do_not() -> None:
    pairs = [
        dataclasses.replace(pair, preferred=p)
        for pair, p in zip(kind_pairs(3), ("tie", "both_bad", "skip"), strict=True)
    ]
    reward = RewardModel(build_tiny_backbone(), FAST)
    assert reward.accuracy(pairs) == (0, 0)
    assert reward.update(pairs, [])["num_pairs"] == 2


def test_ties_pull_scores_together_and_widen_the_tie() -> None:
    reward = RewardModel(build_tiny_backbone(), FAST)
    learn(reward, kind_pairs(96))
    apart, narrow = score(reward, KIND, GRUFF), reward.fit.log_nu
    for turn in range(1, 4):
        reward.update([dataclasses.replace(p, preferred="tie") for p in kind_pairs(32, seed=turn)], [])
    together = score(reward, KIND, GRUFF)
    assert abs(together[0] - together[1]) < 0.8 * abs(apart[0] - apart[1])
    assert reward.fit.log_nu > narrow


def test_always_choosing_the_first_place_is_not_taken_for_taste() -> None:
    reward = RewardModel(build_tiny_backbone(), FAST)
    for turn in range(3):
        reward.update([dataclasses.replace(p, preferred="first") for p in kind_pairs(64, seed=turn)], [])
    assert reward.fit.first_place > 0.5
    kind, gruff = score(reward, KIND, GRUFF)
    assert abs(kind - gruff) < 0.3
    assert reward.predict(kind_pairs(1))[0] == pytest.approx(0.5, abs=0.1)


def test_a_strong_preference_asks_for_a_lead() -> None:
    leads = []
    for strength in (None, 1.0):
        reward = RewardModel(build_tiny_backbone(), FAST)
        reward.update([dataclasses.replace(p, strength=strength) for p in kind_pairs(64)], [])
        kind, gruff = score(reward, KIND, GRUFF)
        leads.append((kind - gruff).item())
    assert leads[1] > leads[0] + 0.05


def weigh(pairs: list[Pair], weight: float) -> list[Pair]:
    return [dataclasses.replace(pair, weight=weight) for pair in pairs]


def test_what_weighs_nothing_is_not_learnt_from() -> None:
    pairs = kind_pairs(40)
    contrary = [
        dataclasses.replace(p, event_id=f"x{p.event_id}", preferred="second" if p.preferred == "first" else "first")
        for p in pairs
    ]
    reward = RewardModel(build_tiny_backbone(), FAST)
    contrary = weigh(contrary, 0.0)
    figures = reward.update([*pairs, *contrary], [])
    assert figures["num_pairs"] == 40
    assert reward.accuracy(pairs) == (40, 40)
    assert reward.update(contrary, []) == {}
    assert reward.version == 1


def test_a_replayed_row_counts_once_and_with_its_newest_weight() -> None:
    reward = RewardModel(build_tiny_backbone(), FAST)
    reward.update(kind_pairs(16), [])
    once = reward.fit.weights
    reward.update([], weigh(kind_pairs(16), 1.0))
    assert torch.equal(reward.fit.weights, once)
    reward.update([], weigh(kind_pairs(16), 0.1))
    assert reward.fit.weights.abs().sum() < once.abs().sum()


def opposed(number: int, user: str, at: float, seed: int) -> list[Pair]:
    """Choices of one person, who likes the gruff answer."""
    return [
        dataclasses.replace(pair, user=user, chosen_at=at, preferred="second" if pair.preferred == "first" else "first")
        for pair in kind_pairs(number, seed)
    ]


def weights_of(reward: RewardModel) -> dict[str, float]:
    """What each kept event weighs now."""
    return dict(zip(reward.reservoir.event_ids, reward.weigh_kept().weights.tolist(), strict=True))


def test_what_was_learnt_grows_old_beside_what_comes_later() -> None:
    """100 s are a half-life: the first rows weigh a quarter once they are 200 s older than the newest."""
    reward = RewardModel(build_tiny_backbone(), FAST, half_life_s=100.0, now=lambda: 1000.0)
    reward.update([dataclasses.replace(pair, chosen_at=800.0) for pair in kind_pairs(16)], [])
    assert set(weights_of(reward).values()) == {1.0}
    reward.update([dataclasses.replace(pair, chosen_at=1000.0) for pair in kind_pairs(16, seed=1)], [])
    weights = weights_of(reward)
    # as much as (16 + 16 / 4)^2 / (16 + 16 / 16) = 23.5 even rows
    assert weights["1-0"] == pytest.approx(20 / 17)
    assert weights["0-0"] == pytest.approx(20 / 17 / 4)


def test_who_turns_out_unreliable_counts_little_in_all_that_is_kept() -> None:
    reward = RewardModel(build_tiny_backbone(), FAST, half_life_s=0.0)
    reward.update([*kind_pairs(32), *opposed(2, "odd", 0.0, seed=7)], [])
    assert weights_of(reward)["7-0"] == pytest.approx(weights_of(reward)["0-0"], rel=0.3)
    for turn in range(3):
        reward.update([*kind_pairs(32, seed=turn + 1), *opposed(10, "odd", 0.0, seed=turn + 8)], [])
    right, total = reward.record.by_user()["odd"]
    assert (right, total) == (0, 30)
    weights = weights_of(reward)
    assert weights["7-0"] == pytest.approx(0.1 / estimate_reliability(3, 3) * weights["0-0"], rel=0.01)


def test_rows_that_differ_in_nothing_else_weigh_what_they_weigh_of_their_own() -> None:
    reward = RewardModel(build_tiny_backbone(), FAST, half_life_s=100.0)
    thumbs = [
        Rated(event_id=f"t{i}", prompt=make_prompt(), answer=Answer(text=KIND), kind="thumb", value=i % 2, user=str(i))
        for i in range(20)
    ]
    reward.update([], [], rated=thumbs)
    assert sum(weights_of(reward).values()) == pytest.approx(10)  # a thumb counts half of a choice


def test_a_signal_that_says_three_things_teaches_three() -> None:
    said = {"prompt": make_prompt(), "event_id": "one", "user": "u"}
    reward = RewardModel(build_tiny_backbone(), FAST)
    both = [
        Rated(answer=Answer(text=KIND), kind=kind, value=value, **said)
        for kind, value in (("thumb", 1.0), ("outcome", 0.0))
    ]
    edit = Pair(first=Answer(text=KIND), second=Answer(text=GRUFF), preferred="second", asked="edit", **said)
    assert reward.update([edit], [], rated=both)["num_pairs"] == 1
    assert reward.reservoir.numbers[:3, 2].tolist() == [0, 1, 0]
    assert reward.list_known() == ["one"]


def test_scores_come_with_doubt_that_falls_as_choices_come(reading: Backbone) -> None:
    pairs = make_pairs(300, likes_short)
    answers = [reading.transcriber.encode_pair(pair).answers for pair in pairs[-40:]]
    texts = [(pair.first.text, pair.second.text) for pair in pairs[-40:]]
    doubts = []
    for number in (20, 260):
        reward = RewardModel(reading, FAST.model_copy(update={"head_steps": 40}))
        learn(reward, pairs[:number], step=65)
        first, second = (reward.score([a[i] for a in answers], [t[i] for t in texts]) for i in (0, 1))
        doubts.append(first.minus(second).std.mean())
    assert doubts[1] < 0.8 * doubts[0]
    assert first.draws.shape == (40, 10)
    assert torch.allclose(first.cautious, first.mean - first.std)
    assert torch.allclose(first.mean, first.draws.mean(1))


def test_a_difference_is_taken_per_draw() -> None:
    shared = torch.tensor([[-3.0, 0.0, 3.0]])
    one, other = make_scores(shared + 1, 1.0), make_scores(shared, 1.0)
    assert one.std.item() == pytest.approx(3)
    gain = one.minus(other)
    assert (gain.mean.item(), gain.std.item(), gain.cautious.item()) == (1, 0, 1)


def test_what_is_known_scores_about_nought_and_an_answer_scores_the_same_beside_any_other(reading: Backbone) -> None:
    reward = RewardModel(reading, FAST)
    pairs = make_pairs(64, likes_short)
    reward.update(pairs, [])
    encoded = [reading.transcriber.encode_pair(pair).answers[0] for pair in pairs]
    texts = [pair.first.text for pair in pairs]
    scores = reward.score(encoded, texts)
    assert abs(scores.mean.mean()) < 0.05
    alone = reward.score(encoded[:1], texts[:1])
    assert torch.allclose(alone.draws[0], scores.draws[0], atol=2e-3)


def test_ratings_teach_the_same_taste(reading: Backbone) -> None:
    import random

    rng = random.Random(0)
    rated = []
    for i in range(120):
        answer = write_answer("tea", rng)
        value = 1.0 if len(answer.text.split()) < 20 else 0.0
        rated.append(
            Rated(
                event_id=f"r{i}",
                prompt=make_prompt("What is tea?"),
                answer=answer,
                kind="thumb",
                value=value,
                user=f"u{i % 4}",
            )
        )
    reward = RewardModel(reading, FAST.model_copy(update={"head_steps": 20}))
    assert reward.update([], [], rated=rated)["num_pairs"] == 0
    right, total = reward.accuracy(make_pairs(100, likes_short, consistency=1))
    assert right / total > 0.8
    assert reward.record.count == (0, 0)  # ratings are not foreseen choices


def test_a_row_that_cannot_be_learnt_from_is_rejected_and_the_others_are_not(reading: Backbone) -> None:
    rejected: list[str] = []
    reward = RewardModel(reading, FAST, reject=lambda event_id, part, error: rejected.append(f"{event_id} {part}"))
    good = make_pairs(20, likes_short)
    bad = dataclasses.replace(good[0], event_id="bad", second=Answer(text="lone \ud800"))
    long = dataclasses.replace(good[0], event_id="long", second=Answer(text="word " * 600))
    figures = reward.update([*good[:10], bad, long, *good[10:]], [])
    assert sorted(rejected) == ["bad reward", "long reward"]
    alone = RewardModel(reading, FAST)
    assert figures["num_pairs"] == alone.update(good, [])["num_pairs"] == 20
    assert torch.equal(reward.fit.weights, alone.fit.weights)


def test_a_row_that_fails_in_the_model_is_found_and_nothing_is_trained_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build_tiny_backbone()
    rejected: list[str] = []
    reward = RewardModel(
        backbone, RewardSection(head_steps=0), reject=lambda event_id, part, error: rejected.append(event_id)
    )
    pairs = kind_pairs(16)
    poison = backbone.transcriber.encode_prompt(make_prompt("Poison?"))
    pairs[5] = dataclasses.replace(pairs[5], prompt=make_prompt("Poison?"))
    compute, steps = backbone.hidden, []

    def hidden(batch):
        if any(row[: len(poison)] == list(poison) for row in batch.ids.tolist()):
            raise RuntimeError("poisoned")
        if torch.is_grad_enabled():
            steps.append(len(batch.ids))
        return compute(batch)

    monkeypatch.setattr(backbone, "hidden", hidden)
    assert reward.update(pairs, [])["num_pairs"] == 15
    assert rejected == ["0-5"]
    assert sum(steps) == 15


def test_a_broken_model_blames_no_row() -> None:
    backbone = build_tiny_backbone()
    rejected: list[str] = []
    reward = RewardModel(backbone, RewardSection(), reject=lambda event_id, part, error: rejected.append(event_id))
    with torch.no_grad():
        next(iter(backbone.adapters.parameters_of("reward").values())).fill_(math.nan)
    with pytest.raises(ValueError, match="is nan"):
        reward.update(kind_pairs(8), [])
    assert rejected == []


def test_a_model_that_was_saved_and_loaded_goes_on_in_the_same_bits(tmp_path: Path) -> None:
    backbone = build_tiny_backbone()
    reward = RewardModel(backbone)
    for turn in range(2):
        reward.update(kind_pairs(32, seed=turn), kind_pairs(8, seed=turn - 1))
    reward.save(tmp_path)
    other_backbone = build_tiny_backbone()
    other = RewardModel(other_backbone)
    other.load(tmp_path)
    assert (other.version, other.record.state()) == (2, reward.record.state())
    assert torch.equal(score(other, KIND, GRUFF), score(reward, KIND, GRUFF))
    for turn in range(2, 4):
        expected = reward.update(kind_pairs(32, seed=turn), kind_pairs(16, seed=turn - 2))
        assert other.update(kind_pairs(32, seed=turn), kind_pairs(16, seed=turn - 2)) == expected
    assert torch.equal(score(other, KIND, GRUFF), score(reward, KIND, GRUFF))
    states = backbone.adapters.state("reward"), other_backbone.adapters.state("reward")
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("damage", ["format", "torn", "missing", "other"])
def test_a_state_that_does_not_load_changes_nothing(tmp_path: Path, damage: str) -> None:
    reward = RewardModel(build_tiny_backbone(), FAST)
    reward.update(kind_pairs(32), [])
    RewardModel(build_tiny_backbone(1), FAST.model_copy(update={"num_draws": 4}) if damage == "other" else FAST).save(
        tmp_path
    )
    if damage == "format":
        (tmp_path / "reward.json").write_text('{"version": 3, "foreseen": [1, 2]}')
    elif damage == "torn":
        (tmp_path / "reward.safetensors").write_bytes((tmp_path / "reward.safetensors").read_bytes()[:5000])
    elif damage == "missing":
        (tmp_path / "reward.safetensors").unlink()
    before = score(reward, KIND, GRUFF)
    with pytest.raises((OSError, ValueError, AdapterMismatch)):
        reward.load(tmp_path)
    assert torch.equal(score(reward, KIND, GRUFF), before)
    assert (reward.version, len(reward.reservoir)) == (1, 32)


def test_a_bulk_pass_takes_all_pairs_once_and_computes_hidden_states_for_those_it_keeps(reading: Backbone) -> None:
    settings = FAST.model_copy(update={"hidden_capacity": 100, "capacity": 500})
    reward = RewardModel(reading, settings)
    pairs = make_pairs(800, likes_short)
    shown: list[int] = []
    figures = reward.learn_in_bulk(
        (pairs[start : start + 200] for start in range(0, 800, 200)), lambda done, _: shown.append(done), total=800
    )
    assert shown == [200, 400, 600, 800]
    assert (figures["num_pairs"], reward.version, len(reward.reservoir)) == (800, 1, 500)
    assert 60 < reward.reservoir.num_hidden <= 100
    right, total = reward.accuracy(make_pairs(100, likes_short, consistency=1, seed=7))
    assert right / total > 0.9
    assert figures["num_foreseen"] > 50


def test_a_bulk_pass_over_nothing_is_no_version() -> None:
    reward = RewardModel(build_tiny_backbone(), FAST)
    assert reward.learn_in_bulk([]) == {}
    assert reward.version == 0


def test_what_is_forgotten_moves_no_later_fit() -> None:
    reward, other = RewardModel(build_tiny_backbone(), FAST), RewardModel(build_tiny_backbone(), FAST)
    gone = [dataclasses.replace(p, event_id=f"gone-{p.event_id}", preferred="tie") for p in kind_pairs(16)]
    reward.update([*kind_pairs(16), *gone], [])
    reward.forget(p.event_id for p in gone)
    reward.update(kind_pairs(16, seed=1), [])
    other.update(kind_pairs(16), [])
    other.update(kind_pairs(16, seed=1), [])
    assert torch.allclose(reward.fit.weights, other.fit.weights)
    assert not any(event_id.startswith("gone-") for event_id in reward.list_known())


def test_bootstrap_weights_are_fixed_by_the_event_and_average_one() -> None:
    assert bootstrap_weights("a", 4) == bootstrap_weights("a", 4) != bootstrap_weights("b", 4)
    weights = [w for i in range(1000) for w in bootstrap_weights(str(i), 10)]
    assert sum(weights) / len(weights) == pytest.approx(1, abs=0.05)
