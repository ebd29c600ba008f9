"""Rows from the Hub: real downloads from a server on this machine that speaks the Hub's protocol.

The server answers as huggingface.co does: HEAD and GET of /datasets/REPO/resolve/REVISION/FILE,
with X-Repo-Commit and ETag (git's id of the content, or the SHA-256 of a large file), a redirect to
another host for large files, X-Error-Code for what is not there. `huggingface_hub` itself is not
replaced by anything.
"""

import hashlib
import json
import os
import re
import socket
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from course_utils.conversation import Conversation, conversation
from course_utils.curriculum import hub
from course_utils.curriculum.__main__ import main
from course_utils.curriculum.hub import SOURCES, HubError, Notice, load
from course_utils.curriculum.mixture import DATA, Part, mixture
from course_utils.sources import Rejection

pytest.importorskip("huggingface_hub")
pyarrow = pytest.importorskip("pyarrow", reason="the extra hub is not installed")
parquet = pytest.importorskip("pyarrow.parquet")

COMMIT = "a" * 40
RECORDS = {
    "smoltalk": [
        {
            "messages": [
                {"content": "Hi there", "role": "user"},
                {"content": "Hello! How can I help you today?", "role": "assistant"},
            ],
            "full_topic": "Greetings/Hello",
        },
        {"messages": [{"content": "Hi", "role": "user"}], "full_topic": "Nobody answers"},
    ],
    "mmlu": [
        {
            "question": " Which gas do plants take in?",
            "subject": "",
            "choices": ["oxygen", "carbon dioxide", "helium", "neon"],
            "answer": 1,
        },
        {"question": "Which?", "subject": "", "choices": ["a", "b", "c", "d"], "answer": 4},
        {"question": "Which?", "subject": "", "choices": ["a", "b", "a", "d"], "answer": 0},
    ],
    "gsm8k": [
        {
            "question": "Mei has 7 pens and buys 5. How many?",
            "answer": "Mei has 7+5=<<7+5=12>>12 pens.\n#### 12",
        },
        {
            "question": "Mei has 7 pens and buys 5. How many?",
            "answer": "Mei has 7+5=<<7+5=13>>13 pens.\n#### 13",
        },
        {"question": "How many?", "answer": "Twelve."},
    ],
}


def parquet_bytes(records):
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(records), sink, row_group_size=7)
    return sink.getvalue().to_pybytes()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        server = self.server
        server.requests.append((self.command, self.path, dict(self.headers)))
        stalls = self.command in server.stalls
        if stalls and not server.released.wait(20):
            raise AssertionError("nobody gave up waiting")
        if stalls:
            self.close_connection = True
            return
        path = unquote(self.path)
        if path in server.moved:
            return self.reply(307, {"Location": server.moved[path]})
        if path in server.refused:
            status, code, message = server.refused[path]
            named = {"X-Error-Code": code} if code else {}
            return self.reply(status, named | {"X-Error-Message": message})
        if path not in server.files:
            return self.reply(404, {"X-Error-Code": "RepoNotFound"})
        if server.headers_drip:
            return self.drip(b"HTTP/1.1 200 OK\r\n" + b"X-More: x\r\n" * 10_000)
        if self.command == "GET" and server.endless:
            return self.pour(server.endless)
        self.give(server.files[path])

    def give(self, content):
        server = self.server
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        about = {"ETag": f'"{git}"', "X-Repo-Commit": COMMIT} | server.headers
        if server.cdn:
            large = f'"{hashlib.sha256(content).hexdigest()}"'
            linked = {"X-Linked-ETag": large, "X-Linked-Size": str(len(content))}
            return self.reply(302, about | linked | {"Location": server.cdn + self.path})
        if self.command == "GET" and server.instead is not None:
            content = server.instead
        status, start, end = 200, 0, len(content)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and server.ranges:
            status, start = 206, int(asked[1])
            about["Content-Range"] = f"bytes {start}-{end - 1}/{end}"
        about["Content-Length"] = str(end - start)
        if self.command == "GET" and server.breaks:
            server.breaks -= 1
            end = start + (end - start) // 2
            self.close_connection = True
        if self.command == "GET" and server.shorter:
            end -= server.shorter
            about["Content-Length"] = str(end - start)
        if self.command == "GET" and server.drips:
            self.reply(status, about, b"")
            return self.drip(content[start:end])
        self.reply(status, about, content[start:end])

    def drip(self, content):
        """A byte at a time, never so slow that a single wait would be too long."""
        self.close_connection = True
        for byte in content:
            self.wfile.write(bytes([byte]))
            if self.server.released.wait(0.05):
                return

    def pour(self, status):
        """More and more, with no length announced, until the client hangs up."""
        self.close_connection = True
        self.send_response(status)
        self.send_header("Location", self.path + "?again")
        self.end_headers()
        while not self.server.released.is_set() and self.server.poured < 2**28:
            self.wfile.write(bytes(2**16))
            self.server.poured += 2**16

    def reply(self, status, headers, body=b""):
        self.send_response(status)
        for name, text in ({"Content-Length": str(len(body))} | headers).items():
            if text is not None:
                self.send_header(name, text)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *about):
        pass


class Server(ThreadingHTTPServer):
    """A Hub, or the host that it redirects to. What it holds and how it fails is set by tests."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files, self.moved, self.refused, self.requests = {}, {}, {}, []
        self.cdn, self.headers, self.stalls = "", {}, ()
        self.ranges, self.breaks, self.shorter = True, 0, 0
        self.drips = self.headers_drip = False
        self.instead, self.endless, self.poured = None, 0, 0
        self.released = threading.Event()

    def handle_error(self, request, client_address):
        """A client that gives up is what some of the tests want."""

    @property
    def methods(self):
        return [method for method, _, _ in self.requests]


@pytest.fixture
def servers():
    started = []

    def start():
        server = Server()
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.released.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def server(servers, monkeypatch, tmp_path):
    """A Hub with the three sources' files, an empty cache, and no waiting between attempts."""
    from huggingface_hub import constants, file_download

    server = servers()
    for source in SOURCES.values():
        server.files[path_of(source)] = parquet_bytes(RECORDS[source.name])
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 10)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 10)
    # A piece that is not full is lost when a connection breaks: smaller pieces for our files.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 200)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    return server


def path_of(source):
    return f"/datasets/{source.repo}/resolve/{source.revision}/{source.file}"


SOURCE = SOURCES["smoltalk"]


def error_of(source, **how):
    with pytest.raises(HubError) as raised:
        hub.fetch(source, **how)
    assert "\n" not in str(raised.value)
    found, notice = load(source, **how)
    assert found == [] and str(raised.value) in notice and "local part" in notice
    return raised.value


# --- what is there -------------------------------------------------------------------------------


@pytest.mark.parametrize("large", [False, True], ids=["small file", "large file on another host"])
@pytest.mark.parametrize("name", SOURCES)
def test_a_file_is_fetched_and_converted_once(server, servers, name, large):
    source, host = SOURCES[name], server
    if large:
        host = servers()
        host.files, server.cdn = server.files, host.url
    found, notice = load(source)
    rejected = len(RECORDS[name]) - 1
    assert len(found) == 1 and isinstance(notice, Notice)
    assert f"{source.repo}/{source.file} at {source.revision[:7]}" in notice
    assert f"{rejected + 1} records, 1 converted into 1 conversations, {rejected} rejec" in notice
    assert found[0].id == f"{name}-0" and found[0].roles == ["user", "assistant"]
    assert {path for _, path, _ in server.requests} == {path_of(source)}
    assert "HEAD" in server.methods and host.methods[-1] == "GET"
    asked = len(server.requests) + len(host.requests)
    assert load(source) == (found, notice)
    assert len(server.requests) + len(host.requests) == asked, "the second time from the cache"


def test_a_data_set_that_was_renamed_is_found(server):
    old = replace(SOURCE, repo="gsm8k")
    server.moved[path_of(old)] = path_of(SOURCE)
    assert len(load(old)[0]) == 1


def test_rows_are_spread_over_the_file(server):
    records = [
        {"messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "x"}]}
        for n in range(20)
    ]
    server.files[path_of(SOURCE)] = parquet_bytes(records)
    found, _ = load(replace(SOURCE, number=5))
    assert [chat[0].content for chat in found] == ["0", "4", "8", "12", "16"]
    assert [chat.id for chat in found] == [f"smoltalk-{n}" for n in (0, 4, 8, 12, 16)]
    batches = list(hub.rows(replace(SOURCE, number=99), batch_size=3))
    assert [position for position, _ in batches] == list(range(20))


def test_a_file_without_rows(server):
    empty = pyarrow.schema([("messages", pyarrow.list_(pyarrow.string()))]).empty_table()
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(empty, sink)
    server.files[path_of(SOURCE)] = sink.getvalue().to_pybytes()
    found, notice = load(SOURCE)
    assert found == [] and "no records" in notice


# --- what may go wrong ---------------------------------------------------------------------------

REFUSED = {
    "no data set, to somebody not logged in": (
        (401, "RepoNotFound", "Invalid username or password."),
        ("not found", "no such data set at .*, or a private one"),
    ),
    "no data set": (
        (404, "RepoNotFound", "Repository not found"),
        ("not found", "no such data set at"),
    ),
    "no revision": (
        (404, "RevisionNotFound", "Invalid rev id"),
        ("not found", "no such file at this revision"),
    ),
    "no file": (
        (404, "EntryNotFound", "Entry not found"),
        ("not found", "no such file at this revision"),
    ),
    "terms not accepted": (
        (403, "GatedRepo", "Access to dataset is restricted"),
        ("no permission", "refuses access .403.*log in with: hf auth login"),
    ),
    "terms, to somebody not logged in": (
        (401, "GatedRepo", "You must have access to it"),
        ("no permission", "refuses access .401.*Accept the data set's terms"),
    ),
    "a wrong token": (
        (401, "", "Invalid credentials in Authorization header"),
        ("no permission", "refuses access .401"),
    ),
    "forbidden": ((403, "", "Forbidden"), ("no permission", "refuses access .403")),
    "the Hub is ill": ((503, "", "Service unavailable"), ("no answer", "503")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_hub_refuses(server, case):
    answer, (kind, message) = REFUSED[case]
    server.refused[path_of(SOURCE)] = answer
    error = error_of(SOURCE)
    assert error.kind == kind and re.search(message, str(error)), error
    assert SOURCE.repo in str(error) and SOURCE.file in str(error)
    assert server.methods == ["HEAD", "HEAD"], "asked once, and not again and again"


def test_the_hub_does_not_answer_in_time(server):
    server.stalls = ("HEAD",)
    error = error_of(SOURCE, timeout=0.2)
    assert error.kind == "time-out" and f"{server.url} did not answer in time" in str(error)
    assert server.methods == ["HEAD", "HEAD"]


def test_the_download_does_not_begin_in_time(server, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    server.stalls = ("GET",)
    assert error_of(SOURCE).kind == "time-out"


def test_half_a_file_is_resumed(server):
    """The connection breaks once: the rest is asked for, and the whole is what it should be."""
    server.breaks = 1
    assert len(load(SOURCE)[0]) == 1
    gets = [headers for method, _, headers in server.requests if method == "GET"]
    assert len(gets) == 2 and re.fullmatch(r"bytes=\d+-", gets[1]["Range"])


@pytest.mark.parametrize(
    "ranges, message",
    [(True, "the file arrived incomplete"), (False, "the download broke off again and again")],
    ids=["goes on", "begins again"],
)
def test_half_a_file_again_and_again(server, ranges, message):
    server.breaks, server.ranges = 500, ranges
    error = error_of(SOURCE)
    assert error.kind == "half a file" and message in str(error)
    assert len(server.requests) < 50


def test_a_file_that_is_shorter_than_the_hub_says(server, servers):
    host = servers()
    host.files, server.cdn, host.shorter = server.files, host.url, 10
    error = error_of(SOURCE)
    assert error.kind == "half a file" and "arrived incomplete" in str(error)
    host.shorter = 0
    assert len(load(SOURCE)[0]) == 1, "nothing of it stays in the cache"


def test_no_network(server, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    error = error_of(SOURCE)
    assert error.kind == "no network" and f"127.0.0.1:{port} cannot be reached" in str(error)
    assert not server.requests


def test_a_page_that_is_not_the_hubs(server):
    """A hotel's log-in page answers everything with 200."""
    server.headers = {"X-Repo-Commit": None, "ETag": None}
    assert error_of(SOURCE).kind == "no answer"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"<html>log in</html>", "no parquet file that can be read"),
        (parquet_bytes(RECORDS["smoltalk"])[:-20], "no parquet file that can be read"),
        (b"", "no parquet file that can be read"),
        (parquet_bytes([{"text": "x"}]), "no column messages, only text"),
    ],
    ids=["page", "end is missing", "empty", "other columns"],
)
def test_a_file_of_another_kind(server, content, message):
    server.files[path_of(SOURCE)] = content
    found, notice = load(SOURCE)
    assert found == [] and message in notice and "Only the local part is used." in notice
    with pytest.raises(HubError, match=message) as raised:
        list(hub.rows(SOURCE))
    assert raised.value.kind == "wrong file"


def tampered(content):
    """The same length, and still parquet: only a hash can tell."""
    place = content.index(b"Hello")
    return content[:place] + b"Hallo" + content[place + 5 :]


@pytest.mark.parametrize("large", [False, True], ids=["git's id", "SHA-256"])
@pytest.mark.parametrize("spoil", [tampered, lambda content: content[:100], lambda content: b""])
def test_a_spoilt_file_in_the_cache_is_refused_and_named(server, servers, large, spoil):
    if large:
        host = servers()
        host.files, server.cdn = server.files, host.url
    path = hub.fetch(SOURCE)
    good = path.read_bytes()
    path.write_bytes(spoil(good))
    error = error_of(SOURCE)
    assert error.kind == "wrong file" and "has changed since it was fetched" in str(error)
    assert f"Delete {path} to fetch it again." in str(error)
    path.unlink()
    assert hub.fetch(SOURCE).read_bytes() == good


@pytest.mark.parametrize("large", [False, True], ids=["git's id", "SHA-256"])
def test_a_file_that_the_hubs_own_client_fetched_is_checked_too(server, servers, large):
    from huggingface_hub import hf_hub_download

    if large:
        host = servers()
        host.files, server.cdn = server.files, host.url
    place = {"repo_type": "dataset", "revision": SOURCE.revision, "endpoint": server.url}
    path = hf_hub_download(SOURCE.repo, SOURCE.file, **place)
    server.requests.clear()
    assert str(hub.fetch(SOURCE)) == path and not server.requests
    with open(path, "r+b") as file:
        content = tampered(file.read())
        file.seek(0)
        file.write(content)
    assert error_of(SOURCE).kind == "wrong file"


def test_a_cached_file_without_the_name_of_its_content_is_fetched_again(server):
    path = hub.fetch(SOURCE)
    good = path.read_bytes()
    path.unlink()
    path.write_bytes(tampered(good))
    assert hub.fetch(SOURCE) == path and path.read_bytes() == good


def test_a_server_that_announces_no_hash_is_held_to_what_it_gave_first(server):
    server.headers = {"ETag": '"0123456789abcdef"'}
    path = hub.fetch(SOURCE)
    assert len(load(SOURCE)[0]) == 1
    path.write_bytes(tampered(path.read_bytes()))
    assert error_of(SOURCE).kind == "wrong file"


def nothing_is_kept():
    from huggingface_hub import constants

    kept = [name for _, _, names in os.walk(constants.HF_HUB_CACHE) for name in names]
    return not kept


@pytest.mark.parametrize("large", [False, True], ids=["git's id", "SHA-256"])
def test_content_that_is_not_what_was_announced_is_refused(server, servers, large):
    host = server
    if large:
        host = servers()
        host.files, server.cdn = server.files, host.url
    host.instead = tampered(server.files[path_of(SOURCE)])
    error = error_of(SOURCE)
    assert error.kind == "wrong file" and "is not what the Hub announced" in str(error)
    assert nothing_is_kept()
    host.instead = None
    assert len(load(SOURCE)[0]) == 1


@pytest.mark.parametrize("announced", [True, False])
def test_a_page_instead_of_the_file_does_not_stay_in_the_cache(server, announced):
    page = b"<html>log in</html>" * 100
    good = server.files[path_of(SOURCE)]
    if announced:
        server.files[path_of(SOURCE)] = page
    else:
        server.instead = page[: len(good)]
    assert error_of(SOURCE).kind in ("wrong file", "half a file") and nothing_is_kept()
    server.files[path_of(SOURCE)], server.instead = good, None
    assert len(load(SOURCE)[0]) == 1


@pytest.mark.parametrize("what", ["drips", "headers_drip"])
def test_a_slow_drip_has_a_deadline_for_the_whole(server, what):
    setattr(server, what, True)
    began = time.perf_counter()
    error = error_of(SOURCE, deadline=0.4)
    assert time.perf_counter() - began < 3
    assert error.kind == "time-out" and "not here after 0.4 seconds" in str(error)
    assert nothing_is_kept()


@pytest.mark.parametrize("status", [200, 302, 404, 500])
def test_an_answer_without_end_is_cut_off(server, status):
    server.endless = status
    error = error_of(SOURCE, deadline=20)
    assert error.kind in ("wrong file", "no answer") and nothing_is_kept()
    assert server.poured < 2**25


@pytest.mark.parametrize("size", ["9" * 15, "-5"])
def test_an_absurd_size_is_refused_before_the_download(server, servers, size):
    server.headers = {"X-Linked-Size": size}
    error = error_of(SOURCE)
    assert error.kind in ("wrong file", "no answer") and server.methods == ["HEAD", "HEAD"]


@pytest.mark.parametrize("commit", ["../../x", "main", "a" * 39 + "/"])
def test_a_commit_that_is_none_is_refused(server, commit):
    server.headers = {"X-Repo-Commit": commit}
    assert error_of(SOURCE).kind == "no answer" and nothing_is_kept()


@pytest.mark.parametrize("said", ["1", "true"])
def test_offline_nothing_is_asked_and_the_cache_is_used(server, monkeypatch, said):
    online = load(SOURCES["mmlu"])
    asked = len(server.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", said)
    error = error_of(SOURCE)
    assert error.kind == "offline" and "HF_HUB_OFFLINE is set" in str(error)
    assert load(SOURCES["mmlu"]) == online and len(online[0]) == 1
    assert len(server.requests) == asked


@pytest.mark.parametrize("package", ["pyarrow", "huggingface_hub"])
def test_a_package_that_is_not_installed(server, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    found, notice = load(SOURCE)
    assert found == [] and f"{package} is not installed" in notice
    assert 'pip install -e ".[hub]"' in notice


# --- converters ----------------------------------------------------------------------------------


def test_mmlu_becomes_a_multiple_choice():
    (chat,) = hub.mmlu(RECORDS["mmlu"][0], "m")
    assert chat[0].content == (
        "Which gas do plants take in?\nA. oxygen\nB. carbon dioxide\nC. helium\nD. neon\n"
        "Answer with one letter."
    )
    assert chat[1].content == "B"


GOOD = RECORDS["mmlu"][0]


@pytest.mark.parametrize(
    "change, reason, place",
    [
        ({"question": None}, "empty text", "question"),
        ({"question": "  "}, "empty text", "question"),
        ({"choices": None}, "wrong type", "choices"),
        ({"choices": ["a"]}, "wrong type", "choices"),
        ({"choices": ["a", "b", "c", "d", "e"]}, "wrong type", "choices"),
        ({"choices": ["a", "b", "", "d"]}, "wrong type", "choices"),
        ({"choices": ["a", "b", "a", "d"]}, "wrong type", "choices"),
        ({"answer": 4}, "wrong type", "answer"),
        ({"answer": -1}, "wrong type", "answer"),
        ({"answer": "B"}, "wrong type", "answer"),
        ({"answer": True}, "wrong type", "answer"),
        ({"question": "a\ud800"}, "lone surrogate", "prompt"),
    ],
)
def test_a_broken_multiple_choice_is_rejected_with_its_reason(change, reason, place):
    (found,) = hub.mmlu(GOOD | change, "m")
    assert isinstance(found, Rejection)
    assert (found.where, found.reason, found.place) == ("m", reason, place)


def test_a_worked_solution_with_a_wrong_step_is_rejected():
    good, wrong, unmarked = ((*hub.gsm8k(record, "g"),)[0] for record in RECORDS["gsm8k"])
    assert isinstance(good, Conversation) and good[1].content.startswith("Mei has 7+5=12 pens.")
    assert str(wrong) == "g: answer: broken worked solution: 7+5=13 does not hold"
    assert unmarked.reason == "broken worked solution"


def test_the_pinned_sources():
    for source in SOURCES.values():
        assert re.fullmatch("[0-9a-f]{40}", source.revision), "a commit, not a branch that moves"
        assert "train" in source.file and "test" not in source.file and source.licence


# --- in the mixture ------------------------------------------------------------------------------


def parts():
    local = [conversation(("user", "a"), ("assistant", "b"), id="a")]
    return [
        Part("chat", "why", lambda: local, SOURCE),
        Part("sums", "why", lambda: local, SOURCES["gsm8k"]),
    ]


def test_rows_of_the_hub_join_the_local_ones(server):
    mixed = mixture(parts(), online=True)
    assert {line.part: line.rows for line in mixed.table()} == {"chat": 2, "sums": 2}
    ids = {mixed.source(i)[:2]: mixed.source(i).id for i in range(len(mixed))}
    assert ids["chat", 0] == "a" and ids["chat", 1] == "smoltalk-0" and ids["sums", 1] == "gsm8k-0"
    assert len(mixed.notices) == 2 and all("From the Hub" in notice for notice in mixed.notices)
    server.requests.clear()
    assert len(mixture(parts())) == 2 and not mixture(parts()).notices
    assert not server.requests, "nothing is asked unless online"


def test_without_the_hub_the_local_part_is_used_and_the_learner_is_told(server):
    server.refused[path_of(SOURCE)] = (404, "RepoNotFound", "Repository not found")
    mixed = mixture(parts(), online=True)
    assert {line.part: line.rows for line in mixed.table()} == {"chat": 1, "sums": 2}
    told, other = mixed.notices
    assert "no such data set" in told and "Only the local part is used." in told
    assert "From the Hub" in other


def test_a_part_that_is_not_shown_is_not_fetched(server):
    mixture(parts(), online=True, epochs={"chat": 0})
    assert {path for _, path, _ in server.requests} == {path_of(SOURCES["gsm8k"])}


def test_the_command_prints_what_came_from_the_hub(server, tmp_path, capsys):
    server.refused[path_of(SOURCES["mmlu"])] = (403, "GatedRepo", "Access is restricted")
    output = tmp_path / "mixture.jsonl"
    assert main([str(output), "--base", "real", "--online"]) == 0
    said = capsys.readouterr().out
    assert "From the Hub, HuggingFaceTB/smoltalk" in said and "From the Hub, openai/gsm8k" in said
    assert "cais/mmlu" in said and "the Hub refuses access (403)" in said
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert {"smoltalk-0", "gsm8k-0"} <= {line["part_id"] for line in lines}
    assert not any(line["part_id"].startswith("mmlu") for line in lines)
    assert (DATA / "conversations.jsonl").is_file()
