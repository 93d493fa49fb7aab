"""Substring search over all prompts: their folded forms in one narrow table, and two indexes that follow in idle moments.

Rule: what is found does not depend on how far the indexes have come, or on whether there are any. They only name candidates;
each is looked at, and what they have not reached is looked through. One index knows three characters in a row, the other
every character and every two neighbours: 猫 and 逆光 are searches, too.
"""

import sqlite3
import unicodedata
from collections.abc import Iterable
from itertools import pairwise

SCHEMA = """
CREATE TABLE prompt (
    number INTEGER PRIMARY KEY,           -- of its job; there is no row once it is forgotten
    folded TEXT NOT NULL
) STRICT;
CREATE TABLE lettered (number INTEGER NOT NULL);   -- the last job that both indexes know
INSERT INTO lettered VALUES (0);
"""
INDEXES = """
CREATE VIRTUAL TABLE trigram USING fts5(folded, content='', columnsize=0, tokenize='trigram case_sensitive 1');
CREATE VIRTUAL TABLE gram USING fts5(grams, content='', columnsize=0, detail=none, tokenize=ascii);
"""
TRIGRAM_CHARACTERS_MIN = 3


def folded(text: str) -> str:
    """The form in which prompts are compared: width, compatibility forms and case do not matter."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def has_indexes(db: sqlite3.Connection) -> bool:
    """An SQLite without them looks through everything."""
    (found,) = db.execute("SELECT count(*) FROM sqlite_schema WHERE name IN ('trigram', 'gram')").fetchone()
    return int(found) == 2


def candidates(text: str) -> tuple[str, str]:
    """Which index to ask for folded text of at least one character, and what: all that holds it is among what matches."""
    if len(text) >= TRIGRAM_CHARACTERS_MIN and "\0" not in text:
        return "trigram", '"' + text.replace('"', '""') + '"'
    words = {_one(text)} if len(text) == 1 else {_two(*pair) for pair in pairwise(text)}
    return "gram", " ".join(f'"{word}"' for word in words)


class Prompts:
    """The writing end, inside the transactions of whoever owns the connection. Blocking."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._has_indexes = has_indexes(db)

    def add(self, prompts: Iterable[tuple[int, str]]) -> None:
        """Each with the number of its job."""
        self._db.executemany("INSERT INTO prompt VALUES (?, ?)", ((number, folded(prompt)) for number, prompt in prompts))

    def forget(self, number: int) -> None:
        """The indexes keep no text to look at, so they are told which words go."""
        row = self._db.execute("SELECT folded FROM prompt WHERE number = ?", (number,)).fetchone()
        if row is None:
            return
        self._db.execute("DELETE FROM prompt WHERE number = ?", (number,))
        if self._has_indexes and number <= self._lettered():
            self._db.execute("INSERT INTO trigram (trigram, rowid, folded) VALUES ('delete', ?, ?)", (number, _plain(*row)))
            self._db.execute("INSERT INTO gram (gram, rowid, grams) VALUES ('delete', ?, ?)", (number, _grams(*row)))

    def letter(self, limit: int) -> bool:
        """Let the indexes follow by so many prompts; whether some are left. A transaction of its own."""
        if not self._has_indexes:
            return False
        lettered = self._lettered()
        question = "SELECT number, folded FROM prompt WHERE number > ? ORDER BY number LIMIT ?"
        rows = self._db.execute(question, (lettered, limit)).fetchall()
        if not rows:
            return False
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany(
            "INSERT INTO trigram (rowid, folded) VALUES (?, ?)", [(number, _plain(text)) for number, text in rows]
        )
        self._db.executemany("INSERT INTO gram (rowid, grams) VALUES (?, ?)", [(number, _grams(text)) for number, text in rows])
        self._db.execute("UPDATE lettered SET number = ?", (rows[-1][0],))
        self._db.execute("COMMIT")
        return len(rows) == limit

    def scrub(self) -> None:
        """No posting of what was forgotten is left in the indexes. Slow: writes both anew."""
        if self._has_indexes:
            self._db.execute("INSERT INTO trigram (trigram) VALUES ('optimize')")
            self._db.execute("INSERT INTO gram (gram) VALUES ('optimize')")

    def _lettered(self) -> int:
        (number,) = self._db.execute("SELECT number FROM lettered").fetchone()
        return int(number)


def _plain(text: str) -> str:
    """The tokenizer stops at a NUL. The search looks at the prompt itself afterwards, so more may match here."""
    return text.replace("\0", "\ufffd")


def _grams(text: str) -> str:
    """Every character and every two neighbours, once each, as words that any tokenizer leaves as they are."""
    return " ".join({_one(character) for character in text} | {_two(*pair) for pair in pairwise(text)})


def _one(character: str) -> str:
    return f"{ord(character):x}"


def _two(first: str, second: str) -> str:
    return f"{ord(first):x}x{ord(second):x}"
