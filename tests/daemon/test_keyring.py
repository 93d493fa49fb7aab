"""How many pictures an account may draw at once: what was said last, by whoever said something."""

from pathlib import Path

from daemon.config import Settings
from daemon.keyring import RUNNING_MAX_DEFAULT, Keyring


def session(**values: str) -> Settings:
    return Settings.parse({"IMAGED_BACKEND": "offline", **values}, home_dir=Path("/home/somebody"))


def test_a_session_that_names_no_limit_leaves_the_one_there_is() -> None:
    keyring = Keyring()
    account = session().account
    assert keyring.running_max(account) == RUNNING_MAX_DEFAULT
    for named, limit in (({"IMAGED_MAX_CONCURRENT": "9"}, 9), ({}, 9), ({"IMAGED_MAX_CONCURRENT": "2"}, 2), ({}, 2)):
        assert keyring.admit(session(**named))
        assert keyring.running_max(account) == limit


def test_an_account_without_a_key_draws_nothing() -> None:
    paying = Settings.parse({"OPENAI_API_KEY": "sk-of-somebody"}, home_dir=Path("/home/somebody"))
    keyring = Keyring()
    assert keyring.running_max(paying.account) == 0
    assert keyring.admit(paying) and keyring.running_max(paying.account) == RUNNING_MAX_DEFAULT
