"""A study as one page of HTML: pictures as SVG with a table beside each, and all its rows for the page's own script."""
