"""Clients that we did not write see one plain server: the official OpenAI client, vLLM's bench."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import httpx
import pytest

from pd_validate.checks.proxying import check_benchmark, check_same_texts
from pd_validate.findings import Where
from pd_validate.plugin import Judge
from pd_validate.session import Session
from pd_validate.topology.service import Service
from pd_validate.traffic.benchmark import Workload, run_benchmark
from pd_validate.traffic.client import Client, RequestFailed

if TYPE_CHECKING:
    from openai import OpenAI

pytestmark = pytest.mark.proxy

PROMPT = "Tell me about prefill and decode. 你好"


@pytest.fixture
def where(service: Service) -> Where:
    return Where(host=service.cluster.proxy.host, instance=service.proxy.name)


def texts_of(server: Client) -> Mapping[str, str]:
    """What the official client reads: both endpoints, whole and in pieces.

    Raises RequestFailed where it gets an error instead. What it cannot read is no text.
    """
    openai = pytest.importorskip("openai", reason="pip install openai to try its client")
    client: OpenAI = openai.OpenAI(
        base_url=f"{server.base_url}/v1",
        api_key="none",
        max_retries=0,  # a second try would hide a first failure
        http_client=httpx.Client(timeout=server.timeout, trust_env=False),
    )
    kinds = {
        "completion": completion,
        "completion, streamed": streamed_completion,
        "chat": chat,
        "chat, streamed": streamed_chat,
    }
    texts = {}
    with client:
        for kind, ask in kinds.items():
            try:
                texts[kind] = ask(client, server.model)
            except openai.OpenAIError as error:
                raise RequestFailed(f"{kind}: {error}", server=server.name) from error
            except ValueError:  # an answer that is not JSON
                texts[kind] = ""
    return texts


def completion(client: OpenAI, model: str) -> str:
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=24, temperature=0)
    return answer.choices[0].text


def streamed_completion(client: OpenAI, model: str) -> str:
    pieces = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=24, temperature=0, stream=True
    )
    return "".join(piece.choices[0].text for piece in pieces)


def chat(client: OpenAI, model: str) -> str:
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": PROMPT}],
        max_completion_tokens=24,
        temperature=0,
    )
    return answer.choices[0].message.content or ""


def streamed_chat(client: OpenAI, model: str) -> str:
    pieces = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": PROMPT}],
        max_completion_tokens=24,
        temperature=0,
        stream=True,
    )
    return "".join(piece.choices[0].delta.content or "" for piece in pieces)


def test_official_client(service: Service, where: Where, judge: Judge) -> None:
    """The OpenAI client reads the same through the proxy as from the prefiller alone."""
    alone = texts_of(service.instances[service.prefillers[0]])
    judge(check_same_texts(alone, texts_of(service.proxy), where))


@pytest.mark.perf
def test_vllm_bench_serve(pd: Session, service: Service, where: Where, judge: Judge) -> None:
    """`vllm bench serve` on the first prefiller's host: every request gets all its tokens."""
    cluster = service.cluster
    launch = pd.plan.instances[service.prefillers[0]]
    workload = Workload(requests=48, concurrency=16, prompt_tokens=200, output_tokens=24)
    result = run_benchmark(
        pd.commands[launch.host],
        launch,
        service.proxy.base_url,
        cluster.model.served_name,
        str(cluster.model.path),
        workload,
        directory=pd.run_dirs[launch.host],
        timeout=cluster.timeouts.ready,
    )
    judge(check_benchmark(result, workload, where))
    judge.note(
        f"{result.request_throughput:.1f} requests/s, TTFT {result.median_ttft_ms:.0f} ms, "
        f"TPOT {result.median_tpot_ms:.1f} ms (medians)"
    )
