"""Keep what a run of the vendor's tests gave: `python ci/tools/vendor_record.py RESULTS…`.

RESULTS: vendor-tests.json of `dsv3-port hostnpu vendor-tests CHECKOUT --base`, or a folder of such
files; a file of tests that is in several counts as in the last one. Writes
dsv3_port/hostnpu/vendor_results.json; reasons that stand there for failing tests are kept.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def merged(paths: list[Path]) -> list[dict[str, Any]]:
    files: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        for one in sorted(path.glob("*.json")) if path.is_dir() else [path]:
            new: dict[str, list[dict[str, Any]]] = {}
            for result in json.loads(one.read_text(encoding="utf-8")):
                new.setdefault(result["file"], []).append(result)
            files |= new
    return [result for name in sorted(files) for result in files[name]]


def main(argv: list[str]) -> int:
    sys.path.insert(0, str(ROOT))
    from dsv3_port.hostnpu import vendor_counts

    if not argv:
        print(__doc__, file=sys.stderr)
        return 2
    found = merged([Path(a) for a in argv])
    why: dict[str, str] = {}
    if vendor_counts.DATA.is_file():
        why = json.loads(vendor_counts.DATA.read_text(encoding="utf-8")).get("why", {})
    data = vendor_counts.record(found, why) | {"why": why}
    text = json.dumps(data, indent=1, ensure_ascii=False)
    vendor_counts.DATA.write_text(text + "\n", encoding="utf-8")
    print(data["counts"], f"{vendor_counts.share(data['counts']):.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
