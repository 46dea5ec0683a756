"""`TinyGPT.forward` for one new token a row, in straight lines: no module calls.

At batch 1 a token costs less arithmetic than the detours around it. The tests hold it equal to the model.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from tiny_decoder import KVCache, TinyGPT


class FastStep:
    """To be given to `sampler.SlidingWindow` as `step`. The weights are looked up once."""

    def __init__(self, model: TinyGPT):
        self.model = model
        self.gelu = "none" if model.config.gelu == "exact" else "tanh"
        self.width, self.num_heads = (model.config.embed_dim,), model.config.num_heads
        self.blocks = [
            (
                (block.attention_norm.weight, block.attention_norm.bias, block.attention_norm.eps),
                (block.attention.in_proj_weight, block.attention.in_proj_bias),
                (block.attention.out_proj.weight, block.attention.out_proj.bias),
                (block.mlp_norm.weight, block.mlp_norm.bias, block.mlp_norm.eps),
                (block.mlp[0].weight, block.mlp[0].bias),
                (block.mlp[2].weight, block.mlp[2].bias),
            )
            for block in model.blocks
        ]

    @torch.inference_mode()
    def __call__(self, ids: Tensor, cache: KVCache) -> Tensor:
        """ids (B, 1), one token a row, are added to the unpadded cache -> the logits (B, V) after them."""
        batch = ids.size(0)
        x = self.model.token_embedding.weight[ids[:, 0]] + self.model.position_embedding.weight[cache.length]  # (B, C)
        for (norm1, qkv, out, norm2, up, down), layer in zip(self.blocks, cache.layers, strict=True):
            heads = F.linear(torch.layer_norm(x, self.width, *norm1), *qkv).view(batch, 3, self.num_heads, 1, -1)
            q, k, v = heads.unbind(1)  # (B, nh, 1, hs)
            h = F.scaled_dot_product_attention(q, *layer.append(k, v))
            x = x + F.linear(h.reshape(batch, -1), *out)
            h = F.gelu(F.linear(torch.layer_norm(x, self.width, *norm2), *up), approximate=self.gelu)
            x = x + F.linear(h, *down)
        return self.model.head(self.model.final_norm(x))
