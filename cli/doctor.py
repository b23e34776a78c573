"""`rephub doctor`: what on this machine and in the services weakens protection."""

from __future__ import annotations

import contextlib
from dataclasses import asdict

from rephub.cli.output import Cli, verb
from rephub.core.errors import DegradedError, UnavailableError

MARKS = {"ok": "  ok  ", "note": " note ", "warning": " WARN ", "failed": "FAILED"}


@verb()
async def doctor(cli: Cli) -> int:
    """Check this machine, Kafka, Redis and the stack under the state directory.

    Exit code 3 if something is degraded; notes do not count.
    """
    from rephub.cli import checks  # noqa: PLC0415 - keep --help fast
    from rephub.cli.endpoints import Endpoints, read_endpoints  # noqa: PLC0415

    found = [
        *checks.check_java(),
        *checks.check_tools(),
        *checks.check_state_dir(cli.state_dir),
        *checks.check_clock(),
    ]
    found += checks.check_parts(cli.state_dir)
    endpoints: Endpoints | None = None
    with contextlib.suppress(UnavailableError):  # no stack: said by check_parts
        endpoints = read_endpoints(cli.state_dir)
    if endpoints:
        found += await checks.check_kafka(endpoints.bootstrap)
        found += checks.check_redis(endpoints.redis)
        found += await checks.check_daemons(endpoints)
    found += checks.check_guest_discard()
    degraded = [one for one in found if one.degraded]
    lines = [
        f"[{MARKS[one.level]}] {one.check}: {one.message}" + (f"\n         {one.hint}" if one.hint else "")
        for one in found
    ]
    lines.append(f"{len(degraded)} of {len(found)} checks need attention" if degraded else "all is well")
    cli.emit({"ok": not degraded, "checks": [asdict(one) for one in found]}, "\n".join(lines))
    return DegradedError.exit_code if degraded else 0
