"""More ways to make text, and to look at how it is made."""
