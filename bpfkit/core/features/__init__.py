# SPDX-License-Identifier: Apache-2.0
"""What this kernel and this process can do, found out by trying."""
