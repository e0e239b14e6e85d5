"""A logger that writes metrics.csv and continues it when a run is resumed."""

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from segdpo.files import write_atomically

Row = dict[str, str]


class MetricsFile(Logger):
    """Write FOLDER/metrics.csv, one row per logged step, columns epoch and step first.

    Lightning's CSVLogger deletes the file of an earlier run in the same folder, and with it the history of every
    resumed run. Here the rows before the resumed step stay and later ones are replaced.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._columns: list[str] = []
        self._opened = False

    @property
    def name(self) -> str:
        """Empty: the folder belongs to one run."""
        return ""

    @property
    def version(self) -> str:
        """Empty: the folder belongs to one run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder of the run."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run folder holds the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row."""
        row = {**{name: str(value) for name, value in metrics.items()}, "step": str(step or 0)}
        if not self._opened:
            self._open(row)
        if new := sorted(row.keys() - set(self._columns)):
            self._rewrite([*self._columns, *new], self._rows())
        self._append(row)

    def _open(self, first: Row) -> None:
        """Keep the rows of an earlier run that are older than the first row of this one."""
        self._opened = True
        if not self.path.exists():
            self._rewrite(["epoch", "step"], [])
            return
        kept = list(takewhile(lambda row: _before(row, first), self._rows()))
        columns = [name for name in kept[0] if any(row[name] for row in kept)] if kept else ["epoch", "step"]
        self._rewrite(columns, [{name: row[name] for name in columns} for row in kept])

    def _append(self, row: Row) -> None:
        try:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        except OSError as error:
            raise OSError(
                error.errno,
                f"Expected to add a row to {self.path} but {error.strerror}; the earlier rows are intact; free some "
                "space there, then resume from the last checkpoint.",
            ) from error

    def _rows(self) -> list[Row]:
        with self.path.open(newline="") as file:
            lines = file.readlines()
        # A killed process, or a full disk, may have left half of the last row.
        return list(csv.DictReader(line for line in lines if line.endswith("\n")))

    def _rewrite(self, columns: list[str], rows: list[Row]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, text.getvalue().encode())
        self._columns = columns


def _before(row: Row, first: Row) -> bool:
    """Return whether a row is older than the first row of the resumed run, or of its step with other metrics."""
    step, started = int(row["step"]), int(first["step"])
    known = {name for name, value in row.items() if value}
    return step < started or (step == started and not (known & first.keys()) - {"epoch", "step"})
