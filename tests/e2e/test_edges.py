"""Requests at the edges of what engines and connectors expect: caches, stops, several choices.

Each answer is held against the prefiller alone; the KV of each is audited with all others
at the end of the run.
"""

from __future__ import annotations

import pytest
from prompts import tokens

from pd_validate.checks.answers import check_parity, check_served
from pd_validate.plugin import Judge
from pd_validate.session import Session
from pd_validate.topology.service import Service

pytestmark = pytest.mark.determinism


def test_streamed_by_each_decoder(
    pd: Session, service: Service, decoder: str, judge: Judge
) -> None:
    """The same answer in pieces, without any proxy in between: the stream is the engine's."""
    prefiller, prompt = service.prefillers[0], tokens(70, seed=10)
    alone = service.instances[prefiller].complete(prompt, max_tokens=40, ignore_eos=True)
    streamed = service.disaggregate(
        prefiller, decoder, prompt, max_tokens=40, ignore_eos=True, stream=True
    )
    judge(check_parity(alone, streamed, service.where(decoder, prefiller), tolerance=pd.tolerance))


@pytest.mark.alone  # counts tokens of the engines
@pytest.mark.parametrize("blocks", ["all", "some"])
def test_prefix_that_only_the_decoder_has(
    pd: Session, service: Service, decoder: str, blocks: str, judge: Judge
) -> None:
    """The decoder served the prompt (or its beginning) by itself before: a hit there only.

    With prefix caching off this is the same request twice, which must be as right.
    """
    prefiller, size = service.prefillers[0], service.block_size()
    prompt = tokens(3 * size + 11, seed=11 if blocks == "all" else 12)
    primed = prompt if blocks == "all" else prompt[: 2 * size]
    client = service.instances[decoder]
    judge(check_served(client.complete(primed, max_tokens=2), service.where(decoder)))
    before = service.metrics(decoder)
    through = service.disaggregate(prefiller, decoder, prompt, max_tokens=12)
    alone = service.instances[prefiller].complete(prompt, max_tokens=12)
    judge(check_parity(alone, through, service.where(decoder, prefiller), tolerance=pd.tolerance))
    after = service.metrics(decoder)
    hits = (after.local_hits or 0) - (before.local_hits or 0)
    judge.note(f"{hits} of {len(prompt)} prompt tokens were in the decoder's own cache")


def test_same_prompt_again(pd: Session, service: Service, decoder: str, judge: Judge) -> None:
    """What the prefiller has in its cache is handed over as well as what it computes."""
    prefiller, prompt = service.prefillers[0], tokens(2 * service.block_size(), seed=13)
    first = service.disaggregate(prefiller, decoder, prompt, max_tokens=12)
    where = service.where(decoder, prefiller)
    judge(check_served(first, where))
    again = service.disaggregate(prefiller, decoder, prompt, max_tokens=12)
    judge(check_parity(first, again, where, tolerance=pd.tolerance))


def test_answer_that_ends_at_once(pd: Session, service: Service, judge: Judge) -> None:
    """Its first token ends it: a prefiller that stops there hands nothing over (A40)."""
    prefiller, proxy = service.instances[service.prefillers[0]], service.proxy
    prompt = tokens(200, seed=14)
    first = prefiller.complete(prompt, max_tokens=1)
    assert first.text, "the first token has no text, so no answer can be ended at once"
    # vLLM 0.10 gives no token ids.
    stop = {"stop_token_ids": [*first.token_ids]} if first.token_ids else {"stop": [first.text]}
    alone = prefiller.complete(prompt, max_tokens=8, **stop)
    assert alone.finish_reason == "stop"
    through = proxy.complete(prompt, max_tokens=8, **stop)
    assert (through.status, through.finish_reason) == (200, "stop"), through.error[:300]
    assert through.token_ids == alone.token_ids
    assert through.text == alone.text
    where = service.where(proxy.name)
    judge(check_served(proxy.complete(prompt, max_tokens=8), where))
    judge.note(f"ended by {first.text!r}: {pd.cluster.model.served_name}")


def test_several_choices(service: Service, judge: Judge) -> None:
    """n = 3 with a seed: the same three choices as from the prefiller alone."""
    prompt = tokens(140, seed=15)
    request = {"max_tokens": 8, "n": 3, "temperature": 1.0, "seed": 5}
    alone = service.instances[service.prefillers[0]].complete(prompt, **request)
    several = service.proxy.complete(prompt, **request)
    judge(check_served(several, service.where(service.proxy.name)))
    assert len(alone.texts) == 3, alone.error[:300]
    assert several.texts == alone.texts


def test_text_of_many_scripts(pd: Session, service: Service, judge: Judge) -> None:
    """Characters of one to four bytes, streamed: none is cut or lost on the way."""
    prompt = "Ünïcödé — 你是谁？ 👩‍💻 \u2028 Ω"
    alone = service.instances[service.prefillers[0]].complete(prompt, max_tokens=48)
    where = service.where(service.proxy.name)
    for stream in (False, True):
        through = service.proxy.complete(prompt, max_tokens=48, stream=stream)
        judge(check_parity(alone, through, where, tolerance=pd.tolerance))


def test_echo_of_the_prompt(service: Service, judge: Judge) -> None:
    """`echo` is the engine's to serve: what it answers alone comes through the proxy."""
    request = {"max_tokens": 8, "echo": True, "logprobs": None}
    alone = service.instances[service.prefillers[0]].complete("Say it again:", **request)
    through = service.proxy.complete("Say it again:", **request)
    judge(check_served(through, service.where(service.proxy.name)))
    assert through.text == alone.text
