# SPDX-License-Identifier: Apache-2.0
"""What people see: names, numbers, tables, the live view, JSON lines.

Nothing here knows BPF.  Only the standard library is imported at module level, and little of
it; :mod:`rich` is used by the live view where it is installed, and only there.
"""
