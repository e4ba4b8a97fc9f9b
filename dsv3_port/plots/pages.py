"""The pictures of 12: where the rows of a paged cache lie, and who holds its blocks over time."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from ..count.blocks import BlockLog
from ..errors import PortError
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
    parts = [
        *(Patch(facecolor=COLOUR[n], label=f"row of sequence {n}") for n in TABLE),
        Patch(facecolor=VERMILLION, label="the new row, written"),
        Patch(facecolor="white", hatch="//", edgecolor=GREY, label="held, still empty"),
        Patch(facecolor="white", edgecolor=GREY, linestyle=":", label="free for anyone"),
    ]
    fig.legend(handles=parts, loc="outside upper center", ncols=5)
    held = {n: len(blocks) * BLOCK for n, blocks in TABLE.items()}
    return finish(
        fig,
        f"Two strips of memory. Fixed cache: sequences A and B have {ROOM} places each, of which A fills "
        f"{FILLED['A']} and B {FILLED['B']}; the rest is held and empty. Paged cache: {BLOCKS + 1} blocks of "
        f"{BLOCK} places; A holds blocks {TABLE['A']}, B {TABLE['B']}, {held['A']} and {held['B']} places, "
        f"block 0 belongs to nobody, the others are free. The new row of B at position {NEW[1]} is written "
        f"to slot {slot}.",
        "Drawn, not measured: one square is one position's row; from left to right: addresses.",
    )


def _square(ax: Axes, x: float, y: float, colour: str) -> None:
    """A filled row; colour "held" or "free" for an empty place."""
    if colour == "free":
        box(ax, x, y, 1, 1, "white", edgecolor=GREY, linestyle=":", lw=1.0, zorder=0.5)
    elif colour == "held":
        box(ax, x, y, 1, 1, "white", edgecolor=GREY, hatch="//", lw=0.6)
    else:
        box(ax, x, y, 1, 1, colour, lw=1.2)


def _fixed(ax: Axes) -> None:
    ax.set_title("fixed: a room for each sequence, as long as it may become")
    for k, name in enumerate(TABLE):
        for p in range(ROOM):
            colour = COLOUR[name] if p < FILLED[name] else "held"
            _square(ax, k * (ROOM + 1) + p, 0, VERMILLION if (name, p) == NEW else colour)
        centred(ax, k * (ROOM + 1) + ROOM / 2, 1.4, f"sequence {name}: {ROOM} places", NORMAL)
    ax.set_ylim(-0.2, 1.9)


def _paged(ax: Axes) -> int:
    """Returns the slot of the new row."""
    ax.set_title(f"paged: blocks of {BLOCK}, taken when a sequence crosses a boundary")
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
        centred(ax, middle, 1.35, f"block {block}" if block else "0: nobody's", NORMAL)
    name, p = NEW
    tables = "        ".join(f"table[{n}] = {list(blocks)}" for n, blocks in TABLE.items())
    ax.text(0, -1.75, tables, fontsize=NORMAL, color=INK, family="monospace")
    way = (
        f"position {p} of {name}: block table[{name}][{p} // {BLOCK}] = {TABLE[name][p // BLOCK]}, row "
        f"{p} % {BLOCK} = {p % BLOCK}, slot {TABLE[name][p // BLOCK]} * {BLOCK} + {p % BLOCK} = {slot}"
    )
    ax.text(0, -2.5, way, fontsize=NORMAL, color=INK, family="monospace")
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
    grid.set_ylabel("block of the pool")
    grid.set_title("who holds which block")
    owners = [
        Patch(color=CYCLE[row], label=f"{row + 1}: {_short(str(g.prompt))}")
        for row, g in enumerate(log.texts)
    ]
    key(fig, 2, handles=owners)
    at = range(1, steps + 1)
    curves.plot(at, [log.fixed] * steps, color=VERMILLION, lw=2, ls="--", label="fixed cache")
    curves.step(at, log.held, where="mid", color=BLUE, lw=2, label="blocks that sequences hold")
    curves.plot(at, log.used, color=GREEN, lw=2, ls=":", label="tokens")
    curves.set_ylim(0, (1.7 if on_phone() else 1.35) * log.fixed)
    curves.set_xlabel("decode step")
    curves.set_ylabel("positions")
    curves.set_title("positions held, counted")
    curves.legend(loc="upper left", ncols=1 if on_phone() else 3)
    return finish(
        fig,
        f"Above: {log.blocks} blocks over {steps} decode steps, coloured by which of {log.rows} sequences "
        f"holds them. Below: a fixed cache holds {log.fixed} positions throughout; blocks in use grow from "
        f"{log.held[0]} to {max(log.held)}, tokens from {log.used[0]} to {max(log.used)}.",
        f"Counted in this run: {log.rows} sequences of at most {log.room} positions, "
        f"blocks of {log.block_size}; white is free.",
    )


def _short(text: str, most: int = 34) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
