# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.sk_reuseport."""

from bpfkit.app.lifecycle import main
from bpfkit.sk_reuseport.program import SkReuseport

if __name__ == "__main__":
    raise SystemExit(main(SkReuseport))
