# SPDX-License-Identifier: Apache-2.0
"""From C text to an artifact: source, headers, cache, the worker process that runs BCC."""
