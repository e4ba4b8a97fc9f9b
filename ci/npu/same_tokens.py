"""Whether runs of `dsv3-port infer --json` chose the same tokens: `same_tokens.py FIRST OTHER...`;
1 where not."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def tokens(file: str) -> list[list[int]]:
    return [
        g["token_ids"] for g in json.loads(Path(file).read_text(encoding="utf-8"))["generations"]
    ]


def main(files: list[str]) -> int:
    try:
        want, different = tokens(files[0]), [f for f in files[1:] if tokens(f) != tokens(files[0])]
    except (OSError, ValueError, KeyError) as error:
        print(f"same_tokens.py: a run has left no readable result: {error}", file=sys.stderr)
        return 2
    if different:
        print(f"other tokens than {files[0]}: {', '.join(different)}", file=sys.stderr)
        return 1
    print(f"{len(files)} runs chose the same {sum(map(len, want))} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
