"""nbdev's commands under the names with underscores, and `nbdev_prepare` without Quarto.

Written by hand: `nbdev_export` cannot come from a module that it generates.
"""
import runpy

try:
    from nbdev.clean import nbdev_clean
    from nbdev.config import get_config
    from nbdev.doclinks import nbdev_export
    from nbdev.test import nbdev_test
except ImportError as error:
    raise SystemExit(f"{error}: this command needs the development tools, "
                     "pip install -e '.[dev]'") from None

__all__ = ["nbdev_export", "nbdev_test", "nbdev_clean", "nbdev_prepare"]


def nbdev_prepare():
    """Export, test and clean the notebooks, then render README.md from nbs/index.ipynb."""
    nbdev_export.__wrapped__()
    nbdev_test.__wrapped__()  # exits with 1 if a notebook fails
    nbdev_clean.__wrapped__()
    readme = runpy.run_path(str(get_config().config_path / "tools" / "readme.py"))
    readme["write_readme"]()
