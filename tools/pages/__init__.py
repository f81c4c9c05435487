"""Pages of the documentation that are read off the code when the site is built, so that they cannot drift."""
