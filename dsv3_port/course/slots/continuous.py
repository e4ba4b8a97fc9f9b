"""The slot of 14_slots: which waiting request begins in which row, before every decode step."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

from ...check.alone import greedy_alone, require_alone
from ...engine.continuous import ContinuousBatch, Request, Result, run_requests
from ...errors import PortError
from ...messages import N_, tr
from ...model.decoder import DeepseekV3
from ...model.paged_cache import Paging
from ...plan import PortPlan
from ..written import load_function
from . import Function, Slot, Wrong, changed

STUB = '''
def admit(running, waiting, blocks):
    """running [B]: whether row b has a request; waiting: blocks that each waiting request may need,
    in order of arrival; blocks: how many nobody holds and nobody was promised -> list of (row, k):
    request k of `waiting` begins in that row before the next step"""
    ...
'''

NEED, BREAK = (
    "if need > blocks:",
    "            break                        # nobody is overtaken\n",
)
TAKE = "taken.append((row, k))"
SOLUTION = STUB.replace(
    "    ...\n",
    f"""\
    idle = [row for row, runs in enumerate(running) if not runs]
    taken = []
    for k, (row, need) in enumerate(zip(idle, waiting)):
        {NEED}
{BREAK}        blocks -= need
        {TAKE}
    return taken
""",
)
FIRST = "    idle = ["

# (running, waiting, blocks): rows and blocks for some, for all, for none
CASES: tuple[tuple[list[bool], list[int], int], ...] = (
    ([False, False, False], [1, 2, 1, 1], 7),
    ([True, False, True], [2, 1], 3),
    ([True, False, False], [3, 2, 1], 4),
    ([False, True, False], [5, 1], 4),
    ([False, False, False, False], [2, 2, 1], 4),
    ([False, False], [1, 1], 1),
)
Pairs = list[tuple[int, int]]  # (row, number of the request)

# what the model is given: rows, blocks of 16, and (tokens of the prompt, new tokens) of the requests; one
# needs all the blocks, one ends with its first token
ROWS, BLOCKS = 3, 5
LENGTHS = ((5, 12), (3, 2), (40, 24), (4, 6), (7, 1), (17, 16), (66, 15), (2, 4))


def body(text: str) -> str:
    """Another way to write the function."""
    return STUB.replace("    ...\n", text)


def pairs_of(function: Function, case: tuple[list[bool], list[int], int]) -> Pairs:
    """Who begins in one pause between two steps: the function is called until it gives nobody."""
    running, needs, blocks = list(case[0]), case[1], case[2]
    left, found = list(range(len(needs))), Pairs()
    for _ in needs:
        given = function(list(running), [needs[n] for n in left], blocks)
        if not isinstance(given, list | tuple):
            raise TypeError(f"admit returned a {type(given).__name__}, not a list of (row, k)")
        begun = [(int(row), left[int(k)]) for row, k in given]
        found += begun
        for row, number in begun:
            blocks -= needs[number]
            running[row] = True
        left = [n for n in left if n not in {number for _, number in begun}]
        if not begun or not left:
            break
    return found


def right(case: tuple[list[bool], list[int], int], got: Pairs, want: Pairs) -> bool:
    """The same requests, each in an idle row of its own, whichever that is."""
    rows = [row for row, _ in got]
    idle = len(set(rows)) == len(rows) and not any(case[0][row] for row in rows)
    return idle and sorted(k for _, k in got) == [k for _, k in want]


def toy(function: Function, slot: Slot) -> str | None:
    solution = load_function(slot.solution, slot.name)
    got = [pairs_of(function, case) for case in CASES]
    want = [pairs_of(solution, case) for case in CASES]
    wrong = [at for at, case in enumerate(CASES) if not right(case, got[at], want[at])]
    if not wrong:
        return None
    for name, known in slot.wrong.items():
        answer = load_function(known.source, slot.name)
        if got == [pairs_of(answer, case) for case in CASES]:
            return name
    running, waiting, blocks = CASES[wrong[0]]
    said = tr(
        "running {running}, blocks that the waiting ones may need {waiting}, {blocks} there: {due} begin "
        "(row, request), yours {got}"
    )
    return said.format(
        running=running, waiting=waiting, blocks=blocks, due=want[wrong[0]], got=got[wrong[0]]
    )


def requests() -> list[Request]:
    rng = random.Random(14)
    return [Request(tuple(rng.randrange(3, 60) for _ in range(n)), new) for n, new in LENGTHS]


def served(model: DeepseekV3) -> tuple[list[Result], int]:
    """The requests through rows of one model: results, and decode steps. PortError where blocks are
    left over."""
    kept, model.paging = model.paging, Paging(16, BLOCKS, poison=math.nan)
    try:
        todo = requests()
        batch = ContinuousBatch(model, ROWS, max(r.positions for r in todo))
        results = run_requests(batch, todo)
    finally:
        model.paging = kept
    if batch.cache.in_use:
        raise PortError(f"{batch.cache.in_use} blocks were not given back")
    return results, len(batch.occupancy)


def use(finished: DeepseekV3, twin: DeepseekV3) -> str:
    results, _ = served(twin)
    require_alone([greedy_alone(finished, r) for r in requests()], results)
    for before, after in zip(results, results[1:], strict=False):
        if after.admitted < before.admitted:
            said = tr(
                "request {b} began before step {y}, request {a}, which came first, before {x}"
            )
            return said.format(
                a=before.number, b=after.number, x=before.admitted + 1, y=after.admitted + 1
            )
    return ""


def attach(twin: DeepseekV3, function: Function) -> None:
    twin.admission = function


def count(twin: DeepseekV3) -> Mapping[str, int]:
    return {N_("decode steps for the same requests"): served(twin)[1]}


SLOTS = (
    Slot(
        id="14.admit",
        notebook="14_slots",
        title="Who begins in which row",
        minutes=15,
        difficulty=2,
        stub=STUB,
        solution=SOLUTION,
        finished="engine.continuous:in_order",
        hints=(
            "Before each step: which rows are idle, and who waits longest? One after the other takes a row, "
            "as long as there are rows and blocks.",
            "running is a list of B truth values, waiting a list of whole numbers, blocks one number that "
            "shrinks with everybody who begins. The result is a list of pairs of whole numbers: a row that is "
            "idle, and a place in `waiting`, counted from 0; [] where nobody can begin.",
            "With idle = [row for row, runs in enumerate(running) if not runs] the pairs come from "
            "enumerate(zip(idle, waiting)).",
        ),
        wrong={
            "rows counted from 0": Wrong(
                changed(SOLUTION, (TAKE, "taken.append((k, k))")),
                "Row 0 may be somebody's at this moment. Which rows does `running` say are idle?",
            ),
            "all in one row": Wrong(
                changed(SOLUTION, (TAKE, "taken.append((idle[0], k))")),
                "Two requests begin in the same row. Each needs a row of its own: its place in the step's "
                "batch.",
            ),
            "the same request again": Wrong(
                changed(SOLUTION, (TAKE, "taken.append((row, 0))")),
                "One request gets several rows, the ones behind it none. Count on in `waiting` as you count on "
                "in the rows.",
            ),
            "blocks not counted down": Wrong(
                changed(SOLUTION, ("        blocks -= need\n", "")),
                "Each of them fits, and together they do not: what is left of `blocks` once the first has "
                "begun?",
            ),
            "blocks not asked for": Wrong(
                changed(SOLUTION, (NEED, "if False:")),
                "A row alone is not enough: a text that finds no block in the middle would stand still. "
                "What may it need, and what is there?",
            ),
            "one block kept back": Wrong(
                changed(SOLUTION, (NEED, "if need >= blocks:")),
                "A request that needs exactly what is there is left waiting, and one that needs all of them "
                "waits for ever.",
            ),
            "overtaken": Wrong(
                changed(SOLUTION, (BREAK, "            continue\n")),
                "One that needs few blocks goes ahead of one that needs many. As long as such come, that one "
                "waits: who came first?",
            ),
            "last come, first served": Wrong(
                body(
                    "    idle = [row for row, runs in enumerate(running) if not runs]\n"
                    "    taken = []\n"
                    "    for row, k in zip(idle, reversed(range(len(waiting)))):\n"
                    "        if waiting[k] > blocks:\n"
                    "            break\n"
                    "        blocks -= waiting[k]\n"
                    "        taken.append((row, k))\n"
                    "    return taken\n"
                ),
                "The request that came last begins first. As long as others come, the first one never does.",
            ),
            "the whole batch first": Wrong(
                changed(SOLUTION, (FIRST, "    if any(running):\n        return []\n" + FIRST)),
                "Every text is right, and rows stand idle until the longest of their batch has ended: that is "
                "static batching. Need a row know of the others?",
                seen_by="count",
            ),
            "one at a time": Wrong(
                body(
                    "    if any(running) or waiting[0] > blocks:\n"
                    "        return []\n"
                    "    return [(0, 0)]\n"
                ),
                "Every text is right, and every step computes B rows for one request. Who could have the "
                "others?",
                seen_by="count",
            ),
        },
        accepted={
            "one a call": body(
                "    if all(running) or waiting[0] > blocks:\n"
                "        return []\n"
                "    return [(running.index(False), 0)]\n"
            ),
            "from the last row on": changed(
                SOLUTION,
                ("enumerate(running) if not runs]", "enumerate(running) if not runs][::-1]"),
            ),
            "rows popped": body(
                "    idle = [b for b in range(len(running)) if not running[b]]\n"
                "    taken, k = [], 0\n"
                "    while idle and k < len(waiting) and waiting[k] <= blocks:\n"
                "        taken.append((idle.pop(0), k))\n"
                "        blocks -= waiting[k]\n"
                "        k += 1\n"
                "    return taken\n"
            ),
        },
        plan=PortPlan.upto("paged_cache"),
        needs={"cache": "paged"},
        toy=toy,
        attach=attach,
        use=use,
        moment=N_("while eight requests went through three rows"),
        looked=N_(
            "; each came to the tokens of the request alone, nobody was overtaken, and all blocks were given "
            "back"
        ),
        count=count,
    ),
)
