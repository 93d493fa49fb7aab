"""`imaged setup` on real files in a home of its own, and what `imaged doctor` then says of them."""

import json
import os
import stat
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon import cli, doctor
from daemon.errors import BadConfiguration
from daemon.setup import Outcome, Wish, setup
from daemon.setup_clients import CLIENTS
from tests.program import running

KEY = "sk-proj-canary0123456789abcdefghij"
COMMAND = ["/opt/imaged/imaged", "mcp"]
OLD = {"command": "npx", "args": ["-y", "openai-gpt-image-mcp-server"], "env": {"OPENAI_API_KEY": KEY, "NODE_OPTIONS": "x"}}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def run(home: Path, wish: Wish, **environ: str) -> Outcome:
    found = setup(wish, executable=COMMAND, environ={"HOME": str(home), **environ}, home=home)
    assert KEY not in found.text and KEY not in repr(found)
    return found


def place(home: Path, client: str, text: str | bytes, mode: int = 0o640) -> Path:
    path = CLIENTS[client].config_path({}, home, "linux")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def everything(home: Path) -> Mapping[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


def backups(path: Path) -> list[Path]:
    return sorted(path.parent.glob(path.name + ".imaged-backup-*"))


@pytest.mark.parametrize("client", CLIENTS)
def test_without_a_file_one_is_made_for_the_user_alone_and_the_client_is_told_of(home: Path, client: str) -> None:
    found = run(home, Wish(client))
    assert found.changed and found.backup is None and "was not there and was made" in found.text
    text = found.path.read_text("utf-8")
    entry = tomllib.loads(text)["mcp_servers"] if client == "codex" else json.loads(text)[CLIENTS[client].container]
    typed = {"type": "stdio"} if client in ("claude-code", "vscode") else {}
    assert entry == {"imaged": {**typed, "command": COMMAND[0], "args": ["mcp"]}}
    assert stat.S_IMODE(found.path.stat().st_mode) == 0o600
    folder = found.path.parent
    while folder != home:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        folder = folder.parent


@pytest.mark.parametrize("client", CLIENTS)
def test_the_second_time_nothing_changes_and_no_copy_is_made(home: Path, client: str) -> None:
    path = place(home, client, "" if client == "codex" else "{}")
    assert run(home, Wish(client)).changed
    before = everything(home)
    again = run(home, Wish(client))
    assert not again.changed and again.backup is None and "already" in again.text
    assert everything(home) == before and len(backups(path)) == 1


@pytest.mark.parametrize("client", CLIENTS)
def test_print_shows_the_entry_and_the_place_and_writes_nothing(home: Path, client: str) -> None:
    path = place(home, client, "# mine\n" if client == "codex" else "// mine\n{}\n")
    before = everything(home)
    found = run(home, Wish(client, print_only=True, values={"OPENAI_API_KEY": KEY, "IMAGED_BACKEND": "offline"}))
    assert everything(home) == before and not found.changed
    assert str(path) in found.text and COMMAND[0] in found.entry and '"offline"' in found.entry
    assert "OPENAI_API_KEY" in found.entry and "…" in found.entry


@pytest.mark.parametrize(
    ("client", "text"),
    [
        ("claude-code", '{"a": 1}'),
        ("claude-code", '{"a": 1, "mcpServers": {}}'),
        ("cursor", "{}"),
        ("cursor", "{\n}"),
        ("cursor", "{ /* none */ }"),
        ("vscode", '\ufeff{\r\n  // mine\r\n  "servers": {\r\n  },\r\n}\r\n'),
        ("gemini", ""),
        ("gemini", " \n"),
        ("gemini", "// only this"),
        ("codex", ""),
        ("codex", "a = 1"),
    ],
)
def test_remove_gives_back_every_byte(home: Path, client: str, text: str) -> None:
    path = place(home, client, text)
    added = run(home, Wish(client, values={"IMAGED_BACKEND": "offline"}))
    assert added.backup is not None and added.backup.read_bytes() == text.encode()
    assert stat.S_IMODE(added.backup.stat().st_mode) == 0o600
    taken = run(home, Wish(client, remove=True))
    assert path.read_bytes() == text.encode() and taken.changed and "taken out" in taken.text
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert not run(home, Wish(client, remove=True)).changed


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5), lambda v: st.lists(v) | st.dictionaries(st.text(max_size=5), v)
    ),
    st.sampled_from([None, "\t", 4]),
    st.booleans(),
)
def test_add_then_remove_is_nothing_for_any_file(home: Path, value: object, indent: str | int | None, crlf: bool) -> None:
    text = json.dumps({"mcpServers": {}, "x": value} if crlf else {"x": value}, indent=indent, ensure_ascii=crlf)
    data = text.replace("\n", "\r\n" if crlf else "\n").encode()
    path = place(home, "cursor", data)
    run(home, Wish("cursor"))
    run(home, Wish("cursor", remove=True))
    assert path.read_bytes() == data
    for backup in backups(path):
        backup.unlink()


def test_what_the_client_wrote_in_between_stays_when_our_entry_is_taken_out(home: Path) -> None:
    path = place(home, "claude-code", '{\n  "n": 1\n}\n')
    run(home, Wish("claude-code"))
    document = json.loads(path.read_text("utf-8"))
    document["n"] = 2
    path.write_text(json.dumps(document, indent=2), "utf-8")
    run(home, Wish("claude-code", remove=True))
    assert json.loads(path.read_text("utf-8")) == {"n": 2, "mcpServers": {}}


def test_a_key_that_stays_behind_in_a_copy_is_spoken_of(home: Path) -> None:
    place(home, "cursor", "{}")
    assert "OPENAI_API_KEY" not in run(home, Wish("cursor", print_only=True, remove=True)).text
    run(home, Wish("cursor", values={"OPENAI_API_KEY": KEY}))
    removed = run(home, Wish("cursor", remove=True))
    assert "copy still holds the OPENAI_API_KEY" in removed.text
    assert removed.backup is not None and KEY in removed.backup.read_text("utf-8")


def test_an_empty_value_is_shown_as_empty_and_a_name_without_one_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place(home, "cursor", "{}")
    shown = run(home, Wish("cursor", print_only=True, values={"OPENAI_API_KEY": ""})).entry
    assert json.loads(shown)["mcpServers"]["imaged"]["env"] == {"OPENAI_API_KEY": ""}
    monkeypatch.setenv("HOME", str(home))
    assert cli.main(["setup", "cursor", "--env", "OPENAI_API_KEY"]) == 2
    assert "give NAME=VALUE" in capsys.readouterr().err and path.read_text("utf-8") == "{}"


def test_a_link_stays_a_link_and_its_target_is_changed_with_its_mode(home: Path) -> None:
    dotfiles = home / "dotfiles"
    dotfiles.mkdir()
    target = dotfiles / "mcp.json"
    target.write_text("{}", "utf-8")
    target.chmod(0o644)
    link = home / ".cursor" / "mcp.json"
    link.parent.mkdir()
    link.symlink_to("../dotfiles/mcp.json")
    run(home, Wish("cursor"))
    assert link.is_symlink() and "imaged" in target.read_text("utf-8") and stat.S_IMODE(target.stat().st_mode) == 0o644
    assert [path.name for path in dotfiles.iterdir()] == ["mcp.json"] and len(backups(link)) == 1


def test_a_link_that_leads_nowhere_yet_is_followed(home: Path) -> None:
    (home / ".cursor").mkdir()
    (home / ".cursor" / "mcp.json").symlink_to(home / "later" / "mcp.json")
    assert run(home, Wish("cursor")).changed
    assert (home / ".cursor" / "mcp.json").is_symlink() and "imaged" in (home / "later" / "mcp.json").read_text("utf-8")


@pytest.mark.parametrize(
    ("text", "mode", "sentence"),
    [
        ('{"a": 1', 0o600, r"does not parse and was left as it is: line 1, column 8: a comma or }"),
        (b'{"a": "\xff"}', 0o600, r"not text in UTF-8 \(line 1, column 8\)"),
        ("[]", 0o600, "does not hold an object"),
        ('{"mcpServers": 1}', 0o600, r"Add this by hand:\n\{"),
        ("{}", 0o400, r"read-only and was left as it is; to allow the change run: chmod u\+w"),
    ],
)
def test_what_cannot_be_changed_is_refused_and_left_as_it_is(home: Path, text: str | bytes, mode: int, sentence: str) -> None:
    place(home, "cursor", text, mode)
    before = everything(home)
    with pytest.raises(BadConfiguration, match=sentence):
        run(home, Wish("cursor"))
    assert everything(home) == before


def test_folders_pipes_loops_and_hard_links_are_refused(home: Path) -> None:
    path = place(home, "cursor", "{}")
    os.link(path, home / "second")
    with pytest.raises(BadConfiguration, match="2 hard links"):
        run(home, Wish("cursor"))
    path.unlink()
    path.mkdir()
    with pytest.raises(BadConfiguration, match="not a file"):
        run(home, Wish("cursor"))
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(BadConfiguration, match="not a file"):
        run(home, Wish("cursor"))
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(BadConfiguration, match="cannot be read"):
        run(home, Wish("cursor"))


def test_a_file_that_another_program_changes_meanwhile_is_left_to_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place(home, "cursor", "{}")
    synced = os.fsync

    def client_writes(descriptor: int) -> None:
        synced(descriptor)
        path.write_text('{"by": "the client"}', "utf-8")

    monkeypatch.setattr(os, "fsync", client_writes)
    with pytest.raises(BadConfiguration, match="changed by another program"):
        run(home, Wish("cursor"))
    assert everything(home) == {".cursor/mcp.json": b'{"by": "the client"}'}


def test_the_key_of_the_shell_is_not_copied_and_it_is_said_where_it_belongs(home: Path) -> None:
    found = run(home, Wish("cursor"), OPENAI_API_KEY=KEY)
    assert KEY.encode() not in b"".join(everything(home).values())
    assert "not copied" in found.text and f"{home}/.config/imaged/.env" in found.text
    env_file = home / ".config/imaged/.env"
    env_file.parent.mkdir(parents=True)
    env_file.write_text(f"OPENAI_API_KEY={KEY}\n", "utf-8")
    env_file.chmod(0o600)
    assert f"The key is read from {env_file}" in run(home, Wish("cursor")).text
    env_file.chmod(0o666)
    assert f"chmod 600 {env_file}" in run(home, Wish("cursor")).text


def test_a_key_that_the_user_names_is_written_but_never_shown(home: Path) -> None:
    path = place(home, "codex", "", 0o644)
    found = run(home, Wish("codex", values={"OPENAI_API_KEY": KEY}))
    assert tomllib.loads(path.read_text("utf-8"))["mcp_servers"]["imaged"]["env"] == {"OPENAI_API_KEY": KEY}
    assert "Other users can read" in found.text
    found = run(home, Wish("codex", remove=True, print_only=True))
    assert "…" in found.entry and found.backup is None


def test_the_earlier_program_is_pointed_out_and_its_settings_are_taken_over_on_demand(home: Path) -> None:
    projects = {"/p": {"mcpServers": {"older": {**OLD, "env": {"OPENAI_IMAGE_MODEL": "m", "OPENAI_API_KEY": "other-" + KEY}}}}}
    path = place(home, "claude-code", json.dumps({"mcpServers": {"pics": OLD}, "projects": projects}))
    found = run(home, Wish("claude-code"))
    assert "mcpServers.pics" in found.text and "projects./p.mcpServers.older" in found.text and "--adopt" in found.text
    written = json.loads(path.read_text("utf-8"))
    assert written["mcpServers"]["pics"] == OLD and "env" not in written["mcpServers"]["imaged"]
    found = run(home, Wish("claude-code", adopt=True))
    assert "taken over: OPENAI_API_KEY" in found.text
    written = json.loads(path.read_text("utf-8"))
    assert written["mcpServers"]["imaged"]["env"] == {"OPENAI_API_KEY": KEY, "OPENAI_IMAGE_MODEL": "m"}
    assert written["mcpServers"]["pics"] == OLD and written["projects"] == projects


def test_what_our_entry_says_already_is_not_replaced_by_what_is_taken_over(home: Path) -> None:
    ours = {"command": "/x", "env": {"OPENAI_API_KEY": "mine-" + KEY}}
    path = place(home, "cursor", json.dumps({"mcpServers": {"imaged": ours, "pics": OLD}}))
    run(home, Wish("cursor", adopt=True))
    assert json.loads(path.read_text("utf-8"))["mcpServers"]["imaged"]["env"] == ours["env"]


def test_what_is_no_setting_and_what_is_no_value_is_refused(home: Path) -> None:
    with pytest.raises(BadConfiguration, match="OPENAI_API_KEX"):
        run(home, Wish("cursor", values={"OPENAI_API_KEX": "1"}))
    with pytest.raises(BadConfiguration, match="IMAGED_BACKEND is 'on'"):
        run(home, Wish("cursor", values={"IMAGED_BACKEND": "on"}))
    with pytest.raises(BadConfiguration, match="not an absolute path"):
        setup(Wish("cursor"), executable=["imaged", "mcp"], environ={}, home=home)
    assert everything(home) == {}


def test_a_file_of_many_megabytes_is_edited_too(home: Path) -> None:
    big = {"history": [{"n": n, "text": "x" * 80} for n in range(30_000)], "mcpServers": {"a": {"command": "x"}}}
    path = place(home, "claude-code", json.dumps(big, indent=2))
    run(home, Wish("claude-code"))
    assert json.loads(path.read_text("utf-8"))["history"] == big["history"]


def test_the_doctor_finds_a_running_daemon_and_a_client_that_starts_it(tmp_path: Path) -> None:
    program = tmp_path / "imaged-program"
    program.write_text("#!/bin/sh\n", "utf-8")
    program.chmod(0o755)
    user = tmp_path / "user"
    user.mkdir()
    command = [str(program), "mcp"]
    setup(Wish("cursor"), executable=command, environ={}, home=user)
    with running(tmp_path) as daemon:
        found = doctor.examine(daemon.environment, executable=command, now=datetime.now(UTC))
        told = doctor.report(found)
        assert doctor.is_well(found), told
        assert f"Process {daemon.pid} runs" in told and "somebody listens" in told and "mcp.json starts this program" in told
    found = doctor.examine(daemon.environment, executable=command, now=datetime.now(UTC))
    told = doctor.report(found)
    assert doctor.is_well(found) and "left over and nobody listens" in told and "None runs" in told


@pytest.mark.parametrize("client", ["codex", "cursor"])
def test_what_the_entry_sets_already_stays_beside_new_values(home: Path, client: str) -> None:
    path = place(home, client, "")
    run(home, Wish(client, values={"IMAGED_BACKEND": "offline", "OPENAI_IMAGE_MODEL": "a"}))
    run(home, Wish(client, values={"OPENAI_IMAGE_MODEL": "b"}))
    entry = CLIENTS[client].entry(CLIENTS[client].read(path.read_text("utf-8")))
    assert entry is not None and entry["env"] == {"IMAGED_BACKEND": "offline", "OPENAI_IMAGE_MODEL": "b"}


def test_an_entry_of_our_name_that_started_the_earlier_program_is_corrected_and_nothing_is_said_to_stay(home: Path) -> None:
    path = place(home, "cursor", json.dumps({"mcpServers": {"imaged": OLD}}))
    found = run(home, Wish("cursor"))
    assert "it stays" not in found.text
    entry = json.loads(path.read_text("utf-8"))["mcpServers"]["imaged"]
    assert (entry["command"], entry["args"], entry["env"]) == (COMMAND[0], ["mcp"], OLD["env"])
