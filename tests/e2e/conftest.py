"""What every module of this suite ends with: nothing runs, nothing waits, no KV is held."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pd_validate.checks.proxying import check_load_released
from pd_validate.findings import Finding
from pd_validate.run import RunView


@pytest.fixture(scope="module", autouse=True)
def back_to_zero(run: RunView, request: pytest.FixtureRequest) -> Iterator[None]:
    """Each instance is idle again after the module, and the proxy counts no load.

    Not beside other workers (pytest -n), whose requests are under way: there the tests that
    look back at the whole run see it.
    """
    yield
    service = run.running_service()
    if service is None or hasattr(request.config, "workerinput"):
        return  # nothing was started, or what was is known to be sick
    found: list[Finding] = []
    for instance in service.instances:
        found += run.session.check_idle(instance)
    metrics_text, waited = run.session.wait_proxy_idle()
    found += check_load_released(metrics_text, service.where(service.proxy.name), waited=waited)
    if found:
        test = request.node.nodeid
        run.found(test, run.looked_below(found, test))
        pytest.fail("\n".join(map(str, found)), pytrace=False)
