# SPDX-License-Identifier: Apache-2.0
"""Two contracts for import-linter that its own contract types cannot express.

``programs``: bpfkit's programs import neither each other nor a command, and no support package
imports a program.  The programs are every module in the root package that is not listed under
``support``, so a new program is held to the contract without an entry anywhere.

``standard_library``: the modules of ``source`` import bpfkit and the standard library only.

``tools/bootstrap.sh check`` runs both, with the contracts of pyproject.toml.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from importlinter import Contract, ContractCheck, fields, output

if TYPE_CHECKING:
    from grimp import ImportGraph

__all__ = ["ProgramsContract", "StandardLibraryContract"]


class _DirectImports(Contract):
    """A contract about single imports; each one that breaks the contract is printed."""

    def forbids(self, importer: str, imported: str) -> bool:
        """Does the import break the contract?"""
        raise NotImplementedError

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        broken = [
            (importer, imported, graph.get_import_details(importer=importer, imported=imported))
            for importer in sorted(graph.modules)
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if self.forbids(importer, imported)
        ]
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for importer, imported, details in check.metadata["broken"]:
            lines = ", ".join(str(detail["line_number"]) for detail in details)
            output.print_error(f"{importer} -> {imported} (line {lines})", bold=False)
        output.new_line()


class ProgramsContract(_DirectImports):
    """Programs are independent of each other, and nothing imports a program."""

    type_name = "programs"
    root = fields.StringField()
    support = fields.SetField(subfield=fields.StringField())

    def forbids(self, importer: str, imported: str) -> bool:
        source, target = self._room(importer), self._room(imported)
        if not source or not target or source == target:
            return False
        if target not in self.support:
            return True  # a program, imported from outside
        return source not in self.support and target == "commands"

    def _room(self, module: str) -> str:
        """The name behind the root package; "" for the root itself and for other packages."""
        root, _, rest = module.partition(".")
        return rest.partition(".")[0] if root == self.root else ""


class StandardLibraryContract(_DirectImports):
    """The source package imports bpfkit and the standard library; the rest is named."""

    type_name = "standard_library"
    source = fields.StringField()
    allowed = fields.SetField(subfield=fields.StringField(), required=False)

    def forbids(self, importer: str, imported: str) -> bool:
        if importer != self.source and not importer.startswith(f"{self.source}."):
            return False
        top = imported.partition(".")[0]
        allowed = self.allowed or set()
        return top != "bpfkit" and top not in allowed and top not in sys.stdlib_module_names
