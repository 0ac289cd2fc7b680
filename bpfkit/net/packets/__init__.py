# SPDX-License-Identifier: Apache-2.0
"""Addresses, crafted packets, captures and capture files, packet sockets, flows."""
