"""One person's forty choices under the preset `personal`: two rounds of real learning, and what the page is told of them."""

from pathlib import Path

import msgspec

from feedback.events import encode_event, new_event
from feedback.log import NewRecord
from tests.trainer.fakes import make_choice
from tests.trainer.real import RealWorkbench
from trainer.settings import TrainerSettings


def like_short_answers(number: int) -> NewRecord:
    """A choice of the one person there is, whose place does not say which answer is short."""
    choice = make_choice(number, preferred="second" if number % 2 else "first", user="me")
    texts = ["It rains.", "It rains as the full clouds drop it."]
    first, second = (
        msgspec.structs.replace(candidate, text=text)
        for candidate, text in zip(
            (choice.comparison.first, choice.comparison.second), texts[:: -1 if number % 2 else 1], strict=True
        )
    )
    comparison = msgspec.structs.replace(choice.comparison, first=first, second=second)
    event = new_event(
        msgspec.structs.replace(choice, comparison=comparison),
        source="t",
        now=float(number),
        event_id=f"event-{number}",
    )
    headers, body = encode_event(event)
    return NewRecord(key=event.key.encode(), value=body, headers=headers)


def test_forty_choices_make_two_rounds_and_the_page_hears_what_was_learnt(tmp_path: Path) -> None:
    settings = TrainerSettings(
        preset="personal",
        state_dir=tmp_path,
        base_model=str(tmp_path / "base"),
        trainer={"gate": {"max_tokens": 4, "max_train_prompts": 2}, "reward": {"head_steps": 2}, "dpo": {"epochs": 2}},
    )
    bench = RealWorkbench(settings)
    learner = bench.start()
    bench.send_records([like_short_answers(number) for number in range(19)])
    bench.run_all(learner)
    seen = bench.board.read()
    assert (seen.new_since_round, seen.round_every, seen.rounds) == (19, 20, [])
    assert seen.reward.version == 4 and seen.reward.num_foreseen == 12  # every four choices; the first foresaw nothing

    bench.send_records([like_short_answers(19)])
    bench.run_all(learner)
    bench.send_records([like_short_answers(number) for number in range(20, 40)])
    bench.run_all(learner)
    first, second = bench.finished()
    chosen = [[row for row in rows if not row.startswith("labelled-")] for rows in bench.trained]
    assert [len(rows) for rows in chosen] == [20, 40]  # the second has the first's choices again
    assert (
        len(bench.trained[0]) == 20 and len(bench.trained[1]) <= 57
    )  # labelled ones only once 30 choices were foreseen
    assert first["metrics"]["num_steps"] == 10 and second["metrics"]["num_steps"] >= 20
    for judged in bench.said:  # judged by that person's own prompts, without a frozen set
        assert "cannot be judged" not in judged.reason and "not clearly above" not in judged.reason
    length = next(each for each in bench.board.read().reward.style if each.name == "log_words")
    assert length.weight < -length.sd < 0
    assert bench.board.read().reward.prequential_accuracy > 0.8
    bench.writer.close()
