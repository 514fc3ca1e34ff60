"""The steps of a rehearsal: programs that are run as a user types them, and the cost of each program and stage."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.scale import watched

from glem_graphgym.build.run_folder import RunError
from glem_graphgym.files import read_json, write_json

RUN = Path(__file__).resolve().parent.parent
COLUMNS = ("step", "minutes", "memory GB", "files GB", "epochs", "valid", "test")


class Steps:
    """Runs each step once, and records its cost and the files under ``data`` in ``<results>/steps.json``."""

    def __init__(self, results: Path, data: Path) -> None:
        self.results, self.data = results, data
        self._file = results / "steps.json"
        self._records = read_json(self._file) if self._file.exists() else {}
        self._names: list[str] = []

    def run(self, name: str, program: str, *arguments: object) -> None:
        """Run ``python run/<program> <arguments>``, unless it is done already; RunError if the program fails."""
        words = [program, *map(str, arguments)]
        self._names.append(name)
        print(f"\n$ python run/{shlex.join(words)}", flush=True)
        if self._records.get(name, {}).get("command") == words:
            print("done before", flush=True)
            return
        try:
            cost = watched([sys.executable, str(RUN / words[0]), *words[1:]], self.data, shown=True)
        except RuntimeError as error:
            raise RunError(f"'{name}' failed, see above; type the same command again to resume") from error
        self._records[name] = {"command": words, **asdict(cost)}
        write_json(self._file, self._records)

    def table(self) -> str:
        """Markdown table: one row per step, and below a run one per stage."""
        rows: list[list[str]] = []
        for name in self._names:
            cost = self._records[name]
            rows.append([name, minutes(cost["seconds"]), f"{cost['memory']:.2f}", f"{cost['files']:.2f}"])
            config = name.removeprefix("run, ")
            for file in sorted(self.results.glob(f"{config}/*/stages/*/stage.json")) if config != name else []:
                stage = read_json(file)
                valid, test = (f"{stage['scores'][split]['accuracy']:.3f}" for split in ("valid", "test"))
                title = f"· {stage['name']} ({stage['method']})"
                memory = f"{stage['peak_memory_mb'] / 1024:.2f}"
                rows.append([title, minutes(stage["seconds"]), memory, "", f"{stage['epochs']:g}", valid, test])
        lines = [COLUMNS, ["---"] * len(COLUMNS), *(row + [""] * (len(COLUMNS) - len(row)) for row in rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"
