"""The programs that the supervisor keeps alive, and starting one of them.

    python -m assay.services.programs NAME

Commands and environments are in ``programs.json`` (mode 0600), so that no secret is in a process list or in the
supervisor's own configuration.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from assay.files import replace_file
from assay.records import Record
from assay.services.child import end_with_parent


@dataclass(frozen=True)
class Program(Record):
    """One process that is to be there as long as the services are.

    Attributes:
        name: Its name, e.g. ``prefect`` or ``cpu-0``.
        command: What is executed.
        environment: Variables besides those that `assay up` itself was started with.
        stop_seconds: How long it may take to end after SIGTERM.
        priority: Low ones start first and stop last.
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    stop_seconds: int
    priority: int

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over everything: another one means that it has to be started again."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def programs_file(folder: Path) -> Path:
    """Return the file of all programs."""
    return folder / "programs.json"


def write_programs(folder: Path, programs: Iterable[Program]) -> None:
    """Write the file of all programs, readable by its owner only."""
    content = json.dumps([program.to_json() for program in programs], indent=1)
    replace_file(programs_file(folder), content.encode())
    programs_file(folder).chmod(0o600)


def read_programs(folder: Path) -> tuple[Program, ...]:
    """Read the file of all programs; none where there is no file."""
    try:
        return tuple(Program.from_json(values) for values in json.loads(programs_file(folder).read_bytes()))
    except FileNotFoundError:
        return ()


def main(folder: Path, name: str) -> None:
    """Become one of the programs; it ends when the supervisor does."""
    program = next(program for program in read_programs(folder) if program.name == name)
    end_with_parent(os.getppid())
    os.umask(0o077)
    os.execvpe(program.command[0], program.command, os.environ | program.environment)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
