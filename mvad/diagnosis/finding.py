"""What was found out about one part of a machine or of an installation."""

from typing import Literal, NamedTuple

State = Literal["ok", "slow", "broken", "unknown"]


class Finding(NamedTuple):
    """A line of a diagnosis."""

    name: str  # what was looked at, in a word or two
    value: str  # how it is
    state: State = "ok"  # broken: mvad cannot work; slow: it works, but takes longer or has to be told so
    advice: str = ""  # in a sentence, what follows and what to do; "" if it is ok


def gib(size: float) -> str:
    """A size in bytes for people."""
    return f"{size / (1 << 30):.1f} GiB"
