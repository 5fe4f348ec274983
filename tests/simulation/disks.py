"""The simulated vdisks: what is known of each, who uses it, its snapshots."""

from dataclasses import dataclass, field

from tests.simulation.histories import NEVER, History, Write


@dataclass(slots=True, eq=False)
class Disk:
    """One vdisk, from its creation on."""

    number: int
    history: History = field(default_factory=History)
    """Of now."""
    past: list[History] = field(default_factory=list)
    """Of before each rollback."""
    users: int = 0
    """Clients, and whoever reads its snapshots."""
    is_open: bool = True
    """Clients may begin to use it."""
    is_gone: bool = False
    """Deleted, for sure."""
    is_known: bool = True
    """What it holds, and whether it is there, is sure."""

    def roll_back(self, content: dict[int, int]) -> None:
        """It holds this now; writes of before of which nobody knows the end may still come."""
        vague = [write for write in self.history.writes if write.end == NEVER or write.is_repeated]
        self.past.append(self.history)
        carried = [Write(write.block, write.value, write.begin) for write in vague]
        self.history = History(carried, initial=dict(content))

    def violations(self) -> list[str]:
        """Of all its histories."""
        return [
            f"vdisk {self.number}: {line}"
            for history in (*self.past, self.history)
            for line in history.violations()
        ]


@dataclass(slots=True, eq=False)
class Kept:
    """A snapshot."""

    disk: Disk
    name: str
    number: int
    begin: float
    end: float
    history: History
    """The vdisk's, when it was made."""
    content: dict[int, int] | None = None
    """As it was read first."""
    is_removed: bool = False


@dataclass(slots=True)
class Values:
    """Gives each write a value of its own, each thing that is made a number."""

    last_value: int = 0
    last_number: int = 100

    def next(self) -> int:
        self.last_value += 1
        return self.last_value

    def next_number(self) -> int:
        self.last_number += 1
        return self.last_number
