"""Hand settings.ini, the one source of this package's metadata, to setuptools."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read("settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]


def lines(key):
    """Return the non-empty lines of a settings.ini value."""
    return [line.strip() for line in settings.get(key, "").splitlines() if line.strip()]


scripts = lines("console_scripts")
if Path("nbs").is_dir():  # a checkout: sdists and the wheels built from them have no notebooks
    scripts += lines("dev_console_scripts")

# PyPI shows README.md without the files that it links to
blob, raw = (f"{settings['git_url']}/{kind}/HEAD/" for kind in ("blob", "raw"))
readme = Path("README.md").read_text(encoding="utf-8")
readme = re.sub(r"(!\[[^]]*\]\()(?!http|#)", rf"\1{raw}", readme)
readme = re.sub(r"(?<!!)(\[[^]]*\]\()(?!http|#)", rf"\1{blob}", readme)

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=readme,
    long_description_content_type="text/markdown",
    author=settings["author"],
    license=settings["license"],
    url=settings["git_url"],
    keywords=settings["keywords"].split(),
    project_urls={"Changelog": f"{blob}CHANGELOG.md"},
    classifiers=["Programming Language :: Python :: 3 :: Only", "Operating System :: POSIX :: Linux",
                 "Topic :: Scientific/Engineering :: Image Recognition"],
    python_requires=">=" + settings["min_python"],
    packages=find_packages(include=["imgclf_nb", "imgclf_nb.*"]),
    include_package_data=True,
    install_requires=lines("requirements"),
    extras_require={"dev": lines("dev_requirements")},
    entry_points={"console_scripts": scripts},
)
