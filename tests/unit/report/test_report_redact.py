"""Secrets do not reach a report; what only looks like one stays."""

import time

import pytest
from examples import EXAMPLES, green

from pd_validate.findings import Finding, Where
from pd_validate.report.redact import STRUCK, Redactor


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("export HF_TOKEN=abcDEF123", "abcDEF123"),
        ("password: 'hunter two'", "hunter two"),
        ("ssh: Password: hunter2", "hunter2"),
        ("A_VERY_LONG_NAME_" * 8 + "TOKEN=abcDEF123", "abcDEF123"),
        ('{"api_key": "k-123456"}', "k-123456"),
        ("curl -H 'Authorization: Bearer eyJhbGciOi.x.y'", "eyJhbGciOi.x.y"),
        ("Authorization=Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ("vllm serve --api-key s3cr3t-value --port 8000", "s3cr3t-value"),
        ("http://user:pa55word@proxy.example:3128", "pa55word"),
        ("sk-abcdefghijklmnop1234", "abcdefghijklmnop1234"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNz\nAAAA\n-----END", "b3BlbnNz"),
        ("-----BEGIN RSA PRIVATE KEY-----\ncut off here b3Bl", "b3Bl"),
    ],
)
def test_shapes_of_secrets_are_struck(text, secret):
    shown = Redactor().text(text)
    assert secret not in shown
    assert STRUCK in shown


@pytest.mark.parametrize(
    "text",
    [
        "64 tokens, 12 tokens/s, max_tokens=100",
        "token 12 = 48 (' 我是')",
        "$ hccn_tool -i 6 -link -g\nlink status: DOWN",
        "digest 9c41e0d7 as prefill-1 rank 1 produced it",
        "http://192.0.0.1:8080/v1/completions",
    ],
)
def test_innocent_text_is_left_alone(text):
    assert Redactor(["pw"]).text(text) == text


def test_known_values_are_struck_longest_first():
    redactor = Redactor(["rosebud", "rosebud-2026"])
    assert redactor.text("sshpass -p rosebud-2026 ssh") == f"sshpass -p {STRUCK} ssh"


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_record_without_secrets_stays_as_it_is(name):
    record = EXAMPLES[name]()
    assert Redactor(["never-used"]).record(record) == record


def test_every_text_of_a_record_is_searched():
    record = green()
    record.environment["HF_TOKEN"] = {"p1": "abc def"}
    record.environment["http_proxy"] = "http://me:pa55word@proxy:3128"
    record.command = "pytest --cluster rosebud.yaml"
    record.leftovers["d1"] = ["file /tmp/rosebud"]
    record.findings.append(
        Finding(
            id="engine.exited",
            where=Where(host="d1", file="/home/rosebud/log"),
            evidence=("password=hunter2 in the log",),
        )
    )
    text = Redactor(["rosebud"]).record(record).to_json()
    for secret in ("rosebud", "pa55word", "hunter2", "abc def"):
        assert secret not in text


@pytest.mark.parametrize(
    "piece", [".", "a.", "x", "token", "token=", "https://", "bearer ", "-----BEGIN ", "a:b@"]
)
def test_long_lines_take_no_longer_than_their_length(piece):
    text = piece * 30_000
    began = time.process_time()
    Redactor(["rosebud"]).text(text)
    # Linear takes a fraction of a second here, quadratic takes minutes.
    assert time.process_time() - began < 5
