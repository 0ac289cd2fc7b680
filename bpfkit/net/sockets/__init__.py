# SPDX-License-Identifier: Apache-2.0
"""Sockets of other processes: found, and borrowed."""
