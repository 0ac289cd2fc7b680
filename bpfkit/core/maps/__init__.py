# SPDX-License-Identifier: Apache-2.0
"""Maps and ring buffers, a class per kind of map."""
