"""What writes to a file system, honest and not: real tools, seeded, each until a deadline.

Used by tests/measure/detection.py. The files come from this system's own /usr.
"""

from __future__ import annotations

import gzip
import io
import os
import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SOURCES = (
    "/usr/share/doc",
    "/usr/include",
    "/usr/lib/python3",
    "/usr/share/perl",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/bin",
)
MIB = 1 << 20
KEY = ["-K", "00" * 32, "-iv", "00" * 16]


def run(*command: str | Path, **options: object) -> bytes:
    """A tool that must succeed; its output."""
    done = subprocess.run(command, check=True, capture_output=True, **options)  # type: ignore[call-overload]
    return bytes(done.stdout)


class Guest:
    """A file system that a workload may use.

    Args:
        root: where it is mounted.
        scratch: of the tools, elsewhere.
        seed: of what is chosen.
    """

    def __init__(self, root: Path, scratch: Path, seed: int) -> None:
        self.root, self.scratch, self.rng = root, scratch, random.Random(seed)
        self.until = 0.0
        self._names = 0

    def going(self) -> bool:
        """Whether there is time left."""
        return time.monotonic() < self.until

    def fresh(self, name: str) -> Path:
        """A path that is not there yet."""
        self._names += 1
        return self.root / f"{name}{self._names}"

    def sources(self, total_bytes: int, each_max: int = 4 * MIB) -> list[Path]:
        """Files of the system, so many bytes in all."""
        found = _catalogue()
        chosen, size = [], 0
        while size < total_bytes:
            path, length = self.rng.choice(found)
            if length <= each_max:
                chosen.append(path)
                size += length
        return chosen

    def plant(self, folder: Path, total_bytes: int, each_max: int = 4 * MIB) -> None:
        """Copies of such files."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(self.sources(total_bytes, each_max)):
            place = folder / f"d{number % 40}"
            place.mkdir(exist_ok=True)
            shutil.copyfile(path, place / f"{number}-{path.name}")

    def picture(self) -> bytes:
        """A photograph-like JPEG, or a PNG."""
        width, height = self.rng.randrange(600, 1600), self.rng.randrange(400, 1200)
        state = np.random.default_rng(self.rng.randrange(1 << 30))
        coarse = Image.fromarray(state.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(smooth + state.normal(0, 7, (height, width, 3)), 0, 255).astype(np.uint8)
        out = io.BytesIO()
        if self.rng.random() < 0.8:
            Image.fromarray(noisy).save(out, "JPEG", quality=self.rng.choice((75, 85, 92)))
        else:
            Image.fromarray(noisy).save(out, "PNG", compress_level=1)
        return out.getvalue()

    def populate(self) -> None:
        """What is there before anything happens: documents, programs, media, archives, a database."""
        self.plant(self.root / "home", 120 * MIB)
        media = self.root / "media"
        media.mkdir()
        for number in range(30):
            (media / f"{number}.jpg").write_bytes(self.picture())
        archives = self.root / "archives"
        archives.mkdir()
        for tool, suffix in (("gzip", "gz"), ("xz", "xz"), ("zstd", "zst")):
            archive(self, archives / f"old.tar.{suffix}", [tool, "-1"] if tool != "gzip" else [tool])
        database(self, self.root / "shop.db", wal=False, secret=False, seconds=2.0)


_FOUND: list[tuple[Path, int]] = []


def _catalogue() -> list[tuple[Path, int]]:
    if not _FOUND:
        for source in SOURCES:
            for folder, folders, names in os.walk(source):
                folders.sort()
                for name in sorted(names):
                    path = Path(folder) / name
                    if path.is_file() and not path.is_symlink() and path.stat().st_size >= 512:
                        _FOUND.append((path, path.stat().st_size))
    return _FOUND


def archive(guest: Guest, path: Path, packer: list[str], total_bytes: int = 20 * MIB) -> None:
    """tar | packer > path."""
    listing = guest.scratch / "listing"
    listing.write_text("\n".join(str(source) for source in guest.sources(total_bytes)))
    tar = subprocess.Popen(
        ["tar", "-cPf", "-", "-T", listing], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with path.open("wb") as file:
        subprocess.run(packer, stdin=tar.stdout, stdout=file, check=True)
    tar.wait()


def database(guest: Guest, path: Path, *, wal: bool, secret: bool, seconds: float = 0) -> None:
    """Orders of a shop: inserts, updates, a commit for each ten; `secret`: a column is encrypted."""
    until = time.monotonic() + seconds if seconds else guest.until
    words = [source.stem for source in guest.sources(MIB)]
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA journal_mode={'WAL' if wal else 'DELETE'}")
        db.execute(
            "CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, who TEXT, what TEXT, card BLOB, at REAL)"
        )
        db.execute("CREATE INDEX IF NOT EXISTS whose ON orders (who)")
        (count,) = db.execute("SELECT count(*) FROM orders").fetchone()
        while time.monotonic() < until:
            for _ in range(10):
                what = " ".join(guest.rng.choices(words, k=20))
                card = guest.rng.randbytes(300) if secret else b"4111 1111 1111 1111"
                if count > 100 and guest.rng.random() < 0.5:
                    db.execute(
                        "UPDATE orders SET what=?, card=? WHERE id=?",
                        (what, card, guest.rng.randrange(count)),
                    )
                else:
                    count += 1
                    db.execute(
                        "INSERT INTO orders (who, what, card, at) VALUES (?, ?, ?, ?)",
                        (guest.rng.choice(words), what, card, time.time()),
                    )
            db.commit()
    db.close()


# Honest.


def untar(guest: Guest) -> None:
    """A source tree is unpacked, again and again; the oldest is removed."""
    tree, ball = guest.scratch / "tree", guest.scratch / "tree.tar"
    guest.plant(tree, 30 * MIB, MIB)
    run("tar", "-cf", ball, "-C", tree, ".")
    shutil.rmtree(tree)
    kept: list[Path] = []
    while guest.going():
        folder = guest.fresh("source")
        folder.mkdir()
        run("tar", "-xf", ball, "-C", folder)
        kept.append(folder)
        if len(kept) > 2:
            shutil.rmtree(kept.pop(0))
    for folder in kept:
        shutil.rmtree(folder)


def copy_tree(guest: Guest) -> None:
    """As a build does: copy a tree, remove it."""
    while guest.going():
        folder = guest.fresh("build")
        run("cp", "-r", guest.root / "home" / f"d{guest.rng.randrange(40)}", folder)
        if guest.rng.random() < 0.7:
            shutil.rmtree(folder)


def dpkg(guest: Guest) -> None:
    """Packages are unpacked as apt does, with dpkg's own fsyncs."""
    root = guest.fresh("debian")
    (root / "var/lib/dpkg/info").mkdir(parents=True)
    (root / "var/lib/dpkg/updates").mkdir()
    (root / "var/lib/dpkg/status").touch()
    number = 0
    while guest.going():
        number += 1
        tree, package = guest.scratch / "package", guest.scratch / "package.deb"
        guest.plant(tree / f"usr/share/p{number}", 8 * MIB, MIB)
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN/control").write_text(
            f"Package: p{number}\nVersion: 1\nArchitecture: all\nMaintainer: t <t@t>\nDescription: t\n"
        )
        run("dpkg-deb", "-Zxz", "-z0", "--build", tree, package)
        shutil.rmtree(tree)
        downloaded = root / f"p{number}.deb"
        shutil.copyfile(package, downloaded)
        run("dpkg", f"--root={root}", "--force-not-root", "--unpack", downloaded)
        downloaded.unlink()
    shutil.rmtree(root)


def sqlite(guest: Guest) -> None:
    """A shop, with a rollback journal."""
    database(guest, guest.root / "shop.db", wal=False, secret=False)


def sqlite_wal(guest: Guest) -> None:
    """A shop, with a write-ahead log."""
    database(guest, guest.root / "wal.db", wal=True, secret=False)


def encrypted_column(guest: Guest) -> None:
    """A shop that encrypts its customers' cards."""
    database(guest, guest.root / "cards.db", wal=False, secret=True)


def logs(guest: Guest) -> None:
    """Lines are appended; a log of 8 MiB is packed and begun anew."""
    path, number = guest.root / "app.log", 0
    words = [source.name for source in guest.sources(MIB)]
    while guest.going():
        with path.open("a") as file:
            for _ in range(2000):
                number += 1
                file.write(f"{time.time():.6f} INFO request={number} path=/{guest.rng.choice(words)} ms=7\n")
            os.fsync(file.fileno())
        if path.stat().st_size > 8 * MIB:
            guest.fresh("app.log.gz").write_bytes(gzip.compress(path.read_bytes(), 6))
            path.unlink()
        time.sleep(0.02)


def archives(guest: Guest) -> None:
    """Backups are packed with gzip, xz and zstd, and the oldest removed."""
    kept: list[Path] = []
    while guest.going():
        packer = guest.rng.choice((["gzip"], ["xz", "-1"], ["zstd", "-q"]))
        path = guest.fresh("backup.tar.")
        archive(guest, path, packer, 12 * MIB)
        kept.append(path)
        if len(kept) > 3:
            kept.pop(0).unlink()


def media(guest: Guest) -> None:
    """Photographs come in, and are copied to an album; some are thrown away."""
    pictures = [guest.picture() for _ in range(12)]
    kept: list[Path] = []
    while guest.going():
        path = guest.fresh("photo.jpg.")
        path.write_bytes(guest.rng.choice(pictures))
        kept.append(path)
        if len(kept) > 80:
            kept.pop(guest.rng.randrange(len(kept))).unlink()
        time.sleep(0.02)
    for path in kept[:60]:
        path.unlink()


def git(guest: Guest) -> None:
    """A repository is filled, cloned, packed and thrown away."""
    environment = os.environ | {
        "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t",
        "GIT_CONFIG_GLOBAL": "/dev/null",
    }  # fmt: skip
    while guest.going():
        folder, clone = guest.fresh("repo"), guest.fresh("clone")
        folder.mkdir()
        run("git", "init", "-q", folder)
        for _ in range(3):
            guest.plant(folder / f"s{guest.rng.random()}", 4 * MIB, MIB // 4)
            run("git", "-C", folder, "add", "-A", env=environment)
            run("git", "-C", folder, "commit", "-qm", "t", env=environment)
        run("git", "clone", "-q", "--no-hardlinks", folder, clone, env=environment)
        run("git", "-C", folder, "gc", "-q", env=environment)
        shutil.rmtree(folder)
        shutil.rmtree(clone)


def encrypted_backup(guest: Guest) -> None:
    """A backup is encrypted with openssl and written over the one of the night before: honest, and looks like an attack."""
    path = guest.root / "backup.enc"
    while guest.going():
        archive(guest, path, ["openssl", "enc", "-aes-256-ctr", *KEY], 20 * MIB)
        time.sleep(0.5)


# Attacks. Each goes through the documents in an order of its own until the time is over or all is done.


def _victims(guest: Guest, *, largest: bool = False) -> Iterator[Path]:
    found = [path for path in sorted((guest.root / "home").rglob("*")) if path.is_file()]
    guest.rng.shuffle(found)
    if largest:
        found.sort(key=lambda path: -path.stat().st_size)
    for path in found:
        if not guest.going():
            return
        yield path


def _over(path: Path, data: bytes, chunk: int = 0) -> None:
    """Write over the same file; with a chunk size, over every other chunk."""
    with path.open("r+b") as file:
        if not chunk:
            file.write(data)
        for start in range(0, len(data) if chunk else 0, 2 * chunk or 1):
            file.seek(start)
            file.write(data[start : start + chunk])


def _openssl(path: Path, cipher: str = "-aes-256-ctr") -> bytes:
    return run("openssl", "enc", cipher, *KEY, "-in", path)


def _gpg(guest: Guest, path: Path) -> bytes:
    home = guest.scratch / "gnupg"
    home.mkdir(exist_ok=True, mode=0o700)
    return run(
        "gpg", "--homedir", home, "--batch", "-q", "--pinentry-mode", "loopback", "--passphrase", "x",
        "--s2k-count", "1024", "--no-symkey-cache", "--no-keyring", "-o", "-", "--symmetric", path,
    )  # fmt: skip


def openssl_in_place(guest: Guest) -> None:
    """Each file is written over with its ciphertext."""
    for path in _victims(guest):
        _over(path, _openssl(path))


def openssl_copy(guest: Guest) -> None:
    """A ciphertext beside each file, which is removed."""
    for path in _victims(guest):
        path.with_suffix(".locked").write_bytes(_openssl(path, "-aes-256-cbc"))
        path.unlink()


def gpg_copy(guest: Guest) -> None:
    """As gpg does it, packed and encrypted, the largest first as it takes half a second each; the file is removed."""
    for path in _victims(guest, largest=True):
        path.with_suffix(".gpg").write_bytes(_gpg(guest, path))
        path.unlink()
    run("gpgconf", "--homedir", guest.scratch / "gnupg", "--kill", "all")


def gpg_in_place(guest: Guest) -> None:
    """Each file is written over with what gpg made of it, and cut."""
    for path in _victims(guest, largest=True):
        data = _gpg(guest, path)
        _over(path, data)
        os.truncate(path, len(data))
    run("gpgconf", "--homedir", guest.scratch / "gnupg", "--kill", "all")


def intermittent(guest: Guest) -> None:
    """Every other 64 KiB of each file, in place: half the work, and all is lost."""
    for path in _victims(guest):
        _over(path, _openssl(path, "-chacha20"), 64 << 10)


def slow(guest: Guest) -> None:
    """In place, some files a second."""
    for path in _victims(guest):
        _over(path, _openssl(path))
        time.sleep(0.25)


def age_copy(guest: Guest) -> None:
    """Encrypted with age (ChaCha20-Poly1305 in chunks of 64 KiB) to a key; the file is removed."""
    identity = guest.scratch / "age.key"
    if not identity.exists():
        run("age-keygen", "-o", identity)
    recipient = run("age-keygen", "-y", identity).decode().strip()
    for path in _victims(guest):
        run("age", "-r", recipient, "-o", path.with_suffix(".age"), path)
        path.unlink()


Workload = Callable[[Guest], None]
HONEST: dict[str, Workload] = {
    work.__name__: work
    for work in (
        untar, copy_tree, dpkg, sqlite, sqlite_wal, encrypted_column, logs, archives, media, git, encrypted_backup,
    )
}  # fmt: skip
ATTACKS: dict[str, Workload] = {
    work.__name__: work
    for work in (openssl_in_place, openssl_copy, gpg_copy, gpg_in_place, intermittent, slow, age_copy)
}
