# SPDX-License-Identifier: Apache-2.0
"""What ``python3 -m bpfkit COMMAND`` does, a file per command."""
