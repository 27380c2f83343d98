"""Writes docs/checks.md from the catalogue, so that the page cannot lag behind the code.

python -m pd_validate.checks.docs > docs/checks.md
"""

from __future__ import annotations

from collections.abc import Iterator

from pd_validate.catalogue import CATALOGUE, Kind, Layer

_HEAD = """\
# Every finding

Generated from `pd_validate/catalogue.py` by `python -m pd_validate.checks.docs`; change it there.

A finding says what is wrong, where, what was expected and what was got. Ids are stable.
Layers are in order: a fault below explains symptoms above, and what another finding
explains is shown under it. What all NPUs of a host have alike is one finding of the host.
Three severities:

- **fail**: the cluster is not fit.
- **unknown**: it could not be measured. Never OK, never a failure; the run is not green.
- **warn**: worth knowing, and no reason to stop. Faults of NPUs that no instance uses are
  warnings, unless the cluster file says `checks: {devices: all}`.
"""


def page() -> str:
    """The whole page, ending with a newline."""
    parts = [_HEAD, *(part for layer in Layer for part in _layer(layer))]
    return "\n".join(parts)


def _layer(layer: Layer) -> Iterator[str]:
    kinds = [kind for kind in CATALOGUE.values() if kind.layer is layer]
    if kinds:
        yield f"## {layer.value}. {layer.label[0].upper()}{layer.label[1:]}\n"
        yield from (_section(kind) for kind in kinds)


def _section(kind: Kind) -> str:
    return (
        f"### {kind.id}\n\n{kind.meaning}\n\n"
        f"- Evidence: {kind.evidence}\n- What to do: {kind.fix}\n"
    )


if __name__ == "__main__":
    print(page(), end="")
