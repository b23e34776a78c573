"""Runs the fuzz targets: `python tests/fuzz/run.py --seconds 60`, or `--replay FILE` for an input that was found.

Each target runs in a process of its own, with coverage feedback by atheris (libFuzzer), which `scripts/fuzzer` fetches; where
it has no build for this machine, the inputs are mutated blindly. An input that fails is kept in `.cache/fuzz/` and named;
moved to `tests/fuzz/found/` it is replayed by every `make check`. The last lines say what was executed.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / ".cache" / "atheris")]

MEMORY_MIB_MAX = 1024
"""Of one process; the modules alone take 150."""
INPUT_SECONDS_MAX = 10
"""One input; the slowest honest ones take a few milliseconds."""
INPUT_BYTES_MAX = 4096
PARALLEL = 2
INSTRUMENTED = [
    "rephub.core",
    "rephub.projections.journal_fold",
    "rephub.projections.fold",
    "rephub.consumers.diskbox.position",
    "rephub.consumers.hub.snapshot",
    "rephub.cli.endpoints",
    "rephub.cli.parts",
    "rephub.agent.guest_agent",
    "rephub.infra.ports",
]
"""What gives feedback on coverage: what parses. Instrumenting all takes seconds per target."""
OUT = ROOT / ".cache" / "fuzz"


def has_atheris() -> bool:
    try:
        import atheris  # noqa: F401, PLC0415
    except ImportError:
        return False
    return True


def work(name: str, seconds: int, seed: int) -> None:
    """One target, in this process; ends it."""
    if not has_atheris():
        blind(name, seconds, seed)
        return
    import atheris  # noqa: PLC0415

    with atheris.instrument_imports(include=INSTRUMENTED):
        from fuzz.targets import TARGETS  # noqa: PLC0415
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as corpus:
        for number, content in enumerate(target.seeds):
            (Path(corpus) / str(number)).write_bytes(content)
        options = [
            f"-max_total_time={seconds}",
            f"-seed={seed}",
            f"-max_len={INPUT_BYTES_MAX}",
            f"-timeout={INPUT_SECONDS_MAX}",
            f"-rss_limit_mb={MEMORY_MIB_MAX}",
            f"-artifact_prefix={OUT / name}-",
            "-print_final_stats=1",
            corpus,
        ]
        atheris.Setup([sys.argv[0], *options], target.run)
        atheris.Fuzz()


def mutations(seeds: list[bytes], seed: int):
    """Endless inputs: seeds with bytes flipped, cut, doubled, replaced by extremes. The same seed gives the same."""
    rng = random.Random(seed)
    yield from seeds
    while True:
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.choice([1, 1, 2, 4, 8])):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(5):
                case 0 if at < len(data):
                    data[at] ^= 1 << rng.randrange(8)
                case 1:
                    data[at : at + rng.choice([1, 2, 4, 8])] = rng.choice(
                        [
                            b"\xff" * 4,
                            b"\xff" * 8,
                            bytes(4),
                            b"\x80" + bytes(7),
                            b"[" * 100,
                            b"1e999",
                            b"null",
                        ]
                    )
                case 2:
                    del data[at : at + rng.choice([1, 2, 8, len(data)])]
                case 3:
                    data[at:at] = rng.randbytes(rng.choice([1, 2, 8, 100]))
                case _:
                    data[at:at] = data[at : at + rng.randrange(1, 200)]
        yield bytes(data[:INPUT_BYTES_MAX])


def blind(name: str, seconds: int, seed: int) -> None:
    """Without coverage feedback; an alarm stands for libFuzzer's time limit."""
    import resource  # noqa: PLC0415

    from fuzz.targets import TARGETS  # noqa: PLC0415

    target = TARGETS[name]
    end, count = time.monotonic() + seconds, 0
    for data in mutations(target.seeds, seed):
        try:
            signal.alarm(INPUT_SECONDS_MAX)
            target.run(data)
        except BaseException:
            path = OUT / f"{name}-crash-{zlib.crc32(data):08x}"
            path.write_bytes(data)
            print(f"Test unit written to {path}", file=sys.stderr)
            raise
        finally:
            signal.alarm(0)
        count += 1
        if time.monotonic() > end:
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    assert peak < MEMORY_MIB_MAX, f"{peak} MiB"
    print(f"stat::number_of_executed_units: {count}\nstat::peak_rss_mb: {peak}", file=sys.stderr)


def replay(path: Path) -> None:
    """One input that was found, without atheris: its exception is the answer."""
    from fuzz.targets import TARGETS  # noqa: PLC0415

    name = max((name for name in TARGETS if path.name.startswith(name)), key=len)
    TARGETS[name].run(path.read_bytes())
    print(f"{name}: nothing wrong with {path}")


def stat(output: str, name: str) -> int:
    found = re.findall(rf"stat::{name}:\s+(\d+)", output)
    return int(found[-1]) if found else 0


def drive(names: list[str], seconds: int, seed: int) -> int:
    """All targets, PARALLEL at a time, `seconds` in all; the exit status."""
    OUT.mkdir(parents=True, exist_ok=True)
    share = max(1, round(seconds * PARALLEL / len(names)))
    print(
        f"fuzz: seed {seed}, {share} s each, {PARALLEL} at a time",
        "" if has_atheris() else "(blind: no atheris)",
    )
    waiting, running, lines, failed = list(names), {}, [], []
    while waiting or running:
        while waiting and len(running) < PARALLEL:
            name = waiting.pop(0)
            argv = [sys.executable, __file__, "--work", name, "--seconds", str(share), "--seed", str(seed)]
            log = (OUT / f"{name}.log").open("w+b")
            running[name] = (subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL), log)
        for name, (process, log) in list(running.items()):
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            del running[name]
            log.seek(0)
            output = log.read().decode(errors="replace")
            log.close()
            count, peak = stat(output, "number_of_executed_units"), stat(output, "peak_rss_mb")
            lines.append(f"fuzz: {name}: {count} executions, {peak} MiB at most")
            if process.returncode or not count:
                failed.append(name)
                print(f"--- {name} failed; its log is {OUT / name}.log\n{output[-6000:]}")
                for path in re.findall(r"Test unit written to (\S+)", output):
                    print(f"replay: {sys.executable} {os.path.relpath(__file__)} --replay {path}")
    print("\n".join(lines))
    print(f"fuzz: seed {seed}: {'FAILED: ' + ', '.join(failed) if failed else 'nothing found'}")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together")
    parser.add_argument("--seed", type=int, default=0, help="0: a new one")
    parser.add_argument("--target", action="append", help="only this one; may be repeated")
    parser.add_argument("--replay", type=Path, help="run one input")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replay:
        replay(options.replay)
        return 0
    if options.work:
        work(options.work, options.seconds, options.seed)
        return 0
    from fuzz.targets import TARGETS  # noqa: PLC0415

    unknown = set(options.target or []) - TARGETS.keys()
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    seed = options.seed or random.SystemRandom().randrange(1, 1 << 31)
    return drive(options.target or list(TARGETS), options.seconds, seed)


if __name__ == "__main__":
    sys.exit(main())
