"""The server, judged by programs that others wrote: nbdinfo, nbdcopy, qemu-io, qemu-img, fio."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.nbd.running import LOOPS, Running, run, run_failing, running
from qsd import SYSTEM_PYTHON
from rephub.core.nbd.export import ExportInfo
from rephub.core.nbd.memory import MemoryExport

pytestmark = pytest.mark.qemu

MIB = 1 << 20
SIZE = 64 * MIB


@pytest.fixture(params=list(LOOPS))
def nbd(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[Running]:
    """Three exports: one with everything, one read-only, one without extras and with an odd size."""
    full = ExportInfo("vol", SIZE, description="a volume", block_status=True, multi_conn=True)
    read_only = ExportInfo("ro", SIZE, read_only=True)
    plain = ExportInfo(
        "plain ü", 5 * MIB + 77, can_trim=False, can_zero=False, can_flush=False, can_fua=False
    )
    exports = [MemoryExport(info) for info in (full, read_only, plain)]
    with running(short_dir / "s", request.param, *exports) as found:
        yield found


def qemu_io(uri: str, *commands: str, options: tuple[str, ...] = ()) -> str:
    words = [word for command in commands for word in ("-c", command)]
    found = run("qemu-io", "-f", "raw", *options, uri, *words)
    assert "failed" not in found, found
    return found


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_nbdinfo_json(nbd: Running, kind: str) -> None:
    (found,) = json.loads(run("nbdinfo", "--json", nbd.uri("vol", kind)))["exports"]
    expected = {
        "export-name": "vol",
        "description": "a volume",
        "export-size": SIZE,
        "contexts": ["base:allocation"],
        "is_read_only": False,
        "can_df": True,
        "can_fast_zero": False,
        "can_flush": True,
        "can_fua": True,
        "can_multi_conn": True,
        "can_trim": True,
        "can_zero": True,
        "block_size_minimum": 1,
        "block_size_preferred": 4096,
        "block_size_maximum": 32 * MIB,
    }
    assert {key: found.get(key) for key in expected} == expected


def test_nbdinfo_of_a_plain_export(nbd: Running) -> None:
    (found,) = json.loads(run("nbdinfo", "--json", nbd.uri("plain ü")))["exports"]
    assert found["export-name"] == "plain ü"
    assert found["export-size"] == 5 * MIB + 77
    for feature in ("can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"):
        assert found[feature] is False
    assert json.loads(run("nbdinfo", "--json", nbd.uri("ro")))["exports"][0]["is_read_only"] is True


def test_nbdinfo_list_names_all(nbd: Running) -> None:
    found = json.loads(run("nbdinfo", "--list", "--json", nbd.uri("")))["exports"]
    assert [export["export-name"] for export in found] == ["vol", "ro", "plain ü"]


def test_nbdinfo_of_an_unknown_export(nbd: Running) -> None:
    assert "export: nope" in run_failing("nbdinfo", nbd.uri("nope"))


def test_nbdinfo_map(nbd: Running) -> None:
    qemu_io(nbd.uri("vol"), "write -P 1 0 64k", "write -P 2 1M 3M", "discard 2M 1M", "write -z -u 0 4k")
    found = json.loads(run("nbdinfo", "--map", "--json", nbd.uri("vol")))
    assert [(extent["offset"], extent["length"], extent["type"]) for extent in found] == [
        (0, 4096, 3),
        (4096, 61440, 0),
        (65536, MIB - 65536, 3),
        (MIB, MIB, 0),
        (2 * MIB, MIB, 3),
        (3 * MIB, MIB, 0),
        (4 * MIB, 60 * MIB, 3),
    ]


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_nbdcopy_both_ways(nbd: Running, short_dir: Path, kind: str) -> None:
    source, copy = short_dir / "in", short_dir / "out"
    content = random.Random(7).randbytes(9 * MIB + 333)
    source.write_bytes(content)
    run("nbdcopy", "--flush", source, nbd.uri("vol", kind))
    run("nbdcopy", nbd.uri("vol", kind), copy)
    assert copy.read_bytes() == content + bytes(SIZE - len(content))


def test_nbdcopy_to_an_export_that_can_little(nbd: Running, short_dir: Path) -> None:
    content = random.Random(8).randbytes(2 * MIB) + bytes(2 * MIB) + b"z" * (MIB + 77)
    (short_dir / "in").write_bytes(content)
    run("nbdcopy", short_dir / "in", nbd.uri("plain ü"))
    run("nbdcopy", nbd.uri("plain ü"), short_dir / "out")
    assert (short_dir / "out").read_bytes() == content


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_qemu_io_patterns(nbd: Running, kind: str) -> None:
    qemu_io(
        nbd.uri("vol", kind),
        "write -P 0x11 0 64M",
        "write -P 0x22 1 1",
        "write -P 0x33 511 1026",
        "write -z 1M 1M",
        "write -z -u 3000001 999999",
        "discard 8M 32M",
        "write -f -P 0x44 10M 12k",
        "flush",
        "read -P 0x11 0 1",
        "read -P 0x22 1 1",
        "read -P 0x11 2 509",
        "read -P 0x33 511 1026",
        "read -P 0 1M 1M",
        "read -P 0 3000001 999999",
        "read -P 0x11 4000000 1000",
        "read -P 0 8M 2M",
        "read -P 0x44 10M 12k",
        "read -P 0x11 40M 24M",
    )


def test_qemu_io_many_at_once(nbd: Running) -> None:
    """Requests that overlap in time, several sizes, then all of them read back."""
    commands = [f"aio_write -P {n} {n * 123}k {n * 7}k" for n in range(1, 17)]
    checks = [f"read -P {n} {n * 123}k {n * 7}k" for n in range(1, 17)]
    qemu_io(nbd.uri("vol"), *commands, "aio_flush", *checks)


def test_qemu_io_is_refused_on_a_read_only_export(nbd: Running) -> None:
    qemu_io(nbd.uri("ro"), "read -P 0 0 64k", options=("-r",))
    refused = run_failing("qemu-io", "-f", "raw", nbd.uri("ro"), "-c", "write 0 4k")
    assert "Permission denied" in refused


LIBNBD = """
import sys, nbd
handle = nbd.NBD()
handle.set_strict_mode(0)
handle.connect_uri(sys.argv[1])
size = handle.get_size()
calls = [
    lambda: handle.pwrite(b"x" * 512, 0),
    lambda: handle.pwrite(b"x" * 512, size - 511),
    lambda: handle.pread(512, size - 511),
    lambda: handle.pread(0, 0),
    lambda: handle.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO),
    lambda: handle.zero(1024, size - 1023),
    lambda: handle.trim(512, size),
    lambda: handle.cache(512, 0),
    lambda: handle.flush(),
    lambda: handle.pread(512, 512),
]
for call in calls:
    try:
        call()
        print("ok", end=" ")
    except nbd.Error as error:
        print(error.errno, end=" ")
handle.shutdown()
"""
"""libnbd with its own checks off; every call after a refused one shows that the stream is in step."""


def test_libnbd_sees_the_right_errno_for_what_is_wrong(nbd: Running) -> None:
    def ask(export: str) -> str:
        return run(SYSTEM_PYTHON, "-c", LIBNBD, nbd.uri(export)).strip()

    assert ask("vol") == "ok ENOSPC EINVAL EINVAL ENOTSUP ENOSPC EINVAL EINVAL ok ok"
    assert ask("ro") == "EPERM EPERM EINVAL EINVAL EPERM EPERM EPERM EINVAL ok ok"
    assert ask("plain ü") == "ok ENOSPC EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL ok"


def test_qemu_img_convert_compare_map(nbd: Running, short_dir: Path) -> None:
    source, back = short_dir / "in.qcow2", short_dir / "back.raw"
    run("qemu-img", "create", "-f", "qcow2", source, "64M")
    run("qemu-io", "-f", "qcow2", source, "-c", "write -P 5 1M 2M", "-c", "write -P 6 30M 64k")
    run("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", source, nbd.uri("vol"))
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", source, nbd.uri("vol"))
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", nbd.uri("vol"), back)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", back, nbd.uri("vol"))
    found = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", nbd.uri("vol")))
    assert [(extent["start"], extent["length"]) for extent in found if extent["data"]] == [
        (MIB, 2 * MIB),
        (30 * MIB, 65536),
    ]
    qemu_io(nbd.uri("vol"), "write -P 9 7M 512")
    assert "mismatch at offset 7340032" in run_failing(
        "qemu-img", "compare", "-f", "raw", "-F", "raw", back, nbd.uri("vol")
    )


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_fio_verifies_what_it_wrote(nbd: Running, kind: str) -> None:
    found = run(
        "fio",
        "--name=verify",
        "--ioengine=nbd",
        f"--uri={nbd.uri('vol', kind)}",
        "--rw=randrw",
        "--bsrange=512-128k",
        "--bs_unaligned=1",
        "--iodepth=32",
        "--size=32M",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--randseed=4711",
        "--thread",
        "--output-format=json",
    )
    (job,) = json.loads(found[found.index("{") : found.rindex("}") + 1])["jobs"]
    assert job["error"] == 0
    assert job["write"]["total_ios"] > 100
    assert job["read"]["total_ios"] > 100
