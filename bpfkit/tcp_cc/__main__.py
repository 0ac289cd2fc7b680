# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.tcp_cc."""

from bpfkit.app.lifecycle import main
from bpfkit.tcp_cc.program import TcpCc

if __name__ == "__main__":
    raise SystemExit(main(TcpCc))
