"""Which of its selves the program is: a client's stdio bridge, the daemon, the command line, or what decodes pictures.

Nothing is imported here that the bridge does not need: it answers a client in milliseconds.
"""

import os
import sys


def main() -> int:
    """The exit status. `imaged` without arguments is the bridge, unless a person sits at a terminal."""
    arguments = sys.argv[1:]
    _leave_no_core()
    if hasattr(sys, "_MEIPASS"):
        _hold_what_was_unpacked()
    asked_by_shell = "_ARGCOMPLETE" in os.environ  # for what may follow on its command line; see daemon/cli_completion.py
    if arguments[:1] == ["mcp"] or (not arguments and not asked_by_shell and not _is_terminal(0)):
        from daemon import bridge

        return bridge.main(arguments[1:], os.environ)
    if arguments == ["decode-pictures"]:  # decoder.WORD; the frozen daemon starts itself so
        from tools import decoder

        return decoder.serve()
    import signal

    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heard:  # Ctrl-C as early as this ends us without a word, as it ends every program
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from daemon import cli

    if heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return cli.main(arguments)


def _leave_no_core() -> None:
    """A core file would hold the key. One byte is too little for any; of 0 bytes Linux gives a core to a program that asks."""
    import resource

    most = 0 if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0 else 1
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))


def _hold_what_was_unpacked() -> None:
    """The single file alone, for it costs a hundredth of a second."""
    place = sys._MEIPASS  # type: ignore[attr-defined]  # PyInstaller's
    if not os.path.exists(f"{place}/imaged-folder"):  # noqa: PTH110
        return
    from daemon import executable

    executable.hold()


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
