"""pytest options, fixtures and hooks. Thin: what they do lives in session.py and below.

One `Run` per run, owned by the controller process: it reads and brings up when the first test
needs it, and is closed in `pytest_unconfigure` whatever happened before, also after Ctrl-C and
SIGTERM. With `-n` (pytest-xdist) each worker shares that one run (sharing.py) and owns nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pd_validate.catalogue import Layer
from pd_validate.errors import Blocked, LabError, SpecError
from pd_validate.findings import Finding, Severity, root_findings
from pd_validate.interrupts import Interrupts
from pd_validate.options import TWIN, Options
from pd_validate.traffic.client import RequestFailed

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

    from pd_validate.checks.result import Report
    from pd_validate.run import Run, RunView
    from pd_validate.session import Session
    from pd_validate.sharing import WorkersRun
    from pd_validate.spec.models import Cluster
    from pd_validate.topology.service import Service
    from pd_validate.topology.topology import Topology

SUITES = Path(__file__).parent.parent / "tests"
MARKS = {
    "network": "links, addresses and hosts; starts no engine",
    "ranktable": "the rank table on the hosts",
    "topology": "instances and proxy, as planned",
    "kv": "KV transfer, byte by byte",
    "determinism": "the same answer every time, and the same as one engine alone",
    "proxy": "the PD proxy",
    "fault": "breaks things on purpose (needs --allow-faults)",
    "soak": "takes long on purpose",
    "perf": "measures",
    "alone": "needs a service that nobody else uses meanwhile",
    "afterwards": "looks back at the whole run: runs after all others",
}
# Tests with one of these have the service to themselves, also with -n (schedule.py).
ALONE = {"alone", "fault", "soak", "perf", "afterwards"}
# What a test with this mark is about, for suites and for the layer ladder of the report.
LAYERS = {
    "network": Layer.NPU_NETWORK,
    "ranktable": Layer.PLAN,
    "topology": Layer.ENGINE,
    "kv": Layer.KV_DATA,
    "determinism": Layer.SERVICE,
    "proxy": Layer.PROXY,
}
_OWNED = pytest.StashKey["Run"]()  # in the controller only
_RUN = pytest.StashKey["RunView"]()  # wherever tests run
_SHARED: pytest.StashKey[WorkersRun] = pytest.StashKey()  # in workers only
_HANDLE = "pd_run"  # what a worker is given to find the run
_LAYER = "pd_layer"  # property of a test's report: the lowest layer that its marks speak of
ASKED_FOR = ("soak", "perf")  # marks of tests that run only where -m names them


# --- options -----------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    Options.add_to(parser.getgroup("pd-validate", "prefill/decode validation on a cluster"))


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """With --cluster and no path on the command line, run the validation suites from anywhere."""
    options = Options.of(early_config.known_args_namespace)
    stated = early_config.known_args_namespace.file_or_dir
    if options.cluster and not stated:
        args += [str(SUITES / "network"), str(SUITES / "e2e")]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    options = Options.of(config.option)
    runs = not (config.option.help or config.option.collectonly or options.dry_run)
    if not (options.cluster and runs):
        return
    from pd_validate.report.places import Places  # heavy; a run of anything else skips it

    results = Places(options.report).allure_results
    if hasattr(config.option, "allure_report_dir") and not config.option.allure_report_dir:
        config.option.allure_report_dir = str(results)  # read by allure-pytest, after us
    if hasattr(config, "workerinput"):
        _share(config)
    else:
        _own(config, options)


def _share(config: pytest.Config) -> None:
    """In a worker of pytest-xdist: tests run here, on the controller's run."""
    from pd_validate import sharing

    run = sharing.WorkersRun(sharing.Handle.unpacked(config.workerinput[_HANDLE]))  # type: ignore[attr-defined]  # xdist's
    config.stash[_RUN] = run
    config.stash[_SHARED] = run
    config.add_cleanup(run.close)


def _own(config: pytest.Config, options: Options) -> None:
    from pd_validate.report.allure_files import clean_results
    from pd_validate.report.places import Places
    from pd_validate.run import NOT_FIT, Run

    interrupts = Interrupts()
    interrupts.listen()
    with ExitStack() as undo:
        try:
            options.check()
            if getattr(config.option, "dist", "no") == "each":
                raise SpecError("--dist each would run every test on every worker: use -n alone")
            undo.callback(interrupts.stop)
            cluster = open_cluster(options, undo)
            run = Run(options, cluster, config, interrupts, undo.pop_all())
            config.stash[_RUN] = run
            config.stash[_OWNED] = run
            config.pluginmanager.register(_Events(run))
        except SpecError as error:
            raise pytest.UsageError(str(error)) from error
        except LabError as error:
            pytest.exit(str(error), returncode=NOT_FIT)
    clean_results(Places(options.report).allure_results)


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """`--dry-run`: print the plan instead of running tests."""
    options = Options.of(config.option)
    if not (options.cluster and options.dry_run) or config.option.help:
        return None
    from pd_validate.dry_run import rendered_plan

    try:
        print(rendered_plan(open_cluster(options), audit=options.audit))
    except SpecError as error:
        raise pytest.UsageError(str(error)) from error
    return 0


def open_cluster(options: Options, undo: ExitStack | None = None) -> Cluster:
    """The cluster of the file, or of a twin that is started now and ends with `undo`.

    Without `undo` nothing is started: a twin's cluster is only described. Raises SpecError
    for a file that cannot be used, LabError for a twin that cannot be started.
    """
    from pd_validate.spec.load import load_cluster
    from pd_validate.spec.runtime import check_can_stay

    kind, _, name = options.cluster.partition(":")
    if kind != TWIN:
        if options.scenario is not None:
            raise SpecError("--scenario breaks the twin; it cannot be used on a real cluster")
        cluster = load_cluster(Path(options.cluster))
        if options.keep_up or options.reuse:
            check_can_stay(cluster)
        return cluster
    if options.keep_up or options.reuse:
        raise SpecError(
            "this twin ends with pytest. For --keep-up and --reuse start one that stays: "
            "`python -m twin cluster.yaml`, then `pytest --cluster cluster.yaml …`"
        )
    # The only place that knows of the twin: from here on its hosts are hosts like any other.
    from twin.cluster import TwinCluster, cluster_file, described_cluster
    from twin.hosts import TwinError
    from twin.scenario import load_scenario

    scenario = load_scenario(options.scenario) if options.scenario is not None else None
    file = cluster_file(name or (scenario.cluster if scenario is not None else ""))
    if undo is None:
        return described_cluster(file)
    try:
        return undo.enter_context(TwinCluster.start(file, scenario)).cluster
    except (TwinError, OSError) as error:  # OSError: a scenario's foreign process, a full disk
        raise LabError(f"the twin does not start: {error}") from error


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.stash.get(_RUN, None) is not None:
        from pd_validate.report.allure import begin_results  # heavy, and loaded by now

        begin_results()


def pytest_unconfigure(config: pytest.Config) -> None:
    run = config.stash.get(_OWNED, None)
    if run is not None:
        run.close()


# --- workers of pytest-xdist ------------------------------------------------------------------


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    """Tell a worker where the run is."""
    run = node.config.stash.get(_OWNED, None)
    if run is not None:
        node.workerinput[_HANDLE] = run.handle().packed()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object | None:
    """On a cluster some tests bear no company, whatever --dist says."""
    run = config.stash.get(_OWNED, None)
    if run is None:
        return None
    from pd_validate.schedule import OneCluster

    return OneCluster(config, log, lambda: run.alone_from)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """In a worker: say which tests are to be alone, before xdist says that all are collected."""
    run = session.config.stash.get(_SHARED, None)
    if run is not None:
        run.collected(sum(not _is_alone(item) for item in session.items))


def _is_alone(item: pytest.Item) -> bool:
    return any(mark.name in ALONE for mark in item.iter_markers())


# --- which tests, in which order ------------------------------------------------------------


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The validation suites need a cluster; without --cluster they are not collected."""
    suites = (SUITES / "network", SUITES / "e2e")
    if not Options.of(config.option).cluster and collection_path in suites:
        return True
    return None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize by the cluster's own names, so that node ids carry host and instance."""
    run = metafunc.config.stash.get(_RUN, None)
    cluster = run.session.cluster if run is not None else None
    for name in ("host", "instance", "prefiller", "decoder"):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, _names(cluster, name))


def _names(cluster: Cluster | None, kind: str) -> Sequence[str]:
    if cluster is None:
        return []
    if kind == "host":
        return list(cluster.hosts)
    from pd_validate.spec.models import Role

    if kind == "instance":
        return list(cluster.instances)
    return list(cluster.instances_of(Role.PREFILL if kind == "prefiller" else Role.DECODE))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Lower layers first: what is wrong below explains what fails above.

    In a worker, tests that must be alone come after all others.
    """
    options = Options.of(config.option)
    order = {name: index for index, name in enumerate(MARKS)}

    shared = hasattr(config, "workerinput")

    def rank(item: pytest.Item) -> tuple[bool, bool, int]:
        names = {mark.name for mark in item.iter_markers()}
        lowest = min((order[name] for name in names & order.keys()), default=len(order))
        return "afterwards" in names, shared and _is_alone(item), lowest

    if options.cluster:
        items.sort(key=rank)
    for item in items:
        for name in ASKED_FOR:
            if item.get_closest_marker(name) and name not in (config.option.markexpr or ""):
                item.add_marker(pytest.mark.skip(reason=f"not part of a quick run: give -m {name}"))
        if item.get_closest_marker("fault") and not options.allow_faults:
            item.add_marker(
                pytest.mark.skip(reason="breaks things on purpose: give --allow-faults")
            )


# --- what tests use ---------------------------------------------------------------------------


class Judge:
    """Turns findings into the verdict of one test, and remembers them for the report.

    A failing finding fails the test; one that could not be measured breaks it (LabError);
    a consequence of another finding skips it by that finding's name; warnings are noted.
    """

    def __init__(self, run: RunView, item: pytest.Item) -> None:
        self._run = run
        self._item = item

    def note(self, line: str) -> None:
        """A line for the report of this test."""
        self._item.add_report_section("call", "note", line)

    def __call__(self, findings: Iterable[Finding]) -> None:
        from pd_validate.run import xfail_if_quarantined  # heavy, and loaded by now

        __tracebackhide__ = True  # the finding says it all; our own lines would bury it
        found = self._run.looked_below(list(findings), self._item.nodeid)
        found = self._run.session.quarantine.mark_all(found)
        self._run.found(self._item.nodeid, found)
        failing = [f for f in root_findings(found) if f.severity is Severity.FAIL]
        if failing:
            raise AssertionError("\n".join(str(finding) for finding in failing))
        unknown = [f for f in found if f.severity is Severity.UNKNOWN and not f.quarantined]
        if unknown:
            raise LabError("could not measure: " + "\n".join(str(f) for f in unknown))
        xfail_if_quarantined(found)
        explained = [f for f in found if f.severity is Severity.FAIL]
        if explained:
            cause = explained[0].because[0]
            pytest.skip(f"explained by {cause.id} at {cause.where}: {explained[0].id}")
        for finding in found:
            self.note(f"warning: {finding}")


@contextmanager
def _ends_named(run: RunView) -> Iterator[None]:
    """What keeps a test from what it asks for, as pytest says it: a skip, or a failure."""
    from pd_validate.run import told, xfail_if_quarantined
    from pd_validate.topology.topology import BringUpFailed

    __tracebackhide__ = True  # the findings say it all
    try:
        yield
    except Blocked as why:
        pytest.skip(f"blocked by {why}")
    except BringUpFailed as failure:
        xfail_if_quarantined(run.session.quarantine.mark_all(failure.findings))
        raise AssertionError(f"the service did not come up:\n{told(failure)}") from None
    finally:
        run.tell_steps()


@pytest.fixture(scope="session")
def run(request: pytest.FixtureRequest) -> RunView:
    """This run. Without --cluster there is none."""
    found = request.config.stash.get(_RUN, None)
    if found is None:
        pytest.skip("needs a cluster: give --cluster FILE or --cluster twin")
    return found


@pytest.fixture(scope="session")
def pd(run: RunView) -> Session:
    """The session: cluster, facts, plan."""
    return run.session


@pytest.fixture(scope="session")
def cluster(pd: Session) -> Cluster:
    return pd.cluster


@pytest.fixture(scope="session")
def options(request: pytest.FixtureRequest) -> Options:
    """What was asked for on the command line."""
    return Options.of(request.config.option)


@pytest.fixture
def judge(run: RunView, request: pytest.FixtureRequest) -> Judge:
    return Judge(run, request.node)


@pytest.fixture
def network(run: RunView, request: pytest.FixtureRequest) -> Report:
    """The network validation's verdicts; reads all hosts once."""
    __tracebackhide__ = True
    with _ends_named(run):
        return run.network(request.node.nodeid)


@pytest.fixture
def staged(run: RunView, request: pytest.FixtureRequest) -> Topology:
    """Code and rank table lie on the hosts; nothing is started."""
    __tracebackhide__ = True
    with _ends_named(run):
        return run.staged(request.node.nodeid)


@pytest.fixture
def topology(run: RunView, request: pytest.FixtureRequest) -> Topology:
    """The running topology; brought up once. Skips, named, where something below is broken."""
    __tracebackhide__ = True
    with _ends_named(run):
        return run.topology(request.node.nodeid)


@pytest.fixture
def service(topology: Topology) -> Service:
    return topology.service


# --- what the report needs ---------------------------------------------------------------------


def layer_of(item: pytest.Item) -> Layer | None:
    """The lowest layer that the test's marks speak of."""
    return min((LAYERS[m.name] for m in item.iter_markers() if m.name in LAYERS), default=None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Place the test in the report: its suite, and labels for host and instance."""
    run = item.config.stash.get(_RUN, None)
    layer = layer_of(item)
    if run is None or layer is None:
        return
    params = item.callspec.params if hasattr(item, "callspec") else {}
    instance = params.get("instance") or params.get("decoder")
    run.story.place(layer, host=params.get("host"), instance=instance)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """A request that never ended is a symptom: look below for what is wrong, and name that."""
    try:
        yield
    except RequestFailed as error:
        run = item.config.stash.get(_RUN, None)
        if run is None:
            raise
        Judge(run, item)(run.diagnosed(error, item.nodeid))
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the controller cannot know of a test that a worker runs goes with its report."""
    report = yield
    layer = layer_of(item)
    run = item.config.stash.get(_RUN, None)
    if run is not None and call.when == "teardown":
        run.hand_in()
    if run is not None and layer is not None:
        report.user_properties.append((_LAYER, int(layer)))
    return report


class _Events:
    """Registered in the controller: what happens to tests, and interrupts, go to the run."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self) -> None:
        """One more, while pytest says what was interrupted, must not keep it from tearing down."""
        self._run.interrupted()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if "fault" in report.keywords and report.when == "call":
            self._run.session.faults_made = True
        layer = dict(report.user_properties).get(_LAYER)
        self._run.tested(report, None if layer is None else Layer(int(str(layer))))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Tear down before the summary is printed, so that what is left behind is part of it."""
    run = session.config.stash.get(_OWNED, None)
    if run is not None:
        session.exitstatus = run.finish(int(exitstatus))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    run = terminalreporter.config.stash.get(_OWNED, None)
    if run is not None:
        run.print_summary()


def pytest_report_header(config: pytest.Config) -> list[str]:
    run = config.stash.get(_OWNED, None)
    return [] if run is None else run.header()
