# SPDX-License-Identifier: Apache-2.0
"""The base class of the probes of program types and map types."""

from __future__ import annotations

from bpfkit.core.features import system
from bpfkit.core.features.answer import NOT_SUPPORTED, Feature

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from bpfkit.core.types.btf import Btf

__all__ = ["Probe"]


class Probe:
    """vmlinux BTF and the kernel's configuration, each read at most once."""

    __slots__ = ("_btf", "_config", "_no_btf")

    def __init__(self) -> None:
        self._btf: Btf | None = None
        self._no_btf = ""
        self._config: Mapping[str, str] | None = None

    def config(self, option: str) -> str | None:
        """``y``, ``m``, ``n``, or None where the kernel's configuration cannot be read."""
        if self._config is None:
            self._config = system.kernel_config()
        return self._config.get(option, "n") if self._config else None

    def btf(self) -> Btf | None:
        """vmlinux BTF, None where there is none (then ``_no_btf`` says why)."""
        if self._btf is None and not self._no_btf:
            from bpfkit.core.types.btf import Btf, BtfError

            try:
                self._btf = Btf.vmlinux()
            except (OSError, BtfError) as error:
                self._no_btf = f"no kernel BTF (CONFIG_DEBUG_INFO_BTF): {error}"
        return self._btf

    def _missing(self, since: str, option: str) -> str:
        needs = []
        if option:
            found = self.config(option)
            if found == "n":
                return f"not built into this kernel: CONFIG_{option} is not set"
            if found is None:
                needs.append(f"CONFIG_{option}")
        if since and system.release() < system.version(since):
            needs.append(f"Linux {since}")
        return f"needs {' and '.join(needs)}" if needs else "unknown to this kernel"

    def _target(self, part: str, kind: int, *names: str) -> tuple[int, Feature | None]:
        """BTF id of the first of ``names`` in vmlinux; or 0 and the answer that says why."""
        btf = self.btf()
        if btf is None:
            return 0, Feature(part, NOT_SUPPORTED, self._no_btf)
        for name in names:
            found = btf.find(name, kind)
            if found is not None:
                return found, None
        return 0, Feature(part, NOT_SUPPORTED, f"the kernel has no {names[0]}")
