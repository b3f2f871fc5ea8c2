"""Addresses of the documentation's pages about errors, which every error carries."""

from __future__ import annotations

from typing import Final

FOLDER: Final = "reference/errors"
"""Folder of the pages in the documentation's site."""


def page_path(reason: str) -> str:
    """The path of a reason's page in the documentation's site, such as ``reference/errors/customer-unknown.html``."""
    return f"{FOLDER}/{reason.lower().replace('_', '-')}.html"


class ErrorPages:
    """Where the documentation is: set once per process, before the server answers.

    Attributes:
        site: Address of the documentation with a slash at its end; empty if it is not known. Then errors carry the path
            of the page in the site that ``make docs`` builds.
    """

    def __init__(self) -> None:
        self.site = ""

    def use(self, docs_url: str) -> None:
        """Set the address of the documentation, with or without a slash at its end; empty if it is not known."""
        self.site = f"{docs_url.rstrip('/')}/" if docs_url else ""

    def address(self, reason: str) -> str:
        """The address of a reason's page."""
        return self.site + page_path(reason)


ERROR_PAGES: Final = ErrorPages()
"""Those of this process."""
