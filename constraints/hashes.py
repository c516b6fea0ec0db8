"""Writes into the lists of pins here the SHA-256 of every file that a pin may be installed from.

For maintainers, after a version was changed: `.venv/bin/python constraints/hashes.py`. The hashes come from the public
package index. Listed are the wheels that Python 3.11 takes on Linux (x86_64, aarch64), and the source archives.
"""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename
from unearth import Link, PackageFinder

FOLDER = Path(__file__).resolve().parent
CPU_BUILD = "+cpu"
FROM_A_SOURCE_OF_THE_USER = ("torch",)
"""Their CPU builds are not on the public index, and each source builds its own file: no hash would be true for all."""
GLIBC_MINORS = range(40, 4, -1)


@cache
def accepted_tags() -> frozenset[Tag]:
    """Tags of the wheels that Python 3.11 can take on a Linux machine."""
    platforms = []
    for arch in ("x86_64", "aarch64"):
        platforms += [f"manylinux_2_{minor}_{arch}" for minor in GLIBC_MINORS]
        platforms += [f"manylinux2014_{arch}", f"manylinux2010_{arch}", f"manylinux1_{arch}", f"linux_{arch}"]
    tags = [*cpython_tags((3, 11), platforms=platforms), *compatible_tags((3, 11), "cp311", platforms)]
    return frozenset(tags)


def is_listed(link: Link, *, source_only: bool) -> bool:
    """Whether a pin may be installed from that file."""
    if not link.is_wheel:
        return True
    return not source_only and not accepted_tags().isdisjoint(parse_wheel_filename(link.filename)[3])


def find_hashes(name: str, version: str) -> list[str]:
    """SHA-256 of the files of a release, sorted. Raises LookupError if there is none."""
    public, _, local = version.partition("+")
    if local and name in FROM_A_SOURCE_OF_THE_USER:
        return []
    finder = PackageFinder(ignore_compatibility=True)
    links = [package.link for package in finder.find_all_packages(name) if package.version == public]
    # A CPU build is compiled from the source archive.
    hashes = {link.hashes["sha256"] for link in links if link.hashes and is_listed(link, source_only=bool(local))}
    if not hashes:
        raise LookupError(f"the package index has no hash of a file for {name}=={version}")
    return sorted(hashes)


def rewrite(path: Path) -> None:
    """Put the hashes under each pin of a constraints file. Comments stay as they are."""
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    pins = re.findall(r"(?m)^([a-z0-9-]+)==([^\s\\]+)", path.read_text())
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda pin: find_hashes(*pin), pins)
        entries = [
            " \\\n".join([f"{name}=={version}", *(f"    --hash=sha256:{digest}" for digest in hashes)])
            for (name, version), hashes in zip(pins, found, strict=True)
        ]
    path.write_text("\n".join([*comments, *entries]) + "\n")


if __name__ == "__main__":
    try:
        for target in ("cpu", "cuda", "v1-cpu", "v1-cuda"):
            rewrite(FOLDER / f"{target}.txt")
    except LookupError as error:
        print(f"hashes.py: {error}", file=sys.stderr)
        sys.exit(1)
