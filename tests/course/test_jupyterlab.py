"""The notebooks in JupyterLab itself, in a headless Chromium: all cells run, plots are drawn, a
loop can be stopped.

A copy of the notebooks is used, so that what JupyterLab saves stays out of the repository. Skipped
without a browser.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "ci" / "tools"))
import browser

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(browser.find() is None, reason=browser.MISSING)
PANEL = "[...jupyterapp.shell.widgets('main')].find(w => w.content?.widgets?.length)"
KERNEL = f"{PANEL}.sessionContext.session?.kernel?.status"
IDLE = f"{KERNEL} === 'idle' && {PANEL}.content.widgets.every(w => w.prompt !== '*')"
OUTPUTS = f"""{PANEL}.content.widgets.flatMap(w => w.model.type === 'code' ?
    w.model.outputs.toJSON().map(o => ({{type: o.output_type, name: o.ename || '',
                                        text: String(o.evalue || o.text || ''),
                                        image: !!(o.data && o.data['image/png'])}})) : [])"""
DRAWN = f"""(() => {{ const nb = {PANEL}.content, at = nb.widgets.findIndex(w => w.model.type === 'code' &&
    w.model.outputs.toJSON().some(o => o.data && o.data['image/png'])); nb.scrollToItem(at);
    const img = nb.widgets[at].node.querySelector('img');
    return img && img.complete && img.naturalWidth > 100 && img.alt.length > 20; }})()"""
PICTURES = f"[...{PANEL}.content.node.querySelectorAll('.jp-OutputArea img')]"
LOOP = "import time\nfrom tqdm import tqdm\nfor _ in tqdm(range(3000), desc='waiting'):\n    time.sleep(0.1)"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """JupyterLab on the loopback address with a token, over a copy of the notebooks; (address,
    token)."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(
        ROOT / "notebooks", home / "notebooks", ignore=shutil.ignore_patterns("*checkpoints")
    )
    (home / "data").symlink_to(ROOT / "data")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "HF_HUB_OFFLINE": "1",
        "JUPYTER_DATA_DIR": str(home / "share"),
        "JUPYTER_PREFER_ENV_PATH": "1",
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--ServerApp.ip=127.0.0.1",
        f"--port={port}",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={home}",
        "--ServerApp.port_retries=0",
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.news_url=None",
    ]
    command += ["--allow-root"] if os.geteuid() == 0 else []
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, env=env, cwd=home, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield _ready(process, f"http://127.0.0.1:{port}", token, home / "log"), token
    finally:
        browser.end_process(process, 20)


def _ready(process: subprocess.Popen, address: str, token: str, log: Path) -> str:
    end = time.monotonic() + 90
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=5) as answer:
                if answer.status == 200:
                    return address
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"JupyterLab did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def page():
    with browser.browser() as made:
        made.size(1400, 1000)
        yield made


def open_notebook(page, server, name: str) -> None:
    address, token = server
    page.open(f"{address}/lab/tree/notebooks/{name}.ipynb?token={token}&reset")
    page.wait(f"{PANEL}.content.widgets.length > 5 && {KERNEL} === 'idle'", 90, f"{name} opens")
    page.run(f"jupyterapp.shell.activateById({PANEL}.id)")
    page.wait(f"jupyterapp.shell.currentWidget === {PANEL}", 10, "the notebook has the focus")


def command(page, name: str) -> None:
    page.run(f"void jupyterapp.commands.execute('{name}')")


def test_without_the_token_nothing_is_served(server):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{server[0]}/api/contents", timeout=10)


@pytest.mark.parametrize("name", ["00_start_here", "03_gmm_routing", "08_aclgraph"])
def test_all_cells_run(page, server, name):
    open_notebook(page, server, name)
    command(page, "notebook:run-all-cells")
    page.wait(f"{KERNEL} === 'busy'", 30, "the first cell starts")
    time.sleep(1)
    page.wait(IDLE, 240, f"{name} runs through")
    outputs = page.run(OUTPUTS)
    errors = [o for o in outputs if o["type"] == "error"]
    assert not errors, json.dumps(errors)[:1000]
    assert any(o["image"] for o in outputs) and len(outputs) > 10
    page.wait(DRAWN, 30, "a plot with its alternative text is on the screen")
    for theme, drawn in (("Dark", "invert"), ("Light", "none")):
        page.run(
            f"void jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})"
        )
        page.wait(
            f"{PICTURES}.every(i => getComputedStyle(i).filter.startsWith('{drawn}'))",
            20,
            f"plots are {theme}",
        )


WRONG = """q = torch.cat((q_nope @ w_k, q_rope), -1)
scores = (q @ rows.transpose(-1, -2)) * rows.shape[-1] ** -0.5 + mask
weights = scores.softmax(-1).to(rows.dtype)
return weights @ rows[..., : w_k.shape[-1]] @ w_v"""
RIGHT = WRONG.replace("rows.shape[-1] ** -0.5", "scale")
AT = f"""(name => {PANEL}.content.widgets.findIndex(w => w.model.id === name))"""
HTML = f"""(name => {PANEL}.content.widgets[{AT}(name)].model.outputs.toJSON().map(o =>
    String(o.data?.['text/html'] || o.data?.['text/markdown'] || o.text || o.evalue || '')).join('\\n'))"""


def run_cell(page, name: str, seconds: float = 120) -> str:
    """Run one cell by its id, as Shift+Enter does, and give what it shows as HTML."""
    page.run(f"{PANEL}.content.activeCellIndex = {AT}('{name}')")
    command(page, "notebook:run-cell")
    ran = f"{PANEL}.content.widgets[{AT}('{name}')]"
    page.wait(f"{KERNEL} === 'idle' && {ran}.prompt !== '*' && {ran}.prompt !== ''", seconds, name)
    page.run(f"{PANEL}.content.scrollToItem({AT}('{name}'))")
    return page.run(f"{HTML}('{name}')")


def type_body(page, body: str) -> None:
    """The stub's three dots are replaced by `body`, with keys only."""
    page.run(f"{PANEL}.content.activeCellIndex = {AT}('mla-yours')")
    command(page, "notebook:enter-edit-mode")
    page.wait(f"{PANEL}.content.mode === 'edit'", 10, "the cell can be written in")
    page.press("End", 35, modifiers=2)
    for _ in "...":
        page.press("Backspace", 8)
    page.write(body)
    page.press("Escape")
    written = page.run(f"{PANEL}.content.widgets[{AT}('mla-yours')].model.sharedModel.getSource()")
    assert [line.strip() for line in written.splitlines()[-4:]] == body.splitlines(), written


def test_a_learner_writes_a_wrong_answer_sees_the_hint_and_then_the_bar(page, server):
    """Notebook 02, with a person's keys: empty, wrong with its own hint and text, right with its line
    in the plot."""
    open_notebook(page, server, "02_mla_low_rank")
    page.run(f"{PANEL}.content.activeCellIndex = {AT}('mla-judge')")
    command(page, "notebook:run-all-above")
    page.wait(f"{KERNEL} === 'busy'", 30, "the first cell starts")
    page.wait(IDLE, 240, "the cells above have run")
    stub = page.run(f"{PANEL}.content.widgets[{AT}('mla-yours')].model.sharedModel.getSource()")
    assert 'data-state="empty"' in run_cell(page, "mla-judge")
    type_body(page, WRONG)
    run_cell(page, "mla-yours")
    said = run_cell(page, "mla-judge")
    assert 'data-state="wrong"' in said and "whose width is the scale" in said, said[:500]
    seen = "[...document.querySelectorAll('[data-state=wrong][role=status]')]"
    assert page.run(f"{seen}.some(e => e.innerText.includes('whose width is the scale'))")
    run_cell(page, "mla-equivalence")
    text = run_cell(page, "mla-text")
    assert "text, your code" in text and "▸" in text and "text, finished code" in text
    source = json.dumps(stub)
    page.run(f"{PANEL}.content.widgets[{AT}('mla-yours')].model.sharedModel.setSource({source})")
    type_body(page, RIGHT)
    run_cell(page, "mla-yours")
    said = run_cell(page, "mla-judge")
    assert 'data-state="right"' in said and "16 calls of your function" in said, said[:500]
    assert "yours code equals transformers" in run_cell(page, "mla-equivalence")
    run_cell(page, "mla-measure", 400)
    assert "yours" in run_cell(page, "mla-plot")
    page.wait(DRAWN, 30, "the plot with the learner's line is on the screen")


def test_a_running_cell_shows_its_bar_is_interrupted_and_the_kernel_restarts(page, server):
    open_notebook(page, server, "08_aclgraph")
    page.run(f"(() => {{ const nb = {PANEL}.content; nb.activeCellIndex = 3; }})()")
    command(page, "notebook:insert-cell-below")
    page.wait(f"{PANEL}.content.activeCellIndex === 4", 10)
    page.run(f"{PANEL}.content.activeCell.model.sharedModel.setSource({json.dumps(LOOP)})")
    command(page, "notebook:run-cell")
    here = f"{PANEL}.content.widgets[4]"
    page.wait(f"{here}.node.innerText.includes('waiting:')", 60, "the progress bar renders")
    command(page, "notebook:interrupt-kernel")
    page.wait(
        f"{here}.model.outputs.toJSON().some(o => o.ename === 'KeyboardInterrupt')",
        30,
        "the loop stops",
    )
    page.wait(f"{KERNEL} === 'idle'", 30)
    before = page.run(f"{PANEL}.sessionContext.session.kernel.id")
    command(page, "notebook:restart-kernel")
    page.wait(
        "!!document.querySelector('.jp-Dialog .jp-mod-accept')", 10, "the question before a restart"
    )
    page.run("document.querySelector('.jp-Dialog .jp-mod-accept').click()")
    time.sleep(1)
    page.wait(f"{KERNEL} === 'idle'", 60, "the kernel is back")
    assert page.run(f"{PANEL}.sessionContext.session.kernel.id") == before
    page.run(f"{here}.model.sharedModel.setSource('print(2 + 2)')")
    command(page, "notebook:run-cell")
    page.wait(
        f"{here}.model.outputs.toJSON().some(o => String(o.text).trim() === '4')",
        30,
        "the new kernel answers",
    )
