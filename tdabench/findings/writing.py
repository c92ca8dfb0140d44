"""Writing findings: the document, and beside it a folder with a page for each task."""

from __future__ import annotations

from pathlib import Path

from tdabench.files import encodable, storage_errors, write_text
from tdabench.findings.document import Document, is_page_of, pages_folder


def write(document: Document, out: Path) -> list[Path]:
    """Write a document and its pages, and remove those that it had before and has no more.

    Returns
    -------
    pages
        Their files.

    Raises
    ------
    StorageError
        If one cannot be written or removed.
    """
    pages = {out.parent / path: text for path, text in document.pages.items()}
    for path, text in (pages | {out: document.text}).items():
        write_text(path, encodable(text))  # the command, and tasks, may have names that are no characters
    folder = out.parent / pages_folder(out.name)
    with storage_errors(folder):
        for path in set(folder.glob("*.md")) - pages.keys():
            if is_page_of(path.read_text(encoding="utf-8", errors="replace"), out.name):
                path.unlink()
    return [*pages]
