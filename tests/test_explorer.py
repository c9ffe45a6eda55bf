"""The explorer in a real browser, over a real server: it loads, finds, walks, and has nothing to complain about."""

import shutil
import socket
import threading
import time

import pytest
import uvicorn
from test_api import TOKEN, served

from geobacter_core.api.app import create_app

__all__ = ["served"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def address_of(app):
    """Serve an app in a thread until the generator is closed; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
        assert thread.is_alive()
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def address(served):
    yield from address_of(create_app(served))


@pytest.fixture(scope="module")
def guarded_address(served):
    yield from address_of(create_app(served, [TOKEN]))


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, 800), (390, 844)], ids=["desk", "phone"])
def page(browser, request):
    """A page whose console must stay empty."""
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    complaints = []
    page.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert complaints == []


def click_on_the_map(page, x, y):
    box = page.locator("#map").bounding_box()
    page.mouse.click(box["x"] + box["width"] * x, box["y"] + box["height"] * y)


def test_a_click_finds_places_like_it(page, address):
    page.goto(address)
    page.wait_for_load_state("networkidle")
    assert page.locator("#map img, #map canvas").count() > 4
    click_on_the_map(page, 0.5, 0.35)
    page.wait_for_selector("[data-testid=result]", timeout=30_000)
    page.wait_for_load_state("networkidle")
    n_results = page.locator("[data-testid=result]").count()
    assert 3 <= n_results <= 12  # there is not room for many that are 500 m apart
    picture = page.locator("[data-testid=result] img").first
    ends = time.monotonic() + 30
    # Playwright's own waiting evaluates text in the page, which its policy forbids.
    while not picture.evaluate("image => image.naturalWidth"):
        assert time.monotonic() < ends
        page.wait_for_timeout(100)
    assert f"{n_results} places" in page.inner_text("#status")
    assert "token" not in page.url


def test_two_clicks_make_a_walk_and_a_link_shows_it_again(page, address):
    page.goto(address)
    page.wait_for_load_state("networkidle")
    page.click("#mode-walk")
    click_on_the_map(page, 0.5, 0.3)
    click_on_the_map(page, 0.5, 0.4)
    page.wait_for_selector("[data-testid=step]", timeout=30_000)
    n_steps = page.locator("[data-testid=step]").count()
    assert n_steps == 7
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    page.wait_for_selector("[data-testid=step]", timeout=30_000)
    assert page.locator("[data-testid=step]").count() == n_steps


def test_a_token_is_asked_for_and_stays_out_of_the_address(browser, guarded_address):
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.goto(guarded_address)
    page.wait_for_selector("#token-dialog[open]", timeout=30_000)
    page.fill("#token-dialog input", TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("#token-dialog[open]", state="hidden", timeout=30_000)
    page.wait_for_selector("#map img, #map canvas", timeout=30_000)
    click_on_the_map(page, 0.6, 0.4)
    page.wait_for_selector("[data-testid=result]", timeout=30_000)
    assert TOKEN not in page.url
    context.close()
