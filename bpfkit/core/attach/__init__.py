# SPDX-License-Identifier: Apache-2.0
"""Links, and a file per kind of attachment."""
