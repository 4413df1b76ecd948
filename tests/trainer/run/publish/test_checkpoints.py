from dataclasses import replace
from pathlib import Path

import pytest

from feedback.manifest import Probe, verify
from tests.trainer.fakes import FakeGateway
from trainer.run.publish.checkpoints import (
    Draft,
    clean_unfinished,
    digest_base,
    digest_ids,
    list_published,
    next_number,
    publish_checkpoint,
)
from trainer.run.publish.registry import (
    GatewayUnavailable,
    RegisteredCheckpoint,
    parse_state,
    register_missing,
    remove_unneeded,
)

PROBE = Probe(prompt_token_ids=[1, 2], logprobs=[-0.5], base_logprobs=[-0.75])
DRAFT = Draft(number=0, parent=None, base_digest="base", rank=16, probe=PROBE, watermark={0: 3}, metrics={"loss": 0.5})


def write_weights(content: bytes):
    return lambda directory: (directory / "adapter_model.safetensors").write_bytes(content) and None


def test_a_published_checkpoint_verifies_and_is_named_by_number_and_digest(tmp_path: Path):
    published = publish_checkpoint(tmp_path, DRAFT, write_weights(b"w"), now=5.0)
    manifest = verify(published.path)
    assert manifest == published.manifest
    assert published.path.name == manifest.id == f"c-000000-{manifest.digest[:12]}"
    assert (manifest.watermark, manifest.created_at, manifest.probe) == ({0: 3}, 5.0, PROBE)
    assert manifest.files.keys() == {"adapter_model.safetensors"}


def test_a_crash_while_writing_leaves_nothing_that_looks_published(tmp_path: Path):
    def crash(directory: Path) -> None:
        (directory / "adapter_model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish_checkpoint(tmp_path, DRAFT, crash, now=5.0)
    assert list_published(tmp_path, "base") == []
    assert clean_unfinished(tmp_path) == [".unfinished-000000"]
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_of_a_crash_does_not_get_into_the_next_checkpoint(tmp_path: Path):
    left = tmp_path / ".unfinished-000000"
    left.mkdir()
    (left / "stale.safetensors").write_bytes(b"stale")
    published = publish_checkpoint(tmp_path, DRAFT, write_weights(b"w"), now=5.0)
    assert published.manifest.files.keys() == {"adapter_model.safetensors"}


def test_a_number_is_never_given_twice(tmp_path: Path):
    assert next_number(tmp_path / "absent") == 0
    publish_checkpoint(tmp_path, DRAFT, write_weights(b"w"), now=5.0)
    with pytest.raises(FileExistsError):
        publish_checkpoint(tmp_path, DRAFT, write_weights(b"other"), now=6.0)
    assert next_number(tmp_path) == 1
    assert next_number(tmp_path, [7, 2]) == 8


def test_checkpoints_of_another_base_are_not_ours_but_keep_their_numbers(tmp_path: Path):
    publish_checkpoint(tmp_path, replace(DRAFT, base_digest="other"), write_weights(b"w"), now=5.0)
    assert list_published(tmp_path, "base") == []
    assert next_number(tmp_path) == 1


def test_a_damaged_manifest_is_left_out(tmp_path: Path):
    published = publish_checkpoint(tmp_path, DRAFT, write_weights(b"w"), now=5.0)
    (published.path / "manifest.json").write_text("{")
    assert list_published(tmp_path, "base") == []


def test_the_base_digest_follows_the_weights_and_not_the_place(tmp_path: Path):
    for name, weights in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    a, b, c = (digest_base(str(tmp_path / name)) for name in "abc")
    assert a == b != c
    assert digest_base("org/model", "rev1") != digest_base("org/model", "rev2")


def test_the_digest_of_preference_ids_does_not_depend_on_their_order():
    assert digest_ids(["b", "a"]) == digest_ids(["a", "b"]) != digest_ids(["a"])


def publish_two(tmp_path: Path) -> list[tuple[str, Path]]:
    first = publish_checkpoint(tmp_path, DRAFT, write_weights(b"0"), now=5.0)
    second = publish_checkpoint(tmp_path, replace(DRAFT, number=1), write_weights(b"1"), now=6.0)
    return [(p.manifest.digest, p.path) for p in (first, second)]


def test_registration_is_in_order_and_happens_once(tmp_path: Path):
    published, gateway = publish_two(tmp_path), FakeGateway()
    assert register_missing(gateway, published, set()) == [digest for digest, _ in published]
    assert [checkpoint.number for checkpoint in gateway.known] == [0, 1]
    assert register_missing(gateway, published, set()) == []


def test_a_refused_checkpoint_does_not_hold_up_the_others_and_is_not_asked_again(tmp_path: Path):
    published, gateway, refused = publish_two(tmp_path), FakeGateway(), set()
    gateway.refuses = {published[0][0]}
    assert register_missing(gateway, published, refused) == [published[1][0]]
    gateway.refuses = set()
    assert register_missing(gateway, published, refused) == []


def test_a_gateway_that_is_down_learns_of_everything_when_it_is_back(tmp_path: Path):
    published, gateway = publish_two(tmp_path), FakeGateway()
    gateway.is_down = True
    with pytest.raises(GatewayUnavailable):
        register_missing(gateway, published, set())
    gateway.is_down = False
    assert len(register_missing(gateway, published, set())) == 2


def free(gateway: FakeGateway, index: int) -> str:
    """The gateway no longer needs one of its checkpoints; its id."""
    gateway.known[index] = replace(gateway.known[index], may_delete=True)
    return gateway.known[index].id


def test_a_directory_goes_once_the_gateway_has_given_it_up(tmp_path: Path):
    published, gateway = publish_two(tmp_path), FakeGateway()
    register_missing(gateway, published, set())
    assert remove_unneeded(gateway, tmp_path) == []
    gone = free(gateway, 1)
    assert remove_unneeded(gateway, tmp_path) == [gone]
    assert [path.name for path in tmp_path.iterdir()] == [gateway.known[0].id]
    assert gateway.known[1].status == "deleted"
    left = [(p.manifest.digest, p.path) for p in list_published(tmp_path, "base")]
    assert register_missing(gateway, left, set()) == remove_unneeded(gateway, tmp_path) == []


def test_a_checkpoint_that_is_put_on_trial_meanwhile_stays(tmp_path: Path):
    published, gateway = publish_two(tmp_path), FakeGateway()
    register_missing(gateway, published, set())
    gateway.needs = {free(gateway, 1)}
    assert remove_unneeded(gateway, tmp_path) == []
    assert len(list_published(tmp_path, "base")) == 2


def test_a_crash_between_giving_up_and_removing_is_made_up_for(tmp_path: Path):
    published, gateway = publish_two(tmp_path), FakeGateway()
    register_missing(gateway, published, set())
    gateway.delete_checkpoint(free(gateway, 1))
    assert remove_unneeded(gateway, tmp_path) == [gateway.known[1].id]


def test_only_directories_with_a_checkpoints_name_are_removed(tmp_path: Path):
    root = tmp_path / "checkpoints"
    root.mkdir()
    (root / "notes").mkdir()
    gateway = FakeGateway()
    gateway.known = [
        RegisteredCheckpoint(name, 1, "d", "deleted") for name in ("..", ".", "", "notes", "../checkpoints")
    ]
    assert remove_unneeded(gateway, root) == []
    assert (root / "notes").is_dir()


def test_only_a_rollout_that_is_under_way_counts_as_active():
    stable = {"id": "c-000000-aaaaaaaaaaaa"}
    active = parse_state({"stable": stable, "rollout": {"id": "r-1", "phase": "Progressing"}})
    assert (active.stable, active.rollout, active.rollout_phase) == (stable["id"], "r-1", "Progressing")
    assert parse_state({"stable": stable, "rollout": {"id": "r-1", "phase": "Degraded"}}).rollout is None
    assert parse_state({"stable": None, "rollout": None}).stable is None


def test_a_whole_model_is_published_like_an_adapter_and_no_adapter_to_go_on_from(tmp_path: Path):
    def write(directory: Path) -> None:
        (directory / "config.json").write_text("{}")
        (directory / "model.safetensors").write_bytes(b"w")

    published = publish_checkpoint(tmp_path, replace(DRAFT, kind="full", rank=0), write, now=5.0)
    assert verify(published.path).is_full
    assert list_published(tmp_path, "base") == [] and next_number(tmp_path) == 1
