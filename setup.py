"""Builds the package, as setup.cfg says. Hermes 0.19 imports every file at a plugin's top."""

import re
from pathlib import Path

TOP = Path(__file__).resolve().parent
#: The address of the repository, without a slash at its end. The first release fills it in.
REPOSITORY = ""


def index_page(repository: str) -> str:
    """The README for a package index, where links to files of the repository need its address."""
    text = (TOP / "README.md").read_text(encoding="utf-8")
    if not repository:
        return text
    source = (TOP / "hindsight_exec" / "__init__.py").read_text(encoding="utf-8")
    tag = "v" + source.partition('\n__version__ = "')[2].partition('"')[0]

    def absolute(link: "re.Match[str]") -> str:
        return f"{link[1]}({repository}/{'raw' if link[1][0] == '!' else 'blob'}/{tag}/{link[2]})"

    return re.sub(r"(!?\[[^\]]*\])\((?!\w+:|#)([^)]+)\)", absolute, text)


if __name__ == "__main__":
    from setuptools import setup

    urls = {"Source": "", "Documentation": "/tree/HEAD/docs", "Issues": "/issues"}
    setup(
        long_description=index_page(REPOSITORY),
        project_urls={name: REPOSITORY + path for name, path in urls.items() if REPOSITORY},
    )
