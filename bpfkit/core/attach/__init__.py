# SPDX-License-Identifier: Apache-2.0
"""Links, and one file per kind of attachment.

To add a kind, write a file here (``core/attach``; ``net/attach`` if it needs netlink) with a
function that takes the program and returns a :class:`~bpfkit.core.attach.link.Link`, and a method
``attach_…`` of :class:`~bpfkit.core.program.Program` that calls it.
"""
