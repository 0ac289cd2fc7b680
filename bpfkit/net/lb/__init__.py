# SPDX-License-Identifier: Apache-2.0
"""What xdp_lb is made of: Maglev's table, the maps, backends and their health, the demo."""
