#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Stock kernels of the distribution's archive: found, downloaded and unpacked, never installed.

    tools/vm_kernels.py [VERSION ...]        5.10 6.1 … by default: all of the matrix
    tools/vm_kernels.py 6.1 newest           newest: the newest that the backports have

Each kernel goes to .vm/kernels/VERSION, ready for ``tools/vm.py --kernel``.  The archive's address
comes from this machine's apt configuration; its other suites are read into a package list of their
own (.vm/apt), so neither apt's sources nor its lists change, and root is not needed.

exit status: 0 all are there; 1 some are not, and stderr says why; 77 no Debian archive in apt's
configuration
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
from vm_guest.image import UNPACKED, VmError, find_kernel

#: The versions of the matrix, oldest first.
VERSIONS = "5.10 6.1 6.12 6.16 6.17 6.18 6.19 7.0 7.1 7.2 7.3".split()
#: Debian's suites that have kernels of these versions.
SUITES = (
    "bullseye bookworm bookworm-backports trixie trixie-backports forky sid experimental".split()
)
#: Those with the newest kernels and little else: their lists are read in a second.
BACKPORTS = ("bookworm-backports", "trixie-backports")
KERNELS = UNPACKED / "kernels"
#: Hours after which the package lists are read again.
LISTS_AGE_H = 24.0
#: Stock kernels only: neither -cloud nor -rt.
_IMAGE = re.compile(
    r"linux-image-(?P<release>(?P<version>\d+\.\d+)(?:\.[\w.+]+)?(?:-\d+)?-amd64)(?:-unsigned)?"
)
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class Package(NamedTuple):
    """A binary package of the archive; sizes in bytes."""

    name: str
    version: str
    depends: str
    size: int
    installed: int


class Candidate(NamedTuple):
    """A kernel that the archive lists: what to unpack, and what of it is not there."""

    release: str
    parts: tuple[Package, ...]
    missing: tuple[str, ...]


def parse_packages(text: str) -> Iterator[Package]:
    """The packages of ``apt-cache dumpavail``."""
    for stanza in text.split("\n\n"):
        fields = dict(re.findall(r"^([A-Z][\w-]*): *(.*)$", stanza, re.M))
        if "Package" in fields and "Version" in fields:
            size, installed = (
                int(fields.get(name, "0") or 0) for name in ("Size", "Installed-Size")
            )
            yield Package(
                fields["Package"],
                fields["Version"],
                fields.get("Depends", ""),
                size,
                installed * 1024,
            )


def age(version: str) -> tuple[bool, list[int]]:
    """Sorts a kernel's package versions: release candidates before releases, then by number."""
    return "~rc" not in version, [int(number) for number in re.findall(r"\d+", version)]


def candidates(packages: Iterable[Package], wanted: str) -> list[Candidate]:
    """The kernels of a version (``6.12``), newest first.

    Three layouts: an image package with the modules inside; the same as ``-unsigned`` only; an
    image package without content that depends on linux-binary (the image), linux-modules and
    linux-base (the configuration) of its release.
    """
    known: dict[str, list[Package]] = {}
    for package in packages:
        known.setdefault(package.name, []).append(package)
    found: dict[str, Candidate] = {}
    images = []
    for name in known:
        match = _IMAGE.fullmatch(name)
        if match and match["version"] == wanted:
            images += [(match["release"], package) for package in known[name]]
    # Signed before unsigned: stable sorting keeps the shorter name first.
    images.sort(key=lambda pair: len(pair[1].name))
    for release, image in sorted(images, key=lambda pair: age(pair[1].version), reverse=True):
        needs = [
            part
            for part in dict.fromkeys(re.findall(r"linux-[a-z]+-[\w.+-]+", image.depends))
            if part.endswith(f"-{release}")
        ]
        if not any(part.startswith("linux-modules-") for part in needs):
            found.setdefault(release, Candidate(release, (image,), ()))
            continue
        parts, missing = [image], []
        for need in needs:
            same = [p for p in known.get(need, []) if p.version == image.version]
            parts += same[:1]
            missing += [] if same else [need]
        if release not in found or found[release].missing:
            found[release] = Candidate(release, tuple(parts), tuple(missing))
    return list(found.values())


def choose(packages: Sequence[Package], wanted: str) -> Candidate:
    """The newest kernel of a version that the archive has in full.

    :raises VmError: there is none; the reason.
    """
    listed = candidates(packages, wanted)
    for candidate in listed:
        if not candidate.missing:
            return candidate
    if not listed:
        raise VmError("not in the archive's suites " + ", ".join(SUITES))
    names = ", ".join(listed[0].missing)
    raise VmError(f"the archive lists linux-image-{listed[0].release} without its {names}")


class Archive:
    """Debian's archive as apt knows it on this machine, with a package list of our own."""

    def __init__(self, folder: Path | None = None, suites: Sequence[str] = SUITES) -> None:
        self.folder = folder or UNPACKED / "apt"
        self.suites = suites
        if not shutil.which("apt-get"):
            raise VmError("no apt-get here: the stock kernels come from Debian's archive")
        self._packages: list[Package] | None = None

    def _apt(self, *words: str) -> subprocess.CompletedProcess[str]:
        root = self.folder.resolve()
        options = {
            "Dir::State": f"{root}/state",
            "Dir::State::status": f"{root}/status",
            "Dir::Cache": f"{root}/cache",
            "Dir::Etc::sourcelist": f"{root}/kernels.sources",
            "Dir::Etc::sourceparts": "/dev/null",
            "Acquire::Languages": "none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
            "Acquire::Retries": "3",
            "APT::Sandbox::User": "",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
        }
        given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return subprocess.run([words[0], *given, *words[1:]], capture_output=True, text=True)

    @staticmethod
    def addresses() -> list[str]:
        """The archives of Debian in apt's configuration, without those of security updates."""
        told = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)"],
            capture_output=True,
            text=True,
        ).stdout
        rows = [line.split("|") for line in told.splitlines()]
        return list(
            dict.fromkeys(uri for origin, label, uri in rows if origin == label == "Debian")
        )

    def update(self) -> None:
        """Read the package lists of the suites, unless that was done lately."""
        stamp = self.folder / "read"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < LISTS_AGE_H * 3600:
            return
        where = self.addresses()
        if not where:
            raise VmError(
                "apt's configuration names no archive of Debian, or its lists were never read\n"
                "sudo apt-get update"
            )
        for name in ("state/lists/partial", "cache/archives/partial"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        signed = f"Signed-By: {_KEYRING}\n" if _KEYRING.exists() else ""
        text = "".join(
            f"Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\n{signed}\n"
            for uri in where[:1]
            for suite in self.suites
        )
        (self.folder / "kernels.sources").write_text(text)
        done = self._apt("apt-get", "update", "-q")
        if done.returncode:  # a suite may have gone; what the others have is still good
            for line in done.stderr.splitlines():
                print(f"vm_kernels: {line}", file=sys.stderr)
        if any(self.packages()):
            stamp.touch()

    def packages(self) -> list[Package]:
        """The kernel packages of all suites."""
        if self._packages is None:
            text = self._apt("apt-cache", "dumpavail").stdout
            self._packages = [
                package
                for package in parse_packages(text)
                if re.match(r"linux-(image|binary|modules|base)-\d", package.name)
            ]
        return self._packages

    def unpack(self, candidate: Candidate, target: Path) -> None:
        """Download the packages of a kernel and unpack them to a folder.

        :raises VmError: no room, or a package cannot be had.
        """
        need = sum(part.size + part.installed for part in candidate.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < need:
            raise VmError(
                f"{candidate.release} needs {need >> 20} MB in {target.parent}, "
                f"{free >> 20} MB are free"
            )
        work = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(work, ignore_errors=True)
        (work / "deb").mkdir(parents=True)
        try:
            names = [f"{part.name}={part.version}" for part in candidate.parts]
            self._download(names, work / "deb")
            for package in sorted((work / "deb").glob("*.deb")):
                done = subprocess.run(
                    ["dpkg", "-x", str(package), str(work)], capture_output=True, text=True
                )
                if done.returncode:
                    raise VmError(f"cannot unpack {package.name}: {done.stderr.strip()}")
                package.unlink()
            (work / "deb").rmdir()
            if not (work / "lib").exists():
                (work / "lib").symlink_to("usr/lib")
            depmod = shutil.which("depmod", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
            if depmod is None:
                raise VmError("no depmod here\napt-get install kmod")
            subprocess.run([depmod, "-b", str(work), candidate.release], check=True)
            (work / "packages").write_text("\n".join(names) + "\n")
            shutil.rmtree(target, ignore_errors=True)
            work.rename(target)
        except OSError as error:
            raise VmError(f"cannot unpack {candidate.release}: {error}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _download(self, names: Sequence[str], folder: Path) -> None:
        here = os.getcwd()
        os.chdir(folder)  # apt-get download knows no other way
        try:
            done = self._apt("apt-get", "download", "-q", *names)
        finally:
            os.chdir(here)
        if done.returncode:
            raise VmError(f"cannot download {' '.join(names)}: {done.stderr.strip()}")


def newest(archive: Archive) -> str:
    """The newest version of the matrix that the archive has in full.

    :raises VmError: it has none.
    """
    archive.update()
    for wanted in reversed(VERSIONS):
        try:
            choose(archive.packages(), wanted)
            return wanted
        except VmError:
            continue
    raise VmError("no kernel in the archive's suites " + ", ".join(archive.suites))


def unpacked() -> dict[str, Path]:
    """The kernels that are here already, oldest first: version -> folder."""
    return {v: KERNELS / v for v in VERSIONS if (KERNELS / v / "packages").exists()}


def fetch(wanted: str, archive: Archive, refresh: bool = False) -> Path:
    """The folder of an unpacked kernel of a version; downloaded if need be.

    :param refresh: take the archive's newest even if there is one already.
    :raises VmError: it cannot be had, and why.
    """
    folder = KERNELS / wanted
    if folder.exists():
        try:
            have = find_kernel(str(folder))
        except VmError:
            shutil.rmtree(folder)
        else:
            if not refresh:
                return folder
            archive.update()
            if choose(archive.packages(), wanted).release == have.release:
                return folder
    archive.update()
    candidate = choose(archive.packages(), wanted)
    size = sum(part.size for part in candidate.parts)
    print(f"kernel {wanted}: unpacking {candidate.release} ({size >> 20} MB)", file=sys.stderr)
    archive.unpack(candidate, folder)
    find_kernel(str(folder))
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="such as 6.12")
    parser.add_argument("--refresh", action="store_true", help="take newer ones of the archive")
    parser.add_argument("--list", action="store_true", help="show what the archive has")
    options = parser.parse_args()
    wrong = [v for v in options.versions if v != "newest" and not re.fullmatch(r"\d+\.\d+", v)]
    if wrong:
        parser.error(f"{wrong[0]} is no version such as 6.12")
    status = 0
    try:
        full, backports = Archive(), Archive(UNPACKED / "apt-newest", BACKPORTS)
        for wanted in options.versions or VERSIONS:
            archive = backports if wanted == "newest" else full
            try:
                if wanted == "newest":
                    wanted = newest(archive)
                if options.list:
                    archive.update()
                    found = choose(archive.packages(), wanted)
                    print(f"kernel {wanted}: {found.release}")
                else:
                    folder = fetch(wanted, archive, options.refresh)
                    print(f"kernel {wanted}: {find_kernel(str(folder)).release} in {folder}")
            except VmError as error:
                if not archive.folder.joinpath("read").exists():
                    raise  # nothing can be had
                print(f"kernel {wanted}: {error}", file=sys.stderr)
                status = 1
    except VmError as error:
        print(f"vm_kernels: {error}", file=sys.stderr)
        return 77
    return status


if __name__ == "__main__":
    sys.exit(main())
