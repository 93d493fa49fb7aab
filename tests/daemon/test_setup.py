"""Our entry goes into other people's text and out again, and nothing beside it changes by a byte."""

import json
import string
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon import setup_json, setup_toml
from daemon.errors import BadConfiguration
from daemon.setup_clients import CLIENTS, client_named
from daemon.setup_json import CannotEdit, NotUnderstood

COMMAND = "/opt/imaged/imaged"
ENTRY = {"command": COMMAND, "args": ["mcp"]}
TYPED = {"type": "stdio", **ENTRY}

GOLDEN_JSON = {
    "nothing": ("", '{\n  "mcpServers": {\n    "imaged": {\n      "command": "/i",\n      "args": ["mcp"]\n    }\n  }\n}\n'),
    "an empty object": (
        "{}\n",
        '{\n  "mcpServers": {\n    "imaged": {\n      "command": "/i",\n      "args": ["mcp"]\n    }\n  }\n}\n',
    ),
    "tabs, an unknown key and no line's end": (
        '{\n\t"theme": {"deep": [1, {"er": null}]}\n}',
        '{\n\t"theme": {"deep": [1, {"er": null}]},\n\t"mcpServers": {\n\t\t"imaged": {\n\t\t\t"command": "/i",\n'
        '\t\t\t"args": ["mcp"]\n\t\t}\n\t}\n}',
    ),
    "comments, a trailing comma and another server": (
        '// mine\n{\n    "mcpServers": {\n        "other": {"url": "http://x//y"}, // keep\n        /* last */\n    },\n}\n',
        '// mine\n{\n    "mcpServers": {\n        "other": {"url": "http://x//y"}, // keep\n        /* last */\n'
        '        "imaged": {\n            "command": "/i",\n            "args": ["mcp"]\n        },\n    },\n}\n',
    ),
    "a comment behind the last member": (
        '{\n  "mcpServers": {\n    "a": {} // the last\n  }\n}\n',
        '{\n  "mcpServers": {\n    "a": {}, // the last\n    "imaged": {\n      "command": "/i",\n      "args": ["mcp"]\n'
        "    }\n  }\n}\n",
    ),
    "CRLF and a byte order mark": (
        '\ufeff{\r\n  "a": 1\r\n}\r\n',
        '\ufeff{\r\n  "a": 1,\r\n  "mcpServers": {\r\n    "imaged": {\r\n      "command": "/i",\r\n      "args": ["mcp"]\r\n'
        "    }\r\n  }\r\n}\r\n",
    ),
    "one line": (
        '{"a": 1, "mcpServers": {"b": {}}}',
        '{"a": 1, "mcpServers": {"b": {}, "imaged": {"command": "/i", "args": ["mcp"]}}}',
    ),
}


@pytest.mark.parametrize("name", GOLDEN_JSON)
def test_json_gets_our_entry_in_the_manner_of_the_file(name: str) -> None:
    before, after = GOLDEN_JSON[name]
    client = client_named("cursor")
    assert client.put(before, {"command": "/i", "args": ["mcp"]}) == after
    assert client.put(after, {"command": "/i", "args": ["mcp"]}) == after


GOLDEN_TOML = {
    "nothing": ("", '[mcp_servers.imaged]\ncommand = "/i"\nargs = ["mcp"]\n'),
    "comments and another server": (
        '# mine\nmodel = "o9"  # best\n\n[mcp_servers.other]\ncommand = "x"\n# the end\n',
        '# mine\nmodel = "o9"  # best\n\n[mcp_servers.other]\ncommand = "x"\n# the end\n\n'
        '[mcp_servers.imaged]\ncommand = "/i"\nargs = ["mcp"]\n',
    ),
    "CRLF, a byte order mark and no line's end": (
        "\ufeffa = 1\r\nb = 2",
        '\ufeffa = 1\r\nb = 2\r\n\r\n[mcp_servers.imaged]\r\ncommand = "/i"\r\nargs = ["mcp"]',
    ),
    "an old path of ours, and members of the user": (
        '[mcp_servers.imaged]\ncommand = "/old" # here\nargs = [\n  "mcp", # one\n]\ntool_timeout_sec = 600\n\n[z]\n',
        '[mcp_servers.imaged]\ncommand = "/i" # here\nargs = [\n  "mcp", # one\n]\ntool_timeout_sec = 600\n\n[z]\n',
    ),
    "dotted keys": (
        'mcp_servers.imaged.command = "/old"\nmcp_servers.imaged.args = ["mcp"]\n',
        'mcp_servers.imaged.command = "/i"\nmcp_servers.imaged.args = ["mcp"]\n',
    ),
    "brackets and hashes in strings": (
        'a = """\n[mcp_servers.imaged]\n""""\nb = \'#[\'\nc = [ "]", # ]\n "x" ]\n',
        'a = """\n[mcp_servers.imaged]\n""""\nb = \'#[\'\nc = [ "]", # ]\n "x" ]\n\n'
        '[mcp_servers.imaged]\ncommand = "/i"\nargs = ["mcp"]\n',
    ),
}


@pytest.mark.parametrize("name", GOLDEN_TOML)
def test_toml_gets_our_entry_in_the_manner_of_the_file(name: str) -> None:
    before, after = GOLDEN_TOML[name]
    client = client_named("codex")
    assert client.put(before, {"command": "/i", "args": ["mcp"]}) == after
    assert client.put(after, {"command": "/i", "args": ["mcp"]}) == after


def test_what_the_user_added_to_our_entry_stays_when_it_is_corrected() -> None:
    before = '{"mcpServers": {"imaged": {"command": "/old", /* slow */ "timeout": 9, "env": {"A": "1"}, "args": ["mcp"]}}}'
    after = client_named("gemini").put(before, {**ENTRY, "env": {"IMAGED_BACKEND": "offline"}})
    assert after == before.replace("/old", COMMAND).replace('{"A": "1"}', '{"A": "1", "IMAGED_BACKEND": "offline"}')


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('[mcp_servers.imaged]\nenv = {A = "1"}\n', '[mcp_servers.imaged]\nenv = { A = "1", "B C" = "2" }\n'),
        (
            '[mcp_servers.imaged.env]\nA = "1"\n[x]\n',
            '[mcp_servers.imaged.env]\n"B C" = "2"\nA = "1"\n[x]\n',
        ),
        ("[mcp_servers.imaged]\n", '[mcp_servers.imaged]\nenv = { A = "1", "B C" = "2" }\n'),
        ("[mcp_servers.imaged]", '[mcp_servers.imaged]\nenv = { A = "1", "B C" = "2" }\n'),
    ],
)
def test_the_environment_of_a_toml_entry_is_written_where_it_stands(before: str, after: str) -> None:
    assert client_named("codex").put(before, {"env": {"A": "1", "B C": "2"}}) == after


def test_toml_loses_our_tables_and_keeps_the_comments_around_them() -> None:
    text = (
        "# top\n[a]\nx = 1\n\n[mcp_servers.imaged]\ncommand = '/i'\n\n[mcp_servers.imaged.env]\nK = 'v'\n\n"
        "# the other one\n[mcp_servers.other]\ncommand = 'o'\n[mcp_servers.imaged.more]\ny = 2\n"
    )
    left = client_named("codex").take(text)
    assert left == "# top\n[a]\nx = 1\n\n# the other one\n[mcp_servers.other]\ncommand = 'o'\n"


@pytest.mark.parametrize(
    "text",
    [
        'mcp_servers = { imaged = { command = "/old" } }',
        "mcp_servers = { other = {} }",
        "[[mcp_servers]]\na = 1\n",
        "mcp_servers = 3",
    ],
)
def test_toml_that_has_no_place_for_a_table_is_refused(text: str) -> None:
    with pytest.raises(CannotEdit):
        client_named("codex").put(text, ENTRY)


def test_an_entry_within_an_inline_table_is_not_guessed_at() -> None:
    with pytest.raises(CannotEdit, match="inline"):
        client_named("codex").take('mcp_servers = { imaged = { command = "/old" }, b = {} }')


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"mcpServers": []}', "not an object"),
        ('{"mcpServers": null}', "not an object"),
        ('{"mcpServers": {}, "mcpServers": {"a": {}}}', '"mcpServers" stands twice in the whole file'),
        ('{"mcpServers": {"imaged": {}, "imaged": {}}}', '"imaged" stands twice in mcpServers'),
    ],
)
def test_json_whose_place_is_taken_is_refused(text: str, why: str) -> None:
    with pytest.raises(CannotEdit, match=why):
        client_named("cursor").put(text, ENTRY)


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ('{"a": 1,\n "b" 2}', 2, 6),
        ('{"a": 1\n\n  "b": 2}', 3, 3),
        ('{"a": tru}', 1, 7),
        ('{"a": "x\n"}', 1, 7),
        ("[1 2]", 1, 4),
        ("{} {}", 1, 4),
        ("{\r\n/* x", 2, 1),
        ('{"a": ' + "[" * 200, 1, 107),
        ("{", 1, 2),
        ("{,}", 1, 2),
        ("{'a': 1}", 1, 2),
        ("[,]", 1, 2),
    ],
)
def test_broken_json_is_named_by_line_and_column(text: str, line: int, column: int) -> None:
    with pytest.raises(NotUnderstood) as told:
        setup_json.read(text)
    assert (told.value.line, told.value.column) == (line, column), str(told.value)


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [("a = 1\nb = = 2\n", 2, 5), ("\ufeffa = 1\r\nb = 1 2\r\n", 2, 7), ('a = "', 1, 6), ("[a]\n[a]\n", 2, 3)],
)
def test_broken_toml_is_named_by_line_and_column(text: str, line: int, column: int) -> None:
    with pytest.raises(NotUnderstood) as told:
        setup_toml.read(text)
    assert (told.value.line, told.value.column) == (line, column), str(told.value)


SPACE = st.text(alphabet=" \t\n", max_size=4)
GAP = st.one_of(SPACE, st.sampled_from([" /* , } */ ", "// }\n", "\n// x // y\n  ", " /**/\n"]))
KEYS = st.text(alphabet=string.ascii_letters + 'é"\\/{}', min_size=1, max_size=6).filter(
    lambda key: key not in ("imaged", "mcpServers")
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.sampled_from([1.5, -2e30]))


def objects(keys: st.SearchStrategy[str], values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    @st.composite
    def spelt(draw: st.DrawFn) -> str:
        members = []
        for key in draw(st.lists(keys, unique=True, max_size=3)):
            name = json.dumps(key, ensure_ascii=draw(st.booleans()))
            members.append(f"{draw(GAP)}{name}{draw(GAP)}:{draw(GAP)}{draw(values)}{draw(GAP)}")
        comma = "," + draw(GAP) if members and draw(st.booleans()) else ""
        return "{" + ",".join(members) + comma + (draw(GAP) if not members else "") + "}"

    return spelt()


VALUES = st.recursive(
    SCALARS.map(json.dumps),
    lambda inner: st.one_of(objects(KEYS, inner), st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")),
    max_leaves=6,
)


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bool]:
    """A file of some client, and whether it has a place for servers already."""
    servers = draw(objects(KEYS, objects(KEYS, VALUES)))
    members = draw(st.lists(objects(KEYS, VALUES), max_size=2))
    named = [f'"k{n}"{draw(GAP)}: {member}{draw(GAP)}' for n, member in enumerate(members)]
    there = draw(st.booleans())
    if there:
        named.insert(draw(st.integers(0, len(named))), f'{draw(GAP)}"mcpServers":{draw(GAP)}{servers}{draw(GAP)}')
    comma = "," if named and draw(st.booleans()) else ""
    text = f"{draw(GAP)}{{{draw(GAP)}{','.join(named)}{comma}{draw(GAP)}}}{draw(GAP)}"
    return draw(st.sampled_from(["", "\ufeff"])) + draw(st.sampled_from([text, text.replace("\n", "\r\n")])), there


@settings(max_examples=400, deadline=None)
@given(files(), st.booleans())
def test_what_is_added_to_json_and_taken_out_again_leaves_every_byte(file: tuple[str, bool], with_env: bool) -> None:
    text, there = file
    client = client_named("claude-code")
    entry = {**TYPED, "env": {"IMAGED_BACKEND": "offline"}} if with_env else TYPED
    added = client.put(text, entry)
    assert client.entry(client.read(added)) == entry
    assert client.put(added, entry) == added
    taken = client.take(added)
    if there:
        assert taken == text
    else:
        assert setup_json.take(taken, ["mcpServers"]) == text


TOML_VALUES = st.sampled_from(
    [
        "1",
        '"a # ["',
        "'''\n[x]\n'''",
        '"""\n\\"" "" """"',
        "[\n 1, # ]\n 2\n]",
        '{ a = "}", b = [1] }',
        "1979-05-27 07:32:00Z",
        "nan",
    ]
)


@st.composite
def toml_files(draw: st.DrawFn) -> str:
    lines = []
    for n in range(draw(st.integers(0, 3))):
        lines.append(
            f"k{n} ={draw(st.sampled_from([' ', '', '  ']))}{draw(TOML_VALUES)}{draw(st.sampled_from(['', ' # [c]', '  ']))}"
        )
    for header in draw(
        st.lists(st.sampled_from(["[a]", '[ "b.c" . d ]', "[[e]]", "[mcp_servers.other]", "[mcp_servers.z.env]"]), unique=True)
    ):
        lines += [*([""] * draw(st.integers(0, 2))), header + draw(st.sampled_from(["", " # why", "\t"]))]
        lines += [f"x{n} = {draw(TOML_VALUES)}" for n in range(draw(st.integers(0, 2)))]
        lines += draw(st.lists(st.sampled_from(["# free", "", "  "]), max_size=2))
    text = "\n".join(lines) + draw(st.sampled_from(["", "\n", "\n\n", "\n# end", "\n  "]))
    return draw(st.sampled_from(["", "\ufeff"])) + draw(st.sampled_from([text, text.replace("\n", "\r\n")]))


@settings(max_examples=400, deadline=None)
@given(toml_files())
def test_what_is_added_to_toml_and_taken_out_again_leaves_every_byte(text: str) -> None:
    client = client_named("codex")
    added = client.put(text, {**ENTRY, "env": {"OPENAI_IMAGE_OUTPUT_DIR": "/ä \\ \x7f"}})
    assert tomllib.loads(added.removeprefix("\ufeff"))["mcp_servers"]["imaged"]["command"] == COMMAND
    assert client.take(added) == text


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='{}[]",:/*\\ \n1truefalsenull-.', max_size=30))
def test_any_text_is_read_as_json_reads_it_or_refused(text: str) -> None:
    try:
        found: Any = setup_json.read(text)
    except NotUnderstood:
        with pytest.raises(ValueError):
            json.loads(text)
        return
    try:
        expected = json.loads(text)
    except ValueError:  # comments, trailing commas, nothing at all
        return
    assert found == expected


def test_every_client_has_its_place_on_both_systems_and_a_sentence_on_the_third() -> None:
    home = Path("/home/u")
    assert {name: str(client.config_path({}, home, "linux")) for name, client in CLIENTS.items()} == {
        "claude-desktop": "/home/u/.config/Claude/claude_desktop_config.json",
        "claude-code": "/home/u/.claude.json",
        "cursor": "/home/u/.cursor/mcp.json",
        "vscode": "/home/u/.config/Code/User/mcp.json",
        "codex": "/home/u/.codex/config.toml",
        "gemini": "/home/u/.gemini/settings.json",
    }
    library = "/home/u/Library/Application Support"
    assert str(CLIENTS["claude-desktop"].config_path({}, home, "darwin")) == f"{library}/Claude/claude_desktop_config.json"
    assert str(CLIENTS["vscode"].config_path({}, home, "darwin")) == f"{library}/Code/User/mcp.json"
    assert str(CLIENTS["codex"].config_path({"CODEX_HOME": "/c"}, home, "darwin")) == "/c/config.toml"
    assert str(CLIENTS["claude-code"].config_path({"CLAUDE_CONFIG_DIR": "/c"}, home, "linux")) == "/c/.claude.json"
    assert str(CLIENTS["cursor"].config_path({"XDG_CONFIG_HOME": "/c"}, home, "linux")) == "/home/u/.cursor/mcp.json"
    for client in CLIENTS.values():
        with pytest.raises(BadConfiguration, match=r"Windows.*%"):
            client.config_path({}, home, "win32")


def test_an_unknown_client_is_answered_with_those_there_are() -> None:
    with pytest.raises(BadConfiguration, match=r"emacs.*claude-desktop.*gemini"):
        client_named("emacs")


def test_a_number_too_long_to_be_read_is_refused_at_its_place() -> None:
    with pytest.raises(NotUnderstood, match="this number is too long"):
        client_named("cursor").read('{"a": ' + "9" * 5000 + "}")
