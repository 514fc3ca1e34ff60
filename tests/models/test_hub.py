"""A hub id becomes a folder: what is downloaded, what is found without a network, and how soon the answer comes."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from glem_graphgym.models import hub
from glem_graphgym.models.hub import files_to_download, model_folder
from glem_graphgym.models.text_encoder import EncoderConfig, load_text_encoder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/tiny"


class FakeHub(BaseHTTPRequestHandler):
    """As much of the model hub as a download asks for, out of a folder."""

    def __init__(self, folder: Path, asked: list[str], *args: object) -> None:
        self.folder, self.asked = folder, asked
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        files = [file for file in sorted(self.folder.rglob("*")) if file.is_file()]
        names = {file.relative_to(self.folder).as_posix(): file for file in files}
        begin = f"/{NAME}/resolve/"
        if path.startswith(f"/api/models/{NAME}/tree/"):
            tree = [{"type": "file", "path": name, "size": names[name].stat().st_size, "oid": "0"} for name in names]
            self.answer(json.dumps(tree).encode())
        elif path.startswith(f"/api/models/{NAME}"):
            siblings = [{"rfilename": name} for name in names]
            self.answer(json.dumps({"id": NAME, "modelId": NAME, "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith(begin) and (name := path.removeprefix(begin).partition("/")[2]) in names:
            self.answer(names[name].read_bytes())
        else:
            code = "GatedRepo" if "gated" in path else "RepoNotFound"
            self.answer(b"{}", status=403 if "gated" in path else 404, code=code)

    do_GET = do_HEAD

    def answer(self, body: bytes, status: int = 200, code: str = "") -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "Content-Type": "application/json", "X-Repo-Commit": COMMIT}
        headers |= {"ETag": f'"{hashlib.sha1(body).hexdigest()}"'} | ({"X-Error-Code": code} if code else {})
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hub's client with a cache of its own, and nothing remembered of what was looked for."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub._download.cache_clear()
    yield
    hub._download.cache_clear()


@pytest.fixture
def asked(tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Paths that a hub with the tiny model, and much else beside it, is asked for."""
    folder = tmp_path / "hub"
    shutil.copytree(tiny_lm, folder)
    for other in ("onnx/model.onnx", "tf_model.h5", "pytorch_model.bin", "openvino/config.json"):
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / other).write_bytes(b"much")
    paths: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(FakeHub, folder, paths))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    yield paths
    server.shutdown()
    server.server_close()


def test_a_hub_id_becomes_a_folder_that_is_there_without_a_network(
    asked: list[str], tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_text_encoder(EncoderConfig(str(tiny_lm))).state_dict()
    loaded = load_text_encoder(EncoderConfig(NAME)).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    got = {path.name for path in model_folder(NAME).rglob("*") if path.is_file()}
    assert got == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    requests = len(asked)
    hub._download.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = load_text_encoder(EncoderConfig(NAME)).state_dict()
    assert all(torch.equal(again[name], value) for name, value in expected.items())
    assert len(asked) == requests


@pytest.mark.parametrize(("name", "says"), [("someone/other", "no model of that name"), ("gated/model", "terms")])
def test_what_the_hub_does_not_give_is_one_line(asked: list[str], name: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"lm.model '{name}'.*{says}.*hf auth login") as error:
        model_folder(name)
    assert "\n" not in str(error.value) and asked


@pytest.mark.parametrize("what", ["refuses", "never answers", "no such host"])
def test_without_a_hub_the_answer_comes_within_seconds(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if what == "never answers":
            listener.listen()
        host = "nowhere.invalid" if what == "no such host" else f"127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", f"http://{host}")
        monkeypatch.setattr(hub, "SECONDS", 1)
        start = time.perf_counter()
        with pytest.raises(ValueError, match=r"lm.model 'a/b' is no folder.*could not be reached.*hf download a/b"):
            model_folder("a/b")
        assert time.perf_counter() - start < 10


@pytest.mark.parametrize("name", ["no such folder", "/no/such/folder", "../nothing", "a/b/c", "./here", ""])
def test_what_is_no_hub_id_is_not_asked_for(asked: list[str], name: str) -> None:
    with pytest.raises(ValueError, match=r"lm\.model '.*' could not be loaded: .*no folder"):
        model_folder(name)
    assert not asked


def test_weights_are_downloaded_once_and_no_exports() -> None:
    small = ["config.json", "modules.json", "1_Pooling/config.json", "vocab.txt", "spm.model", "merges.txt"]
    safe = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    others = ["onnx/model.onnx", "onnx/config.json", "tf_model.h5", "rust_model.ot", "flax_model.msgpack", "x.py"]
    others += ["model.fp16.safetensors", "openvino/openvino_model.xml", "checkpoint-10/model.safetensors", ".git"]
    pickled = ["pytorch_model.bin", "2_Dense/pytorch_model.bin"]
    assert files_to_download([*small, *safe, *others, *pickled]) == [*small, *safe, "2_Dense/pytorch_model.bin"]
    assert files_to_download([*small, *others, *pickled]) == [*small, *pickled]
    old = ["0_Transformer/config.json", "0_Transformer/pytorch_model.bin", "adapter_model.safetensors"]
    assert files_to_download(old) == old
