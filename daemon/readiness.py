"""Tells whoever started the daemon at login that its doors are open, or about to close (systemd's notify protocol).

Rule: it is a courtesy. Nobody may be listening, and nothing depends on being heard.
"""

import os
import socket
from collections.abc import Mapping

READY = "READY=1"
STOPPING = "STOPPING=1"
SERVED_BY_ANOTHER = f"{READY}\nSTATUS=Another daemon serves this home already."  # ready, because whoever comes is served

NOTIFY_SECONDS_MAX = 1.0  # blocks the daemon for as long as that at worst, once, before anybody is served


def notify(environ: Mapping[str, str], state: str) -> bool:
    """Whether somebody waits for it and was told. Blocks for a second at most."""
    address = environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):  # not started by systemd, or by one on the other side of a virtual machine's wall
        return False
    # A leading @ stands for the NUL of Linux's abstract addresses.
    name = b"\0" + os.fsencode(address[1:]) if address.startswith("@") else os.fsencode(address)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(NOTIFY_SECONDS_MAX)
            sender.connect(name)
            sender.sendall(state.encode())
    except OSError:
        return False
    return True
