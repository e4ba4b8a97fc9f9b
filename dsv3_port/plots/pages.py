"""The pictures of 12: where the rows of a paged cache lie, and who holds its blocks over time."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from ..count.blocks import BlockLog
from ..errors import PortError
from ..messages import tr
from .colours import BLUE, CYCLE, GREEN, GREY, INK, NORMAL, ORANGE, SKY, VERMILLION
from .shapes import box, centred
from .style import LabFigure, figure, finish, key, on_phone, styled, two_widths

BLOCK, ROOM = 4, 16  # of the drawing
TABLE = {"A": (3, 1, 6), "B": (5, 2)}
FILLED = {"A": 11, "B": 6}
COLOUR = {"A": SKY, "B": ORANGE}
BLOCKS = 7  # and block 0
NEW = ("B", 6)  # the row that is written now


@styled
def page_strips() -> LabFigure:
    """Two sequences in a fixed cache above, in a paged one below, and the way of one new row."""
    fig, axes = figure(2, 1, (11.0, 4.9), gridspec_kw={"height_ratios": (2.1, 4.9)})
    _fixed(axes[0])
    slot = _paged(axes[1])
    for ax in axes:
        ax.set_xlim(-0.5, (BLOCKS + 1) * (BLOCK + 0.25) + 0.2)
        ax.axis("off")
    row = tr("row of sequence {name}")
    parts = [
        *(Patch(facecolor=COLOUR[n], label=row.format(name=n)) for n in TABLE),
        Patch(facecolor=VERMILLION, label=tr("the new row, written")),
        Patch(facecolor="white", hatch="//", edgecolor=GREY, label=tr("held, still empty")),
        Patch(facecolor="white", edgecolor=GREY, linestyle=":", label=tr("free for anyone")),
    ]
    fig.legend(handles=parts, loc="outside upper center", ncols=5)
    held = {n: len(blocks) * BLOCK for n, blocks in TABLE.items()}
    alt = tr(
        "Two strips of memory. Fixed cache: sequences A and B have {room} places each, of which A fills "
        "{a} and B {b}; the rest is held and empty. Paged cache: {blocks} blocks of {block} places; A holds "
        "blocks {blocks_a}, B {blocks_b}, {held_a} and {held_b} places, block 0 belongs to nobody, the others "
        "are free. The new row of B at position {at} is written to slot {slot}."
    ).format(
        room=ROOM,
        a=FILLED["A"],
        b=FILLED["B"],
        blocks=BLOCKS + 1,
        block=BLOCK,
        blocks_a=TABLE["A"],
        blocks_b=TABLE["B"],
        held_a=held["A"],
        held_b=held["B"],
        at=NEW[1],
        slot=slot,
    )
    note = tr(
        "Drawn, not measured: one square is one position's row; from left to right: addresses."
    )
    return finish(fig, alt, note)


def _square(ax: Axes, x: float, y: float, colour: str) -> None:
    """A filled row; colour "held" or "free" for an empty place."""
    if colour == "free":
        box(ax, x, y, 1, 1, "white", edgecolor=GREY, linestyle=":", lw=1.0, zorder=0.5)
    elif colour == "held":
        box(ax, x, y, 1, 1, "white", edgecolor=GREY, hatch="//", lw=0.6)
    else:
        box(ax, x, y, 1, 1, colour, lw=1.2)


def _fixed(ax: Axes) -> None:
    ax.set_title(tr("fixed: a room for each sequence, as long as it may become"))
    places = tr("sequence {name}: {n} places")
    for k, name in enumerate(TABLE):
        for p in range(ROOM):
            colour = COLOUR[name] if p < FILLED[name] else "held"
            _square(ax, k * (ROOM + 1) + p, 0, VERMILLION if (name, p) == NEW else colour)
        centred(ax, k * (ROOM + 1) + ROOM / 2, 1.4, places.format(name=name, n=ROOM), NORMAL)
    ax.set_ylim(-0.2, 1.9)


def _paged(ax: Axes) -> int:
    """Returns the slot of the new row."""
    title = tr("paged: blocks of {n}, taken when a sequence crosses a boundary")
    ax.set_title(title.format(n=BLOCK))
    numbered, nobody = tr("block {n}"), tr("0: nobody's")
    place = {block: (n, j) for n, blocks in TABLE.items() for j, block in enumerate(blocks)}
    slot = TABLE[NEW[0]][NEW[1] // BLOCK] * BLOCK + NEW[1] % BLOCK
    for block in range(BLOCKS + 1):
        name, j = place.get(block, ("", 0))
        for k in range(BLOCK):
            x = block * (BLOCK + 0.25) + k
            if block * BLOCK + k == slot:
                _square(ax, x, 0, VERMILLION)
                ax.annotate(
                    f"slot {slot}", (x + 0.5, 0), (x + 0.5, -0.8), ha="center", fontsize=NORMAL
                )
            elif name:
                _square(ax, x, 0, COLOUR[name] if j * BLOCK + k < FILLED[name] else "held")
            else:
                _square(ax, x, 0, "free")
        middle = block * (BLOCK + 0.25) + BLOCK / 2
        centred(ax, middle, 1.35, numbered.format(n=block) if block else nobody, NORMAL)
    name, p = NEW
    tables = "        ".join(f"table[{n}] = {list(blocks)}" for n, blocks in TABLE.items())
    ax.text(0, -1.75, tables, fontsize=NORMAL, color=INK, family="monospace")
    block = TABLE[name][p // BLOCK]
    way = tr("position {p} of {name}: block {block}, row {row}, slot {slot}").format(
        p=p,
        name=name,
        block=f"table[{name}][{p} // {BLOCK}] = {block}",
        row=f"{p} % {BLOCK} = {p % BLOCK}",
        slot=f"{block} * {BLOCK} + {p % BLOCK} = {slot}",
    )
    ax.text(0, -2.5, way, fontsize=NORMAL, color=INK)
    ax.set_ylim(-3.0, 1.9)
    return slot


@two_widths
def blocks_over_time(log: BlockLog) -> LabFigure:
    """Above who holds each block after each decode step; below how many positions a fixed cache, the
    blocks and the tokens take."""
    if log.rows > len(CYCLE) - 1:
        raise PortError(
            f"blocks_over_time: {log.rows} sequences; {len(CYCLE) - 1} colours are there"
        )
    fig, (grid, curves) = figure(
        2, 1, (9.0, 7.6), sharex=True, gridspec_kw={"height_ratios": (1.4, 1)}
    )
    steps = len(log.owned)
    picture = [[to_rgb("white")] * steps for _ in range(log.blocks)]
    for t, owned in enumerate(log.owned):
        for row, blocks in enumerate(owned):
            for block in blocks:
                picture[block - 1][t] = to_rgb(CYCLE[row])
    extent = (0.5, steps + 0.5, log.blocks + 0.5, 0.5)
    grid.imshow(picture, aspect="auto", interpolation="nearest", extent=extent)
    grid.set_yticks(range(0, log.blocks + 1, 4)[1:])
    grid.set_ylabel(tr("block of the pool"))
    grid.set_title(tr("who holds which block"))
    owners = [
        Patch(color=CYCLE[row], label=f"{row + 1}: {_short(str(g.prompt))}")
        for row, g in enumerate(log.texts)
    ]
    key(fig, 2, handles=owners)
    at = range(1, steps + 1)
    curves.plot(at, [log.fixed] * steps, color=VERMILLION, lw=2, ls="--", label=tr("fixed cache"))
    of_blocks = tr("blocks that sequences hold")
    curves.step(at, log.held, where="mid", color=BLUE, lw=2, label=of_blocks)
    curves.plot(at, log.used, color=GREEN, lw=2, ls=":", label=tr("tokens"))
    curves.set_ylim(0, (1.7 if on_phone() else 1.35) * log.fixed)
    curves.set_xlabel(tr("decode step"))
    curves.set_ylabel(tr("positions"))
    curves.set_title(tr("positions held, counted"))
    curves.legend(loc="upper left", ncols=1 if on_phone() else 3)
    alt = tr(
        "Above: {blocks} blocks over {steps} decode steps, coloured by which of {rows} sequences holds them. "
        "Below: a fixed cache holds {fixed} positions throughout; blocks in use grow from {first} to {most}, "
        "tokens from {few} to {many}."
    ).format(
        blocks=log.blocks,
        steps=steps,
        rows=log.rows,
        fixed=log.fixed,
        first=log.held[0],
        most=max(log.held),
        few=log.used[0],
        many=max(log.used),
    )
    note = tr(
        "Counted in this run: {rows} sequences of at most {room} positions, blocks of {size}; white is free."
    )
    return finish(fig, alt, note.format(rows=log.rows, room=log.room, size=log.block_size))


def _short(text: str, most: int = 34) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
