# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.sk_skb."""

from bpfkit.app.lifecycle import main
from bpfkit.sk_skb.program import SkSkb

if __name__ == "__main__":
    raise SystemExit(main(SkSkb))
