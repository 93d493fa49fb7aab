"""What this package says no with.

Refused          a rule; the sentence is shown as it is: what, on which value, what to do next
UnknownPrice     no published price; callers say "unknown", never zero
FileFailed       the world: a file could not be written or read; becomes a fact
"""


class Refused(Exception):
    """`code` is stable and for programs; `argument` names the argument at fault, if there is one."""

    def __init__(self, sentence: str, *, code: str, argument: str = "") -> None:
        super().__init__(sentence)
        self.code = code
        self.argument = argument


class UnknownPrice(Exception):
    pass


class FileFailed(Exception):
    """`code` is stable: `no_space`, `not_permitted`, `not_there`, `io_error`."""

    def __init__(self, sentence: str, *, code: str) -> None:
        super().__init__(sentence)
        self.code = code
