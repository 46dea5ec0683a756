"""nanoGPT's two published recipes, as flags of main.py: what ours are compared with.

They are those of its config/train_shakespeare_char.py and of the variant for CPUs in its README, in float32, which it
uses on CPUs. nanoGPT takes the validation loss from random windows; here it is that of the whole split.
"""

NANOGPT_BEST = 1.4697  # the validation loss that nanoGPT's README gives for its large recipe

BOTH = "--preset plain --no-bias --tie-embeddings --windows random --optimizer adamw --lr 1e-3 --warmup 100"
BOTH += " --schedule cosine --eval-every 250 --dtype float32"
LARGE = (
    "--embed-dim 384 --num-heads 6 --num-layers 6 --batch-size 64 --dropout 0.2 --attention-dropout 0.2 --steps 5000"
)
SMALL = "--max-seq 64 --embed-dim 128 --num-heads 4 --num-layers 4 --batch-size 12 --steps 2000"
FLAGS = {"reference": f"{BOTH} {LARGE}".split(), "reference-cpu": f"{BOTH} {SMALL}".split()}
