# SPDX-License-Identifier: Apache-2.0
"""Runs commands one after the other in a VM's guest, each with a time limit of its own.

    python3 cells.py SECONDS NAME=COMMAND ...

For each command two lines of JSON on standard output, at once: ``{"name", "starts": true}``, so
that the host knows which command a kernel died of, and ``{"name", "status", "seconds", "out",
"err"}``.  Status 124: the time limit of SECONDS expired; negative: ended by that signal.

First the artifacts that the host compiled for this kernel (tools/vm_warm.py) are adopted: an entry
of bpfkit's cache names the files that it was made from with their inodes, and 9p numbers those
anew.
"""

from __future__ import annotations

import json
import marshal
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time

#: Bytes of a command's output that are passed on: the end of each stream.
OUT, ERR = 400_000, 4_000


def run(words: list[str], limit: float) -> tuple[int, str, str]:
    """(status, end of stdout, end of stderr); on time-out the command's whole group is killed."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = 124
            process.send_signal(signal.SIGTERM)  # so that it removes what it made
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        texts = []
        for file, most in ((out, OUT), (err, ERR)):
            file.seek(max(0, os.fstat(file.fileno()).st_size - most))
            texts.append(file.read().decode(errors="replace"))
    return status, texts[0], texts[1]


def adopt(folder: str) -> int:
    """Give the entries of a cache the inodes that their files have here; how many were changed.
    A file of another size or time leaves its entry alone, and the guest compiles anew.
    """
    sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "../..")))
    from bpfkit.core.compile.cache import _HEAD, Cache, _problem

    cache, changed = Cache(folder), 0
    known: dict[str, os.stat_result | None] = {}
    for key in os.listdir(cache.path) if os.path.isdir(cache.path) else []:
        try:
            with open(os.path.join(cache.path, key), "rb") as file:
                data = file.read()
        except OSError:  # 9p of 5.10 lists a file that was just replaced, and does not find it
            continue
        if key.startswith(".") or len(data) < _HEAD or _problem(data, key):
            continue
        artifact = marshal.loads(memoryview(data)[_HEAD:])
        deps = []
        for path, size, mtime_ns, _ in artifact["deps"]:
            if path not in known:
                try:
                    known[path] = os.stat(path)
                except OSError:
                    known[path] = None
            s = known[path]
            if s is None or (s.st_size, s.st_mtime_ns) != (size, mtime_ns):
                break
            deps.append((path, size, mtime_ns, s.st_ino))
        else:
            if deps != artifact["deps"]:
                artifact["deps"] = deps
                cache.put(key, artifact)
                changed += 1
    return changed


def main() -> None:
    if os.environ.get("BPFKIT_CACHE"):
        try:
            print(json.dumps({"adopted": adopt(os.environ["BPFKIT_CACHE"])}), flush=True)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            print(json.dumps({"adopted": 0, "why": str(error)}), flush=True)
    limit = float(sys.argv[1])
    for item in sys.argv[2:]:
        name, _, command = item.partition("=")
        print(json.dumps({"name": name, "starts": True}), flush=True)
        started = time.monotonic()
        status, out, err = run(shlex.split(command), limit)
        seconds = round(time.monotonic() - started, 1)
        answer = {"name": name, "status": status, "seconds": seconds, "out": out, "err": err}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
