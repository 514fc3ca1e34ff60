"""The part ``scale`` of run/benchmark.py: what is watched of a program, how growth is told, the tiny language model."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks import scale
from benchmarks.scale import PAPERS100M, bytes_under, growth, make_tiny_lm, watched

MB = 1e-3  # GB
HOLD = "import sys, time; held = bytearray(b'x') * (int(sys.argv[1]) << 20); time.sleep(1)"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read off /proc")
def test_memory_is_that_of_a_program_and_of_those_that_it_starts(tmp_path: Path) -> None:
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}, '150'], check=True)"
    little = watched([sys.executable, "-c", HOLD, "0"], tmp_path)
    much = watched([sys.executable, "-c", start], tmp_path)
    assert 150 * MB < much.memory - little.memory < 150 * 1.05 * MB + 30 * MB
    assert much.seconds > 1


def test_pages_of_a_mapped_file_are_not_counted(tmp_path: Path) -> None:
    np.save(tmp_path / "zeros.npy", np.zeros(20_000_000))  # 160 MB
    read = "import numpy as np, sys, time; print(np.load(sys.argv[1], mmap_mode='r').sum()); time.sleep(0.5)"
    used = watched([sys.executable, "-c", read, str(tmp_path / "zeros.npy")], tmp_path)
    assert used.memory < 120 * MB
    assert used.files == pytest.approx(160 * MB, rel=0.01)


WORK = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1]) / "working"
folder.mkdir()
(folder / "a.bin").write_bytes(b"x" * 30_000_000)
time.sleep(0.5)
(folder / "a.bin").unlink()
with (folder / "b.bin").open("wb") as file:
    file.truncate(10**9)
(folder / "c.bin").write_bytes(b"x" * 10_000_000)
"""


def test_files_are_the_most_that_lay_there_at_a_time(tmp_path: Path) -> None:
    used = watched([sys.executable, "-c", WORK, str(tmp_path)], tmp_path)
    assert used.files == pytest.approx(30 * MB, rel=0.01)
    assert bytes_under(tmp_path) == pytest.approx(10e6, rel=0.01)


def test_a_program_that_fails_is_an_error_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ended with 3:\nno such graph"):
        watched([sys.executable, "-c", "print('no such graph'); raise SystemExit(3)"], tmp_path)


def test_growth_is_a_power_of_the_number_of_nodes_and_papers100m_is_on_a_straight_line() -> None:
    sizes = [10_000, 20_000, 80_000]
    for power in (1.0, 1.5):
        assert growth(sizes, [3e-4 * size**power for size in sizes])[0] == pytest.approx(power)
    power, at = growth(sizes, [5 + 2e-4 * size for size in sizes])
    assert at == pytest.approx(5 + 2e-4 * PAPERS100M)
    assert power < 1  # what does not grow counts for less


def test_the_tiny_model_knows_every_word_of_the_generated_texts(tmp_path: Path) -> None:
    from rehearsal.papers100m import CLASSES, VOCABULARY
    from transformers import AutoModel, AutoTokenizer

    from glem_graphgym.data.ogb.text_files import sentence
    from glem_graphgym.data.synthetic import draw_texts

    make_tiny_lm(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    drawn = draw_texts(np.random.default_rng(0), np.arange(CLASSES), CLASSES, VOCABULARY * CLASSES, 12, 0.5)
    ids = tokenizer([sentence(Title=text, Abstract=text) for text in drawn])["input_ids"]
    assert all(tokenizer.unk_token_id not in text for text in ids)
    assert {len(text) for text in ids} == {2 + 2 * 12 + 5}, "a token a word, name and sign, and the two ends"
    assert AutoModel.from_pretrained(tmp_path).config.hidden_size == scale.WIDTH
