"""A study as one page of HTML: pictures as SVG and a table beside each, without script."""
