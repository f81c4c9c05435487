"""`--push` against a hub of our own on this machine, which speaks what huggingface_hub asks."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from publish.conftest import MakeRun

from kapdist import cli
from kapdist.errors import InputError, TransientError
from kapdist.publish import push as pushing
from kapdist.publish.push import check_push, push

pytest.importorskip("huggingface_hub", reason="it is not installed (pip install 'kapdist[hub]')")
TOKEN, READ_ONLY = "hf_writes", "hf_reads"
LARGE = (".safetensors", ".onnx")
REPO = "owner/kap"
NAMES = ("README.md", "SHA256SUMS", "config.json", "model.safetensors")


@dataclass
class Hub:
    """What lies on the hub, and how it behaves."""

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0
    silent_at: str | None = None
    """The part of an address that is never answered."""
    broken_at: str | None = None
    """The part of an address at which there is always an error of the hub's own."""
    refuses_the_card: bool = False


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *words: object) -> None:
        pass

    def answer(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        content, hub = self.body(), self.hub
        if hub.silent_at and hub.silent_at in self.path:
            time.sleep(2)
            return
        if hub.broken_at and hub.broken_at in self.path:
            self.answer({"error": "out of order"}, 503)
            return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (TOKEN, READ_ONLY):
            self.answer({"error": "Invalid credentials in Authorization header"}, 401)
        elif token == READ_ONLY:
            self.answer({"error": "you don't have the rights to create a model under this namespace"}, 403)
        elif self.path == "/api/repos/create":
            self.create(json.loads(content))
        elif self.path == "/api/validate-yaml":
            errors = [{"message": '"license" must be one of ...'}] if hub.refuses_the_card else []
            self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)
        elif "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(content)["files"]]
            modes = ["lfs" if path.endswith(LARGE) else "regular" for path in files]
            ignored = {"shouldIgnore": False}
            self.answer(
                {"files": [{"path": p, "uploadMode": m, **ignored} for p, m in zip(files, modes, strict=True)]}
            )
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            self.answer({"objects": [self.action(one) for one in json.loads(content)["objects"]]})
        elif self.path == "/verify":
            self.answer({}, 200 if json.loads(content)["oid"] in hub.stored else 404)
        elif "/commit/" in self.path:
            self.commit(re.fullmatch(r"/api/models/(.+)/commit/main", self.path)[1], content)

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        known = name in self.hub.repos
        self.hub.repos.setdefault(name, {})
        self.hub.private.setdefault(name, asked.get("visibility") == "private" or asked.get("private", False))
        self.answer({"url": f"{self.hub.url}/{name}", "name": name}, 409 if known else 200)

    def action(self, one: dict[str, Any]) -> dict[str, Any]:
        if one["oid"] in self.hub.stored:
            return one
        links = {
            "upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"},
            "verify": {"href": f"{self.hub.url}/verify"},
        }
        return one | {"actions": links}

    def do_PUT(self) -> None:
        content, oid = self.body(), self.path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() == oid:
            self.hub.stored[oid] = content
        self.answer({})

    def commit(self, name: str, content: bytes) -> None:
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.hub.repos[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.repos[name][value["path"]] = self.hub.stored[value["oid"]]
        self.hub.commits += 1
        oid = f"{self.hub.commits:040d}"
        self.answer({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Mine", (Handler,), {"hub": found}))
    server.daemon_threads = True
    found.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", found.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    yield found
    server.shutdown()
    server.server_close()


def run_command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["kapdist", "export", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


Words = list[object]


@pytest.fixture
def words(make_run: MakeRun, tmp_path: Path) -> Words:
    return [make_run().root, "--format", "hub", "--out", tmp_path / "hub", "--push", REPO]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the same names, small."""
    place = tmp_path / "hub"
    place.mkdir()
    for name in NAMES:
        (place / name).write_text(f"---\n---\n{name}\n")
    return place


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_folder_lies_on_the_hub(
    hub: Hub, words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it and nothing else, in one commit; again, it is the same repository."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "notes.txt").write_text("mine alone")
    assert run_command(monkeypatch, *words, "--license", "mit", "--private") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.url}/{REPO}/commit/{1:040d}"
    here = files_of(tmp_path / "hub")
    assert here.pop("notes.txt") == b"mine alone"
    assert {*here} == {*NAMES}
    assert (hub.repos, hub.private) == ({REPO: here}, {REPO: True})
    assert run_command(monkeypatch, *words, "--license", "mit") == 0
    assert hub.repos == {REPO: here}


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown token": ({"token": "hf_other"}, "expected a token that http.* knows .*, found 401: Invalid cred"),
    "one that reads": ({"token": READ_ONLY}, "expected a token that may write there, found 403: you don't have"),
    "a card of no use": ({"card": True}, 'expected what http.* takes, found 400: .*"license" must be one'),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_hub_refuses_is_said(name: str, hub: Hub, folder: Path) -> None:
    how, said = REFUSALS[name]
    hub.refuses_the_card = how.get("card", False)
    with pytest.raises(InputError) as refused:
        push(folder, NAMES, REPO, how.get("token", TOKEN))
    assert re.match(rf"--push {REPO}: {said}", str(refused.value))
    assert "\n" not in str(refused.value)


def test_a_refused_push_is_one_line_and_leaves_the_folder(
    hub: Hub, words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", READ_ONLY)
    assert run_command(monkeypatch, *words) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("kapdist: ")] == said[-1:]
    assert not any("Error" in line or "Traceback" in line for line in said)
    assert {*files_of(tmp_path / "hub")} == {*NAMES}


def test_no_token_and_no_such_name_are_refused_before_the_work(
    hub: Hub, words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, *words[:-1], "a/b/c") == 2
    assert "--push: expected OWNER/NAME" in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert run_command(monkeypatch, *words) == 2
    expected = f"--push {REPO}: expected a token of yours for the hub (HF_TOKEN, or `hf auth login`), found none"
    assert capsys.readouterr().err == f"kapdist: {expected}\n"
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert run_command(monkeypatch, *words) == 2
    assert "--push: expected huggingface_hub (pip install 'kapdist[hub]')" in capsys.readouterr().err
    assert not (tmp_path / "hub").exists()


def test_words_of_another_format_are_refused(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = {
        "--with-weights: expected --format bundle, found hub": [*words, "--with-weights"],
        "--authors, --number-forward-passes: expected --format model-info, found hub": [
            *(*words, "--authors", "A", "--number-forward-passes", "1"),
        ],
        "hub: expected one run, found 2": [words[0], *words],
        "--license, --weights: expected --format hub, found csv": [
            tmp_path,
            "--out",
            "o",
            "--format",
            "csv",
            *words[-2:],
        ],
    }
    for said, given in refused.items():
        assert run_command(monkeypatch, *given) == 2
        assert capsys.readouterr().err.endswith(f"{said}\n")


def test_the_stored_token_is_taken(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `hf auth login` leaves it."""
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "stored").write_text(f"{TOKEN}\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "stored"))
    assert check_push(REPO) == TOKEN


@pytest.mark.parametrize("how", ["away", "silent", "out of order", "too long"])
def test_a_hub_that_is_away_costs_nothing_but_the_push(
    how: str, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, within the limit, and no fault of the user's; the folder is whole, and a later try succeeds."""
    before = files_of(folder)
    with monkeypatch.context() as trouble:
        trouble.setattr(pushing, "SILENCE_SECONDS", 0.3)
        if how == "away":
            with socket.create_server(("127.0.0.1", 0)) as free:
                trouble.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        elif how == "too long":
            trouble.setattr(pushing, "PUSH_MINUTES", 0.0)
        hub.silent_at = "/commit/" if how == "silent" else None
        hub.broken_at = "/repos/create" if how == "out of order" else None
        begun = time.monotonic()
        with pytest.raises(TransientError) as away:
            push(folder, NAMES, REPO, TOKEN)
        assert time.monotonic() - begun < 60
    said = rf"--push {REPO}: http://127.0.0.1:\d+ did not take it \(.+\); .*hub is whole, and the same command"
    assert re.match(said, str(away.value))
    hub.silent_at = hub.broken_at = None
    push(folder, NAMES, REPO, TOKEN)
    assert hub.repos[REPO] == files_of(folder) == before
