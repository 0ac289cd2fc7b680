# SPDX-License-Identifier: Apache-2.0
"""The verifier's log, explained with the line of C."""
