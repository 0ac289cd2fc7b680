# SPDX-License-Identifier: Apache-2.0
"""The notebooks in JupyterLab and a real browser, by its menus; what a kernel's end leaves behind.

``tools/bootstrap.sh browser`` installs JupyterLab and Chromium and runs this file.  A screenshot of
each notebook goes to ``BPFKIT_ARTIFACTS``, else to pytest's temporary directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfkit.net.links.netns import NetNS

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LAB = ROOT / ".venv-lab/bin/jupyter-lab"
#: Seconds: a loaded machine starts a browser slowly.
LONG = 120.0


def _missing() -> str:
    for module in ("selenium", "nbformat", "ipykernel", "matplotlib", "pandas"):
        try:
            __import__(module)
        except ImportError:
            return module
    if not LAB.exists():
        return "JupyterLab in .venv-lab"
    found = [name for name in ("chromium", "chromedriver", "bpftool") if not shutil.which(name)]
    return found[0] if found else ""


if missing := _missing():
    pytest.skip(
        f"{missing} is not installed; tools/bootstrap.sh browser installs it and runs this file",
        allow_module_level=True,
    )

#: All cells of the notebook in front: what ran, and with which outputs.
CELLS = """
const widget = window.jupyterapp.shell.currentWidget;
return Array.from(widget.content.model.cells).map(cell => ({
    type: cell.type,
    source: cell.sharedModel.getSource(),
    tags: cell.getMetadata('tags') || [],
    count: cell.executionCount,
    state: cell.executionState,
    outputs: cell.type === 'code' ? cell.outputs.toJSON() : [],
}));
"""
#: What the browser made of the HTML outputs: the tables and drawings of each cell, and their sizes.
DRAWN = """
return Array.from(document.querySelectorAll('.jp-Notebook .jp-CodeCell')).map(cell => {
    const size = node => {
        const box = node.getBoundingClientRect();
        return [box.width, box.height];
    };
    const all = query => Array.from(cell.querySelectorAll('.jp-OutputArea ' + query)).map(size);
    return {tables: all('table'), drawings: all('svg[role=img]'), pictures: all('img')};
});
"""
#: Texts of a lab's drawing that leave the box they begin in, or overlap another text.
MISPLACED = """
const bad = [];
for (const svg of document.querySelectorAll('.jp-Notebook svg[role=img]')) {
    const box = node => node.getBBox();
    const boxes = Array.from(svg.querySelectorAll('rect')).map(box);
    const texts = Array.from(svg.querySelectorAll('text')).map(node => [node, box(node)]);
    const within = (a, b) => a.x >= b.x && a.y >= b.y &&
        a.x + a.width <= b.x + b.width && a.y + a.height <= b.y + b.height;
    texts.forEach(([node, a], index) => {
        if (!boxes.some(b => within(a, b))) bad.push('outside a box: ' + node.textContent);
        for (const [other, b] of texts.slice(index + 1)) {
            if (a.x < b.x + b.width && b.x < a.x + a.width &&
                a.y + 2 < b.y + b.height && b.y + 2 < a.y + a.height) {
                bad.push(node.textContent + ' overlaps ' + other.textContent);
            }
        }
    });
    const [width, height] = [svg.width.baseVal.value, svg.height.baseVal.value];
    for (const path of svg.querySelectorAll('path, rect')) {
        const a = box(path);
        if (a.x < 0 || a.y < 0 || a.x + a.width > width || a.y + a.height > height) {
            bad.push('cut off: ' + path.outerHTML);
        }
    }
}
return bad;
"""


def until(what: str, happened: Callable[[], Any], seconds: float = LONG) -> Any:
    """Wait for it; returns what it returned."""
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)
    return found


class Lab:
    """JupyterLab on a copy of the notebooks, with the kernel that the tests run under."""

    def __init__(self, home: Path) -> None:
        self.notebooks = home / "notebooks"
        shutil.copytree(ROOT / "notebooks", self.notebooks)
        spec = home / "data/kernels/python3"
        spec.mkdir(parents=True)
        (spec / "kernel.json").write_text(
            json.dumps(
                {
                    "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                    "display_name": "Python 3",
                    "language": "python",
                }
            )
        )
        # All cells are in the page, not only those in view: a screenshot shows the whole notebook.
        for name, text in {
            "notebook-extension/tracker": '{"windowingMode": "none"}',
            "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
        }.items():
            file = home / f"settings/@jupyterlab/{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True)
            file.write_text(text)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.token = os.urandom(16).hex()  # others on this machine must not get a root shell here
        self.log = home / "lab.log"
        env = os.environ | {
            "HOME": os.fspath(home),
            "PYTHONPATH": os.fspath(ROOT),
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "IPYTHONDIR": os.fspath(home / "ipython"),
            "MPLCONFIGDIR": os.fspath(home / "matplotlib"),
            "JUPYTER_PATH": os.fspath(home / "data"),
            "JUPYTER_DATA_DIR": os.fspath(home / "data"),
            "JUPYTER_CONFIG_DIR": os.fspath(home / "config"),
            "JUPYTER_RUNTIME_DIR": os.fspath(home / "runtime"),
            "JUPYTER_TOKEN": self.token,
            "JUPYTERLAB_SETTINGS_DIR": os.fspath(home / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": os.fspath(home / "workspaces"),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    LAB,
                    "--allow-root",
                    "--no-browser",
                    f"--ServerApp.root_dir={self.notebooks}",
                    "--ServerApp.ip=127.0.0.1",
                    f"--ServerApp.port={port}",
                    "--ServerApp.port_retries=0",
                    "--LabApp.expose_app_in_browser=True",
                ],
                cwd=home,
                env=env,
                stdout=log,
                stderr=log,
            )

    def ask(self, path: str, method: str = "GET") -> Any:
        """The server's REST interface."""
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.url}/api/{path}", None, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError):
            return bool(self.ask("status"))
        return False

    def end_kernels(self) -> None:
        for kernel in self.ask("kernels"):
            self.ask(f"kernels/{kernel['id']}", "DELETE")

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    server = Lab(tmp_path_factory.mktemp("lab"))
    try:
        until("JupyterLab answers", server.ready)
        yield server
    finally:
        server.close()


class Page:
    """A notebook in front of a user."""

    def __init__(self, lab: Lab, driver: Any) -> None:
        self.lab = lab
        self.driver = driver
        self.path = ""

    def open(self, path: str) -> None:
        """Open a notebook, empty of outputs, with an idle kernel."""
        self.path = path
        self.driver.get(f"{self.lab.url}/lab/tree/{path}?reset&token={self.lab.token}")
        until("JupyterLab is in the page", lambda: self.js("return !!window.jupyterapp"))
        until("the notebook is open with a kernel", self._is_ready)
        self.menu("Edit", "Clear Outputs of All Cells")
        assert not any(cell["outputs"] for cell in self.cells())

    def _is_ready(self) -> bool:
        return bool(
            self.js(
                """
                const widget = window.jupyterapp.shell.currentWidget;
                const session = widget && widget.context && widget.context.sessionContext;
                return !!(session && widget.context.isReady && session.session &&
                    widget.context.path === arguments[0] &&
                    session.session.kernel && session.session.kernel.status === 'idle');
                """,
                self.path,
            )
        )

    def js(self, script: str, *args: Any) -> Any:
        return self.driver.execute_script(script, *args)

    def click(self, xpath: str) -> None:
        """Click the element once it is there."""
        from selenium.common.exceptions import WebDriverException

        def clicked() -> bool:
            with contextlib.suppress(WebDriverException):  # not yet, or just redrawn
                self.driver.find_element("xpath", xpath).click()
                return True
            return False

        until(f"there is {xpath} to click on", clicked, 60)

    def menu(self, menu: str, item: str) -> None:
        """As a user chooses it."""
        self.click(f"//div[contains(@class,'lm-MenuBar-itemLabel')][.='{menu}']")
        self.click(f"//div[contains(@class,'lm-Menu-itemLabel')][starts-with(.,'{item}')]")

    def cells(self) -> list[dict[str, Any]]:
        return list(self.js(CELLS))

    def code(self) -> list[dict[str, Any]]:
        return [cell for cell in self.cells() if cell["type"] == "code"]

    def has_run(self) -> bool:
        """All cells have; an error that no tag announces ends the wait."""
        cells = self.code()
        for cell in cells:
            for output in cell["outputs"]:
                if output["output_type"] == "error" and "raises-exception" not in cell["tags"]:
                    lines = "\n".join(output["traceback"])
                    raise AssertionError(f"{self.path}: {cell['source']}\n{lines}")
        return all(cell["count"] and cell["state"] == "idle" for cell in cells)

    def run_all(self) -> None:
        self.menu("Run", "Run All Cells")

    def kernel(self) -> int:
        """The process id of the only kernel, as the machine sees it."""
        (kernel,) = self.lab.ask("kernels")
        name = f"kernel-{kernel['id']}.json".encode()
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = entry.read_bytes().split(b"\0")
                if words[-2:-1] and words[-2].endswith(name):
                    return int(entry.parent.name)
        raise AssertionError(f"no process of kernel {kernel['id']}")

    def screenshot(self, artifacts: Path, name: str) -> Path:
        """Of the whole notebook, however long."""
        self.js("window.jupyterapp.shell.collapseLeft()")
        for _ in range(2):  # the first makes it as wide as the window
            height = self.js(
                """
                const last = Array.from(document.querySelectorAll('.jp-Notebook .jp-Cell')).at(-1);
                const outer = document.querySelector('.jp-WindowedPanel-outer');
                outer.scrollTop = 0;
                return Math.ceil(last.getBoundingClientRect().bottom) + 100;
                """
            )
            self.driver.set_window_size(1280, max(900, min(height, 12000)))
        path = artifacts / f"{name}.png"
        assert self.driver.save_screenshot(os.fspath(path))
        return path


@pytest.fixture
def page(lab: Lab, tmp_path: Path) -> Iterator[Page]:
    """A browser for each test: its processes come and go, and all are gone afterwards."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for word in (
        "headless=new",
        "no-sandbox",  # it runs as root, and sees nothing but this server
        "disable-dev-shm-usage",
        "disable-gpu",
        "hide-scrollbars",
        "window-size=1280,900",
        f"user-data-dir={tmp_path / 'chromium'}",
    ):
        options.add_argument(f"--{word}")
    service = Service(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        driver.set_script_timeout(LONG)
        yield Page(lab, driver)
    finally:
        driver.quit()
        lab.end_kernels()


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("BPFKIT_ARTIFACTS")
    path = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_run_all_in_a_browser(
    page: Page, artifacts: Path, capfd: pytest.CaptureFixture[str], path: Path
) -> None:
    import nbformat

    sys.path.insert(0, str(ROOT / "tools"))
    import notebooks

    page.open(path.name)
    page.run_all()
    try:
        until("all cells have run", page.has_run)
    finally:
        with capfd.disabled():
            print(f"\nscreenshot: {page.screenshot(artifacts, path.stem)}")
    cells = page.code()
    done = nbformat.from_dict(
        {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [
            {"cell_type": "code", "source": "", "metadata": {}, "outputs": cell["outputs"]}
            for cell in cells
        ]}
    )  # fmt: skip
    committed = nbformat.read(path, as_version=4)
    committed.cells = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert notebooks.form(done) == notebooks.form(committed)

    drawn = page.js(DRAWN)
    for cell, found in zip(cells, drawn, strict=True):
        data = [output.get("data", {}) for output in cell["outputs"]]
        html = "".join("".join(one.get("text/html", "")) for one in data)
        assert len(found["tables"]) == html.count("<table"), cell["source"]
        assert len(found["drawings"]) == html.count("<svg"), cell["source"]
        assert len(found["pictures"]) == sum("image/png" in one for one in data), cell["source"]
        for width, height in found["tables"] + found["drawings"] + found["pictures"]:
            assert width > 20 and height > 20, cell["source"]
    assert page.js(MISPLACED) == []


# -- interrupt, restart, SIGKILL -------------------------------------------------------------------

COUNTER = """\
%%bpf counter
#include <bpfkit/bpfkit.h>
#include <uapi/linux/bpf.h>

BPF_ARRAY(packets, u64, 1);

SEC("xdp")
int count_packets(struct xdp_md *ctx)
{
	u32 zero = 0;

	packets.increment(zero);
	return XDP_PASS;
}

SEC("cgroup/connect4")
int allow(struct bpf_sock_addr *ctx)
{
	return 1;
}
"""
#: A lab with a cable to the outside, a program outside, another one at a cgroup.  OUTSIDE is a
#: namespace of the test.
MAKE = """\
import json
import os

from bpfkit.core.cgroups import Cgroup
from bpfkit.net.links.lab import pair_lab
from bpfkit.net.links.netns import NetNS

outside = NetNS.from_path(OUTSIDE)
lab = pair_lab()
cable = "ip link add inner type veth peer name outer netns".split()
lab["client"].check_output([*cable, OUTSIDE])
with outside.entered():
    link = count_packets.attach_xdp(1)
group = Cgroup.new("notebook")
guard = allow.attach_cgroup(group.fd)
made = {
    "pid": os.getpid(),
    "cgroup": group.path,
    "prog": [count_packets.id, allow.id],
    "map": [packets.id],
    "link": [link.id, guard.id],
}
print(json.dumps(made))
"""
WATCH = "frames = packets.watch(60, every=0.2)"
CLOSE = """\
print(len(frames), "frames")
group.close()
%bpf_close
lab.close()
outside.close()
"""


class Made:
    """What the notebook has made, as the kernel sees it."""

    def __init__(self, outside: NetNS, made: dict[str, Any]) -> None:
        self.outside = outside
        self.pid = made["pid"]
        self.cgroup = Path(made["cgroup"])
        self.ids = [(kind, number) for kind in ("prog", "map", "link") for number in made[kind]]

    def objects(self) -> list[tuple[str, int]]:
        """Programs, maps and links that are there (ids are not used twice)."""
        return [
            (kind, number)
            for kind, number in self.ids
            if subprocess.run(
                ["bpftool", kind, "show", "id", str(number)], capture_output=True
            ).returncode
            == 0
        ]

    def has_cable(self) -> bool:
        """The lab's namespace exists: the cable's end out here goes with it."""
        return "outer" in self.outside.check_output(["ip", "-br", "link"])

    def has_xdp(self) -> bool:
        return "prog/xdp" in self.outside.check_output(["ip", "link", "show", "lo"])

    def left(self) -> list[object]:
        """All but the cgroup, which has an ownership record."""
        process = [self.pid] if Path(f"/proc/{self.pid}").exists() else []
        return [
            *process,
            *self.objects(),
            *["cable"] * self.has_cable(),
            *["xdp"] * self.has_xdp(),
        ]


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[NetNS]:
    with contextlib.closing(NetNS.new()) as ns:
        yield ns


def watching(page: Page, outside: NetNS) -> Made:
    """A notebook in the middle of "Run All Cells": a watch of a minute shows its frames."""
    import nbformat

    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )
    here = f"OUTSIDE = '/proc/{os.getpid()}/fd/{outside.fd}'\n"
    for source in ("%load_ext bpfkit.notebook", COUNTER, here + MAKE, WATCH, CLOSE):
        notebook.cells.append(nbformat.v4.new_code_cell(source))
    nbformat.write(notebook, page.lab.notebooks / "made.ipynb")
    page.open("made.ipynb")
    page.run_all()

    def frame() -> bool:
        assert not page.has_run()
        return "of 60" in page.js(
            "return document.querySelectorAll('.jp-Notebook .jp-CodeCell')[3].innerText"
        )

    until("the watch shows a frame", frame)
    (output,) = page.code()[2]["outputs"]
    made = Made(outside, json.loads("".join(output["text"])))
    assert made.pid == page.kernel()
    assert made.objects() == made.ids and made.has_cable() and made.has_xdp()
    assert made.cgroup.is_dir()
    return made


def test_an_interrupted_watch_keeps_what_it_collected(page: Page, outside: NetNS) -> None:
    made = watching(page, outside)
    page.menu("Kernel", "Interrupt Kernel")
    until("the cells after the watch have run", page.has_run)
    code = page.code()
    assert "of 60" in code[3]["outputs"][0]["data"]["text/html"]  # the last frame stays
    (output,) = code[4]["outputs"]
    count, word = "".join(output["text"]).split()
    assert word == "frames" and 1 <= int(count) < 60 / 0.2
    # The same kernel goes on, and its last cell has closed everything.
    assert page.kernel() == made.pid
    until("nothing but the kernel is left", lambda: made.left() == [made.pid], 30)
    assert not made.cgroup.exists()


def restart(page: Page, pid: int) -> None:
    page.menu("Kernel", "Restart Kernel…")
    page.click("//div[contains(@class,'jp-Dialog')]//button[contains(.,'Restart')]")


def kill(page: Page, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("end", [restart, kill])
def test_a_kernels_end_in_the_middle_leaves_nothing(
    page: Page, outside: NetNS, end: Callable[[Page, int], None]
) -> None:
    made = watching(page, outside)
    end(page, made.pid)
    until("the kernel's process and all it held is gone", lambda: not made.left(), 60)

    def again() -> bool:
        with contextlib.suppress(AssertionError):
            return page.kernel() != made.pid
        return False

    until("there is a new kernel", again)
    # The cgroup goes with the next start of bpfkit, here in the same notebook.
    page.open("made.ipynb")
    page.js(
        """
        const content = window.jupyterapp.shell.currentWidget.content;
        content.activeCellIndex = 0;
        """
    )
    page.menu("Run", "Run Selected Cell")
    until("the first cell has run", lambda: page.code()[0]["count"] == 1)
    until("the cgroup is gone", lambda: not made.cgroup.exists(), 30)
