"""What is fetched is what was published, however often the way there breaks off. The server is a real one."""

import hashlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edgetag.contract.errors import InputError, NetworkError, OutputError
from edgetag_train.fetch import CHECKSUMS_NAME, fetch
from edgetag_train.published import SONYC_UST, VGGISH, Collection, PublishedFile

TABLE = b"split,sensor_id\n" * 20_000
CHUNK = 1 << 14
WEIGHTS = bytes(range(256)) * 2_000


class Server(ThreadingHTTPServer):
    """Files over HTTP on this machine, with the ways in which a server can let one down."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.knows_ranges = True
        self.breaks_after: list[int] = []
        """Bytes after which the next connections break off, in order."""
        self.content_type = "application/octet-stream"
        self.interrupts = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """The client may leave."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.lstrip("/").partition("?")[0]
        wanted = self.headers["Range"]
        self.server.requests.append((name, wanted))
        if name not in self.server.files:
            self.send_error(404)
            return
        data = self.server.files[name]
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.knows_ranges else 0
        if wanted and start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.end_headers()
            return
        self.send_response(206 if wanted and self.server.knows_ranges else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("Content-Type", self.server.content_type)
        self.end_headers()
        end = start + self.server.breaks_after.pop(0) if self.server.breaks_after else len(data)
        self.wfile.write(data[start:end])
        if self.server.interrupts:
            self.wfile.flush()
            os.kill(os.getpid(), signal.SIGINT)

    def log_message(self, format: str, *args: object) -> None:
        """Tests look at `requests`."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.files = {"annotations.csv": TABLE, "net.pth": WEIGHTS, "audio-0.tar.gz": archive()}
        yield server
        server.shutdown()
        thread.join()


def archive(**others: tarfile.TarInfo) -> bytes:
    """audio/0.wav and audio/1.wav, and what else a test wants in it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for k in range(2):
            member = tarfile.TarInfo(f"audio/{k}.wav")
            member.size = 4
            tar.addfile(member, io.BytesIO(b"RIFF"))
        for member in others.values():
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return packed.getvalue()


def md5(data: bytes) -> str:
    return f"md5:{hashlib.md5(data).hexdigest()}"


def collection(server: Server, *files: PublishedFile) -> Collection:
    return Collection("a test's files", server.url, files, "?download=1")


def table(server: Server) -> Collection:
    return collection(server, PublishedFile("annotations.csv", md5(TABLE)))


def test_what_arrives_is_what_was_published(server: Server, tmp_path: Path) -> None:
    """By MD5, and by the first digits of a SHA-256."""
    digits = hashlib.sha256(WEIGHTS).hexdigest()[:8]
    files = (PublishedFile("annotations.csv", md5(TABLE)), PublishedFile("net.pth", f"sha256:{digits}"))
    fetch(collection(server, *files), tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder" / "annotations.csv").read_bytes() == TABLE
    assert (tmp_path / "new" / "folder" / "net.pth").read_bytes() == WEIGHTS
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["annotations.csv", "net.pth"]


def test_the_address_can_be_another(server: Server, tmp_path: Path) -> None:
    files = (PublishedFile("annotations.csv", md5(TABLE)),)
    fetch(Collection("", "http://127.0.0.1:9/", files), tmp_path, base_url=server.url)
    assert (tmp_path / "annotations.csv").read_bytes() == TABLE


def test_what_is_there_and_right_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    fetch(table(server), tmp_path)
    fetch(table(server), tmp_path)
    assert len(server.requests) == 1


def test_a_broken_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    """Six chunks, then two, then the rest: no byte twice."""
    server.breaks_after = [6 * CHUNK, 2 * CHUNK]
    fetch(table(server), tmp_path)
    assert server.requests == [
        ("annotations.csv", None),
        ("annotations.csv", f"bytes={6 * CHUNK}-"),
        ("annotations.csv", f"bytes={8 * CHUNK}-"),
    ]
    assert (tmp_path / "annotations.csv").read_bytes() == TABLE


def test_a_later_run_goes_on_where_an_earlier_one_ended(server: Server, tmp_path: Path) -> None:
    server.breaks_after = [6 * CHUNK, 0]
    with pytest.raises(NetworkError, match=r"annotations\.csv.*cannot be fetched.*--from annotations\.csv"):
        fetch(table(server), tmp_path)
    assert (tmp_path / "annotations.csv.part").read_bytes() == TABLE[: 6 * CHUNK]
    fetch(table(server), tmp_path)
    assert server.requests[-1] == ("annotations.csv", f"bytes={6 * CHUNK}-")
    assert (tmp_path / "annotations.csv").read_bytes() == TABLE


def test_a_server_that_knows_no_ranges_is_asked_from_the_beginning(server: Server, tmp_path: Path) -> None:
    (tmp_path / "annotations.csv.part").write_bytes(TABLE[:1000])
    server.knows_ranges = False
    fetch(table(server), tmp_path)
    assert (tmp_path / "annotations.csv").read_bytes() == TABLE


@pytest.mark.parametrize(
    ("part", "n_requests"), [(TABLE, 1), (TABLE + b"too much", 2)], ids=["whole", "more"]
)
def test_a_part_with_nothing_missing(server: Server, tmp_path: Path, part: bytes, n_requests: int) -> None:
    """All of it was there, only the check was not made; or there is more than all of it: begin again."""
    (tmp_path / "annotations.csv.part").write_bytes(part)
    fetch(table(server), tmp_path)
    assert (tmp_path / "annotations.csv").read_bytes() == TABLE
    assert len(server.requests) == n_requests


def test_another_file_than_published_is_removed(server: Server, tmp_path: Path) -> None:
    """The message has both checksums; the next run begins from nothing."""
    server.files["annotations.csv"] = b"something else"
    with pytest.raises(NetworkError) as raised:
        fetch(table(server), tmp_path)
    assert hashlib.md5(b"something else").hexdigest() in str(raised.value)
    assert hashlib.md5(TABLE).hexdigest() in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_damaged_part_does_not_survive(server: Server, tmp_path: Path) -> None:
    """What was continued from wrong bytes fails its check once, and only once."""
    (tmp_path / "annotations.csv.part").write_bytes(b"x" * 1000)
    with pytest.raises(NetworkError, match="removed"):
        fetch(table(server), tmp_path)
    fetch(table(server), tmp_path)
    assert (tmp_path / "annotations.csv").read_bytes() == TABLE


def test_somebody_elses_file_is_left_alone(server: Server, tmp_path: Path) -> None:
    (tmp_path / "annotations.csv").write_text("mine")
    with pytest.raises(InputError, match=r"annotations\.csv has md5 .*left alone: move it away"):
        fetch(table(server), tmp_path)
    assert (tmp_path / "annotations.csv").read_text() == "mine"


def test_a_web_page_is_not_the_file(server: Server, tmp_path: Path) -> None:
    """Some networks answer everything with their own page. Without a checksum it would be believed."""
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(NetworkError, match="web page"):
        fetch(collection(server, PublishedFile("net.pth")), tmp_path)
    assert not (tmp_path / "net.pth").exists()


def test_what_the_server_does_not_have(server: Server, tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"missing\.csv\?download=1 cannot be fetched .*404 Not Found"):
        fetch(collection(server, PublishedFile("missing.csv")), tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_a_network(tmp_path: Path) -> None:
    """One sentence: the address, and how else the file can come."""
    with pytest.raises(NetworkError, match=r"^http://127\.0\.0\.1:9/a\.csv .*no connection.*--from a\.csv$"):
        fetch(Collection("", "http://127.0.0.1:9/", (PublishedFile("a.csv"),)), tmp_path)


# -- files of which no checksum is published -------------------------------------------------------------


def test_the_first_checksum_is_recorded_and_holds(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Recorded as `sha256sum` writes it; another file later is refused, before it is believed."""
    files = collection(server, PublishedFile("net.pth"))
    fetch(files, tmp_path)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    assert (tmp_path / CHECKSUMS_NAME).read_text() == f"{digest}  net.pth\n"
    assert "no checksum is published" in capsys.readouterr().out
    fetch(files, tmp_path)
    (tmp_path / "net.pth").unlink()
    server.files["net.pth"] = b"another"
    with pytest.raises(NetworkError, match=f"{digest} was recorded in {CHECKSUMS_NAME}"):
        fetch(files, tmp_path)


def test_a_record_that_is_none(server: Server, tmp_path: Path) -> None:
    (tmp_path / CHECKSUMS_NAME).write_text("no idea\n")
    with pytest.raises(InputError, match=r"CHECKSUMS\.txt: line 1 .*'no idea'"):
        fetch(collection(server, PublishedFile("net.pth")), tmp_path)


# -- archives ------------------------------------------------------------------------------------------------


def audio(server: Server) -> Collection:
    return collection(server, PublishedFile("audio-0.tar.gz", md5(server.files["audio-0.tar.gz"])))


@pytest.mark.parametrize("keep", [True, False])
def test_archives_are_extracted_once(server: Server, tmp_path: Path, keep: bool) -> None:
    """Also where the archive itself has gone."""
    fetch(audio(server), tmp_path, keep_archives=keep)
    assert (tmp_path / "audio" / "1.wav").read_bytes() == b"RIFF"
    assert (tmp_path / "audio-0.tar.gz").exists() == keep
    (tmp_path / "audio" / "0.wav").unlink()
    fetch(audio(server), tmp_path, keep_archives=keep)
    assert len(server.requests) == 1
    assert not (tmp_path / "audio" / "0.wav").exists()


@pytest.mark.parametrize("name", ["../escaped.wav", "/tmp/escaped.wav", "audio/../../escaped.wav"])
def test_an_archive_stays_in_its_folder(server: Server, tmp_path: Path, name: str) -> None:
    server.files["audio-0.tar.gz"] = archive(escaped=tarfile.TarInfo(name))
    with pytest.raises(InputError, match="outside of its folder"):
        fetch(audio(server), tmp_path / "data")
    assert not (tmp_path / "escaped.wav").exists()


def test_links_are_passed_over(server: Server, tmp_path: Path) -> None:
    link = tarfile.TarInfo("audio/link.wav")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    server.files["audio-0.tar.gz"] = archive(link=link)
    fetch(audio(server), tmp_path)
    assert sorted(p.name for p in (tmp_path / "audio").iterdir()) == ["0.wav", "1.wav"]


@pytest.mark.parametrize(
    "damaged",
    [b"no archive", archive()[:60], archive()[:100] + bytes(60)],
    ids=["no archive", "cut off", "zeros"],  # an archive's own bytes have the time in them
)
def test_a_damaged_archive(server: Server, tmp_path: Path, damaged: bytes) -> None:
    """As published, but damaged: said so, and not marked as done."""
    server.files["audio-0.tar.gz"] = damaged
    for _ in range(2):
        with pytest.raises(InputError, match=r"audio-0\.tar\.gz is damaged"):
            fetch(audio(server), tmp_path)


# -- by hand, by name, by the command line -----------------------------------------------------------------


def test_files_brought_by_hand(server: Server, tmp_path: Path) -> None:
    """A file, or a folder of files among which there are others; nothing is fetched."""
    stick = tmp_path / "stick"
    stick.mkdir()
    (stick / "annotations.csv").write_bytes(TABLE)
    (stick / "holiday.jpg").write_bytes(b"")
    (tmp_path / "net.pth").write_bytes(WEIGHTS)
    files = collection(server, PublishedFile("annotations.csv", md5(TABLE)), PublishedFile("net.pth"))
    fetch(files, tmp_path / "data", brought=[stick, tmp_path / "net.pth"])
    assert server.requests == []
    assert (tmp_path / "data" / "annotations.csv").read_bytes() == TABLE
    assert "net.pth" in (tmp_path / "data" / CHECKSUMS_NAME).read_text()


def test_a_wrong_file_brought_by_hand(server: Server, tmp_path: Path) -> None:
    for content, message in [(b"other", r"has md5 .*not taken"), (None, "there is no file")]:
        path = tmp_path / "annotations.csv"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            fetch(table(server), tmp_path / "data", brought=[path])
    (tmp_path / "stranger.csv").touch()
    with pytest.raises(InputError, match=r"stranger\.csv is not among the files wanted: annotations\.csv"):
        fetch(table(server), tmp_path / "data", brought=[tmp_path / "stranger.csv"])


@pytest.mark.parametrize("name", ["annotations", "annotations.csv"])
def test_only_some_files(server: Server, tmp_path: Path, name: str) -> None:
    files = collection(server, PublishedFile("annotations.csv", md5(TABLE)), PublishedFile("net.pth"))
    fetch(files, tmp_path, only=[name])
    assert [p.name for p in tmp_path.iterdir()] == ["annotations.csv"]
    with pytest.raises(
        InputError, match=r"'audio' is no file of a test's files; there are annotations\.csv, net"
    ):
        fetch(files, tmp_path, only=["audio"])


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=str(tmp_path / "file")):
        fetch(table(server), tmp_path / "file" / "data")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk(server: Server, tmp_path: Path) -> None:
    (tmp_path / "annotations.csv.part").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left on device"):
        fetch(table(server), tmp_path)


def test_an_interrupted_run_keeps_what_it_has(server: Server, tmp_path: Path) -> None:
    server.breaks_after = [6 * CHUNK]
    server.interrupts = True
    with pytest.raises(KeyboardInterrupt):
        fetch(table(server), tmp_path)
    server.interrupts = False
    fetch(table(server), tmp_path)
    assert (tmp_path / "annotations.csv").read_bytes() == TABLE


class CommandLine(subprocess.Popen[str]):
    """`edgetag fetch …` behind a proxy on this machine: nothing of it reaches the network."""

    def __init__(self, *arguments: str, proxy_port: int = 9) -> None:
        proxy = f"http://127.0.0.1:{proxy_port}"
        super().__init__(
            [sys.executable, "-m", "edgetag", "fetch", *arguments],
            env=os.environ | {"HTTPS_PROXY": proxy, "https_proxy": proxy, "NO_PROXY": "", "no_proxy": ""},
            stderr=subprocess.PIPE,
            text=True,
        )

    def ended(self) -> tuple[int, str]:
        """Exit code and stderr."""
        stderr = self.communicate(timeout=60)[1]
        return self.returncode, stderr


def test_the_command_line_interrupted(tmp_path: Path) -> None:
    """Ctrl-C while a proxy lets it wait: 130, and nothing said."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        command = CommandLine("vggish", str(tmp_path), proxy_port=silent.getsockname()[1])
        connection, _ = silent.accept()
        with connection:
            command.send_signal(signal.SIGINT)
            assert command.ended() == (130, "")


def test_the_command_line(tmp_path: Path) -> None:
    """Without a network: exit code 4, one sentence, no traceback. A file brought is checked all the same."""
    code, stderr = CommandLine("vggish", str(tmp_path / "data")).ended()
    assert code == NetworkError.exit_code
    assert re.fullmatch(
        r"edgetag: https://github\.com/\S+vggish-10086976\.pth cannot be fetched .*\n", stderr
    )
    (tmp_path / "annotations.csv").write_bytes(TABLE)
    arguments = ("--version", "v1", "--only", "annotations", "--from", str(tmp_path / "annotations.csv"))
    code, stderr = CommandLine("sonyc-ust", str(tmp_path / "data"), *arguments).ended()
    assert code == InputError.exit_code
    assert "c8362f30832bf637f189eefe8b4b56a4 is published; it was not taken" in stderr


@pytest.mark.shared
def test_the_taxonomy_is_the_published_one(shared: Path, tmp_path: Path) -> None:
    """The copy in the data folder has the MD5 that both versions publish."""
    for version in SONYC_UST.values():
        fetch(version, tmp_path, only=["dcase-ust-taxonomy"], brought=[shared / "sonyc-ust"])


def test_the_registry_is_sound() -> None:
    """Every checksum is one of its kind, and no name occurs twice."""
    for published in (*SONYC_UST.values(), *VGGISH.values()):
        names = [file.name for file in published.files]
        assert len(names) == len(set(names))
        assert published.base_url.startswith("https://")
        assert published.base_url.endswith("/")
        for file in published.files:
            assert re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{8,64}|None", str(file.checksum))
    assert len(SONYC_UST["v2"].files) == 2 + 19
