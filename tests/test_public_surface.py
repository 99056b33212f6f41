from __future__ import annotations

import pytest

import speclrm


def test_the_public_list_is_short_sorted_and_true() -> None:
    assert sorted(speclrm.__all__) == speclrm.__all__
    assert len(speclrm.__all__) < 25
    for name in speclrm.__all__:
        assert getattr(speclrm, name) is not None


def test_a_runtime_is_made_of_a_models_name_or_of_engines() -> None:
    with pytest.raises(speclrm.SpecLRMError, match="Give one of the two"):
        speclrm.Runtime()
    with pytest.raises(speclrm.SpecLRMError, match="Give one of the two"):
        speclrm.Runtime(target="t", engines={})


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        speclrm.nothing  # noqa: B018  # type: ignore[attr-defined]
