"""The files a model lives in."""
