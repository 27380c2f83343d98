"""Software and model of the hosts: there, equal, and what the cluster file expects. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pd_validate.checks.view import View, grouped, listed, usual
from pd_validate.facts.hosts import MODULES, ModelFiles, Software
from pd_validate.facts.reading import Reason
from pd_validate.findings import Finding, Severity, Where


def check_software(view: View) -> Iterator[Finding]:
    """Of hosts that run an instance; versions are compared over all hosts that tell them."""
    versions: dict[str, dict[str, str]] = {}  # name -> host -> version
    read = {host.host: host for host in view.hosts}
    for host in read.values():
        software = host.software.value
        for name, version in software.versions.items() if software else ():
            if version is not None:
                versions.setdefault(name, {})[host.host] = version
    for host in read.values():
        if host.software.reason is Reason.NOT_READ or not view.cluster.instances_on(host.host):
            continue
        if host.software.value is None:
            yield Finding(
                id="software.missing",
                severity=Severity.UNKNOWN,
                where=Where(host=host.host),
                expected=f"an answer of {view.cluster.python}",
                got=host.software.detail,
                evidence=(host.software.output.evidence,),
            )
            continue
        unknown = [
            name
            for name in _expected(view)
            if name in _FROM_FILES and host.software.value.versions.get(name) is None
        ]
        if unknown:
            yield Finding(
                id="software.unexpected",
                severity=Severity.UNKNOWN,
                where=Where(host=host.host),
                expected="; ".join(f"{name} {_expected(view)[name]}" for name in unknown),
                got="a version that cannot be read here",
            )
        lacking = _lacking(view, host.software.value, versions)
        if lacking:
            yield Finding(
                id="software.missing",
                where=Where(host=host.host),
                expected=listed(lacking),
                got="not found",
                evidence=(host.software.output.evidence,),
            )
    for name, by_host in versions.items():
        yield from _compared(view, name, by_host)


# Read from files that a container need not have: absent means not known, never missing.
_FROM_FILES = ("driver", "firmware", "cann")


def _lacking(
    view: View, software: Software, versions: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """What an instance needs, what the cluster file names, and what most hosts have.

    vllm-ascend's own connector needs all packages of the hardware profile. Ours runs on
    any build of vLLM, so without `expect` the other packages need only be alike.
    """
    upstream = view.cluster.connector.kind == "vllm-ascend"
    needed = [*(view.profile.required_software if upstream else ("vllm",)), *_expected(view)]
    half = len(view.facts.hosts) / 2
    needed += [name for name, by_host in versions.items() if len(by_host) > half]
    packages = [name for name in dict.fromkeys(needed) if name not in _FROM_FILES]
    lacking = [name for name in packages if software.versions.get(name) is None]
    if view.cluster.connector.kind != "module":
        lacking += [name for name in MODULES if software.modules.get(name) is None]
    return lacking


def _expected(view: View) -> dict[str, str]:
    stated = view.cluster.expect.model_dump(exclude_none=True)
    return {name: str(version) for name, version in stated.items()}


def _compared(view: View, name: str, by_host: dict[str, str]) -> Iterator[Finding]:
    """Against what the cluster file expects, if it says so; else against most hosts."""
    expected = _expected(view).get(name)
    common = expected or usual(by_host.values())
    for host, version in by_host.items():
        if version == common:
            continue
        yield Finding(
            id="software.unexpected" if expected else "software.mismatch",
            where=Where(host=host),
            expected=f"{name} {common}" + ("" if expected else ", as most hosts"),
            got=version,
            evidence=(f"{name}: {grouped(by_host)}",),
        )


def check_model(view: View) -> Iterator[Finding]:
    """The same files on every host that runs an instance."""
    copies = {
        host.host: host.model
        for host in view.hosts
        if host.model is not None and view.cluster.instances_on(host.host)
    }
    for name, copy in copies.items():
        problem = copy.error or ("" if "config.json" in copy.files else "no config.json in it")
        if problem:
            yield Finding(
                id="model.mismatch",
                where=Where(host=name, file=copy.path),
                expected="the model",
                got=problem,
            )
    whole = {name: copy for name, copy in copies.items() if "config.json" in copy.files}
    common = usual((frozenset(copy.files.items()) for copy in whole.values()), prefer=len)
    for name, copy in whole.items():
        if common is not None and frozenset(copy.files.items()) != common:
            yield _differing(name, copy, dict(common))


def _differing(name: str, copy: ModelFiles, common: dict[str, tuple[int, str]]) -> Finding:
    files = sorted({*copy.files, *common})
    differing = [file for file in files if copy.files.get(file) != common.get(file)]
    detail = tuple(
        f"{file}: {_words(copy.files.get(file))} here, {_words(common.get(file))} on most hosts"
        for file in differing
    )
    return Finding(
        id="model.mismatch",
        where=Where(host=name, file=copy.path),
        expected="the same files as on most hosts",
        got=f"{len(differing)} of {len(files)} differ: {listed(differing, limit=3)}",
        evidence=detail,
    )


def _words(entry: tuple[int, str] | None) -> str:
    if entry is None:
        return "absent"
    size, digest = entry
    return f"unreadable ({digest})" if size < 0 else f"{size} bytes, sha256 {digest[:12]}"
