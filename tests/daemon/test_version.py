"""Which version is the later one."""

import pytest

from daemon import version


@pytest.mark.parametrize("later", ["1.2.4", "1.3", "2", "1.10.0", "1.2.3.1"])
def test_numbers_are_compared_part_by_part(later: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "VERSION", "1.2.3")
    assert version.is_newer(later)
    monkeypatch.setattr(version, "VERSION", later)
    assert not version.is_newer("1.2.3") and not version.is_newer(later)


@pytest.mark.parametrize("odd", ["", "unknown", "2.x", "2.0rc1", "-3.0.0", "２.0.0", "9" * 5000, "1..9", "²"])
def test_what_is_no_version_is_never_newer(odd: str) -> None:
    assert not version.is_newer(odd)
