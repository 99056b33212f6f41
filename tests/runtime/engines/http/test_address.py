"""Names and addresses of models that a server has."""

from __future__ import annotations

import pytest

from speclrm.app.addresses import with_addresses
from speclrm.app.options import EngineOptions
from speclrm.runtime.engines.http.address import engine_name, read_urls, root_of, split
from speclrm.runtime.errors import SettingsError


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("http://h:8000/v1", "http://h:8000/v1"),
        ("http://h:8000", "http://h:8000/v1"),
        ("https://h/v1/", "https://h/v1"),
        ("http://h:8000/v1/completions", "http://h:8000/v1"),
        ("http://h/api/openai/v1", "http://h/api/openai/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
    ],
)
def test_an_address_has_one_form(given: str, read: str) -> None:
    assert read_urls([given]) == (read,)


@pytest.mark.parametrize("given", ["h:8000", "ftp://h", "http://", "http://h:port/v1", "", "http://h:99999/v1"])
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(SettingsError, match="is not the address"):
        read_urls([given])


@pytest.mark.parametrize("given", ["http://me:sk-planted@h/v1", "http://h/v1?key=sk-planted", "http://sk-planted@h/v1"])
def test_a_key_in_an_address_is_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(SettingsError, match="OPENAI_API_KEY") as caught:
        read_urls([given])
    assert "planted" not in str(caught.value)


def test_a_server_is_given_once() -> None:
    with pytest.raises(SettingsError, match="twice"):
        read_urls(["http://h/v1", "http://h"])


def test_a_name_may_have_its_servers_behind_it() -> None:
    assert split("http/org/model:7b@http://a:1,http://b:2/v1") == (
        "http/org/model:7b",
        ("http://a:1/v1", "http://b:2/v1"),
    )
    assert split("http/model") == ("http/model", ())
    with pytest.raises(SettingsError, match="names no model"):
        split("http/@http://a:1")


def test_names_for_events_and_roots_of_a_servers_own_endpoints() -> None:
    assert engine_name("http/m", "http://h:8000/v1") == "http/m@h:8000"
    assert root_of("http://h:8000/v1") == "http://h:8000"
    assert root_of("http://h/openai") == "http://h/openai"


def test_both_ways_of_giving_a_server_come_to_the_same_options() -> None:
    inside = EngineOptions(target="http/m@http://h:1")
    beside = EngineOptions(target="m", target_url=("http://h:1/v1",))
    assert inside == beside
    assert (inside.target, inside.target_url) == ("http/m", ("http://h:1/v1",))
    assert EngineOptions.model_validate(inside.model_dump(mode="json")) == inside


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"target": "http/m@http://a", "target_url": ("http://b",)}, "Give them once"),
        ({"target_url": ("http://b",)}, "Give --target MODEL"),
        ({"draft": "sim/qwq-32b", "draft_url": ("http://b",)}, "simulated"),
    ],
)
def test_servers_that_belong_to_nothing_are_refused(given: dict[str, object], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        with_addresses(given)
