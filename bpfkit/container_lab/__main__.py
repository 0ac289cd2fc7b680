# SPDX-License-Identifier: Apache-2.0
"""python3 -m bpfkit.container_lab."""

from bpfkit.app.lifecycle import main
from bpfkit.container_lab.program import ContainerLab

if __name__ == "__main__":
    raise SystemExit(main(ContainerLab))
