# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.profile."""

from bpfkit.app.lifecycle import main
from bpfkit.profile.program import Profile

if __name__ == "__main__":
    raise SystemExit(main(Profile))
