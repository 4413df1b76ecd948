"""What a pair costs: the wall time of two answers at once over that of one, through the gateway, on a real vLLM.

Both ask for the same prompts and the same number of tokens (ignore_eos), one request at a time on an idle engine, in
alternating order; the figure is the median over prompts of the ratio within each. The engine, the gateway and the
trainer (which publishes checkpoint 0, then has nothing to learn) are those of `prefloop up`.
"""

import argparse
import asyncio
import importlib.util
import json
import sys
import time
from pathlib import Path
from statistics import median

import httpx
from rich.console import Console

from feedback.secret_files import read_admin_key
from prefloop.servers.ports import find_port
from prefloop.services import Layout
from prefloop.startup import StartFailed, build_seed_policy, start_services, wait_until_ready
from prefloop.supervisor import Supervisor

NUM_PROMPTS = 20
NUM_TOKENS = 64
_ASK_ALWAYS = {"PREFLOOP_GATEWAY__ASK_RATE": "1.0", "PREFLOOP_GATEWAY__MAX_ASKS_PER_USER_DAY": "100000"}


class PairFailed(Exception):
    """No pair could be measured; the message says why."""


def measure_pair_over_single(state_dir: Path, run_folder: Path, engine_url: str = "", model: str = "") -> float:
    """Start what is needed, measure, stop it. Raises PairFailed.

    state_dir: where the seed policy is, or will be built. model: what the engine at `engine_url` serves, if not that.
    """
    if not engine_url and importlib.util.find_spec("vllm") is None:
        raise PairFailed("vLLM is not installed")
    try:
        model = model or str(build_seed_policy(state_dir.resolve()))
        port = find_port()
        layout = Layout(run_folder / "pair", port, model, engine_url, max_model_len=512)
        return asyncio.run(_measure(layout))
    except (StartFailed, httpx.HTTPError, OSError) as error:
        raise PairFailed(str(error)) from error


async def _measure(layout: Layout) -> float:
    supervisor = Supervisor()
    start_services(supervisor, layout, _ASK_ALWAYS)
    try:
        await wait_until_ready(layout, supervisor, Console(), asyncio.Event())
        key = read_admin_key(layout.state_dir)
        auth = {"authorization": f"Bearer {key}"}  # the admin key permits pairs
        async with httpx.AsyncClient(base_url=layout.gateway_url, headers=auth, timeout=300) as client:
            ratios = [await _compare(client, rank) for rank in range(-2, NUM_PROMPTS)]
        return median(ratios[2:])  # the first two warmed the engine
    finally:
        await supervisor.stop()


async def _compare(client: httpx.AsyncClient, rank: int) -> float:
    seconds = {}
    for compare in ("never", "always") if rank % 2 else ("always", "never"):
        body = {
            "model": "default",
            "messages": [{"role": "user", "content": f"Question {rank}: how do you do?"}],
            "max_tokens": NUM_TOKENS,
            "ignore_eos": True,
            "temperature": 1.0,
        }
        headers = {"x-prefloop-compare": compare, "x-prefloop-user": f"user-{rank}"}
        started = time.perf_counter()
        answer = (await client.post("/v1/chat/completions", json=body, headers=headers)).raise_for_status().json()
        seconds[compare] = time.perf_counter() - started
        num, tokens = len(answer["choices"]), answer["usage"]["completion_tokens"]
        if tokens != NUM_TOKENS * num or num != (2 if compare == "always" else 1):
            raise PairFailed(f"asked {compare} for a pair of {NUM_TOKENS} tokens, got {num} answers of {tokens} in all")
    print(f"one answer {seconds['never'] * 1e3:.0f} ms, a pair {seconds['always'] * 1e3:.0f} ms", flush=True)
    return seconds["always"] / seconds["never"]


def main() -> int:
    """Measure pairs alone."""
    parser = argparse.ArgumentParser(description="A pair's wall time over a single answer's.")
    parser.add_argument("--engine", default="", help="a vLLM that runs; without it one is started")
    parser.add_argument("--model", default="", help="the directory of the model that it serves")
    parser.add_argument("--state-dir", type=Path, default=Path("state"))
    arguments = parser.parse_args()
    run_folder = (arguments.state_dir / "bench" / "run").resolve()
    try:
        ratio = measure_pair_over_single(arguments.state_dir, run_folder, arguments.engine, arguments.model)
    except PairFailed as error:
        print(f"pair: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"pair_over_single": round(ratio, 4)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
