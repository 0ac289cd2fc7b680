# SPDX-License-Identifier: Apache-2.0
"""What xdp_firewall is made of: rules as text, the lists in the kernel, events, the demo."""
