"""Hooks of the documentation site: what the pages link to outside docs/ becomes a part of it.

The pages are written to be read in the repository too, where ``../CHANGELOG.md`` is a file. On the site such a file is
a page, or a file to download, at the same place relative to the site's root.
"""

from __future__ import annotations

import functools
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    *("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "notebooks/walkthrough.ipynb"),
    "src/polypseg/zoo/*/README.md",
)
DOWNLOADS = (
    *("recipes/*.yaml", "results/*.csv", "benchmarks/*.py"),
    *("CITATION.cff", "LICENSE", "Makefile", "Dockerfile"),
)
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


@functools.cache
def _outside() -> tuple[str, ...]:
    return tuple(path.relative_to(ROOT).as_posix() for one in (*PAGES, *DOWNLOADS) for path in sorted(ROOT.glob(one)))


@event_priority(100)  # before the plugin that makes pages of notebooks
def on_files(files: Files, config: Any) -> Files:
    """Add the files of the repository that pages link to."""
    for name in _outside():
        files.append(File(name, str(ROOT), config["site_dir"], config["use_directory_urls"]))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links that lead out of docs/ lead to the same file on the site."""
    source = page.file.src_uri
    in_docs = (Path(config["docs_dir"]) / source).exists()
    place = posixpath.dirname(f"docs/{source}" if in_docs else source)
    here = posixpath.dirname(source)
    known = _outside()

    def renew(match: re.Match[str]) -> str:
        label, (target, mark, anchor) = match[1], match[2].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        meant = posixpath.normpath(posixpath.join(place, target)).removeprefix("docs/")
        if meant in known or (Path(config["docs_dir"]) / meant).is_file():
            return f"[{label}]({posixpath.relpath(meant, here or '.')}{mark}{anchor})"
        return label if (ROOT / meant).is_dir() else match[0]  # a folder has no page

    return LINK.sub(renew, markdown)


def on_post_build(config: Any) -> None:
    """Fail where a notebook lies on the site as a file to download."""
    for path in Path(config["site_dir"]).rglob("*.ipynb"):
        raise PluginError(f"{path}: was not made a page; look at on_files in docs/site.py")
