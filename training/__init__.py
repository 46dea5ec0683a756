"""What a training run needs beside its loop."""
