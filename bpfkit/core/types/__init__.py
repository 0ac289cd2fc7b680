# SPDX-License-Identifier: Apache-2.0
"""BTF, and how the values that it describes lie in memory."""
