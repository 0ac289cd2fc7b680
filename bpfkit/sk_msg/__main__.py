# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.sk_msg."""

from bpfkit.sk_msg.program import SkMsg, main

if __name__ == "__main__":
    raise SystemExit(main(SkMsg))
