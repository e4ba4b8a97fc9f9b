"""Inject faults and count what comes of them: `python -m tests.faults.campaign --count 700 --seed 0`.

Right is: the text that the unspoilt model says; or exit code 2 and one sentence. Wrong is another
text, a traceback, an error that nobody foresaw, or no end. A fault is named by kind, number and
seed, and is made again by `--only KIND:NUMBER`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path
from random import Random

from dsv3_port.cli import main
from dsv3_port.engine import chat
from dsv3_port.paths import tiny
from dsv3_port.weights.sharding import shard_checkpoint

from .inject import KINDS, Fault, infer

LIMIT = 120  # seconds of one command
WRONG = (
    "another text",
    "not foreseen",
    "traceback",
    "no end",
    "odd exit",
    "many lines",
    "accepted",
)


class NoEnd(BaseException):
    pass


def _too_long(*_: object) -> None:
    raise NoEnd


def run(argv: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command in this process; 999: an exception came out."""
    out, err, kept = io.StringIO(), io.StringIO(), dict(os.environ)
    os.environ.update(environment)
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(argv)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except NoEnd:
        code = 998
    except BaseException:
        code = 999
        err.write(traceback.format_exc())
    finally:
        signal.alarm(0)
        os.environ.clear()
        os.environ.update(kept)
    return code, out.getvalue(), err.getvalue()


def text_of(out: str) -> str:
    return out.partition("deepseek_v3:")[0]


def outcome(fault: Fault, want: str) -> tuple[str, str]:
    """(what came of it, what was said). `want`: the text that the unspoilt model says."""
    code, out, err = run(fault.argv, fault.environment)
    said = [x for x in err.splitlines() if x.startswith("dsv3-port")]
    said = [x for x in said if not x.startswith("dsv3-port: warning:")]
    last = said[-1] if said else err[-300:]
    if code == 998:
        return "no end", last
    if code == 999 or "Traceback" in err:
        return "traceback", err[-2000:]
    if any("not foreseen" in x for x in said):
        return "not foreseen", last
    if code == 2:
        return ("refused" if len(said) == 1 else "many lines"), last
    if code != 0:
        return ("answered no" if code == 1 and fault.argv[0] == "compare" else "odd exit"), last
    if fault.wants == "refused":
        return "accepted", text_of(out)
    if fault.wants == "any":
        return "did as asked", ""
    return ("same text" if text_of(out) == want else "another text"), text_of(out)


def campaign(
    count: int, seed: int, only: str = "", say: bool = False
) -> list[tuple[str, str, str, str]]:
    """(kind and number, what was done, what came of it, what was said) of `count` faults."""
    chat.SECONDS = 2.0  # of a template that does not end
    found = []
    with tempfile.TemporaryDirectory() as work:
        split = Path(work) / "split"
        shard_checkpoint(tiny(), split, 1, dtype="fp32")
        want = {}
        for folder in (tiny(), split):
            code, out, err = run(infer(folder), {})
            assert code == 0, err
            want[folder] = text_of(out)
        assert len(set(want.values())) == 1
        for i in range(count):
            kind = list(KINDS)[i % len(KINDS)]
            name = f"{kind}:{i // len(KINDS)}"
            if only and name != only and kind != only:
                continue
            with tempfile.TemporaryDirectory(dir=work) as new:
                fault = KINDS[kind](Random(f"{seed} {name}"), Path(new), split)
                came, said = outcome(fault, want[tiny()])
            found.append((name, fault.words, came, said))
            if say and (came in WRONG or only):
                print(f"{name}  {fault.words}\n    {came}: {said}", flush=True)
    return found


def table(found: list[tuple[str, str, str, str]]) -> str:
    """Markdown: kinds down, outcomes across."""
    from dsv3_port.markdown import table as markdown

    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for name, _, came, _ in found:
        counts[name.partition(":")[0]]["WRONG" if came in WRONG else came] += 1
    heads = ["refused", "same text", "did as asked", "answered no", "WRONG"]
    rows = [[k, sum(c.values()), *(c[h] for h in heads)] for k, c in counts.items()]
    rows.append(["all", *(sum(int(r[i]) for r in rows) for i in range(1, len(heads) + 2))])
    return markdown(["kind", "faults", *heads], rows)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--count", type=int, default=700)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--only", default="", metavar="KIND[:NUMBER]")
    words = p.parse_args()
    start = time.process_time()
    results = campaign(words.count, words.seed, words.only, say=True)
    print(f"{table(results)}\n\n{time.process_time() - start:.0f} s of CPU time, seed {words.seed}")
    sys.exit(any(came in WRONG for _, _, came, _ in results))
