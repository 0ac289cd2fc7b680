# SPDX-License-Identifier: Apache-2.0
"""Traffic for demos and checks: ping, TCP, UDP, tagged frames; servers and probes."""
