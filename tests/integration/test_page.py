"""The hub's page in a real browser, on a real stack under load."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import re
import shutil
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from playwright.async_api import Page, Route

from browser import PHONE, fact, opened, photograph, text_of
from qsd import Load, StorageDaemon
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.names import ALERTS_TOPIC
from rephub.schemas import alerts
from stack import Stack, bootstrap, read_uri

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(500)]

SIZE = 64 << 20
VOLUMES = ("orders", "orders-log", "archive")
HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
FOUND = "#picked[aria-busy=false] #point-facts"
DRAW_MS_MAX = 1000
"""Longest time that the page may not react, with ten thousand checkpoints, on two cores that have the load to carry, too."""

HISTORY_SECONDS = 15
"""A volume has so much of a past before a page is opened: points are picked from it."""


@dataclass(frozen=True)
class Site:
    """A stack with volumes that are written to until the tests end."""

    stack: Stack
    web: str
    token: str

    async def run(self, *arguments: str) -> dict[str, Any]:
        return await asyncio.to_thread(self.stack.run, *arguments)

    async def fots(self) -> list[dict[str, Any]]:
        return list((await self.run("fot", "list"))["fots"])


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Three volumes: two are a group and under load, one stays as it is."""
    state_dir = Path(tempfile.mkdtemp(prefix="rh-"))
    stack = Stack(state_dir)
    stop = threading.Event()
    workers: list[threading.Thread] = []
    qsd = None
    try:
        web = stack.run("up", "--detach")["web"]
        qsd = StorageDaemon(state_dir / "q", [SIZE] * len(VOLUMES))
        for number, name in enumerate(VOLUMES):
            group = ("--group", "shop") if name.startswith("orders") else ()
            stack.protect(name, qsd.qmp, f"disk{number}", *group)
        load = Load(qsd.uri(2))
        load("write", start=0, length=65536, seed=1)
        load.close()
        workers = [threading.Thread(target=_write, args=(qsd.uri(number), stop, number)) for number in (0, 1)]
        for worker in workers:
            worker.start()
        time.sleep(1)  # something to see before the checkpoint
        stack.run("checkpoint", "create", "before-upgrade", "--group", "shop")
        while (stack.status("orders")["window_seconds"] or 0) < HISTORY_SECONDS:
            time.sleep(0.5)
        yield Site(stack, web, (state_dir / "web-token").read_text().strip())
    finally:
        stop.set()
        for worker in workers:
            worker.join()
        if qsd is not None:
            qsd.stop()
        stack.down()
        shutil.rmtree(state_dir)


def _write(uri: str, stop: threading.Event, seed: int) -> None:
    """Bursts of two kinds: random data, and numbers, which look like nothing of the sort."""
    load = Load(uri)
    turn = 0
    while not stop.is_set():
        turn += 1
        if (turn + seed) % 3:
            load("numbered", depth=4, count=150, first=turn * 1000, sectors=SIZE // 512, seed=turn)
            stop.wait(1.0)
        else:
            load(
                "scattered",
                size=SIZE,
                length=16384,
                depth=4,
                per_second=120 + 60 * seed,
                seconds=3,
                seed=turn,
            )
    load.close()


async def _until(what: str, condition: Callable[[], Any], seconds: float = 45) -> Any:
    """Ask again until the coroutine's answer is true."""
    deadline = time.monotonic() + seconds
    while not (value := await condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.1)
    return value


async def _give_token(page: Page, token: str) -> None:
    await page.fill("#token", token)
    await page.click("#dialog-yes")


async def _drag(page: Page, start: float, end: float) -> None:
    """Over the strip, from one share of its width to another."""
    box = await page.locator("#strip .u-over").bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    await page.mouse.move(box["x"] + box["width"] * start, y)
    await page.mouse.down()
    await page.mouse.move(box["x"] + box["width"] * end, y, steps=8)
    await page.mouse.up()


async def test_a_point_is_picked_tested_looked_into_and_let_go(site: Site, tmp_path: Path) -> None:
    async with opened(f"{site.web}/#/orders") as page:
        assert "3 of 3 volumes protected" in await text_of(page, "#summary")
        assert await text_of(page, "#volume-title") == "orders"
        numbers = page.locator("li.volume[data-key=orders] .numbers")
        before = await numbers.inner_text()

        async def moved() -> bool:
            return await numbers.inner_text() != before

        await _until("live numbers move", moved)

        await page.click("#spans button:text-is('1 min')")
        await _drag(page, 0.95, 0.8)
        await page.wait_for_selector(FOUND)
        offset = int((await fact(page, "#point-facts", "Offset")).replace(",", ""))
        found = await site.run("timeline", "orders")
        ranges = [item for item in found["ranges"] if item["kind"] == "restorable"]
        assert any(item["first_offset"] <= offset <= item["last_offset"] for item in ranges)
        assert "events" in await fact(page, "#point-facts", "Would be lost")

        # Without the token nothing happens, and it is not kept.
        await page.click("#start-fot")
        await _give_token(page, "wrong")
        await page.wait_for_selector("#dialog .bad:text('the token is wrong')")
        await page.click("#dialog-no")
        assert await site.fots() == []
        assert await text_of(page, "#outcome") == "Nothing was started."

        await page.click("#start-fot")
        await _give_token(page, site.token)
        uri = await page.locator("#fot-list .uri:not(:empty)").inner_text()
        (test,) = await site.fots()
        assert (test["uri"], test["volume"], test["offset"]) == (uri, "orders", offset)
        info = await asyncio.to_thread(
            subprocess.run, ["nbdinfo", "--json", uri], capture_output=True, check=True
        )
        assert json.loads(info.stdout)["exports"][0]["export-size"] == SIZE
        await photograph(page, "web-fot", full_page=True)

        await page.click(".fot .stop")
        await page.click("#dialog-yes")
        await page.wait_for_selector("#no-fots", state="visible")
        assert await site.fots() == []
        # The token stays with the tab.
        await page.check("#read-only")
        await page.click("#start-fot")
        await page.locator("#fot-list .uri:not(:empty)").wait_for()
        (test,) = await site.fots()
        assert test["read_only"] is True
        await page.click(".fot .stop")
        await page.wait_for_selector("#no-fots", state="visible")
        assert await page.evaluate("Object.keys(localStorage).length + document.cookie.length") == 0


async def test_a_group_is_tested_at_a_checkpoint_that_all_have(site: Site) -> None:
    async with opened(f"{site.web}/#/orders-log") as page:
        await page.fill("#wanted", "before-upgrade")
        await page.click("#go button")
        await page.wait_for_selector(FOUND)
        assert await fact(page, "#point-facts", "Checkpoint") == "before-upgrade"
        await page.select_option("#target", "group")
        await page.check("#read-only")
        await page.click("#start-fot")
        await _give_token(page, site.token)
        await page.locator("#fot-list .uri:not(:empty)").nth(1).wait_for()
        (test,) = await site.fots()
        assert [view["volume"] for view in test["volumes"]] == ["orders", "orders-log"]
        assert {view["resolved"]["checkpoint"] for view in test["volumes"]} == {"before-upgrade"}
        await page.click(".fot .stop")
        await page.wait_for_selector("#no-fots", state="visible")


async def test_the_keys_alone_are_enough(site: Site) -> None:
    async with opened(f"{site.web}/#/orders") as page:
        slider = page.locator("#slider")

        async def words() -> str:
            return await slider.get_attribute("aria-valuetext") or ""

        async def press(*keys: str) -> int:
            """The offset after it."""
            before = await words()
            for key in keys:
                await page.keyboard.press(key)

            async def changed() -> bool:
                return await words() != before

            await _until(f"{keys} move the point", changed)
            found = re.match(r"offset (\d+)", await words())
            assert found
            return int(found[1])

        for _ in range(60):  # from the top of the page, by Tab
            await page.keyboard.press("Tab")
            if await page.evaluate("document.activeElement.id") == "slider":
                break
        assert await page.evaluate("document.activeElement.id") == "slider"
        first = await press("Home")
        assert first == (await site.run("status", "orders"))["volumes"][0]["earliest_offset"]
        latest = await press("End")
        assert latest > first
        assert await press("ArrowDown") == latest - 1
        assert await press("ArrowUp") == latest
        assert await press("PageUp") < latest
        assert "checkpoint" in await words()
        width = await page.evaluate("document.querySelector('#slider').getAttribute('aria-valuenow')")
        assert await press("Shift+ArrowLeft") < latest
        assert float(
            await page.evaluate("document.querySelector('#slider').getAttribute('aria-valuenow')")
        ) < float(width)
        for key in ("+", "+", "-"):
            await page.keyboard.press(key)
        # On to the button by keys, and out of the question by Escape.
        for _ in range(30):
            await page.keyboard.press("Tab")
            if await page.evaluate("document.activeElement.id") == "start-fot":
                break
        await page.keyboard.press("Enter")
        await page.wait_for_selector("#dialog[open]")
        assert await page.evaluate("document.activeElement.id") == "token"
        await page.keyboard.press("Escape")
        await page.wait_for_selector("#dialog", state="hidden")
        assert await site.fots() == []


async def test_a_promote_is_planned_and_done_only_when_it_is_confirmed(site: Site) -> None:
    async with opened(f"{site.web}/#/archive") as page:
        await page.click("#latest")
        await page.wait_for_selector(FOUND)
        await page.click("#plan-promote")
        await _give_token(page, site.token)
        await page.locator("#typed").wait_for()
        assert await page.locator("#dialog-yes").is_disabled()
        assert "archive" in await text_of(page, "#dialog-body")
        await photograph(page, "web-promote")
        await page.fill("#typed", "archiv")
        assert await page.locator("#dialog-yes").is_disabled()
        await page.click("#dialog-no")
        assert (await site.run("status", "archive"))["volumes"][0]["state"] == "protected"

        headers = {"Authorization": f"Bearer {site.token}"}
        async with aiohttp.ClientSession(site.web, headers=headers) as client:
            body = {"volume": "archive", "latest": True, "confirmed_offsets": {"archive": 1 << 40}}
            async with client.post("/api/promote", json=body) as answer:
                assert answer.status == 409
                assert (await answer.json())["error"]["offsets"].keys() == {"archive"}
        assert (await site.run("status", "archive"))["volumes"][0]["state"] == "protected"

        await page.click("#plan-promote")
        await page.fill("#typed", "archive")
        await page.click("#dialog-yes")
        await page.wait_for_selector("#volume-state[data-state=promoted]")
        status = (await site.run("status", "archive"))["volumes"][0]
        assert status["state"] == "promoted"


async def _raise(site: Site, rule: str, text: str, subject: str, offset: int | None) -> alerts.AlertRaised:
    now = time.time_ns() // 1000
    raised = alerts.AlertRaised(
        id=str(uuid.uuid4()), at=now, source="monitor/test", alert=str(uuid.uuid4()), rule=rule,
        subject_kind="volume", subject=subject, stats_offset=0, severity="critical", since=now - 20_000_000, text=text,
        hint="look at the volume by a fail-over test at the last good point", value=0.97, threshold=0.5, unit="ratio",
        last_good_offset=offset, last_good_at=now - 21_000_000,
    )  # fmt: skip
    await _append(site, raised)
    return raised


async def _append(site: Site, record: alerts.Record) -> None:
    log = KafkaControlLog(bootstrap(site.stack), topics=(ALERTS_TOPIC,))
    await log.start()
    await log.append(ALERTS_TOPIC, record)
    await log.close()


async def _clear(site: Site, raised: alerts.AlertRaised) -> None:
    shared = ("source", "alert", "rule", "subject_kind", "subject", "stats_offset", "text")
    fields = {name: getattr(raised, name) for name in shared}
    await _append(
        site, alerts.AlertCleared(id=str(uuid.uuid4()), at=raised.at + 1, raised_at=raised.at, **fields)
    )


async def test_hostile_texts_are_shown_as_they_are(site: Site) -> None:
    """Of an alert by Kafka; and names that the hub would never take, as if it had been broken into."""

    async def forge(route: Route) -> None:
        answer = await route.fetch()
        document = await answer.json()
        forged = document["volumes"][0] | {
            "volume": HOSTILE,
            "group": HOSTILE,
            "reason": HOSTILE,
            "agent": HOSTILE,
        }
        document["volumes"].append(forged)
        document["parts"].append(document["parts"][0] | {"name": HOSTILE})
        await route.fulfill(json=document)

    raised = await _raise(site, "page-hostile", HOSTILE, "orders", None)
    try:
        async with opened(site.web) as page:
            texts = page.locator(".alert .text", has_text="onerror")
            await texts.wait_for()
            assert await texts.inner_text() == HOSTILE
            await page.route("**/api/live*", forge)
            stream = {"status": 200, "content_type": "text/event-stream", "body": ": nothing comes\n\n"}
            await page.route("**/api/stream", lambda route: route.fulfill(**stream))
            await page.reload()
            row = page.locator("li.volume .name", has_text="onerror").first
            await row.wait_for()
            assert await row.inner_text() == HOSTILE
            await row.click()
            await page.wait_for_selector("#volume-title:has-text('onerror')")
            assert await page.evaluate("window.hacked") is None
            assert await page.locator("main img, main script").count() == 0
    finally:
        await _clear(site, raised)
    async with aiohttp.ClientSession(site.web) as client:
        for path in (f"/api/volumes/{HOSTILE}/timeline", f"/api/volumes/{HOSTILE}/point?latest"):
            async with client.get(path) as answer:
                assert answer.status in (400, 404)
                assert answer.content_type in ("application/json", "text/plain")


async def test_a_foreign_page_and_one_without_a_token_change_nothing(site: Site) -> None:
    point = {"volume": "orders", "latest": True}
    refusals: list[tuple[dict[str, str], int]] = [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Bearer {site.token}", "Host": "rebound.example"}, 403),
        ({"Authorization": f"Bearer {site.token}", "Origin": "http://foreign.example"}, 403),
    ]
    async with aiohttp.ClientSession(site.web) as client:
        for headers, status in refusals:
            for method, path in (
                ("POST", "/api/fots"),
                ("POST", "/api/promote"),
                ("DELETE", "/api/fots/fot-1"),
            ):
                async with client.request(method, path, json=point, headers=headers) as answer:
                    assert answer.status == status
                    assert (await answer.json())["error"]["hint"]
        for path in ("/", "/api/live", "/api/stream"):
            async with client.get(path, headers={"Host": "rebound.example"}) as answer:
                assert answer.status == 403
        async with client.delete(
            "/api/fots/fot-1", headers={"Authorization": f"Bearer {site.token}"}
        ) as answer:
            assert answer.status == 404
    assert await site.fots() == []


def _many(count: int) -> dict[str, Any]:
    """A timeline of so many checkpoints over a day, and a gap for each hundred of them."""
    end = dt.datetime.now(dt.UTC)
    at = [(end - dt.timedelta(seconds=86_400 * (1 - number / count))).isoformat() for number in range(count)]
    checkpoints = [
        {"checkpoint": f"c{number}", "offset": number * 10, "captured_at": at[number], "kind": "crash", "periodic": number % 10 > 0}
        for number in range(count)
    ]  # fmt: skip
    ranges = [
        {"first_offset": number * 10, "last_offset": number * 10 + 499, "from_at": at[number], "to_at": at[number + 49],
         "kind": "gap" if number % 100 else "restorable", "reason": ""}
        for number in range(0, count, 50)
    ]  # fmt: skip
    return {"volume": "orders", "ranges": ranges, "checkpoints": checkpoints, "epochs": []}


async def test_ten_thousand_events_and_checkpoints_stay_responsive(site: Site) -> None:
    """The hub would thin them for the screen: here it does not, and the browser has to draw them all."""

    async def has_them() -> bool:
        return bool((await site.run("status", "orders"))["volumes"][0]["head_offset"] >= 10_000)

    await _until("ten thousand events", has_them, 180)
    async with aiohttp.ClientSession(site.web) as client:
        began = time.monotonic()
        async with client.get("/api/volumes/orders/point?offset=5000") as answer:
            document = await answer.json()
        assert time.monotonic() - began < 2
        assert answer.status == 200
        assert document["lost_events"] > 4000
    async with opened(f"{site.web}/#/orders") as page:
        many = json.dumps(_many(10_000))
        await page.route(
            "**/api/volumes/orders/timeline*",
            lambda route: route.fulfill(body=many, content_type="application/json"),
        )
        await page.evaluate(
            "() => { window.longest = 0; new PerformanceObserver((list) => { for (const task of list.getEntries()) "
            "window.longest = Math.max(window.longest, task.duration); }).observe({type: 'longtask'}); }"
        )
        async with page.expect_response("**/api/volumes/orders/timeline*"):
            await page.click("#spans button:text-is('24 h')")
        for start in (0.9, 0.2, 0.6):
            await _drag(page, start, start - 0.15)
        await page.wait_for_selector("#picked > *")
        drawn = await page.evaluate("window.longest")
        print(f"longest task with 10,000 checkpoints: {drawn:.0f} ms")
        assert drawn < DRAW_MS_MAX


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", ["desktop", "phone"])
async def test_it_fits_and_can_be_read(site: Site, device: str, scheme: Any) -> None:
    size = PHONE if device == "phone" else (1280, 1000)
    offset = (await site.run("status", "orders"))["volumes"][0]["latest_offset"]
    rule = f"page-{device}-{scheme}"
    raised = await _raise(
        site, rule, "looks encrypted: 97 % of what is written, before it was 31 %", "orders", offset
    )
    try:
        async with opened(f"{site.web}/#/orders", size=size, scheme=scheme) as page:
            await page.locator(".alert", has_text=rule).locator("button").click()
            await page.wait_for_selector(FOUND)
            assert await fact(page, "#point-facts", "Offset") == f"{offset:,}"
            await page.click("#spans button:text-is('1 min')")
            await page.wait_for_timeout(2500)  # the charts of a picture have something to show
            await photograph(page, f"web-{device}-{scheme}", full_page=device == "desktop")
            widths = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert widths[0] <= widths[1], "nothing is cut off at the side"
            assert await page.evaluate(CONTRAST) == []
            small = await page.evaluate(
                "[...document.querySelectorAll('button')].filter((one) => one.offsetParent && one.offsetHeight < 24)"
                ".map((one) => one.textContent)"
            )
            assert small == [], "a finger needs 24 pixels (WCAG 2.5.8)"
            background = await page.evaluate("getComputedStyle(document.body).backgroundColor")
            dark = sum(int(part) for part in re.findall(r"\d+", background)[:3]) < 3 * 128
            assert dark == (scheme == "dark")
            if device == "phone":
                await page.locator("#volume").scroll_into_view_if_needed()
                box = await page.locator("#strip .u-over").bounding_box()
                assert box is not None
                assert box["width"] > PHONE[0] * 0.6
                before = await fact(page, "#point-facts", "Offset")
                await page.touchscreen.tap(box["x"] + box["width"] * 0.5, box["y"] + 20)

                async def moved() -> bool:
                    return (
                        await page.locator("#point-facts").count() == 0
                        or await fact(page, "#point-facts", "Offset") != before
                    )

                await _until("a finger moves the point", moved)
    finally:
        await _clear(site, raised)


CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, number) => sum + part * [0.2126, 0.7152, 0.0722][number], 0);
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const colour = rgb(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !one.offsetParent || one.disabled) continue;
    const [text, back] = [light(rgb(getComputedStyle(one).color)), light(behind(one))];
    const ratio = (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
    if (ratio < 4.5) found.push(`${one.tagName} ${one.className} ${ratio.toFixed(2)} ${one.textContent.slice(0, 30)}`);
  }
  return found;
}"""
"""Texts with less than the contrast of 4.5 that WCAG 1.4.3 asks for."""


async def test_what_is_read_back_is_the_point(site: Site, tmp_path: Path) -> None:
    """The page's test of a quiet point serves what the journal holds."""
    async with opened(f"{site.web}/#/orders") as page:
        await page.fill("#wanted", "before-upgrade")
        await page.click("#go button")
        await page.wait_for_selector(FOUND)
        await page.check("#read-only")
        await page.click("#start-fot")
        await _give_token(page, site.token)
        uri = await page.locator("#fot-list .uri:not(:empty)").inner_text()
        by_page = await asyncio.to_thread(read_uri, uri, tmp_path / "page")
        by_cli = await asyncio.to_thread(site.stack.read_view, "orders", "--checkpoint", "before-upgrade")
        assert by_page == by_cli
        await page.locator(".fot .stop").first.click()
        await page.wait_for_selector("#no-fots", state="visible")
