"""One finding of the doctor, and how versions are read without importing what may be broken."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import metadata

OK, WARN, FAIL, NA = "OK", "WARN", "FAIL", "N/A"


@dataclass(frozen=True)
class Check:
    """One finding. `status`: OK, WARN (runs, with a loss), FAIL (something will not run), N/A (not
    needed here)."""

    name: str  # of the catalogue, as `N_` marks it
    status: str
    detail: str  # in the reader's language, as the remedy is
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def version_of(package: str) -> str | None:
    """Installed version by package metadata; nothing is imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "2.13.0+cpu" -> (2, 13, 0), "2.9.0.post2" -> (2, 9, 0),
    "8.2.RC1" -> (8, 2)."""
    found: list[int] = []
    for part in version.split("+")[0].split("."):
        digits = "".join(c for c in part if c.isdigit()) if part[:1].isdigit() else ""
        if not digits:
            break
        found.append(int(digits))
    return tuple(found)
