"""A real browser for tests of the hub's page: Debian's Chromium without a window, steered by Playwright."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image
from playwright.async_api import ConsoleMessage, Page, Request, async_playwright

DESKTOP = (1280, 1000)
PHONE = (390, 844)

SCREENSHOTS = Path(__file__).resolve().parent.parent / "docs/screenshots"
SCREENSHOT_BYTES_MAX = 150_000
COLOURS = 255


def chromium() -> str:
    """Path of the browser; without it the test fails: `make setup` brings it."""
    found = shutil.which("chromium")
    if found is None:
        pytest.fail("chromium is not installed: make setup")
    return found


@contextlib.asynccontextmanager
async def opened(
    url: str,
    *,
    size: tuple[int, int] = DESKTOP,
    scheme: Literal["light", "dark"] = "light",
    wait: bool = True,
) -> AsyncIterator[Page]:
    """The page at a URL in a fresh browser; fails if it asked elsewhere, broke its policy or threw anything.

    Args:
        url: of the hub, without a slash at its end, or `/#/VOLUME` below it.
        size: of the window, pixels.
        scheme: that the operator prefers.
        wait: until it is live.
    """
    problems: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        # The browser logs each refusal of the hub by itself: those are looked at where they are provoked.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            problems.append(message.text)

    def asked(request: Request) -> None:
        if not request.url.startswith(f"{url.partition('/#')[0]}/"):
            problems.append(f"asked {request.url}")

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        context = await browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, has_touch=size == PHONE
        )
        context.set_default_timeout(45_000)
        page = await context.new_page()
        page.on("console", heard)
        page.on("request", asked)
        page.on("pageerror", lambda error: problems.append(str(error)))
        try:
            await page.goto(url)
            if wait:
                await page.wait_for_selector("#link[data-state=live]")
            yield page
        finally:
            await browser.close()
    assert not problems, "\n".join(problems)


async def text_of(page: Page, selector: str) -> str:
    """What an element says."""
    return await page.locator(selector).inner_text()


async def fact(page: Page, of: str, term: str) -> str:
    """The value beside a term in a list of facts."""
    return await page.locator(f"{of} div[data-key='{term}'] dd").inner_text()


async def photograph(page: Page, name: str, **more: Any) -> None:
    """A picture for the docs, where the environment asks for it (`REPHUB_SCREENSHOTS=1`)."""
    if not os.environ.get("REPHUB_SCREENSHOTS"):
        return
    SCREENSHOTS.mkdir(exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    await page.screenshot(path=path, **more)
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(COLOURS)  # a third of the size, and nobody sees it
    few.save(path, optimize=True)
    assert path.stat().st_size < SCREENSHOT_BYTES_MAX, path
