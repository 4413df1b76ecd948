"""The scorer's process: with a tiny base and a reward model's state on disk it scores, and SIGTERM ends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tests.end_to_end.ports import find_free_port
from tests.trainer.learn.pairs import make_kind_pairs
from tests.trainer.run.reward.test_scoring import ANSWERS, SECTION
from tests.trainer.tiny import SIZE, ask, build_tiny_tokenizer
from trainer.learn.reward.model import RewardModel
from trainer.model.backbone import Backbone
from trainer.run.publish.checkpoints import digest_base
from trainer.run.reward.states import RewardStates, Update
from trainer.sections.model import ModelSection
from trainer.seed import build_model


def make_state(state_dir: Path) -> Path:
    """A base, and one version of its reward model."""
    base = state_dir / "base"
    tokenizer = build_tiny_tokenizer()
    build_model(SIZE, tokenizer).save_pretrained(base)
    tokenizer.save_pretrained(base)
    reward = RewardModel(Backbone.load(base, ModelSection(), seed=0), SECTION)
    assert reward.update(make_kind_pairs(8), [])
    states = RewardStates(state_dir / "reward" / digest_base(str(base))[:12])
    states.prepare()
    states.save(1, Update([], [], {}), reward.save)
    return base


def read(url: str, body: object = None) -> dict[str, object]:
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data=data, headers={"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return dict(json.loads(answer.read()))


def test_the_process_scores_by_what_is_on_disk_and_ends_at_a_signal(tmp_path: Path) -> None:
    base, port = make_state(tmp_path), find_free_port()
    env = {
        **os.environ,
        "PREFLOOP_STATE_DIR": str(tmp_path),
        "PREFLOOP_BASE_MODEL": str(base),
        "PREFLOOP_TRAINER__SCORER__PORT": str(port),
        "PREFLOOP_TRAINER__REWARD__HEAD_STEPS": "2",
        "PREFLOOP_TRAINER__REWARD__UPDATE_EVERY_PREFERENCES": "4",
    }
    process = subprocess.Popen([sys.executable, "-m", "trainer.scorer"], env=env)
    try:
        ends_at = time.monotonic() + 120
        while time.monotonic() < ends_at:
            assert process.poll() is None
            try:
                if read(f"http://127.0.0.1:{port}/status")["is_ready"]:
                    break
            except OSError:
                pass
            time.sleep(0.1)
        body = {"messages": ask(), "candidates": [{"text": text} for text in ANSWERS]}
        scored = read(f"http://127.0.0.1:{port}/score", body)
        assert scored["version"] == 1 and len(set(scored["informative"])) == len(set(scored["telling"])) == 2  # type: ignore[call-overload]
    finally:
        process.terminate()
        code = process.wait(30)
    assert code == 0
