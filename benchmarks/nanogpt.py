"""nanoGPT's recipe for CPUs, as flags of main.py: what ours is compared with.

It is that of its config/train_shakespeare_char.py, with the changes for CPUs in its README, in float32, which it uses
on CPUs. nanoGPT takes the validation loss from random windows; here it is that of the whole split.
"""

NANOGPT_BEST = 1.4697  # the validation loss that nanoGPT's README gives for its large recipe

FLAGS = "--preset plain --no-bias --tie-embeddings --windows random --optimizer adamw --lr 1e-3 --warmup 100"
FLAGS += " --schedule cosine --eval-every 250 --dtype float32"
FLAGS += " --max-seq 64 --embed-dim 128 --num-heads 4 --num-layers 4 --batch-size 12 --steps 2000"
