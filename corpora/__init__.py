"""Texts: of any size, tokenizers from files and by a library, the synthetic grammar, Project Gutenberg, downloads."""
