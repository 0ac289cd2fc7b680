# SPDX-License-Identifier: Apache-2.0
"""Attachments that go by netlink: clsact, actions, routes, XDP."""
