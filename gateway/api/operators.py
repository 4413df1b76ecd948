"""All routes under /operator/v1."""

from fastapi import APIRouter

from gateway.api.checkpoints import add_checkpoint_routes
from gateway.api.demonstrations import add_demonstration_route
from gateway.api.engines import add_engine_routes
from gateway.api.feedback import add_feedback_route
from gateway.api.key_usage import add_usage_routes
from gateway.api.keys import add_key_change_routes, add_key_routes
from gateway.api.rollouts import add_action_routes, add_replay_route, add_rollout_routes
from gateway.api.rounds import add_round_routes
from gateway.api.routes import OperatorRoutes
from gateway.api.status import add_status_route
from gateway.serving.context import Context


def build_operator_router(context: Context) -> APIRouter:
    """The operators' router."""
    routes = OperatorRoutes(context)
    for add in (
        add_status_route,
        add_checkpoint_routes,
        add_rollout_routes,
        add_action_routes,
        add_replay_route,
        add_engine_routes,
        add_feedback_route,
        add_round_routes,
        add_demonstration_route,
        add_key_routes,
        add_key_change_routes,
        add_usage_routes,
    ):
        add(routes, context)
    return routes.router
