"""Tells whether the Hugging Face hub can be reached. A leaf: models and datasets both ask before they wait for it."""

from __future__ import annotations

HUB_TIMEOUT_S = 5.0


def hub_answers() -> bool:
    """Returns whether the hub can be reached now. Takes a few seconds if it cannot."""
    import httpx
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S, follow_redirects=True)
    except httpx.HTTPError:
        return False
    return True
