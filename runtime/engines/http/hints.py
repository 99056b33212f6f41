"""Says what a router in front of servers may use: which requests belong together, their urgency and their length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from speclrm.runtime.engine import Request

RouterHints = Literal["none", "session", "nvext"]
"""``session``: the field ``session_id`` of vLLM and of routers that read it. ``nvext``: the agent hints of NVIDIA Dynamo."""


def hints(request: Request, kind: RouterHints) -> dict[str, Any]:
    """Returns the fields to add to a request's body. The session is the track, whose context the server has cached."""
    track = request.id.rsplit("/", 2)[0]
    if kind == "session":
        return {"session_id": track}
    if kind == "nvext":
        return {
            "nvext": {"agent_hints": {"priority": -request.priority, "osl": request.max_tokens, "session_id": track}}
        }
    return {}
