"""What mkdocs calls while it builds the site (mkdocs.yml)."""

from pages.site import on_files, on_page_markdown

__all__ = ["on_files", "on_page_markdown"]
