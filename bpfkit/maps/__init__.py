# SPDX-License-Identifier: Apache-2.0
"""Every map type of the kernel in one tour: created, used from a program and from Python."""
