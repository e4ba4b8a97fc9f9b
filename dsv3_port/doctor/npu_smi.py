"""Driver, cards and their free memory, as `npu-smi info` shows them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from ..messages import N_, told, tr
from .ascend import NONE_HERE, device_files, is_ascend
from .findings import FAIL, NA, OK, WARN, Check

DRIVER, HBM = N_("driver"), N_("free HBM")
BUSY_HBM = 0.1  # of a card's memory, used before we start


@dataclass(frozen=True)
class Card:
    """A chip as npu-smi shows it; memory in MB."""

    name: str
    health: str
    used: int
    total: int


def parse_npu_smi(text: str) -> tuple[str, list[Card]]:
    """`npu-smi info` -> (version, cards). A chip has two lines: name and health, then bus and
    memory (used / total)."""
    version = re.search(r"npu-smi\s+(\S+)", text)
    cards, name, health = [], "", ""
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip().strip("|").split("|")]
        if len(cells) != 3 or not cells[0][:1].isdigit():
            continue
        if re.match(r"[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:", cells[1]):
            memory = re.findall(r"(\d+)\s*/\s*(\d+)", cells[2])
            if memory:
                cards.append(Card(name, health, int(memory[-1][0]), int(memory[-1][1])))
        elif len(cells[0].split()) == 2:
            name, health = cells[0].split()[1], cells[1]
    return version[1] if version else "", cards


def _asked() -> Check | tuple[str, list[Card]]:
    """npu-smi's version and cards, or what is in the way."""
    if shutil.which("npu-smi") is None:
        if device_files():
            there = tr("{n} cards in /dev, npu-smi is not found").format(n=len(device_files()))
            remedy = tr(
                "in a container, mount /usr/local/bin/npu-smi, /usr/local/dcmi and /usr/local/Ascend/driver"
            )
            return Check(DRIVER, FAIL, there, remedy)
        remedy = tr(
            "install the NPU's driver and firmware; in a container, pass --device /dev/davinci0 (and so on), "
            "/dev/davinci_manager, /dev/devmm_svm and /dev/hisi_hdc"
        )
        return Check(DRIVER, FAIL, tr("no /dev/davinci* and no npu-smi"), remedy)
    locked = [f.name for f in device_files() if not os.access(f, os.R_OK | os.W_OK)]
    if locked:
        closed = tr("no permission for {cards}").format(cards=", ".join(locked))
        remedy = tr("sudo usermod -aG HwHiAiUser $USER, then log in again")
        return Check(DRIVER, FAIL, closed, remedy)
    try:
        done = subprocess.run(["npu-smi", "info"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        silent = tr("npu-smi does not answer: {error}").format(error=error)
        return Check(DRIVER, FAIL, silent, tr("restart the machine; `dmesg` may say why"))
    version, cards = parse_npu_smi(done.stdout)
    if done.returncode or not cards:
        said = " ".join((done.stderr or done.stdout).split())[:200] or tr("shows no card")
        remedy = tr("check that the driver is loaded and that no other container holds the cards")
        return Check(DRIVER, FAIL, f"npu-smi info: {said}", remedy)
    return version, cards


def version() -> str:
    """npu-smi's version, which is the driver's; "" where it does not answer."""
    found = _asked()
    return "" if isinstance(found, Check) else found[0]


def checks() -> list[Check]:
    """Driver; free memory of each card."""
    if not is_ascend():
        return [Check(name, NA, told(NONE_HERE)) for name in (DRIVER, HBM)]
    found = _asked()
    if isinstance(found, Check):
        return [found, Check(HBM, NA, tr("unknown without npu-smi"))]
    release, cards = found
    sick = [f"{i} ({c.health})" for i, c in enumerate(cards) if c.health != "OK"]
    shown = f"npu-smi {release}, {len(cards)} × {cards[0].name}"
    first = Check(DRIVER, OK, shown)
    if sick:
        ill = tr("{cards}; not well: {sick}").format(cards=shown, sick=", ".join(sick))
        first = Check(DRIVER, WARN, ill, tr("name the others in ASCEND_RT_VISIBLE_DEVICES"))
    left = ", ".join(f"{(c.total - c.used) / 1024:.1f}" for c in cards)
    detail = tr("{free} GiB of {all:.0f}").format(free=left, all=cards[0].total / 1024)
    busy = [str(i) for i, c in enumerate(cards) if c.used > BUSY_HBM * c.total]
    if busy:
        used = tr("{free}; somebody uses card {cards}")
        remedy = tr("end that work, or name other cards in ASCEND_RT_VISIBLE_DEVICES")
        return [first, Check(HBM, WARN, used.format(free=detail, cards=", ".join(busy)), remedy)]
    return [first, Check(HBM, OK, detail)]
