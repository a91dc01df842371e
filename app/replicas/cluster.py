"""Ray Serve under the front: starts the replicas, asks them, ends them."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from starlette.types import Message

from app.replicas.front import ReplicaLost
from app.server.settings import ServerSettings
from engine.config import LoadConfig
from engine.errors import ServerError
from engine.threads import default_threads

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

INSTALL = 'replicas need the package ray; install it: pip install -e ".[ray]"'
NAME = "gpt2-workbench"
CLUSTER_VARIABLE = "RAY_ADDRESS"  # Ray's own: the cluster to join
_CHECK_S = 2.0  # between two looks at a replica that is asked nothing


def require_ray() -> None:
    """ServerError, with the line to type, where Ray Serve is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ServerError(INSTALL)


class Replicas:
    """The replicas of one model. Any event loop may ask them."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def call(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
        """As of front.Call."""
        from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
        from ray.serve.exceptions import RayServeException

        messages: Any = self._handle.options(stream=True).answer.remote(scope, body)
        try:
            async for message in messages:
                yield message
        except RayTaskError:
            raise  # the application's own fault: another replica would fail too
        except (RayActorError, RayServeException, TaskCancelledError) as error:
            raise ReplicaLost(str(error).splitlines()[0]) from error
        finally:
            messages.cancel()

    async def a_pid(self) -> int:
        """The process of one replica, whichever is chosen."""
        return int(await self._handle.pid.remote())


@contextlib.contextmanager
def running_replicas(load: LoadConfig, settings: ServerSettings, count: int) -> Iterator[Replicas]:
    """`count` replicas with the model loaded, ended with the block.

    Where RAY_ADDRESS names a cluster they run in it, else on this machine, whose cores they share.
    Raises ServerError where Ray is not installed or the model cannot be loaded.
    """
    require_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
    import ray
    from ray import serve

    # Its level is set anew by Ray Serve; a filter stays.
    logging.getLogger("ray.serve").addFilter(lambda record: record.levelno >= logging.WARNING)
    joined = CLUSTER_VARIABLE in os.environ
    threads = load.threads or max(1, default_threads() // (1 if joined else count))
    ray.init(**_where(joined, threads * count))
    try:
        serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
        yield Replicas(_deploy(serve, load.replace(threads=threads), settings, count))
    finally:
        with contextlib.suppress(Exception):  # the cluster may have gone first
            serve.delete(NAME)  # a cluster of our own ends with its last program
        ray.shutdown()


def for_replicas(settings: ServerSettings) -> ServerSettings:
    """The settings of replicas: what the front has let in, they answer, on whatever machine."""
    names = (*settings.allowed_hosts, socket.gethostname())
    return settings.replace(allowed_hosts=names)


def _where(joined: bool, cores: int) -> dict[str, Any]:
    common = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": NAME}
    if joined:
        return common
    return common | {
        "num_cpus": cores,
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
        "object_store_memory": 100_000_000,  # only messages pass through it
    }


def _deploy(serve: Any, load: LoadConfig, settings: ServerSettings, count: int) -> DeploymentHandle:
    from app.replicas.replica import Replica

    deployment = serve.deployment(
        Replica,
        name="model",
        num_replicas=count,
        # The replica itself refuses what is too much, in the words of the interface.
        max_ongoing_requests=2 * (settings.max_active + settings.max_queue),
        ray_actor_options={"num_cpus": load.threads},
        health_check_period_s=_CHECK_S,
        graceful_shutdown_timeout_s=settings.drain,
    )
    try:
        return serve.run(
            deployment.bind(load.as_dict(), for_replicas(settings).as_dict()),
            name=NAME,
            route_prefix=None,
        )
    except RuntimeError as error:
        raise ServerError(
            f"the replicas did not start ({error}); try `python main.py serve` without --replicas, "
            "which says more"
        ) from error
