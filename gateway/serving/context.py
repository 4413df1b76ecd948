"""What the parts of one running gateway hand to each other: built once by opening.py, passed explicitly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from feedback.database import Writer
    from feedback.relay import Relay
    from gateway.access.key_follower import KeyFollower
    from gateway.access.key_ring import KeyRing
    from gateway.access.key_usage import UsageBook
    from gateway.access.limits.limiter import Limits
    from gateway.access.secrets import Secrets
    from gateway.engines.deployment import Deployment
    from gateway.engines.swap import Swap
    from gateway.http.upstream import Upstream
    from gateway.rollout.controller import Controller
    from gateway.serving.divergence import DivergenceSensor
    from gateway.serving.metrics import Metrics
    from gateway.serving.pairs.asking import AskLedger
    from gateway.serving.pairs.scorer_client import ScorerClient
    from gateway.serving.recording.comparison_recorder import ComparisonRecorder
    from gateway.serving.recording.completion_recorder import CompletionRecorder
    from gateway.serving.shadow_queue import ShadowQueue
    from gateway.settings import GatewaySettings


@dataclass(frozen=True)
class Context:
    """`database` is for reads, every write goes through `writer`; `upstream` is the client to the engines."""

    settings: GatewaySettings
    writer: Writer
    database: Engine
    deployment: Deployment
    swap: Swap
    controller: Controller
    secrets: Secrets
    keys: KeyRing
    key_follower: KeyFollower
    metrics: Metrics
    recorder: ComparisonRecorder
    asks: AskLedger
    scorer: ScorerClient
    upstream: Upstream
    relay: Relay
    completions: CompletionRecorder
    limits: Limits
    usage: UsageBook
    shadows: ShadowQueue
    divergences: DivergenceSensor
