# SPDX-License-Identifier: Apache-2.0
"""Namespaces, interfaces, labs, routes and neighbours; ioctls and netlink."""
