"""How likely a model finds a text: the loss of any file under any checkpoint."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from corpora.fast_bpe import for_length
from data_setup import consecutive_windows
from sampling.prompts import read_text
from support.command import visible
from tiny_decoder import TinyGPT
from tokenizer import Tokenizer


@torch.inference_mode()
def token_losses(model: TinyGPT, ids: np.ndarray) -> np.ndarray:
    """The negative log-likelihood in nats of ids[1:], (N - 1,), given what stands before each in its window.

    The windows are consecutive, as in validation, so the first tokens of each see little.
    """
    losses = [torch.zeros(0)]
    for inputs, targets in consecutive_windows(ids, model.config.max_seq, 2**12):
        logits = model(inputs.to(model.token_embedding.weight.device)).cpu()
        losses.append(F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none"))
    return torch.cat(losses).numpy()


def print_score(model: TinyGPT, tokenizer: Tokenizer, path: str, explain: bool) -> None:
    """Print the loss of a UTF-8 text per token, character and byte, and its perplexity; with explain each token's.

    Raises UserError if the file is empty or not UTF-8, FloatingPointError if the losses are not finite.
    """
    text = read_text("--score", path)
    ids = np.concatenate([[tokenizer.start_id], for_length(tokenizer, len(text)).encode_array(text)])
    losses = token_losses(model.eval(), ids)
    if explain:
        for token, loss in zip(ids[1:].tolist(), losses.tolist(), strict=True):
            print(f"{loss:8.4f}  {tokenizer.decode([token])!r}")
    nats, size = float(losses.sum(dtype=np.float64)), len(text.encode())
    if not math.isfinite(nats):
        raise FloatingPointError("the model's losses are not finite: its weights are damaged or too large")
    print(f"{visible(path)}: {len(losses):,} tokens, {len(text):,} characters, {size:,} bytes")
    print(f"{nats / len(losses):.4f} nats per token, perplexity {math.exp(min(700, nats / len(losses))):.2f}")
    print(f"{nats / len(text):.4f} nats per character, {nats / math.log(2) / size:.4f} bits per byte")
