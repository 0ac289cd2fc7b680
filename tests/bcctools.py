# SPDX-License-Identifier: Apache-2.0
"""Is there something to compile with?"""

from __future__ import annotations

import os
import subprocess

from bpfkit.core.compile import compiler, headers

_CODE = "import importlib.util as u, sys; sys.exit(u.find_spec('bcc') is None)"


def no_compiler() -> str:
    """Why programs cannot be compiled here, for a skip; empty when they can."""
    problem = headers.uapi_problem()
    if problem:
        return f"the user-space API headers {problem}"
    for path in compiler.interpreters():
        if os.access(path, os.X_OK) and not subprocess.run([path, "-I", "-c", _CODE]).returncode:
            return ""
    return "BCC is not installed (python3-bpfcc)"
