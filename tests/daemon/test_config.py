"""Settings: the old names with the old meaning, and one sentence for each value that cannot be understood."""

import pickle
from pathlib import Path

import pytest

from daemon.config import DEFAULT_MODEL, OPENAI_URL, Secret, Settings, fingerprint
from daemon.errors import BadConfiguration

HOME = Path("/home/somebody")
KEY = "sk-test-canary-0123456789"


def parse(**values: str) -> Settings:
    return Settings.parse(values, home_dir=HOME)


def test_nothing_set_means_the_documented_defaults() -> None:
    found = parse()
    assert found.output_dir == HOME / "Downloads/openai-images" and found.input_roots == (found.output_dir,)
    assert (found.model, found.account.base_url, found.account.backend) == (DEFAULT_MODEL, OPENAI_URL, "openai")
    assert (found.max_concurrent, found.sync_wait_seconds, found.idle_exit_seconds) == (None, 45, 900)
    assert (found.embedding, found.any_path, found.thumbnails.wanted) == ("standard", False, False)
    assert (found.thumbnails.size_px, found.thumbnails.quality) == (128, 60)
    assert not found.can_draw and found.key is None


def test_a_tilde_is_expanded_in_every_directory_and_input_follows_output() -> None:
    found = parse(OPENAI_IMAGE_OUTPUT_DIR="~/pictures")
    assert found.output_dir == HOME / "pictures" and found.input_roots == (found.output_dir,)
    found = parse(OPENAI_IMAGE_INPUT_DIR="~/in", OPENAI_IMAGE_OUTPUT_DIR="~/pictures")
    assert found.input_roots == (HOME / "in", HOME / "pictures")


def test_the_input_directory_may_be_a_list_and_the_output_directory_is_named_once() -> None:
    found = parse(OPENAI_IMAGE_INPUT_DIR="~/in: /srv/photos :~/pictures:", OPENAI_IMAGE_OUTPUT_DIR="~/pictures")
    assert found.input_roots == (HOME / "in", Path("/srv/photos"), HOME / "pictures")
    with pytest.raises(BadConfiguration, match="OPENAI_IMAGE_INPUT_DIR is 'photos'"):
        parse(OPENAI_IMAGE_INPUT_DIR="~/in:photos")


def test_metadata_may_stand_beside_the_file_at_any_level() -> None:
    found = parse(OPENAI_IMAGE_EMBED_METADATA="sidecar", OPENAI_IMAGE_METADATA_LEVEL="full")
    assert (found.sidecar, found.embedding) == (True, "full")
    assert not parse(OPENAI_IMAGE_EMBED_METADATA="true").sidecar


def test_a_key_is_kept_from_sight_and_known_by_its_fingerprint() -> None:
    found = parse(OPENAI_API_KEY=f"  {KEY}\n", OPENAI_ORGANIZATION="org-1", OPENAI_PROJECT_ID="proj_1")
    assert found.key is not None and found.key.reveal() == KEY and found.can_draw
    assert found.account.key == fingerprint(KEY) and len(found.account.key) == 12
    assert (found.account.organization, found.account.project) == ("org-1", "proj_1")
    for shown in (repr(found), str(found.key), f"{found.key}", f"{found.key!s}"):
        assert KEY not in shown
    with pytest.raises(TypeError):
        pickle.dumps(found.key)


def test_two_keys_are_two_accounts_and_offline_needs_none() -> None:
    assert parse(OPENAI_API_KEY=KEY).account != parse(OPENAI_API_KEY=KEY + "x").account
    assert parse(OPENAI_API_KEY=KEY).account != parse(OPENAI_API_KEY=KEY, OPENAI_BASE_URL="https://eu.api.openai.com/v1").account
    offline = parse(IMAGED_BACKEND="offline", OPENAI_API_KEY=KEY)
    assert offline.can_draw and offline.key is None and offline.account.key == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("IMAGED_BACKEND", "Offline"),
        ("IMAGED_MAX_CONCURRENT", "0"),
        ("IMAGED_MAX_CONCURRENT", "4.5"),
        ("IMAGED_MAX_CONCURRENT", "many"),
        ("IMAGED_SYNC_WAIT_SECONDS", "-1"),
        ("IMAGED_SYNC_WAIT_SECONDS", "nan"),
        ("IMAGED_IDLE_EXIT_SECONDS", "inf"),
        ("OPENAI_IMAGE_OUTPUT_DIR", "pictures"),
        ("OPENAI_IMAGE_OUTPUT_DIR", "~other/pictures"),
        ("OPENAI_IMAGE_THUMBNAIL_SIZE", "big"),
        ("OPENAI_BASE_URL", "http://example.com/v1"),
        ("OPENAI_BASE_URL", "ftp://example.com"),
        ("OPENAI_BASE_URL", "api.openai.com"),
        ("OPENAI_BASE_URL", "https://[abc"),
        ("OPENAI_BASE_URL", "https://example.com:99999/v1"),
        ("OPENAI_BASE_URL", "https://exa\u2100mple.com/v1"),
        ("OPENAI_IMAGE_OUTPUT_DIR", "~/a\0b"),
        ("OPENAI_API_KEY", "\u201csk-secret"),
        ("OPENAI_API_KEY", "sk-secret\nX: 1"),
        ("OPENAI_BASE_URL", "https://user:secret@example.com/v1"),
        ("OPENAI_ORGANIZATION", "org\r\nX-Evil: 1"),
    ],
)
def test_a_value_that_cannot_be_understood_is_named_with_what_is_allowed(name: str, value: str) -> None:
    with pytest.raises(BadConfiguration, match=name) as caught:
        parse(**{name: value})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080/v1/", "http://localhost/v1", "http://[::1]:1/v1", "https://eu.api.openai.com/v1"]
)
def test_plain_http_is_for_this_machine_only(url: str) -> None:
    assert parse(OPENAI_BASE_URL=url).account.base_url == url.rstrip("/")


@pytest.mark.parametrize(
    ("values", "level"),
    [
        ({"OPENAI_IMAGE_METADATA_LEVEL": "minimal"}, "minimal"),
        ({"OPENAI_IMAGE_METADATA_LEVEL": "full"}, "full"),
        ({"OPENAI_IMAGE_METADATA_LEVEL": "whatever"}, "standard"),
        ({"OPENAI_IMAGE_EMBED_METADATA": "false", "OPENAI_IMAGE_METADATA_LEVEL": "full"}, "off"),
        ({"OPENAI_IMAGE_EMBED_METADATA": "0"}, "off"),
        ({"OPENAI_IMAGE_EMBED_METADATA": "true"}, "standard"),
    ],
)
def test_metadata_levels_mean_what_they_meant(values: dict[str, str], level: str) -> None:
    assert parse(**values).embedding == level


def test_thumbnail_sizes_are_brought_into_range() -> None:
    found = parse(
        OPENAI_IMAGE_THUMBNAIL="true", OPENAI_IMAGE_THUMBNAIL_SIZE="9999", OPENAI_IMAGE_THUMBNAIL_QUALITY="0"
    ).thumbnails
    assert (found.wanted, found.size_px, found.quality) == (True, 512, 1)


def test_a_secret_says_nothing() -> None:
    assert repr(Secret(KEY)) == "Secret(…)"
