"""The MCP clients that can be set up: where each keeps its configuration, and how a server is written there.

Rule: one row for each client. Nothing here writes; `setup` does, and `doctor` looks.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from daemon import setup_json, setup_toml
from daemon.errors import BadConfiguration
from daemon.setup_json import CannotEdit, NotUnderstood

NAME = "imaged"
OLD_PROGRAM = "openai-gpt-image-mcp-server"


class Client(NamedTuple):
    """`path` goes below `root`, whose place the client itself lets be moved by the variable `moved_by`.

    `container` is the member that holds the servers. `typed`: each of them says `"type": "stdio"`.
    """

    name: str
    title: str
    root: str
    path: str
    container: str = "mcpServers"
    typed: bool = False
    toml: bool = False
    moved_by: str = ""
    mac_root: str = ""
    windows: str = ""

    @property
    def entry_path(self) -> tuple[str, str]:
        return self.container, NAME

    def config_path(self, environ: Mapping[str, str], home: Path, platform: str) -> Path:
        """
        Raises:
            BadConfiguration: not on this platform.
        """
        if platform == "win32":
            raise BadConfiguration(
                f"imaged does not run on Windows, so there is nothing that {self.title} could start; its configuration "
                f"there is {self.windows}. Use imaged and the client on Linux, macOS or within WSL."
            )
        moved = environ.get(self.moved_by, "").strip() if self.moved_by else ""
        if platform == "darwin" and self.mac_root:
            root = home / self.mac_root
        elif moved.startswith("/"):
            root = Path(moved)
        else:
            root = home / self.root
        return root / self.path

    def read(self, text: str) -> Any:
        """The whole file as values, None if it holds none.

        Raises:
            NotUnderstood
        """
        return setup_toml.read(text) if self.toml else setup_json.read(text)

    def put(self, text: str, entry: Mapping[str, object]) -> str:
        """The text with these members in our entry; what else is in it stays.

        Raises:
            CannotEdit
        """
        return self._proven(text, setup_toml.put if self.toml else _put_json, entry)

    def take(self, text: str) -> str:
        """
        Raises:
            CannotEdit
        """
        return self._proven(text, lambda text, path, _: (setup_toml if self.toml else setup_json).take(text, path), None)

    def _proven(
        self,
        text: str,
        edit: Callable[[str, Sequence[str], Mapping[str, object]], str],
        entry: Mapping[str, object] | None,
    ) -> str:
        """Read again before anybody writes it: our entry is as it should be, and everything else as it was."""
        before = self.read(text)
        after = edit(text, self.entry_path, entry or {})
        try:
            changed = self.read(after)
        except NotUnderstood as exc:
            raise CannotEdit(f"{'.'.join(self.entry_path)} cannot be written as the file stands ({exc})") from None
        ours = self.entry(changed)
        missing = ours is not None if entry is None else not _holds(ours, entry)
        if missing or self._others(before) != self._others(changed):
            raise CannotEdit(f"{'.'.join(self.entry_path)} cannot be changed without changing what stands beside it")
        return after

    def entry(self, document: Any) -> dict[str, Any] | None:
        found = self.servers(document).get(NAME)
        return found if isinstance(found, dict) else None

    def servers(self, document: Any) -> dict[str, Any]:
        found = document.get(self.container) if isinstance(document, dict) else None
        return found if isinstance(found, dict) else {}

    def old_entries(self, document: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """The earlier program's, each with its place for people; also those that Claude Code keeps by project."""
        places = [(self.container, self.servers(document))]
        projects = document.get("projects") if isinstance(document, dict) and not self.toml else None
        for folder, project in projects.items() if isinstance(projects, dict) else ():
            places.append((f"projects.{folder}.{self.container}", self.servers(project)))
        for place, servers in places:
            for name, entry in servers.items():
                if name != NAME and isinstance(entry, dict) and OLD_PROGRAM in " ".join(command_of(entry)):
                    yield f"{place}.{name}", entry

    def _others(self, document: Any) -> str:
        """Everything but our entry; text, because nan is not equal to itself. Empty objects count as absent."""
        document = {} if document is None else document
        if not isinstance(document, dict):
            return repr(document)
        servers = {name: entry for name, entry in self.servers(document).items() if name != NAME}
        kept = document.get(self.container) if not isinstance(document.get(self.container, {}), dict) else servers
        members = {name: member for name, member in document.items() if name != self.container}
        return repr((members, kept))

    def shown(self, entry: Mapping[str, object]) -> str:
        """The entry as a file that holds nothing else would spell it."""
        return self.put("", entry)


CLIENTS: Mapping[str, Client] = {
    client.name: client
    for client in (
        Client(
            "claude-desktop",
            "Claude Desktop",
            ".config",
            "Claude/claude_desktop_config.json",
            moved_by="XDG_CONFIG_HOME",
            mac_root="Library/Application Support",
            windows="%APPDATA%\\Claude\\claude_desktop_config.json",
        ),
        Client(
            "claude-code",
            "Claude Code",
            ".",
            ".claude.json",
            typed=True,
            moved_by="CLAUDE_CONFIG_DIR",
            windows="%USERPROFILE%\\.claude.json",
        ),
        Client("cursor", "Cursor", ".cursor", "mcp.json", windows="%USERPROFILE%\\.cursor\\mcp.json"),
        Client(
            "vscode",
            "VS Code",
            ".config",
            "Code/User/mcp.json",
            container="servers",
            typed=True,
            moved_by="XDG_CONFIG_HOME",
            mac_root="Library/Application Support",
            windows="%APPDATA%\\Code\\User\\mcp.json",
        ),
        Client(
            "codex",
            "Codex",
            ".codex",
            "config.toml",
            container="mcp_servers",
            toml=True,
            moved_by="CODEX_HOME",
            windows="%USERPROFILE%\\.codex\\config.toml",
        ),
        Client("gemini", "Gemini CLI", ".gemini", "settings.json", windows="%USERPROFILE%\\.gemini\\settings.json"),
    )
}


def client_named(name: str) -> Client:
    """
    Raises:
        BadConfiguration: names those there are.
    """
    if name not in CLIENTS:
        raise BadConfiguration(f"{json.dumps(name)} is no client that imaged knows; choose one of {', '.join(CLIENTS)}.")
    return CLIENTS[name]


def command_of(entry: Mapping[str, object]) -> tuple[str, ...]:
    """Command and arguments; whatever is not text is left out."""
    args = entry.get("args")
    words = (entry.get("command"), *(args if isinstance(args, list) else ()))
    return tuple(word for word in words if isinstance(word, str))


def environment_of(entry: Mapping[str, object]) -> dict[str, str]:
    env = entry.get("env")
    return {name: value for name, value in env.items() if isinstance(value, str)} if isinstance(env, dict) else {}


def _holds(found: object, wanted: object) -> bool:
    """Everything that is wanted, and perhaps more members."""
    if isinstance(found, dict) and isinstance(wanted, Mapping):
        return all(name in found and _holds(found[name], value) for name, value in wanted.items())
    return found == wanted


def _put_json(text: str, path: Sequence[str], entry: Mapping[str, object]) -> str:
    """Member by member, so that those which are right, and unknown ones, stay as they are written."""
    present = setup_json.read(text)
    for key in path:
        present = present.get(key) if isinstance(present, dict) else None
    if not isinstance(present, dict):
        return setup_json.put(text, path, entry)
    for key, value in entry.items():
        if isinstance(value, Mapping) and isinstance(present.get(key), dict):
            for name, one in value.items():
                text = setup_json.put(text, (*path, key, name), one)
        else:
            text = setup_json.put(text, (*path, key), value)
    return text
