# SPDX-License-Identifier: Apache-2.0
"""Clients and servers whose traffic is known in packets and bytes."""
