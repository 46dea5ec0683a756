"""Texts: of any size, byte-level BPE, the synthetic grammar, Project Gutenberg, downloads."""
