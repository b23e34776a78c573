"""The hub as a Faust application: brings records of the control log to `runtime.Hub`, serves its state.

`rephub hub` runs it (`main.py`); `faust -A rephub.consumers.hub.app worker` does as well, with settings from the
environment. Faust's own web server is off: our status server has the same pages in every daemon, bound to the
loopback address, and no page that shows tables.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from rephub.consumers.faust_parts import CODEC, DaemonApp, options
from rephub.consumers.hub import metrics
from rephub.consumers.hub.fleet import serve_requests
from rephub.consumers.hub.guard import Guard, web_token
from rephub.consumers.hub.live import Live
from rephub.consumers.hub.liveness import Liveness
from rephub.consumers.hub.provider import provider_of
from rephub.consumers.hub.runtime import Hub, now_us
from rephub.consumers.hub.web import Web
from rephub.core.config import Settings, load_settings
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.http import StatusServer, document_response
from rephub.core.journal.kafka import KafkaJournalStore
from rephub.core.names import COMMANDS_TOPIC, EVENTS_TOPIC
from rephub.core.samples import process_samples
from rephub.infra.files import private_dir
from rephub.infra.kafka import reach
from rephub.infra.kafka.topics import JOURNAL_CONFIG, create_topics, replication
from rephub.projections.catalogue import Catalogue
from rephub.schemas import commands as cmd

APP_ID = "rephub-hub"
"""Also the consumer group: one hub at a time works for a Kafka."""

REFRESH_SECONDS = 0.5
"""How long a page waits for the log's head; `rephub status` waits 1.5 s for the page."""

log = logging.getLogger(__name__)


class HubApp(DaemonApp):
    """The application: its start makes the topics, folds the log and takes over before Faust consumes."""

    logger = logging.getLogger("faust.hub")
    """Where Faust reports its own steps; not ours, see `main.py`."""
    hub: Hub | None = None
    live: Live
    in_charge: bool = False

    async def on_first_start(self) -> None:
        """Take over; raises what `Hub.start` raises."""
        await super().on_first_start()
        bootstrap = self.settings.kafka.bootstrap
        await self.server.start()
        await create_topics(bootstrap)
        replicas, in_sync = replication((await reach.ask(bootstrap)).brokers)
        config = {**JOURNAL_CONFIG, "min.insync.replicas": str(in_sync)}
        journals = KafkaJournalStore(bootstrap, topic_config=config, replication_factor=replicas)
        self.journals = journals
        liveness = Liveness(self.settings.redis.url)
        self.hub = Hub(
            self.settings.hub.id,
            self.settings.hub_dir,
            KafkaControlLog(bootstrap),
            journals.admin(),
            silent=liveness.silent,
            gone=liveness.gone,
            lost_seconds=self.settings.hub.diskbox_lost_seconds,
        )
        self.failing = self.hub
        await self.hub.start()
        self.in_charge = True
        self.add_ending(
            self.hub.react_for_ever(),
            liveness.watch(self.hub.catalogue),
            serve_requests(self.hub, provider_of(self.settings)),
            self.live.run(),
            self.samples.run(),
        )

    async def on_stop(self) -> None:
        """Stop consuming first, then write the snapshot and let go."""
        await super().on_stop()
        if self.hub is not None:
            await self.hub.close()
            await self.journals.close()
        await self.server.stop()

    @property
    def ready(self) -> bool:
        """Whether commands are answered: in charge, and Faust has its partitions and lets records through."""
        return self.in_charge and self.flow_control.is_active() and not self.rebalancing

    def status(self) -> dict[str, Any]:
        """The `/status` document."""
        document = {
            "kind": "hub",
            "id": self.settings.hub.id,
            "pid": os.getpid(),
            "ready": self.ready,
            "at": now_us(),
        }
        return document | (self.hub.status() if self.hub else {})

    def catalogue(self) -> Catalogue:
        """What the hub has folded; nothing before it has begun."""
        return self.hub.catalogue if self.hub else Catalogue()

    async def serve_catalogue(self, _request: web.Request) -> web.Response:
        """`/api/catalogue`: all that the hub knows, up to the log's head if that answers."""
        if self.hub is None:
            return document_response({})
        await self.hub.refresh(REFRESH_SECONDS)
        return document_response(self.hub.catalogue.summary())


def build(settings: Settings) -> HubApp:
    """The application for these settings, with its directory and token; nothing is started yet."""
    private_dir(settings.hub_dir)
    app = HubApp(APP_ID, **options(settings, APP_ID, settings.hub_dir))
    app.settings = settings
    app.live = Live(settings.kafka.bootstrap, app.catalogue)
    app.samples = process_samples(settings, "hub", settings.hub.id)
    guard = Guard(web_token(settings.state_dir), (settings.hub.host, *settings.hub.names))
    routes = {
        "/api/catalogue": app.serve_catalogue,
        "/api/live": guard.reads(app.live.serve_live),
        "/api/stream": guard.reads(app.live.serve_stream),
    }
    page = Web(settings.kafka.bootstrap, settings.hub.id, app.catalogue, lambda: app.ready, guard)
    app.server = StatusServer(
        settings.hub.host,
        settings.hub.port,
        app.status,
        routes,
        further=page.routes(),
        registry=metrics.registry(app),
    )
    _add_agents(app)
    return app


def _add_agents(app: HubApp) -> None:
    topics = {
        name: app.topic(name, key_type=bytes, value_serializer=CODEC, allow_empty=True)
        for name in (EVENTS_TOPIC, COMMANDS_TOPIC)
    }

    async def fold_events(stream: Any) -> AsyncIterator[None]:
        async for event in stream.events():
            hub = app.hub
            assert hub is not None
            try:
                await hub.bring(event.message.offset, event.value)
            except Exception as error:  # noqa: BLE001 - whatever it is ends the hub, with its reason
                hub.fail(error)
            yield

    async def answer_commands(stream: Any) -> AsyncIterator[None]:
        async for event in stream.events():
            hub = app.hub
            assert hub is not None
            if isinstance(event.value, cmd.RECORDS):
                try:
                    await hub.answer(event.value)
                except Exception as error:  # noqa: BLE001 - whatever it is ends the hub, with its reason
                    hub.fail(error)
                    # Never acknowledged, so that the next hub gets the command again.
                    await asyncio.Event().wait()
            yield

    app.agent(topics[EVENTS_TOPIC], name="fold_events")(fold_events)
    app.agent(topics[COMMANDS_TOPIC], name="answer_commands")(answer_commands)


def __getattr__(name: str) -> Any:
    """`app`, made when Faust's own command asks for it."""
    if name == "app":
        globals()["app"] = build(load_settings())
        return globals()["app"]
    raise AttributeError(name)
