"""The proxy: what an engine says reaches the client, and what a client wants reaches an engine."""

from __future__ import annotations

from typing import Any

import pytest
from prompts import tokens

from pd_validate.checks.answers import check_parity, check_served
from pd_validate.checks.proxying import check_event_stream, check_same_status
from pd_validate.findings import Where
from pd_validate.plugin import Judge
from pd_validate.session import Session
from pd_validate.topology.service import Service
from pd_validate.traffic.client import Answer, Client

pytestmark = pytest.mark.proxy

# Options of a request that a proxy must not lose or change on the way.
OPTIONS: dict[str, dict[str, Any]] = {
    "min-tokens": {"min_tokens": 6},
    "stop-string": {"stop": ["a", "e", "<"]},
    "ignore-eos": {"ignore_eos": True},
    "seed": {"temperature": 1.0, "seed": 11},
    "one-token": {"max_tokens": 1},
}


@pytest.fixture
def where(service: Service) -> Where:
    return service.where(service.proxy.name)


def test_health_check(service: Service) -> None:
    """The guide's health check, and the model under its name."""
    status, body = service.proxy.get("/healthcheck")
    assert status == 200, body
    assert service.cluster.model.served_name in service.proxy.models()


@pytest.mark.parametrize("option", OPTIONS)
def test_option_reaches_the_engine(
    pd: Session, service: Service, option: str, where: Where, judge: Judge
) -> None:
    """The same answer as from the prefiller alone, with each of these options."""
    request = {"max_tokens": 24, **OPTIONS[option]}
    alone = service.instances[service.prefillers[0]].complete("The options are", **request)
    through = service.proxy.complete("The options are", **request)
    judge(check_parity(alone, through, where, tolerance=pd.tolerance))


def test_chat_streamed_and_whole(pd: Session, service: Service, where: Where, judge: Judge) -> None:
    """A chat through the proxy, in pieces and whole, equals the prefiller's own."""
    messages = [{"role": "user", "content": "Who are you? 你是谁？"}]

    def ask(client: Client, *, stream: bool) -> Answer:
        return client.chat(messages, max_tokens=24, stream=stream)

    alone = ask(service.instances[service.prefillers[0]], stream=False)
    whole = ask(service.proxy, stream=False)
    streamed = ask(service.proxy, stream=True)
    judge(check_parity(alone, whole, where, tolerance=pd.tolerance))
    judge(check_event_stream(streamed, where))
    judge(check_parity(alone, streamed, where, tolerance=pd.tolerance))


def test_too_long_prompt(service: Service, where: Where, judge: Judge) -> None:
    """A prompt beyond max_model_len: the engine's own refusal, and nothing is lost by it."""
    prompt = tokens(service.cluster.engine.max_model_len + 1, seed=6)
    alone = service.instances[service.prefillers[0]].complete(prompt, max_tokens=4)
    through = service.proxy.complete(prompt, max_tokens=4)
    assert alone.status == 400, f"the engine answered {alone.status}, so this proves nothing"
    judge(check_same_status(alone, through, where))
    judge(check_served(service.proxy.complete("And a good one:", max_tokens=4), where))


def test_wrong_request(service: Service, where: Where, judge: Judge) -> None:
    """An option that the engine refuses: the engine's status and body."""
    alone = service.instances[service.prefillers[0]].complete("x", max_tokens=4, temperature=-1)
    through = service.proxy.complete("x", max_tokens=4, temperature=-1)
    assert not alone.ok, "the engine accepted a negative temperature, so this proves nothing"
    judge(check_same_status(alone, through, where))


@pytest.mark.alone  # waits until the engines are idle
def test_client_leaves_mid_stream(
    pd: Session, service: Service, where: Where, judge: Judge
) -> None:
    """A client that hangs up while its answer streams leaves nothing behind on any instance."""
    for seed in range(4):
        service.proxy.abandon(tokens(300, seed=seed), max_tokens=400, after_events=3)
    for instance in service.cluster.instances:
        judge(pd.check_idle(instance))
    judge(check_served(service.proxy.complete("Still there?", max_tokens=4), where))
