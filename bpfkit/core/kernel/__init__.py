# SPDX-License-Identifier: Apache-2.0
"""The kernel's side: bpf(2), its constants and helpers, section names, instructions."""
