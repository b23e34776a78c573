"""The supervisor as a process of its own: started by `up --detach`, told what to do and asked by two pipes.

Speaks JSON lines on a pipe to the `up` that started it: `{"say": …}`, then one `{"ready": …}` or `{"error": …}`, and
closes it. Its own output goes to `STATE/logs/supervisor.log`; it holds nothing of its starter open.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rephub.cli.plan import UpOptions
from rephub.cli.stack import run_stack
from rephub.core import logs
from rephub.core.errors import RephubError, UnavailableError, from_dict
from rephub.infra.files import private_dir, storage_error
from rephub.infra.process import bound_log, last_lines

LOG = Path("logs") / "supervisor.log"


def start_detached(options: UpOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """Start a supervisor that outlives us; wait until its stack is ready.

    Returns:
        The document of `up`.

    Raises:
        RephubError: what the supervisor failed with; nothing runs then.
    """
    log = private_dir(private_dir(options.state_dir) / "logs") / LOG.name
    bound_log(log)
    receiver, sender = os.pipe()
    argv = [sys.executable, "-m", "rephub.cli.detached", str(sender), _as_json(options)]
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        os.close(receiver)
        os.close(sender)
        raise storage_error(exc, log, "cannot open log") from exc
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[sender],
            start_new_session=True,
        )
    finally:
        os.close(output)
        os.close(sender)
    try:
        with os.fdopen(receiver) as lines:
            for line in lines:
                document = json.loads(line)
                if "say" in document:
                    say(document["say"])
                elif "error" in document:
                    process.wait()  # it stops what it had started first
                    raise from_dict(document["error"])
                else:
                    return dict(document["ready"])
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    raise UnavailableError(f"the supervisor ended: {last_lines(log)}", hint=f"see {log}")


class _Starter:
    """The pipe to the `up` that waits; when that has gone, nobody listens and the stack goes on."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - takes no keyword
        self._descriptor = descriptor

    def tell(self, **document: Any) -> None:
        if self._descriptor < 0:
            return
        try:
            os.write(self._descriptor, json.dumps(document).encode() + b"\n")
        except BrokenPipeError:
            self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def main(descriptor: int, options: UpOptions) -> int:
    """Run the stack; the exit code is the error's."""
    logs.configure()
    starter = _Starter(descriptor)

    def on_ready(document: dict[str, Any]) -> None:
        starter.tell(ready=document)
        starter.close()

    try:
        run_stack(options, lambda line: starter.tell(say=line), on_ready, ignore_hangup=True)
    except RephubError as exc:
        starter.tell(error=exc.to_dict())
        print(f"error: {exc.message}", file=sys.stderr)
        return exc.exit_code
    return 0


def _as_json(options: UpOptions) -> str:
    return json.dumps(asdict(options), default=str)


def _from_json(text: str) -> UpOptions:
    document = json.loads(text)
    config = document.pop("config")
    return UpOptions(Path(document.pop("state_dir")), Path(config) if config else None, **document)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), _from_json(sys.argv[2])))
