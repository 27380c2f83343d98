"""The layer ladder: how far up everything is sound, and which step breaks first."""

from __future__ import annotations

from pd_validate.report.markup import Markup, el
from pd_validate.report.pictures.draw import svg, text
from pd_validate.report.states import LayerState, State, States, layers_of_catalogue

_WIDTH = 276
_STEP = 34


def ladder(states: States) -> Markup:
    """Highest layer on top, as the arrows of a fault go up; the lowest failed step stands out."""
    steps = [states.layer(layer) for layer in layers_of_catalogue()]
    culprit = next((step for step in reversed(steps) if step.state is State.FAIL), None)
    shapes = [_step(step, number * _STEP, step is culprit) for number, step in enumerate(steps)]
    return svg(_WIDTH, len(steps) * _STEP, *shapes, title="Layers, highest on top")


def _step(step: LayerState, y: float, culprit: bool) -> Markup:
    bar = el("rect", x=0.5, y=y + 2, width=_WIDTH - 1, height=_STEP - 4, rx=5, cls="step")
    mark = el("rect", x=0.5, y=y + 2, width=5, height=_STEP - 4, rx=2.5, cls="fill")
    name = text(16, y + 21, step.layer.label, cls="step-name")
    note = text(_WIDTH - 10, y + 21, _note(step), cls="step-note", anchor="end")
    cls = f"s-{step.state.value}" + (" culprit" if culprit else "")
    return el("g", el("title", _title(step)), bar, mark, name, note, cls=cls)


def _note(step: LayerState) -> str:
    if step.state is State.FAIL:
        return "fail"
    if step.state is State.UNKNOWN:
        return "unknown"
    if step.state is State.QUARANTINED:
        return "quarantined"
    if step.state is State.NONE:
        return "not checked"
    if step.state is State.AFFECTED and step.done == 0:
        return "blocked"
    if step.state is State.AFFECTED:
        return "affected"
    return f"{step.done} ok"


def _title(step: LayerState) -> str:
    return f"{step.layer.label}: {step.state.label}, {step.done} of {step.total} passed"
