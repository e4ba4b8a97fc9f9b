"""Host, queue and device as three lanes over time: who waits for whom. An illustration, in no unit of
time; nothing of it is measured."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import PortError
from ..messages import tr
from .colours import BLUE, GREY, INK, ORANGE, SKY
from .frames import WIDTH, Frame, Frames, box, words

_LEFT, _LANE, _ROW = 8.0, 26.0, 9.0
_HATCH = (
    '<defs><pattern id="idle" width="7" height="7" patternUnits="userSpaceOnUse" '
    f'patternTransform="rotate(45)"><line x1="0" y1="0" x2="0" y2="7" stroke="{GREY}" '
    'stroke-width="2"/></pattern></defs>'
)


@dataclass(frozen=True)
class Lane:
    """One step of `operators` operators: (start, end) of each on the host, in the queue and on the
    device. In a graph there is one launch, and every operator is queued at its end."""

    host: list[tuple[float, float]]
    queue: list[tuple[float, float]]
    device: list[tuple[float, float]]

    @property
    def end(self) -> float:
        return self.device[-1][1]

    @property
    def busy(self) -> float:
        return sum(b - a for a, b in self.device)

    @property
    def waited(self) -> float:
        """Time without work on the device after its first operator began."""
        return self.end - self.device[0][0] - self.busy


def run_lanes(operators: int, launch: float, kernel: float, graph: bool = False) -> Lane:
    """The host launches one operator after the other and waits for none; the device takes them in
    order, each when it is launched and the one before it is done."""
    host = [(k * launch, (k + 1) * launch) for k in range(1 if graph else operators)]
    device: list[tuple[float, float]] = []
    for k in range(operators):
        start = max(host[0 if graph else k][1], device[-1][1] if device else 0.0)
        device.append((start, start + kernel))
    queue = [(host[0 if graph else k][1], device[k][0]) for k in range(operators)]
    return Lane(host, queue, device)


def lanes(
    operators: int = 6,
    launch: float = 2.0,
    prefill: float = 3.0,
    decode: float = 0.8,
    shown: int = 1,
) -> Frames:
    """Three frames: a prefill whose kernels take `prefill` each, a decode step whose kernels take
    `decode`, and the same decode step as one graph; one launch takes `launch`, the graph's too. The
    numbers are an illustration: change them and look who waits. `shown`: the frame in view. PortError
    for what cannot be drawn."""
    if not 2 <= operators <= 12 or not all(0 < v <= 100 for v in (launch, prefill, decode)):
        raise PortError(
            "lanes draws 2 to 12 operators and times above 0, up to 100; give smaller numbers"
        )
    eager = [run_lanes(operators, launch, kernel) for kernel in (prefill, decode)]
    graph = run_lanes(operators, launch, decode, graph=True)
    whole = max(lane.end for lane in (*eager, graph))
    many = tr("{n} launches of {launch:g}, kernels of {kernel:g}")
    drawn = [
        _frame(name, lane, whole, many.format(n=operators, launch=launch, kernel=kernel))
        for name, lane, kernel in zip(
            (tr("prefill"), tr("decode step")), eager, (prefill, decode), strict=True
        )
    ]
    one = tr("one launch of {launch:g}, {n} kernels of {kernel:g}")
    given = one.format(launch=launch, n=operators, kernel=decode)
    return Frames(
        tr("Who waits? · 谁在等待？ (an illustration, not a measurement)"),
        [*drawn, _frame(tr("the decode step as a graph"), graph, whole, given)],
        shown,
    )


def _frame(name: str, lane: Lane, whole: float, given: str) -> Frame:
    waits = lane.waited > 1e-9
    deep = _deepest(lane.queue)
    one, idle, full = tr("one launch"), tr("the device waits"), tr("the queue fills")
    why = one if len(lane.host) == 1 else idle if waits else full
    label = tr("{name}: {why}").format(name=name, why=why)
    works = tr(
        "From its first operator on the device always works; up to {n} operators wait in the queue."
    )
    sets = tr(
        "From its first operator on the device always works; up to {n} operators wait in the queue: the "
        "device sets the time."
    )
    host = tr(
        "From its first operator on the device waits {idle:.3g} and works {busy:.3g}: the host sets the time."
    )
    says = (sets if len(lane.host) > 1 else works).format(n=deep)
    if waits:
        says = host.format(idle=lane.waited, busy=lane.busy)
    body, height = _draw(lane, whole, max(deep, 1))
    alt = tr("Three lanes over time, host, queue and device: {given}.").format(given=given)
    done = tr("{given}; done after {end:.3g}. {says}")
    begun = f"{given[0].upper()}{given[1:]}"
    return Frame(label, body, height, alt, done.format(given=begun, end=lane.end, says=says))


def _deepest(queue: list[tuple[float, float]]) -> int:
    """How many operators wait at once, at most."""
    waiting = [(a, b) for a, b in queue if b > a]
    return max((sum(a <= t < b for a, b in waiting) for t, _ in waiting), default=0)


def _draw(lane: Lane, whole: float, deep: int) -> tuple[str, float]:
    unit = (WIDTH - 2 * _LEFT) / whole
    parts, y = [_HATCH], 4.0

    def bars(title: str, spans: list[tuple[float, float]], colour: str, y: float) -> None:
        parts.append(words(_LEFT, y + 8, title))
        for k, (a, b) in enumerate(spans, 1):
            text = str(k) if (b - a) * unit >= 17 and len(spans) > 1 else ""
            parts.append(box(_LEFT + a * unit, y + 18, (b - a) * unit, _LANE, colour, text))

    bars(tr("host: launches"), lane.host, ORANGE, y)
    y += 18 + _LANE + 8
    parts.append(words(_LEFT, y + 8, tr("queue: launched, not begun")))
    free: list[float] = []  # when each row of the queue is free again
    for a, b in (span for span in lane.queue if span[1] > span[0]):
        row = next((r for r, until in enumerate(free) if until <= a), len(free))
        free[row:] = [b, *free[row + 1 :]]
        parts.append(
            box(_LEFT + a * unit, y + 18 + row * _ROW, (b - a) * unit, _ROW - 1.5, SKY, "")
        )
    if not free:
        parts.append(words(_LEFT, y + 24, tr("empty"), ink=GREY))
    y += 18 + max(deep * _ROW, 14) + 8
    bars(tr("device: kernels (hatched: waits)"), lane.device, BLUE, y)
    for a, b in _gaps(lane):
        width, x = (b - a) * unit, _LEFT + a * unit
        parts.append(
            f'<rect x="{x:g}" y="{y + 18:g}" width="{width:g}" height="{_LANE:g}" fill="url(#idle)" '
            f'stroke="{GREY}"/>'
        )
    x = _LEFT + lane.end * unit
    parts.insert(
        1,
        f'<line x1="{x:g}" y1="2" x2="{x:g}" y2="{y + 22 + _LANE:g}" stroke="{INK}" '
        'stroke-width="1.5" stroke-dasharray="4 3"/>',
    )
    return "".join(parts), y + 18 + _LANE + 8


def _gaps(lane: Lane) -> list[tuple[float, float]]:
    ends = [0.0, *(b for _, b in lane.device)]
    return [(a, b) for a, (b, _) in zip(ends, lane.device, strict=False) if b - a > 1e-9]
