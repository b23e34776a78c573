"""`python -m rephub.cli.ready URL`: exit 0 if the daemon there is ready; the health check of a container."""

from __future__ import annotations

import asyncio
import sys

from rephub.cli.plan import is_ready

if __name__ == "__main__":
    sys.exit(0 if asyncio.run(is_ready(sys.argv[1])) else 1)
