"""One file per table of figures."""
