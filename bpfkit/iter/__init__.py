# SPDX-License-Identifier: Apache-2.0
"""Tables of the kernel's objects, by BPF iterators."""
