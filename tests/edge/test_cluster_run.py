"""Where a run over an archive writes, and what it takes for done."""

import contextlib
import json
from pathlib import Path

import msgspec
import pytest

from edgetag.cluster.run import Failure, Output, Run
from edgetag.contract.errors import InputError, OutputError
from edgetag.contract.event import new_boot_id
from edgetag.tagging.conditions import NO_CONDITIONS
from fakes import bundle_info, tags_event


def a_run(**changes: object) -> Run:
    run = Run.new(new_boot_id(), "archive", NO_CONDITIONS, bundle_info())
    return msgspec.structs.replace(run, **changes)


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(tmp_path / "out")


def write(output: Output, run: Run, name: str, n_events: int = 3) -> Path:
    with output.draft() as draft:
        for seq in range(n_events):
            draft.deliver(msgspec.structs.replace(tags_event(seq), boot=run.boot(name)))
        draft.keep(output.events_of(name))
    return output.events_of(name)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("a.wav", "a.wav.jsonl"),
        ("2019/a.wav", "2019/a.wav.jsonl"),
        ("/data/2019/a.wav", "data/2019/a.wav.jsonl"),
        ("//data/./a.wav", "data/a.wav.jsonl"),
    ],
)
def test_events_lie_where_tar_would_put_the_recording(output: Output, name: str, place: str) -> None:
    """Never outside the folder."""
    assert output.events_of(name) == output.folder / place


def test_a_run_goes_on_in_its_folder(output: Output) -> None:
    """By the id that it began with, whoever asks."""
    run = output.begin(a_run(), again=False)
    assert output.begin(a_run(), again=False) == run
    assert output.begin(a_run(), again=True).id != run.id


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sensor": "other"}, "sensor other instead of archive"),
        ({"calibration_db": 120.0}, "calibration_db 120.0 instead of None"),
        ({"info": msgspec.structs.replace(bundle_info(), variant="fp32")}, "variant fp32 instead of int8"),
        ({"info": msgspec.structs.replace(bundle_info(), edgetag="9")}, "edgetag 9 instead of "),
    ],
)
def test_another_run_is_refused(output: Output, change: dict[str, object], said: str) -> None:
    """With what is not the same."""
    output.begin(a_run(), again=False)
    with pytest.raises(InputError, match=said):
        output.begin(a_run(**change), again=False)


@pytest.mark.parametrize("text", ["", "{}", "no JSON", '{"schema":"edgetag.replay/2"}'])
def test_a_folder_of_something_else_is_refused(output: Output, text: str) -> None:
    """Whatever is in its replay.json."""
    output.folder.mkdir()
    (output.folder / "replay.json").write_text(text)
    with pytest.raises(InputError, match="does not say what the folder holds"):
        output.begin(a_run(), again=False)


def test_done_is_what_this_run_wrote_whole(output: Output) -> None:
    """Another run's, another recording's, and every beginning of a file but a whole one are not."""
    run = output.begin(a_run(), again=False)
    assert not output.is_done(run, "a.wav")
    path = write(output, run, "a.wav")
    assert output.is_done(run, "a.wav")
    assert not output.is_done(a_run(), "a.wav")
    path.rename(output.events_of("b.wav"))
    assert not output.is_done(run, "b.wav")
    whole = write(output, run, "a.wav", 1).read_bytes()
    for n_bytes in range(len(whole)):
        path.write_bytes(whole[:n_bytes])
        assert not output.is_done(run, "a.wav")


def test_a_draft_that_is_not_kept_leaves_nothing(output: Output) -> None:
    """Also where it is left by an error."""
    output.begin(a_run(), again=False)
    with contextlib.suppress(ZeroDivisionError), output.draft() as draft:
        draft.deliver(tags_event(0))
        raise ZeroDivisionError
    assert {path.name for path in output.folder.rglob("*")} == {".partial", "replay.json"}


def test_a_boot_is_of_one_recording_in_one_run() -> None:
    """The same whenever it is asked for: events that come twice can be told from those that do not."""
    run, other = a_run(), a_run()
    assert run.boot("a.wav") == run.boot("a.wav")
    assert len({run.boot("a.wav"), run.boot("b.wav"), other.boot("a.wav"), run.id}) == 4
    assert all(len(id) == 26 and id[:10] == run.id[:10] for id in (run.boot("a.wav"), run.boot("b.wav")))


def test_a_folder_that_cannot_be_written_is_an_error_of_output(output: Output) -> None:
    """It is a file; drafts have no place; events have none."""
    output.folder.write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        output.begin(a_run(), again=False)
    output.folder.unlink()
    run = output.begin(a_run(), again=False)
    (output.folder / "2019").write_text("")
    with pytest.raises(OutputError, match=r"2019/a\.wav\.jsonl cannot be written"):
        write(output, run, "2019/a.wav")
    (output.folder / ".partial").rmdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write(output, run, "a.wav")


def test_failures_are_those_of_the_latest_attempt(output: Output) -> None:
    """A line each, at once."""
    output.begin(a_run(), again=False)
    path = output.folder / "failed.jsonl"
    for file in "a.wav", "b.wav":
        with output.failures() as write_down:
            write_down(Failure(file, "no audio"))
            assert json.loads(path.read_bytes())["file"] == file
