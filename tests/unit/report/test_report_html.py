"""summary.html: sound HTML, nothing loaded from anywhere, the culprit on the first screen."""

from html.parser import HTMLParser

import pytest
from examples import (
    EXAMPLES,
    corrupted_block,
    dead_link,
    empty,
    failed_bringup,
    green,
    network_only,
)

from pd_validate.catalogue import CATALOGUE
from pd_validate.findings import Finding, Verdict, Where
from pd_validate.report import write_reports
from pd_validate.report.record import HostNode, InstanceNode, Npu, Ping, RunRecord
from pd_validate.report.summary_html import headline, summary_html
from pd_validate.report.summary_md import summary_md
from pd_validate.spec.models import Role

VOID = {"meta", "br", "hr", "col"}


class Checker(HTMLParser):
    """Collects what is wrong with a page: tags that do not match, ids, loads, links."""

    def __init__(self):
        super().__init__()
        self.open_tags, self.errors, self.ids, self.links, self.loads = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open_tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            elif name == "href":
                self.links.append(value)
            elif name in ("src", "srcset", "data", "action", "xlink:href") or name.startswith("on"):
                self.loads.append((tag, name, value))
        if tag in ("script", "link", "iframe", "img", "object", "form"):
            self.loads.append((tag, "", ""))

    def handle_endtag(self, tag):
        if not self.open_tags or self.open_tags.pop() != tag:
            self.errors.append(f"</{tag}> at {self.getpos()}")


def check(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    return checker


@pytest.mark.parametrize("name", EXAMPLES)
def test_well_formed_and_self_contained(name):
    page = summary_html(EXAMPLES[name]())
    found = check(page)
    assert (found.errors, found.open_tags) == ([], [])
    assert found.loads == []
    assert "url(" not in page
    assert "@import" not in page
    assert len(found.ids) == len(set(found.ids))
    inner = [link[1:] for link in found.links if link.startswith("#")]
    assert set(inner) <= set(found.ids)
    outer = [link for link in found.links if not link.startswith("#")]
    assert outer == [attachment.path for attachment in EXAMPLES[name]().attachments]


def test_text_of_a_host_cannot_become_a_tag():
    record = dead_link()
    record.findings = [
        Finding(
            id="engine.exited",
            where=Where(host="d1", file="<script>alert(1)</script>"),
            got="</pre><img src=x onerror=alert(2)>",
            evidence=("<b>&amp;</b>",),
        )
    ]
    record.environment['<i>"'] = "<style>"
    found = check(summary_html(record))
    assert (found.errors, found.loads) == ([], [])
    assert "&lt;script&gt;" in summary_html(record)
    assert "&lt;b&gt;&amp;amp;&lt;/b&gt;" in summary_html(record)


def test_a_whole_log_as_evidence_does_not_swell_the_page():
    record = dead_link()
    small = len(summary_html(record))
    finding = record.findings[0].model_copy(update={"evidence": ("line\n" * 1_000_000,)})
    record.findings[0] = finding
    assert len(summary_html(record)) < small + 30_000


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (dead_link(), "d1 npu6: The RoCE port of the NPU has no carrier."),
        (
            corrupted_block(),
            "d2 decode-2 rank 1 layer 17 block 482: "
            "KV that arrived is not the KV that was produced.",
        ),
        (failed_bringup(), "d1 npu6: Somebody's process runs on the NPU or holds its memory."),
        (green(), "All 25 tests passed."),
        (network_only(), "All 15 tests passed."),
        (
            empty(),
            "The run ended without a verdict: internal error of pytest or the harness.",
        ),
    ],
)
def test_headline_is_the_culprit_or_what_was_proven(record, sentence):
    assert headline(record) == sentence


def test_red_tests_without_findings_are_not_called_passed():
    record = green()
    record.tests[0] = record.tests[0].model_copy(update={"outcome": "failed"})
    record.verdict = Verdict.FAIL
    assert headline(record) == "1 test did not pass, without a finding that explains it."


def test_what_was_not_measured_is_named_and_not_drawn():
    page = summary_html(network_only())
    assert "Not measured in this run: Timeline, KV transfer, Latency, KV cache usage" in page
    assert 'id="kv"' not in page


def test_files_are_written(tmp_path):
    paths = write_reports(dead_link(), tmp_path / "new" / "report", secrets=["cluster.yaml"])
    names = {path.name for path in paths}
    assert names == {"summary.html", "summary.md", "checks.html", "findings.json", "record.json"}
    for path in paths:
        assert "cluster.yaml" not in path.read_text(encoding="utf-8")
    assert "[secret]" in (tmp_path / "new" / "report" / "summary.html").read_text("utf-8")


def test_summary_md_is_short_and_says_it_all():
    text = summary_md(dead_link())
    assert len(text.splitlines()) < 30
    assert text.startswith("## FAIL: d1 npu6: The RoCE port of the NPU has no carrier.")
    assert "- got: link status DOWN since 2026-11-20 08:57:12" in text
    assert "- next step: Check cable, optical module and switch port of this NPU." in text
    assert "- explains: `health.unreachable` × 1, `ping.unreachable` × 8" in text
    assert "python differs: p1: 3.11.13, d1: 3.11.13, d2: 3.11.12" in text


def test_summary_md_shows_text_as_it_is():
    record = dead_link()
    record.findings = [Finding(id="engine.exited", got="a|b <b>*x*</b>\n`y`" + "z" * 1000)]
    line = next(li for li in summary_md(record).splitlines() if li.startswith("- got"))
    assert line.startswith(r"- got: a\|b \<b\>\*x\*\</b\> \`y\`zzz")
    assert line.endswith("…")


def test_a_large_cluster_stays_small_enough_to_mail():
    hosts = [f"h{number:02d}" for number in range(16)]
    devices = tuple(range(16))
    record = RunRecord(
        cluster="large",
        started=green().started,
        hosts=[HostNode(name=host, devices=devices) for host in hosts],
        instances=[
            InstanceNode(
                name=f"{'prefill' if number < 4 else 'decode'}-{number}",
                role=Role.PREFILL if number < 4 else Role.DECODE,
                host=host,
                devices=devices,
            )
            for number, host in enumerate(hosts)
        ],
        pings=[
            Ping(
                source=Npu(host=a, device=device),
                target=Npu(host=b, device=device),
                sent=3,
                received=0 if (a, device) == ("h03", 5) else 3,
                ms=None if (a, device) == ("h03", 5) else 0.05,
            )
            for a in hosts
            for b in hosts
            for device in devices
            if a != b
        ],
        checks=[
            check.model_copy(update={"where": Where(host=host, device=device)})
            for check in {check.id: check for check in green().checks}.values()
            for host in hosts
            for device in devices
        ],
    )
    page = summary_html(record)
    assert check(page).errors == []
    assert len(page) < 3_000_000
    assert "h03 npu5 to h00 npu5: 0 of 3 back (worst of 16 paths)" in page


def test_a_card_says_what_its_finding_is_about():
    page = summary_html(corrupted_block())
    assert "About <code>kv.corrupt</code>" in page
    assert CATALOGUE["kv.corrupt"].evidence.partition("`")[0] in page
    # The general remedy, since the finding's own hint says something else.
    assert any(f.id == "kv.corrupt" and f.hint for f in corrupted_block().findings)
    assert CATALOGUE["kv.corrupt"].fix.partition("`")[0] in page


def test_latency_says_that_it_is_of_streamed_requests():
    page = summary_html(green())
    assert f"{len(green().requests)} streamed requests, seen by the client" in page
    assert "time to first token, median of streamed" in page


# What a person sees, in a real browser.


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_opens_without_error_or_request(browser, tmp_path, name, dark):
    page_file = tmp_path / f"{name}.html"
    page_file.write_text(summary_html(EXAMPLES[name]()), encoding="utf-8")
    page = browser.open(page_file, dark=dark)
    page.screenshot(tmp_path / f"{name}.png")
    assert page.console == []
    assert page.requests == [page_file.as_uri()]
    assert headline(EXAMPLES[name]()) in page.text()


@pytest.mark.parametrize(
    ("record", "texts"),
    [
        (
            dead_link(),
            ["link.down", "d1 npu6", "link status DOWN since", "Check cable, optical module"],
        ),
        (
            corrupted_block(),
            ["kv.corrupt", "block 482", "digest 03b7aa15", "Take d2 npu7 out of service"],
        ),
        (
            failed_bringup(),
            ["device.in-use", "d1 npu6", "pid 48213 (python3, user li)", "End that process"],
        ),
    ],
    ids=["dead-link", "corrupted-block", "failed-bringup"],
)
def test_culprit_is_on_the_first_screen(browser, tmp_path, record, texts):
    page_file = tmp_path / "page.html"
    page_file.write_text(summary_html(record), encoding="utf-8")
    page = browser.open(page_file, width=1280, height=800)
    box = page.evaluate(
        "(() => { const e = document.querySelector('.finding'), d = e.querySelector('.next');"
        " return [e.innerText, e.getBoundingClientRect().top, d.getBoundingClientRect().bottom]"
        " })()"
    )
    for text in texts:
        assert text in box[0]
    assert box[1] > 0
    assert box[2] < 800
    ladder = page.evaluate("document.querySelector('.culprit .step-name').textContent")
    assert ladder == sorted(record.findings, key=lambda f: f.layer)[0].layer.label


def test_consequences_are_folded_until_asked_for(browser, tmp_path):
    page_file = tmp_path / "page.html"
    page_file.write_text(summary_html(dead_link()), encoding="utf-8")
    page = browser.open(page_file)
    assert "Explains 9 more findings" in page.text()
    assert "ping.unreachable" not in page.text()
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert "ping.unreachable" in page.text()


def test_no_line_breaks_inside_a_name(browser, tmp_path):
    """At any width: each name in the first card and the headline is one box."""
    record = dead_link()
    where = Where(host="gpu-a-07", instance="prefill-1", peer_instance="decode-2")
    told = "from prefill-1 to decode-2 " * 6
    record.findings = [Finding(id="kvlink.failed", where=where, expected=told, got=told)]
    page_file = tmp_path / "page.html"
    page_file.write_text(summary_html(record), encoding="utf-8")
    for width in (390, 430, 470, 800, 1280):
        page = browser.open(page_file, width=width)
        boxes = page.evaluate(
            "[...document.querySelectorAll('h1 .name, .finding .name')]"
            ".map(e => e.getClientRects().length)"
        )
        assert len(boxes) >= 24
        assert set(boxes) == {1}


@pytest.mark.parametrize("name", ["green", "corrupted-block"])
@pytest.mark.parametrize("width", [390, 820, 1280])
def test_nothing_sticks_out_sideways(browser, tmp_path, name, width):
    page_file = tmp_path / "page.html"
    page_file.write_text(summary_html(EXAMPLES[name]()), encoding="utf-8")
    page = browser.open(page_file, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_paper_shows_folded_parts_and_cuts_nothing_off(browser, tmp_path):
    page_file = tmp_path / "page.html"
    page_file.write_text(summary_html(corrupted_block()), encoding="utf-8")
    page = browser.open(page_file, width=720, media="print")
    assert "parity.diverged" in page.text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    too_wide = page.evaluate(
        "[...document.querySelectorAll('svg.picture, table')]"
        ".filter(e => e.getBoundingClientRect().right > 720).length"
    )
    assert too_wide == 0


def test_labels_of_drawings_stay_inside(browser, tmp_path):
    page_file = tmp_path / "page.html"
    page_file.write_text(summary_html(corrupted_block()), encoding="utf-8")
    page = browser.open(page_file)
    outside = page.evaluate(
        "[...document.querySelectorAll('svg.picture')].flatMap(s => {"
        " const box = s.getBoundingClientRect();"
        " return [...s.querySelectorAll('text')].filter(t => {"
        "  const b = t.getBoundingClientRect();"
        "  return b.left < box.left - 1 || b.right > box.right + 1"
        "   || b.top < box.top - 1 || b.bottom > box.bottom + 1;"
        " }).map(t => t.textContent) })"
    )
    assert outside == []


def test_notes_stand_with_the_environment():
    record = green()
    record.environment = {"driver": {"p1": "25.5.1"}}
    record.notes = ["LD_PRELOAD: jemalloc is recommended (speed of the allocator); not set on p1"]
    assert "<li>LD_PRELOAD: jemalloc is recommended" in summary_html(record)
