"""Render README.md from nbs/index.ipynb, without Quarto.

    python tools/readme.py            write README.md and the pictures in nbs/index_files/
    python tools/readme.py --check    write nothing; exit with 1 if they are not in step

Hidden and exported cells and all directives are left out, outputs stay. Links in the notebook
are relative to nbs/, so that they work in Jupyter; in README.md they are relative to the root.
"""
import argparse
import posixpath
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbdev.process import NBProcessor
from nbdev.processors import (clean_magics, filter_stream_, hide_, hide_line, rm_export,
                              rm_header_dash, strip_ansi)

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "nbs" / "index.ipynb"
PICTURES = NOTEBOOK.parent / "index_files"
NOTE = "<!-- Rendered from nbs/index.ipynb by tools/readme.py: edit the notebook. -->\n\n"
LINK = re.compile(r"""(\]\(|\b(?:src|href)=")([^)"\s]+)""")


def echo_(cell, value):
    """Hide the source of a cell marked `#| echo: false`."""
    if value == "false":
        cell.metadata["tags"] = cell.metadata.get("tags", []) + ["no_source"]


def output_(cell, value):
    """Hide the outputs of a cell marked `#| output: false`."""
    if value == "false":
        cell["outputs"] = []


def include_(cell, value):
    """Hide a cell marked `#| include: false`."""
    if value == "false":
        del cell["source"]


def root_links(cell):
    """Make the relative links of a markdown cell relative to the repository's root."""
    def fix(match):
        start, link = match.groups()
        if re.match(r"[a-z]+:|[#/]", link):
            return match[0]
        path, hash_mark, fragment = link.partition("#")
        return start + posixpath.normpath(posixpath.join("nbs", path)) + hash_mark + fragment
    if cell.cell_type == "markdown":
        parts = re.split(r"(^```.*?^```)", cell.source, flags=re.M | re.S)
        parts[::2] = [LINK.sub(fix, part) for part in parts[::2]]
        cell.source = "".join(parts)


def render_readme():
    """Return the text of README.md, and its pictures as a dict of file name to bytes."""
    procs = [hide_line, echo_, output_, include_, hide_, rm_export, rm_header_dash, clean_magics,
             strip_ansi, filter_stream_, root_links]
    cells = NBProcessor(NOTEBOOK, procs=procs, process=True).nb.cells
    book = nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}})
    for cell in cells:
        if cell.cell_type == "markdown":
            book.cells.append(nbformat.v4.new_markdown_cell(cell.source))
        elif cell.cell_type == "code" and cell.source.strip():
            outputs = [nbformat.from_dict(output) for output in cell.outputs]
            book.cells.append(nbformat.v4.new_code_cell(
                cell.source, outputs=outputs, metadata={"tags": cell.metadata.get("tags", [])}))
    exporter = MarkdownExporter(config={"TagRemovePreprocessor": {
        "enabled": True, "remove_input_tags": ["no_source"]}})
    folder = PICTURES.relative_to(ROOT).as_posix()
    text, resources = exporter.from_notebook_node(book, {"output_files_dir": folder})
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", text, flags=re.M)).strip() + "\n"
    return NOTE + text, {Path(name).name: data for name, data in resources["outputs"].items()}


def stale_files():
    """Return what differs: (file, wanted bytes), or None where a picture must go."""
    text, pictures = render_readme()
    wanted = {PICTURES / name: data for name, data in pictures.items()}
    wanted[ROOT / "README.md"] = text.encode()
    for old in PICTURES.glob("*"):
        wanted.setdefault(old, None)
    return [(path, data) for path, data in sorted(wanted.items())
            if data != (path.read_bytes() if path.exists() else None)]


def write_readme():
    """Write README.md and its pictures, and remove pictures no longer shown."""
    for path, data in stale_files():
        if data is None:
            path.unlink()
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    if not parser.parse_args().check:
        write_readme()
    elif stale := [path.relative_to(ROOT).as_posix() for path, _ in stale_files()]:
        sys.exit(f"Not in step with nbs/index.ipynb: {', '.join(stale)}. "
                 "Run `python tools/readme.py`.")
