"""Record the golden runs, all or those named: ``python -m tests.golden.record [case ...]``."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.conftest import make_tiny_lm
from tests.golden.cases import CASES, RECORD, predictions_of


def main(names: list[str]) -> None:
    kept = {}
    if names and RECORD.exists():
        with np.load(RECORD) as record:
            kept = {key: record[key] for key in record.files if key.split("/", 1)[0] not in names}
    with tempfile.TemporaryDirectory() as folder:
        lm = make_tiny_lm(Path(folder) / "tiny_lm")
        for name in names or CASES:
            place = Path(folder) / name
            place.mkdir()
            for stage, logits in predictions_of(name, place, lm).items():
                kept[f"{name}/{stage}"] = logits
    np.savez_compressed(RECORD, **kept)


if __name__ == "__main__":
    os.environ["GLEM_TRACEBACK"] = "1"
    main(sys.argv[1:])
