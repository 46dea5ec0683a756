"""The twins that speed is compared with must be twins: the same weights, the same text."""

import pytest
import torch

from benchmarks.peers import save_for_ctranslate2, token_name
from helpers import sampled_ids
from tiny_decoder import TinyGPT, TinyGPTConfig


def test_ctranslate2_twin_writes_the_same_greedy_text(tmp_path):
    ctranslate2 = pytest.importorskip("ctranslate2")
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = TinyGPT(TinyGPTConfig(vocab_size=20, max_seq=16, embed_dim=32, num_heads=4, num_layers=2))
    with torch.no_grad():
        model.head.weight *= 30  # clear preferences
    save_for_ctranslate2(model, tmp_path)
    twin = ctranslate2.Generator(str(tmp_path), compute_type="float32", intra_threads=1)
    options = {"max_length": 15, "min_length": 15, "include_prompt_in_result": False}
    theirs = twin.generate_batch([[token_name(5)]], **options)[0].sequences_ids[0]
    ours = sampled_ids(model, [5], 15, suppressed=(1,))  # <bos> ends a text there
    assert theirs == ours and len(set(ours)) > 2
