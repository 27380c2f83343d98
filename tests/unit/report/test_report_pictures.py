"""What the drawings claim: states of places and layers, silent paths, bars, scales."""

import re

import pytest
from examples import T0, corrupted_block, dead_link, empty, failed_bringup, green, network_only

from pd_validate.catalogue import Layer
from pd_validate.findings import Finding, Severity, Verdict, Where
from pd_validate.report.markup import Markup, el
from pd_validate.report.pictures.curves import histogram, usage_curves
from pd_validate.report.pictures.draw import ticks
from pd_validate.report.pictures.matrix import matrix
from pd_validate.report.pictures.pings import paths_lost, ping_map
from pd_validate.report.pictures.timeline import timeline
from pd_validate.report.pictures.topology import topology
from pd_validate.report.record import CheckResult, KvUsage, Npu, Outcome, Ping, Span, TestResult
from pd_validate.report.states import State, States
from pd_validate.report.words import capped, count, duration, percentile, size


def npu(host, device):
    return Npu(host=host, device=device)


def instance(record, name):
    return next(i for i in record.instances if i.name == name)


# States of places.


def test_the_culprit_fails_and_those_around_it_only_suffer():
    record = dead_link()
    states = States(record)
    assert states.npu(npu("d1", 6)) is State.FAIL
    assert states.port(npu("d1", 6)) is State.FAIL
    assert states.npu(npu("p1", 0)) is State.AFFECTED  # its pings to d1 npu6 are lost
    assert states.npu(npu("d1", 5)) is State.PASS
    assert states.npu(npu("d2", 2)) is State.UNKNOWN
    assert states.instance(instance(record, "decode-1")) is State.AFFECTED
    assert states.instance(instance(record, "prefill-1")) is State.NONE  # never started


def test_a_warning_shows_and_what_nobody_looked_at_is_not_green():
    states = States(network_only())
    assert states.npu(npu("d2", 3)) is State.WARN
    assert states.npu(npu("d3", 0)) is State.NONE
    assert States(empty()).layer(Layer.LINK).state is State.NONE


def test_a_process_on_an_npu_is_no_fault_of_its_port():
    states = States(failed_bringup())
    assert states.npu(npu("d1", 6)) is State.FAIL
    assert states.port(npu("d1", 6)) is State.PASS
    assert states.host("d1") is State.FAIL  # something was left behind there
    assert states.host("d2") is State.PASS


def test_a_rank_points_to_its_npu():
    record = corrupted_block()
    states = States(record)
    assert states.npu(npu("d2", 7)) is State.FAIL
    assert states.npu(npu("d2", 6)) is State.PASS
    assert states.host("d2") is State.PASS
    assert states.instance(instance(record, "decode-2")) is State.FAIL


def test_kv_links():
    record = corrupted_block()
    prefill = instance(record, "prefill-1")
    states = States(record)
    assert states.kv_link(prefill, instance(record, "decode-1")) is State.PASS
    assert states.kv_link(prefill, instance(record, "decode-2")) is State.FAIL
    dead = dead_link()
    states = States(dead)
    assert states.kv_link(instance(dead, "prefill-1"), instance(dead, "decode-1")) is State.AFFECTED
    quiet = network_only()
    prefill, decode = instance(quiet, "prefill-1"), instance(quiet, "decode-1")
    assert States(quiet).kv_link(prefill, decode) is State.NONE


def test_transfers_whose_content_was_not_compared_are_not_green():
    record = green()
    record.kv_pairs = [pair.model_copy(update={"blocks_compared": 0}) for pair in record.kv_pairs]
    prefill, decode = instance(record, "prefill-1"), instance(record, "decode-1")
    assert States(record).kv_link(prefill, decode) is State.NONE


@pytest.mark.parametrize(
    ("record", "culprit"),
    [
        (dead_link(), Layer.LINK),
        (failed_bringup(), Layer.HOST),
        (corrupted_block(), Layer.KV_DATA),
        (green(), None),
    ],
)
def test_lowest_failed_layer(record, culprit):
    states = States(record)
    failed = [layer for layer in Layer if states.layer(layer).state is State.FAIL]
    assert min(failed, default=None) == culprit


def test_layers_above_a_fault_are_blocked_not_failed():
    states = States(dead_link())
    for layer in (Layer.ENGINE, Layer.KV_LINK, Layer.KV_DATA, Layer.PROXY, Layer.SERVICE):
        assert states.layer(layer).state is State.AFFECTED


def test_a_red_test_without_finding_makes_its_layer_red():
    record = green()
    record.tests.append(TestResult(id="t", outcome=Outcome.FAILED, layer=Layer.PROXY))
    assert States(record).layer(Layer.PROXY).state is State.FAIL


def test_a_red_check_without_finding_makes_its_layer_red():
    record = green()
    record.checks.append(CheckResult(id="c", verdict=Verdict.FAIL, layer=Layer.PLAN))
    assert States(record).layer(Layer.PLAN).state is State.FAIL


def test_leftovers_are_a_layer():
    assert States(green()).layer(Layer.LEFTOVER).state is State.PASS
    assert States(failed_bringup()).layer(Layer.LEFTOVER).state is State.FAIL


def test_anchors_lead_to_the_cause():
    record = dead_link()
    states = States(record)
    root = next(f for f in record.findings if f.id == "link.down")
    assert states.anchor(root) == "f1"
    assert states.anchor_of_id("ping.unreachable") == "f1"
    assert states.anchor_at_npu(npu("d1", 6)) == "f1"
    assert states.anchor_at_npu(npu("d2", 2)) == "f2"
    assert states.anchor_at_npu(npu("d2", 4)) is None


# Drawings.


def titles(drawing):
    return re.findall(r"<title>([^<]*)</title>", drawing)


def test_topology_names_every_part_with_its_state():
    record = dead_link()
    found = titles(topology(record, States(record)))
    assert "d1 npu6: fail, used" in found
    assert "port of d1 npu6: fail" in found
    assert "d1 npu5: pass, not used" in found
    assert "decode-1 (decode): affected" in found
    assert "proxy :8080: affected" in found
    assert "KV prefill-1 to decode-1: affected, not reached" in found


def test_matrix_merges_to_the_worst_and_links_to_the_finding():
    record = dead_link()
    record.checks.append(
        CheckResult(id="link.state", where=Where(host="d1", device=5), verdict=Verdict.UNKNOWN)
    )
    drawing = matrix(record, States(record))
    assert "link.state, d1 npu6: fail" in titles(drawing)
    assert "link.state, d1 npu5: could not measure" in titles(drawing)
    assert "plan, cluster: pass" in titles(drawing)
    assert '<a href="#f1"><g><title>link.state, d1 npu6: fail' in drawing


def test_one_dead_npu_explains_all_silent_paths():
    assert paths_lost(dead_link()) == [(npu("d1", 6), 32, 32)]
    assert paths_lost(green()) == []


def test_silent_paths_of_two_npus_are_told_apart():
    record = green()
    record.pings = [
        Ping(source=npu("p1", a), target=npu("d1", b), sent=3, received=3 * ((a, b) not in lost))
        for lost in [{(0, 0), (0, 1), (0, 2), (1, 3), (2, 3)}]
        for a in range(4)
        for b in range(4)
    ]
    assert paths_lost(record) == [(npu("p1", 0), 3, 4), (npu("d1", 3), 2, 4)]


def test_ping_map_marks_loss_silence_and_slowness():
    record = green()
    fine = Ping(source=npu("p1", 0), target=npu("d1", 0), sent=3, received=3, ms=0.05)
    record.pings = [
        fine,
        fine.model_copy(update={"target": npu("d1", 1), "received": 2}),
        fine.model_copy(update={"target": npu("d1", 2), "received": 0, "ms": None}),
        fine.model_copy(update={"target": npu("d1", 3), "ms": 0.5}),
    ]
    classes = re.findall(r'class="heat (\w+)"', ping_map(record))
    assert classes == ["h0", "loss", "lost", "h4"]


def test_timeline_shows_a_span_that_never_ended():
    record = failed_bringup()
    record.timeline.append(
        Span(host="p1", name="staging", start=T0, end=T0 + 1, note="code is there already")
    )
    found = titles(timeline(record))
    assert "p1: staging, 1 s (code is there already)" in found
    assert "d2: decode-2: graph capture, did not end" in found
    assert "d1: decode-1: load, 71.3 s" in found


def test_timeline_bars_of_one_lane_do_not_overlap():
    record = green()
    record.timeline = [
        Span(host="p1", name=f"step {number}", start=T0 + number, end=T0 + number + 3)
        for number in range(8)
    ]
    bars = [
        tuple(float(value) for value in match)
        for match in re.findall(
            r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"', timeline(record)
        )
    ]
    assert len(bars) == 8
    for number, (x, y, width) in enumerate(bars):
        for other_x, other_y, other_width in bars[number + 1 :]:
            apart = x + width <= other_x + 0.1 or other_x + other_width <= x + 0.1
            assert y != other_y or apart


def test_leaking_instance_is_marked():
    record = green()
    record.kv_usage = [
        KvUsage(instance="prefill-1", samples=((T0, 0.2), (T0 + 9, 0.0))),
        KvUsage(instance="decode-1", samples=((T0, 0.2), (T0 + 9, 0.84))),
    ]
    drawing = usage_curves(record, frozenset({"decode-1"}))
    assert 'class="label leak">decode-1 84.0%<' in drawing
    assert ">prefill-1 0.0%<" in drawing


@pytest.mark.parametrize("values", [[0.2], [0.2, 0.2, 0.2], [0.0, 0.0], [0.001, 10.0]])
def test_histogram_of_odd_samples(values):
    columns = re.findall(r": (\d+)</title>", histogram(values, "TTFT"))
    assert sum(map(int, columns)) == len(values)


# Small tools.


def test_elements_escape_what_is_not_markup():
    assert el("b", "<i>", Markup("<br>"), cls='a"b') == '<b class="a&quot;b">&lt;i&gt;<br></b>'
    assert el("meta", http_equiv="x", charset=None) == '<meta http-equiv="x">'


def test_ticks_are_round():
    assert ticks(103, 8) == [0, 20, 40, 60, 80, 100]
    assert ticks(0.9, 4) == pytest.approx([0, 0.25, 0.5, 0.75])
    assert ticks(0) == [0]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.00048, "480 µs"),
        (0.0124, "12.4 ms"),
        (9.83, "9.83 s"),
        (96.2, "96.2 s"),
        (412.6, "6 min 53 s"),
        (7325, "2 h 2 min"),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_sizes_counts_percentiles():
    assert [size(n) for n in (512, 1_572_864, 7.36e9, 2e15)] == [
        "512 B",
        "1.57 MB",
        "7.36 GB",
        "2,000 TB",
    ]
    assert [count(1, "test"), count(1024, "test"), count(2, "entry", "entries")] == [
        "1 test",
        "1,024 tests",
        "2 entries",
    ]
    assert percentile([1, 2, 3, 4], 0.5) == 2
    assert percentile([1], 0.99) == 1


def test_severity_of_a_host_finding_is_not_lost():
    record = green()
    where = Where(host="d1")
    record.findings = [Finding(id="host.clock-skew", severity=Severity.UNKNOWN, where=where)]
    assert States(record).host("d1") is State.UNKNOWN


def test_capping_keeps_both_ends():
    text = capped("a" * 50 + "b" * 50, limit=30)
    assert text.startswith("a" * 10 + "\n")
    assert text.endswith("\n" + "b" * 20)
    assert "70 characters left out" in text
    assert capped("short", limit=30) == "short"


def test_matrix_shows_places_that_only_a_check_knows_of():
    record = empty()
    record.checks = [
        CheckResult(id="link.state", where=Where(host="d9", device=3), verdict=Verdict.FAIL),
        CheckResult(id="host.clock", where=Where(host="d8"), verdict=Verdict.UNKNOWN),
    ]
    found = titles(matrix(record, States(record)))
    assert "link.state, d9 npu3: fail" in found
    assert "host.clock, d8: could not measure" in found
