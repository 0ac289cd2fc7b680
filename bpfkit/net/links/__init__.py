# SPDX-License-Identifier: Apache-2.0
"""Namespaces, interfaces, labs, and the netlink calls that make them."""
