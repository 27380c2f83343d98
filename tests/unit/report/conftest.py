"""One browser for all tests of a worker that look at pages."""

import pytest
from browser import Browser, chromium


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    executable = chromium()
    if executable is None:
        pytest.skip("no Chromium on this machine; install chromium to look at the pages")
    browser = Browser(executable, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()
