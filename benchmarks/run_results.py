"""The rows of a run and the readings of the yardstick."""

from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
UNDISTURBED = 0.85  # of the limit: what the yardstick reaches at least while nothing else runs


@dataclass
class Results:
    """The rows of a run, and the machine's yardstick at its start, around every row, and at its end."""

    rows: list[Row] = field(default_factory=list)
    yardsticks: list[float | None] = field(default_factory=list)

    @property
    def limit(self) -> float | None:
        """State updates a second that no scan can pass here: noise only ever lowers a measurement of it."""
        return max((y for y in self.yardsticks if y), default=None)

    def add(self, row: Row) -> None:
        self.rows.append(row)

    def on_yardstick(self, row: Row) -> None:
        """Writes a row's share of the limit into it: of the one read beside it, for a machine's clock drifts."""
        if "yardsticks_updates_per_s" in row and "updates_per_s" in row:
            row["share_of_limit"] = row["updates_per_s"] / max(row["yardsticks_updates_per_s"])

    def disturbed(self) -> list[Row]:
        """The rows before or after which the yardstick itself was slow: other programs had a part of the machine."""
        rows = [row for row in self.rows if "yardsticks_updates_per_s" in row]
        return [row for row in rows if min(row["yardsticks_updates_per_s"]) < UNDISTURBED * self.limit]

    def find(self, op: str, shape: str, direction: str, provider: str) -> Row:
        """The row in float32 and NCHW; raises KeyError where the run has none."""
        for row in self.rows:
            key = (row["op"], row["shape"], row["direction"], row["provider"], row["dtype"], row.get("layout", "nchw"))
            if key == (op, shape, direction, provider, "float32", "nchw"):
                return row
        raise KeyError((op, shape, direction, provider))
