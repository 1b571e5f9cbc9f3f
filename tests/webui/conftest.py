"""`make test-web` runs what is marked `web`: a real board and a real browser (browsing.py).

Every page that a test opens is watched: a request to another host, or an error in the console, fails the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import LANGUAGES, QUIET, SLOW, Board, Watched, chromium, start_board, why_not
from projects import fill_project


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `web` skip, saying why, where they cannot run."""
    if reason := why_not():
        for item in items:
            if item.get_closest_marker("web"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One Chromium for all tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium(), args=list(QUIET))
        yield launched
        launched.close()


@pytest.fixture
def watched() -> Iterator[Watched]:
    """What the pages of a test did; checked when it ends."""
    seen = Watched()
    yield seen
    assert not seen.outside, f"requests to other hosts: {seen.outside}"
    assert not seen.errors, f"errors in the console: {seen.errors}"


@pytest.fixture
def open_page(browser: Any, watched: Watched) -> Iterator[Callable[..., Any]]:
    """open_page(url, language="en", theme="light", width=1440) -> playwright page, in a browser of its own."""
    contexts = []

    def opened(url: str, language: str = "en", theme: str = "light", width: int = 1440, height: int = 900) -> Any:
        context = browser.new_context(
            locale=LANGUAGES[language],
            color_scheme=theme,
            viewport={"width": width, "height": height},
            reduced_motion="reduce",
        )
        context.set_default_timeout(30_000 * SLOW)
        contexts.append(context)
        page = context.new_page()
        watched.follow(page)
        page.goto(url)
        page.wait_for_selector("h1")
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> Path:
    """The project that most tests share."""
    return fill_project(tmp_path_factory.mktemp("project"), tiny_tokenizer_dir)


@pytest.fixture(scope="session")
def board(project: Path) -> Iterator[Board]:
    """One board for all tests that do not end it."""
    started = start_board(project)
    yield started
    started.stop()
