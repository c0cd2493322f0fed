"""A real browser clicks through the report and the dashboard of a finished small study.

Needs a Chromium on PATH or in SWEEP_CHROMIUM; where there is none it is skipped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
from pathlib import Path

import pytest

QUESTION = """
[[question]]
text = "Does a larger batch pay?"
parameter = "data.batch"

[[stage1.group]]
name = "A"
"""
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
CHROMIUM = os.environ.get("SWEEP_CHROMIUM") or shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH"),
]


@pytest.fixture
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


@contextlib.contextmanager
def page_of(browser, **options):
    """A page; any error on its console, and any request to another host, fails the test."""
    context = browser.new_context(**options)
    page = context.new_page()
    troubles, hosts = [], set()
    page.on("console", lambda m: troubles.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    yield page
    context.close()
    assert troubles == []
    assert {host.split(":")[0] for host in hosts} <= {"", "127.0.0.1"}


def no_wider_than_the_window(page):
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.long
def test_report_and_dashboard_of_a_finished_study(sweep, wait_until, browser):
    study = sweep.write(few=True)
    sweep.edit(study, '[[stage1.group]]\nname = "A"\n', QUESTION)
    sweep("run", str(study))
    report = sweep.home / "reports" / "trivial" / "report.html"
    look_at_the_report(browser, report)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = sweep.start("dashboard", "--port", str(port))
    address = f"http://127.0.0.1:{port}/dashboard"
    wait_until(
        lambda: address in command.said("out") or command.process.poll() is not None, address
    )
    click_through_the_dashboard(browser, address)
    command.process.send_signal(signal.SIGTERM)
    assert command.finish().code == 0


def look_at_the_report(browser, report: Path):
    for scheme, width in (("light", 1200), ("dark", 390)):
        window = {"width": width, "height": 900}
        with page_of(
            browser, viewport=window, color_scheme=scheme, reduced_motion="reduce"
        ) as page:
            page.goto(report.as_uri())
            assert "reaches val_loss 2" in page.locator("h1").inner_text()
            assert no_wider_than_the_window(page)
            shown = page.locator(".wide svg" if width > 640 else ".narrow svg")
            assert shown.first.is_visible()
            assert not page.locator(
                ".narrow svg" if width > 640 else ".wide svg"
            ).first.is_visible()
            for link in page.locator("nav a").all():
                link.click()
                assert page.url.endswith(link.get_attribute("href"))
            page.keyboard.press("Home")
            page.goto(report.as_uri())
            page.keyboard.press("Tab")  # the first thing that a keyboard reaches
            assert page.evaluate("document.activeElement.textContent") == "Skip to the answer"
            for summary in page.locator("summary").all():
                summary.focus()
                page.keyboard.press("Enter")
            assert page.locator("details:not([open])").count() == 0
            assert page.get_by_text("Does a larger batch pay?").is_visible()
            assert page.get_by_text("Pairs that differ in data.batch alone").is_visible()
            assert no_wider_than_the_window(page)


def click_through_the_dashboard(browser, address):
    with page_of(browser, viewport={"width": 1400, "height": 1000}) as page:
        page.goto(address)
        page.get_by_text("trivial/stage1").first.click()
        page.wait_for_url("**/studies/*", timeout=60_000)
        here = page.url.rstrip("/")
        page.get_by_text("seconds to the target").first.wait_for(timeout=60_000)
        page.get_by_text("val_loss against seconds, target 2").first.wait_for(timeout=60_000)
        page.goto(f"{here}/note")
        page.get_by_text("How to read this page").first.wait_for(timeout=60_000)
        assert page.get_by_text("reaches val_loss 2").first.is_visible()
        page.goto(f"{here}/trials?numbers=0")
        page.get_by_text("config.toml").first.wait_for(timeout=60_000)
        page.get_by_text("outcome").first.wait_for(timeout=60_000)
