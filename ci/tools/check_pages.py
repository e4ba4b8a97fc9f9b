"""Look at built pages in a real browser: `python ci/tools/check_pages.py [OUT] [--pictures DIR]`, exit
code 1 with findings.

For every HTML file of OUT (default: out/): no console error, no request to the net, every picture
is drawn and has alternative text, links and fragments lead somewhere, no horizontal scroll at 360,
768 and 1280 pixels, a title, a language, focus that goes through the page by Tab, and nothing white for
readers whose system is dark. With --pictures, PNGs of each page, light and dark, wide and phone.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent))

import browser
from browser import Page
from PIL import Image, ImageChops

PHONE, TABLET, DESK, PROJECTOR = 360, 768, 1280, (1280, 720)
SMALLEST = 0.6  # of its size may a figure be shrunk to on a slide
TILE = 64  # CSS pixels; a smaller white area does not glare
_PICTURES = """[...document.images].filter(i => !(i.complete && i.naturalWidth > 0) || !i.hasAttribute('alt'))
    .map(i => (i.complete && i.naturalWidth > 0 ? 'picture without alternative text: ' : 'picture not drawn: ')
         + (i.getAttribute('src') || '').slice(0, 60))"""
_LINKS = "[...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href'))"
_WIDE = """(() => { const room = WIDTH, wide = document.scrollingElement.scrollWidth - room; if (wide <= 0) return [];
    const inside = e => { for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
        if (getComputedStyle(p).overflowX !== 'visible') return true; return false; };
    const worst = [...document.body.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > room + 1
        && !inside(e)).slice(-3).map(e => e.tagName.toLowerCase() + '.' + String(e.className).split(' ')[0]);
    return ['scrolls sideways by ' + wide + ' px at ' + room + ' px: ' + worst.join(', ')]; })()"""
_OUTSIDE = """[...document.querySelectorAll('.slide.here, .slide.here > *:not(aside)')].flatMap(e => {
    const box = e.getBoundingClientRect(), name = String(e.className || e.tagName);
    const room = e.matches('.figure') ? e : null;
    return [box.bottom > innerHeight + 1 || e.scrollHeight > e.clientHeight + 2 ? [name, 'below the window'] : null,
            box.right > innerWidth + 1 || room && room.scrollWidth > room.clientWidth + 2
                ? [name, 'right of the window'] : null];
}).filter(Boolean)"""
_DRAWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
_REQUESTS = """performance.getEntriesByType('resource').map(e => e.name).filter(u => /^(https?|wss?):/.test(u))
    .map(u => 'asks the net for ' + u)"""


def look(page: Page, file: Path, root: Path) -> Iterator[str]:
    """Findings about one HTML file of the site at `root`."""
    page.size(DESK)
    page.open(file.resolve().as_uri())
    yield from (f"console: {text[:200]}" for text in page.errors)
    yield from page.run(_REQUESTS)
    if not page.run("document.title.trim() && document.documentElement.lang"):
        yield "has no title or no language"
    elif (said := page.run("document.documentElement.lang")[:2]) != (due := language_of(file)):
        yield f"says that its language is {said}, and lies where {due} does"
    yield from page.run(_PICTURES)
    yield from page.run(_WIDE.replace("WIDTH", str(DESK)))
    yield from _dead_links(page, file, root)
    if not _tab_moves(page):
        yield "Tab does not reach two links"
    for width in (TABLET, PHONE):
        page.size(width, 844)
        # innerWidth grows with what does not fit
        yield from page.run(_WIDE.replace("WIDTH", str(width)))
    for number in range(1, page.run("document.querySelectorAll('.deck .slide').length") + 1):
        page.size(*PROJECTOR)
        yield from outside(page, number)
    page.size(DESK, dark=True)
    yield from _glare(page)


def language_of(file: Path) -> str:
    """What a page's place says of its language: guide/glossary.zh-CN.html, docs/zh-CN/speed.html."""
    return "zh" if "zh-CN" in (file.parent.name, *file.stem.split(".")) else "en"


def outside(page: Page, number: int) -> Iterator[str]:
    """What of a slide does not fit the window."""
    page.run(f"location.hash = '#{number}'")
    page.wait(f"document.querySelector('#place span').textContent.startsWith('{number} /')", 5)
    page.run(_DRAWN)  # a slide fits its figure when the window has its size
    for name, text in page.run(_OUTSIDE):
        yield f"slide {number}: {name} is {text}"
    shrunk = page.run("document.querySelector('.slide.here .fit')?.style.zoom || 1")
    if float(shrunk) < SMALLEST:
        yield f"slide {number}: the figure is shrunk to {float(shrunk):.0%}, too small to read"


def _glare(page: Page) -> Iterator[str]:
    """Where a dark page has a tile that is white or nearly so; coloured areas do not count."""
    whole = Image.open(io.BytesIO(page.seen(1 / 8))).convert("RGB")
    red, green, blue = whole.split()
    grey = ImageChops.darker(ImageChops.darker(red, green), blue)
    tiles = grey.resize(
        (max(grey.width * 8 // TILE, 1), max(grey.height * 8 // TILE, 1)), Image.Resampling.BOX
    )
    at = next((k for k, light in enumerate(tiles.tobytes()) if light > 225), None)
    if at is not None:
        x, y = (at % tiles.width + 0.5) * TILE, (at // tiles.width + 0.5) * TILE
        page.run(f"scrollTo(0, {y} - 300)")
        what = page.run(f"document.elementFromPoint({x}, {y} - scrollY)?.outerHTML.slice(0, 80)")
        yield f"glares on a dark page, {y:.0f} px from the top: {what}"


def _dead_links(page: Page, file: Path, root: Path) -> Iterator[str]:
    for href in sorted(set(page.run(_LINKS))):
        parts = urlsplit(href)
        if parts.scheme or parts.netloc:
            continue
        target = (file.parent / unquote(parts.path)).resolve() if parts.path else file.resolve()
        if not target.exists():
            yield f"link to {href}, which does not exist"
        elif target == file.resolve() and parts.fragment:
            name = unquote(parts.fragment).replace("\\", "").replace("'", "\\'")
            if not page.run(f"!!document.getElementById('{name}')"):
                yield f"link to #{parts.fragment}, which is not in the page"


def _tab_moves(page: Page) -> bool:
    """Whether Tab goes to two different things that can be used."""
    page.run("document.activeElement && document.activeElement.blur()")
    seen = set()
    for _ in range(3):
        page.press("Tab")
        seen.add(page.run("document.activeElement.outerHTML.slice(0, 200)"))
    return len(seen) > 1


def pictures(page: Page, file: Path, folder: Path, label: str) -> None:
    for name, width, dark in (("wide", DESK, False), ("phone", PHONE, False), ("dark", DESK, True)):
        page.size(width, 1000, dark)
        page.open(file.resolve().as_uri())
        page.picture(folder / f"{label}-{name}.png", whole=name != "dark")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "out", nargs="?", type=Path, default=Path(__file__).resolve().parents[2] / "out"
    )
    parser.add_argument("--pictures", type=Path, metavar="DIR")
    args = parser.parse_args(argv)
    # 404.html is for a server at the site's root
    files = [f for f in sorted(args.out.rglob("*.html")) if f.name != "404.html"]
    if not files:
        print(f"{args.out}: no pages here; `python3 ci/run.py tutorial` builds them")
        return 2
    if browser.find() is None:
        print(f"not checked: {browser.MISSING}")
        return 2
    count = 0
    with browser.browser() as page:
        for file in files:
            for text in look(page, file, args.out):
                print(f"{file.relative_to(args.out)}: {text}")
                count += 1
            if args.pictures:
                pictures(
                    page,
                    file,
                    args.pictures,
                    "-".join(file.relative_to(args.out).with_suffix("").parts),
                )
    print(f"{len(files)} pages, {count} findings")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
