"""The gates of a set of images as one HTML file, which opens offline from the file system."""

from gaternet.analysis.page.contents import Page, PageBar, PageTable
from gaternet.analysis.page.write import write_page

__all__ = ["Page", "PageBar", "PageTable", "write_page"]
