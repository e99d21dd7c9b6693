"""`edgetag bundle …` as its users run it: the card, the checks, archives and keys, what bad input gets."""

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
import yaml

from edgetag.cli import main
from edgetag.tagging.bundle import read_manifest, starter_path
from edgetag.tagging.container import open_container
from fakes_bundle import edit_manifest, write_bundle
from fakes_cli import refused

ROOT_37 = [0.9] + [0.1] * 36
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", ROOT_37, {"1": [0.7, 0.1, 0.1, 0.1]})


@pytest.fixture
def edgetag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `edgetag bundle …` in the test's folder, without a terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command = ["edgetag", "bundle", *map(str, arguments)]
        with monkeypatch.context() as here:
            here.setattr(sys, "argv", command)
            for variable, value in {"COLUMNS": "80", **environment}.items():
                here.setenv(variable, value)
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
        structlog.reset_defaults()  # `main` logs to this test's stderr, which ends with it
        stdout, stderr = capfd.readouterr()
        return subprocess.CompletedProcess(command, code, stdout, stderr)

    return run


def folded(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("columns", [80, 120])
def test_the_card_of_the_bundle_that_ships(edgetag: Run, columns: int) -> None:
    """Without an argument: name, hash, tags, figures, data, nets, licence; no line is too wide."""
    done = edgetag("inspect", COLUMNS=str(columns))
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= columns
    assert re.match(r"starter [0-9.-]+  starter@sha256:[0-9a-f]{12}\n", done.stdout)
    card, manifest = folded(done.stdout), read_manifest(open_container(starter_path()))[1]
    for part in (
        "3 non-machinery-impact root non-machinery-impact",
        "2 machinery-impact root rock-drill, jackhammer",
        "5 alert-signal branch car-horn, car-alarm",
        f"coarse micro AUPRC {manifest.metrics['coarse_micro_auprc']}",
        f"alert-signal {manifest.metrics['coarse_class_auprc']['5']}",
        "data street recordings 89",
        f"int8 1.4 MB sha256 {manifest.root.variants['int8'].sha256[:12]}",
        "thresholds 0.9, but 0.3 for engine, machinery-impact,",
        "licence CC BY-SA 4.0",
        "signature none",
    ):
        assert part in card


def test_the_card_as_json(edgetag: Run) -> None:
    """Everything the manifest states, whatever the card cuts short."""
    card = json.loads(edgetag("inspect", "--json").stdout)
    assert card["model"] == f"starter@sha256:{card['sha256'][:12]}"
    assert card["signature"] == "none"
    assert len(card["training"]["data"]["clip_sources"]) == 27
    assert card["root"]["variants"]["int8"]["file"] == "root.int8.onnx"


def test_the_card_says_what_is_out_of_the_ordinary(edgetag: Run, bundle: Path) -> None:
    """Thresholds that differ, the paper's cascade, what eight bits cost, and fine tags that nothing tells."""
    level = {"judged_on": "validate", "windows": 9, "max_difference": 0.2, "mean_difference": 0.01}
    level |= {"micro_auprc": {"fp32": 0.61, "int8": 0.6}, "class_auprc": {"1": {"fp32": 0.7, "int8": 0.69}}}
    parity: dict[str, Any] = {
        "levels": {"coarse": level},
        "golden_difference": 0.004,
        "float_layers": {"root": ["conv1"]},
        "calibration": {"1": 5},
        "calibration_windows": 64,
        "exceeded": ["coarse micro AUPRC falls by 0.01"],
    }
    edit_manifest(
        bundle,
        thresholds={"1": 0.4, "2-1": 0.4},
        cascade={"policy": "threshold_or_max", "threshold": 0.3},
        parity=parity,
    )
    card = folded(edgetag("inspect", bundle).stdout)
    for part in (
        "thresholds 0.5, but 0.4 for engine, rock-drill golden",
        "above 0.3, and the likeliest category's always",
        "coarse micro AUPRC fp32 0.61 · int8 0.6, on 9 windows of validate",
        "coarse by class engine (fp32 0.7 · int8 0.69)",
        "root (conv1)",
        "coarse micro AUPRC falls by 0.01",
    ):
        assert part in card
    coarse = write_bundle(bundle.parent / "coarse", [0.1] * 8)
    assert "1 engine root not told apart" in folded(edgetag("inspect", coarse).stdout)


HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\n[red]red[/red] [link=file:///etc]x \x9b31m \u202etxt :skull: {0} %s"


def test_a_manifest_cannot_draw_on_the_terminal(edgetag: Run, bundle: Path) -> None:
    """Its control characters are shown as escapes, its markup as it is written; in the card and in JSON."""
    edit_manifest(
        bundle,
        version=HOSTILE,
        summary=HOSTILE,
        licence=HOSTILE,
        created=HOSTILE,
        metrics={HOSTILE: HOSTILE, "x": {HOSTILE: [HOSTILE, {HOSTILE: 1}]}},
        training={"note": HOSTILE},
    )
    done = edgetag("inspect", bundle)
    assert done.returncode == 0, done.stderr
    assert all(line.isprintable() for line in done.stdout.splitlines())
    assert "\\x1b[2J" in done.stdout
    assert "[red]red[/red]" in done.stdout
    as_json = edgetag("inspect", bundle, "--json")
    assert all(line.isprintable() for line in as_json.stdout.splitlines())
    assert json.loads(as_json.stdout)["summary"] == HOSTILE


def test_a_tag_or_file_that_cannot_be_printed_is_refused(edgetag: Run, bundle: Path) -> None:
    """Tags go to subscribers' terminals, too; the sentence shows the character and does not send it."""
    manifest = yaml.safe_load((bundle / "bundle.yaml").read_text())
    manifest["taxonomy"]["categories"][7]["name"] = "dog\x1b[2J"
    (bundle / "bundle.yaml").write_text(yaml.safe_dump(manifest))
    done = edgetag("inspect", bundle)
    refused(done, 3, "cannot be printed", "\\x1b[2J")
    assert "\x1b" not in done.stderr
    edit_manifest(bundle, **{"unknown\x1b[2J\nkey": 1})
    assert "\x1b" not in edgetag("inspect", bundle).stderr


def test_verify_says_each_check(edgetag: Run, bundle: Path) -> None:
    """A line a check, each file and each net of each variant among them."""
    done = edgetag("verify", "bundle")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[:3] for line in done.stdout.splitlines()] == [
        ["ok", "signature", "none"],
        ["ok", "bundle.yaml", done.stdout.splitlines()[1].split()[2]],
        *(
            ["ok", name, f"{(bundle / name).stat().st_size:,}"]
            for name in ("root.onnx", "branch-1.onnx", "golden.npz")
        ),
        ["ok", "other", "files"],
        ["ok", "fp32", "2"],
        ["ok", "fp32", "root"],
        ["ok", "fp32", "branch-1"],
    ]
    assert "differs by 0.000000 on 1 golden window, 0.001 allowed" in done.stdout


def test_verify_ends_at_the_first_refusal(edgetag: Run, bundle: Path) -> None:
    """What was right before is said; the sentence is the loader's; 3."""
    (bundle / "notes.txt").touch()
    done = edgetag("verify", "bundle")
    refused(done, 3, "bundle holds 'notes.txt', which bundle.yaml does not state")
    assert done.stdout.splitlines()[-1].startswith("ok  golden.npz")
    (bundle / "notes.txt").unlink()
    (bundle / "branch-1.onnx").write_bytes(b"")
    done = edgetag("verify", "bundle")
    refused(done, 3, "bundle/branch-1.onnx is truncated")
    assert "root.onnx" in done.stdout


def test_from_a_folder_to_a_signed_archive_and_back(edgetag: Run, bundle: Path, tmp_path: Path) -> None:
    """keygen, pack, sign, verify, inspect, unpack: the whole way, with the paths as they were given."""
    steps: list[tuple[object, ...]] = [
        ("keygen", "acme"),
        ("pack", "bundle"),
        ("sign", "constant-1.zip", "--key", "acme.key"),
        ("verify", "constant-1.zip", "--public-key", "acme.pub"),
        ("inspect", "constant-1.zip", "--public-key", "acme.pub"),
        ("unpack", "constant-1.zip", "copy", "--public-key", "acme.pub"),
    ]
    said = {}
    for step in steps:
        done = edgetag(*step)
        assert (done.returncode, done.stderr) == (0, ""), done
        said[step[0]] = done.stdout
    assert said["pack"].startswith("constant-1.zip: ")
    assert said["verify"].startswith("ok  signature             valid for acme.pub\n")
    assert "valid for acme.pub" in said["inspect"]
    assert said["unpack"] == "copy: 5 files\n"
    secret = (tmp_path / "acme.key").read_text().splitlines()[1]
    assert secret not in "".join(said.values())


def test_what_bad_input_gets(edgetag: Run, bundle: Path, tmp_path: Path) -> None:
    """2 for what the caller gave, 3 for a bundle, 5 for a place that cannot be written."""
    assert edgetag("keygen", "acme").returncode == 0
    assert edgetag("pack", "bundle", "--out", "b.zip").returncode == 0
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for code, arguments, sentence in (
        (2, ("keygen", "acme"), "acme.key exists"),
        (2, ("keygen", "acme.key"), "no name for a pair of keys"),
        (5, ("keygen", "nowhere/acme"), "nowhere/acme.key cannot be written"),
        (2, ("keygen", "other", "--passphrase"), "EDGETAG_KEY_PASSPHRASE"),
        (2, ("pack", "bundle", "--out", "b.zip"), "b.zip exists"),
        (5, ("pack", "bundle", "--out", "nowhere/b.zip"), "nowhere/b.zip cannot be written"),
        (3, ("pack", "full"), "full/bundle.yaml is missing"),
        (2, ("unpack", "b.zip", "full"), "full is not empty"),
        (2, ("unpack", "bundle", "x"), "bundle is a folder"),
        (3, ("unpack", "acme.pub", "x"), "acme.pub is no archive of a bundle"),
        (2, ("sign", "b.zip", "--key", "acme.pub"), "acme.pub is no private key"),
        (2, ("sign", "b.zip", "--key", "none.key"), "none.key cannot be read"),
        (3, ("sign", "none.zip", "--key", "acme.key"), "none.zip"),
        (3, ("verify", "b.zip", "--public-key", "acme.pub"), "b.zip is not signed"),
        (2, ("verify", "b.zip", "--public-key", "acme.key"), "is a private key"),
        (3, ("inspect", "acme.pub"), "no archive of a bundle"),
        (3, ("inspect", "nowhere"), "there is no bundle nowhere"),
    ):
        refused(edgetag(*arguments), code, sentence)
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {"bundle", "acme.key", "acme.pub", "b.zip", "full"}


def test_a_passphrase_from_the_environment(edgetag: Run, bundle: Path) -> None:
    """It encrypts the key and opens it again; no message repeats it."""
    assert edgetag("keygen", "k", "--passphrase", EDGETAG_KEY_PASSPHRASE="s3cret").returncode == 0
    refused(edgetag("sign", "bundle", "--key", "k.key"), 2, "a passphrase is needed")
    wrong = edgetag("sign", "bundle", "--key", "k.key", EDGETAG_KEY_PASSPHRASE="wr0ng")
    refused(wrong, 2, "cannot be read with this passphrase")
    assert "wr0ng" not in wrong.stderr
    assert edgetag("sign", "bundle", "--key", "k.key", EDGETAG_KEY_PASSPHRASE="s3cret").returncode == 0
    assert edgetag("verify", "bundle", "--public-key", "k.pub").returncode == 0


def test_stdout_that_cannot_be_written(bundle: Path) -> None:
    """A full disk and a closed stdout are told once; a reader who has had enough is no error."""
    edgetag = f"{sys.executable} -m edgetag"
    for command, sentence in (
        ("--version >/dev/full", "No space left"),
        (f"bundle inspect {bundle} >/dev/full", "No space left"),
        (f"bundle verify {bundle} >&-", "stdout is closed"),
    ):
        done = subprocess.run(
            ["bash", "-c", f"{edgetag} {command}"], capture_output=True, text=True, check=False
        )
        refused(done, 5, sentence)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{edgetag} bundle inspect | head -1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_replay_hears_with_an_archive(edgetag: Run, bundle: Path, tmp_path: Path) -> None:
    """`edgetag replay --bundle x.zip`, without unpacking."""
    import numpy as np
    import soundfile

    assert edgetag("pack", "bundle", "--out", "b.zip").returncode == 0
    shutil.rmtree(bundle)
    samples = np.random.default_rng(0).normal(0, 0.1, 441_000)
    soundfile.write(tmp_path / "street.wav", samples, 44_100)
    command = [sys.executable, "-m", "edgetag", "replay", "street.wav", "--bundle", "b.zip"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"].startswith("constant@sha256:")


@pytest.mark.parametrize("command", ["inspect", "verify", "pack", "unpack", "keygen", "sign"])
def test_every_command_has_an_example(edgetag: Run, command: str) -> None:
    """`--help` shows how it is called."""
    done = edgetag(command, "--help")
    assert done.returncode == 0
    assert f"Example: edgetag bundle {command}" in folded(done.stdout)
