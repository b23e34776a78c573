"""How well attacks are told from honest work: records, and writes docs/detection.md's figures.

.venv/bin/python tests/measure/detection.py blocks           what blocks of real files look like, into docs/detection.md
.venv/bin/python tests/measure/detection.py record [NAME …]  sessions on a protected disk; root, FUSE, loop devices, age, gpg, git
.venv/bin/python tests/measure/detection.py page             figures from the traces into docs/detection.md
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import workloads

from attack_traces import FIELDS, FOLDER, evaluate, load, table
from bench.rig import GIB, scratch_folder, wait_for
from qsd import StorageDaemon
from rephub.agent.sampling import BLOCK_BYTES, RANDOM_BITS, entropy_bits, packed_part

PAGE = Path(__file__).resolve().parents[2] / "docs/detection.md"
HONEST_SECONDS, ATTACK_SECONDS = 8.0, 25.0
PATIENT = ("slow", "gpg_copy", "gpg_in_place")
LONGER = 2.5
"""A session without an attack, and a patient attack, take so many times as long."""
SYNC_SECONDS = 2.0
"""A guest's kernel writes back within some seconds; here it is told to."""

SOME = ("untar", "sqlite", "logs", "copy_tree", "archives")
OTHER = ("dpkg", "sqlite_wal", "encrypted_column", "media", "git")
SESSIONS: dict[str, tuple[tuple[str, ...], str, int]] = {
    "t1": (SOME, "openssl_in_place", 1),
    "t2": (SOME, "gpg_copy", 2),
    "t3": (SOME, "openssl_copy", 3),
    "t4": (SOME, "", 4),
    "t5": (OTHER, "gpg_in_place", 11),
    "h2": (OTHER, "intermittent", 12),
    "h3": (OTHER, "slow", 13),
    "h4": (OTHER, "age_copy", 14),
    "h5": (OTHER, "openssl_in_place", 15),
    "h6": ((*OTHER, "encrypted_backup"), "", 16),
}
"""Name: honest workloads, attack, seed; t is training, h held out."""


@contextlib.contextmanager
def mounted(image: Path, root: Path) -> Iterator[None]:
    """An image's file system, through a loop device."""
    device = workloads.run("losetup", "--find", "--show", image).decode().strip()
    try:
        root.mkdir(exist_ok=True)
        workloads.run("mount", "-o", "noatime", device, root)
        try:
            yield
        finally:
            workloads.run("umount", root)
    finally:
        workloads.run("losetup", "--detach", device)


@contextlib.contextmanager
def as_file(uri: str, folder: Path) -> Iterator[Path]:
    """An NBD export as a file."""
    folder.mkdir()
    process = subprocess.Popen(["nbdfuse", folder, uri])
    try:
        wait_for(folder / "nbd")
        yield folder / "nbd"
    finally:
        workloads.run("umount", folder)
        process.wait()


class Recorder:
    """Samples of a disk each second, from a capture of its own, as the agent's samples are made.

    Args:
        qsd: whose disk it is.
        size_bytes: of the disk.
    """

    def __init__(self, qsd: StorageDaemon, size_bytes: int) -> None:
        self._capture = subprocess.Popen(
            [sys.executable, Path(__file__).parent / "captured.py", qsd.folder, str(size_bytes)],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.lines: list[list[Any]] = []
        self.error = ""
        self._done = threading.Event()
        self._before = self._next()
        self._threads = [threading.Thread(target=self._sample)]
        self._threads[0].start()

    def write_back(self, root: Path) -> None:
        """From now on, as a guest's kernel does, now and then."""

        def sync() -> None:
            syncfs = ctypes.CDLL(None, use_errno=True).syncfs
            handle = os.open(root, os.O_RDONLY)
            while not self._done.wait(SYNC_SECONDS):
                syncfs(handle)
            os.close(handle)

        self._threads.append(threading.Thread(target=sync))
        self._threads[-1].start()

    def still(self) -> None:
        """No more write-back: the file system is to be unmounted."""
        self._done.set()
        for thread in self._threads[1:]:
            thread.join()

    def close(self) -> None:
        """End; the guest has let go of the disk."""
        self._capture.terminate()
        self._capture.wait()
        self._threads[0].join()

    def _next(self) -> dict[str, float]:
        assert self._capture.stdout is not None
        line = self._capture.stdout.readline()
        said: dict[str, float] = json.loads(line or '{"lost": "ended"}')
        return said

    def _sample(self) -> None:
        while "lost" not in (now := self._next()):
            line = {key: round(now[key] - self._before[key], 2) for key in now}
            line |= {"interval_us": line["at"], "at": now["at"], "written_bytes": line.pop("bytes")}
            self.lines.append([line[field] for field in FIELDS])
            self._before = now
        if not self._done.is_set():
            self.error = str(now)


def session(folder: Path, name: str) -> None:
    """Record one."""
    honest, attack, seed = SESSIONS[name]
    (folder / "scratch").mkdir()
    guest = workloads.Guest(folder / "root", folder / "scratch", seed)
    (folder / "q").mkdir()
    image = folder / "q/disk0.raw"
    with image.open("wb") as file:
        file.truncate(GIB)
    workloads.run("mkfs.ext4", "-q", "-E", "nodiscard", image)
    with mounted(image, guest.root):
        guest.populate()
    order = list(honest)
    random.Random(seed).shuffle(order)
    phases: list[dict[str, Any]] = []
    qsd = StorageDaemon(folder / "q", [GIB])
    try:
        recorder = Recorder(qsd, GIB)
        with as_file(qsd.uri(), folder / "nbd") as disk, mounted(disk, guest.root):
            recorder.write_back(guest.root)
            for work in [*order, *([attack] if attack else [])]:
                seconds = ATTACK_SECONDS if work == attack else HONEST_SECONDS
                seconds *= LONGER if work in PATIENT or not attack else 1
                if work == attack:
                    time.sleep(SYNC_SECONDS + 1)
                phases.append({"name": work, "attack": work == attack, "from_at": time.time_ns() // 1000})
                guest.until = time.monotonic() + seconds
                print(f"{name}: {work}", flush=True)
                (workloads.HONEST | workloads.ATTACKS)[work](guest)
            time.sleep(SYNC_SECONDS + 2)
            lines = list(recorder.lines)
            recorder.still()
        recorder.close()
    finally:
        qsd.stop()
    if recorder.error:
        raise RuntimeError(recorder.error)
    head = {"held_out": name.startswith("h"), "seed": seed, "phases": phases}
    FOLDER.mkdir(parents=True, exist_ok=True)
    text = [json.dumps(head), *(json.dumps(line, separators=(",", ":")) for line in lines)]
    (FOLDER / f"{name}.jsonl").write_text("\n".join(text) + "\n")


def record(names: list[str]) -> None:
    """These sessions, or all."""
    for name in names or SESSIONS:
        with tempfile.TemporaryDirectory(prefix="rhd", dir=scratch_folder()) as folder:
            session(Path(folder), name)


def blocks() -> None:
    """Bits a byte of whole blocks of files that the workloads make, and which share counts as random."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "root"
        (Path(name) / "scratch").mkdir()
        root.mkdir()
        guest = workloads.Guest(root, Path(name) / "scratch", 1)
        guest.plant(root / "home", 20 << 20)
        contents = {
            "files of /usr": b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
        }
        for packer in (
            ["gzip"],
            ["xz", "-1"],
            ["zstd", "-q"],
            ["openssl", "enc", "-aes-256-cbc", *workloads.KEY],
        ):
            workloads.archive(guest, root / "a", packer, 12 << 20)
            contents[packer[0]] = (root / "a").read_bytes()
        pictures = [guest.picture() for _ in range(30)]
        contents["jpeg"] = b"".join(item for item in pictures if item[:2] == b"\xff\xd8")
        contents["png"] = b"".join(item for item in pictures if item[:2] != b"\xff\xd8")
        guest.until = time.monotonic() + 2
        workloads.encrypted_column(guest)
        contents["sqlite, encrypted column"] = (root / "cards.db").read_bytes()
    lines = [
        "| content | blocks | mean bits a byte | 10 % are below | random | zlib leaves |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kind, data in contents.items():
        cut = [
            data[start : start + BLOCK_BYTES] for start in range(0, len(data) - BLOCK_BYTES + 1, BLOCK_BYTES)
        ]
        bits = sorted(entropy_bits(block) for block in cut)
        left = sum(packed_part(block) for block in cut[:500]) / len(cut[:500])
        share = sum(item > RANDOM_BITS for item in bits) / len(bits)
        lines.append(
            f"| {kind} | {len(bits)} | {sum(bits) / len(bits):.3f} | {bits[len(bits) // 10]:.3f} | {share:.0%} | {left:.0%} |"
        )
    put("blocks", "\n".join(lines) + "\n")


def put(name: str, text: str) -> None:
    """Into the page, between its marks."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = PAGE.read_text().partition(begin)
    PAGE.write_text(f"{before}{begin}\n\n{text}\n{end}{rest.partition(end)[2]}")


def page() -> None:
    """Write the figures into the page."""
    put("figures", table(evaluate(trace) for trace in load()))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:] or ["page"]
    {"blocks": blocks, "record": lambda: record(arguments), "page": page}[command]()
