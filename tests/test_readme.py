"""The README says what is there, and its Japanese twin says the same."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENGLISH = (ROOT / "README.md").read_text("utf-8")
JAPANESE = (ROOT / "README.ja.md").read_text("utf-8")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
NEEDS_NO_WORD = {"__init__.py", "__main__.py", "errors.py", "version.py"}


def without_code(text: str) -> str:
    return FENCE.sub("", text)


def headings(text: str) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", without_code(text), re.MULTILINE)]


def sections(text: str) -> list[str]:
    return re.split(r"^#+ .*$", without_code(text), flags=re.MULTILINE)


def code_spans(text: str) -> Counter[str]:
    return Counter(re.findall(r"`([^`]+)`", text))


def tables(text: str) -> list[list[list[str]]]:
    """Every table as its rows, each as the code spans of its first column."""
    found = re.findall(r"(?:^\|.*\|\n)+", without_code(text), re.MULTILINE)
    return [[re.findall(r"`([^`]+)`", row.split("|")[1]) for row in table.splitlines()] for table in found]


def test_both_have_the_same_headings() -> None:
    assert headings(JAPANESE) == headings(ENGLISH)
    assert len(headings(ENGLISH)) > 10


def test_both_have_the_same_blocks_of_code() -> None:
    assert FENCE.findall(JAPANESE) == FENCE.findall(ENGLISH)


def test_both_have_the_same_tables() -> None:
    assert tables(JAPANESE) == tables(ENGLISH)
    assert tables(ENGLISH)


def test_both_name_the_same_things_in_every_section() -> None:
    for number, (english, japanese) in enumerate(zip(sections(ENGLISH), sections(JAPANESE), strict=True)):
        assert set(code_spans(japanese)) == set(code_spans(english)), f"section {number}: {english[:80]!r}"


def test_the_japanese_one_is_japanese() -> None:
    prose = re.sub(r"`[^`]*`|https?://\S+", "", without_code(JAPANESE))
    letters = [character for character in prose if character.isalpha()]
    assert sum(ord(character) > 0x2E7F for character in letters) > 0.8 * len(letters)


@pytest.mark.parametrize("text", [ENGLISH, JAPANESE], ids=["english", "japanese"])
def test_every_link_leads_somewhere(text: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target


@pytest.mark.parametrize("text", [ENGLISH, JAPANESE], ids=["english", "japanese"])
def test_every_setting_that_is_read_is_explained(text: str) -> None:
    source = "".join((ROOT / "daemon" / name).read_text("utf-8") for name in ("config.py", "bridge.py"))
    names = set(re.findall(r'"((?:OPENAI|IMAGED)_[A-Z_]*[A-Z]|HISTORY_DB_PATH)"', source))
    assert len(names) > 15
    rows = "".join(line for line in text.splitlines() if line.startswith("| `"))
    told = set(re.findall(r"`([A-Z_]+)`", rows))
    told |= {f"OPENAI_IMAGE_THUMBNAIL{ending}" for ending in re.findall(r"`…([A-Z_]+)`", rows)}
    assert names <= told, names - told


def test_every_module_has_its_place_in_the_tour() -> None:
    for package in ("daemon", "tools", "eventlog"):
        for path in (ROOT / package).glob("*.py"):
            name = f"{package}/{path.name}"
            assert path.name in NEEDS_NO_WORD or f"`{name}`" in ENGLISH, name


def test_every_file_that_is_named_is_there() -> None:
    for name in code_spans(ENGLISH):
        if re.fullmatch(r"(daemon|tools|eventlog|tests)/[\w./]+", name):
            assert (ROOT / name).exists(), name
