"""`python main.py serve --replicas N`: several copies of the model behind one address."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

from app.replicas.cluster import require_ray, running_replicas
from app.serve_command import counted_signals, stop_runner, wait_for_end
from app.server.settings import ServerSettings
from engine import catalog
from engine.config import LoadConfig


def replicas_command(load: LoadConfig, settings: ServerSettings, count: int) -> int:
    """Run the command; returns the exit status. Raises EngineError where it cannot begin."""
    require_ray()
    catalog.require_local(load.model)  # said in one line, before anything is started
    from starlette.types import Message

    from app.replicas.front import Front, ReplicaLost
    from app.server.guards import guarded
    from app.server.metrics import Metrics
    from app.server.runner import ServerRunner

    async def none_yet(scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
        raise ReplicaLost("the replicas are being started")
        yield {}

    metrics = Metrics()
    front = Front(none_yet, metrics)
    runner = ServerRunner.of_app(settings, guarded(front, settings, metrics), metrics)
    address = runner.start()
    print(f"listening on {address}; starting {count} replicas", file=sys.stderr)
    try:
        # Ray sets handlers of its own while it starts, so ours are set behind it.
        with running_replicas(load, settings, count) as replicas, counted_signals() as signals:
            front.call = replicas.call
            print(
                f"serving {load.model} by {count} replicas at {address}; Ctrl+C ends",
                file=sys.stderr,
            )
            wait_for_end(runner, signals)
            stop_runner(runner, signals)
    finally:
        runner.stop(drain=False)
    return 0
