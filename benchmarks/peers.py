"""The same weights in other libraries, to compare results and speed with. Development only."""

from pathlib import Path

import torch
from torch import nn

from tiny_decoder import TinyGPT


def gpt2_twin(model: TinyGPT):
    """transformers' GPT2LMHeadModel with these weights, for any config; biases that the model lacks are 0 there."""
    import transformers

    config = model.config
    twin = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.max_seq,
            n_embd=config.embed_dim,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            tie_word_embeddings=config.tie_embeddings,
            activation_function="gelu" if config.gelu == "exact" else "gelu_new",
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    layers = {"transformer.wte": model.token_embedding, "transformer.wpe": model.position_embedding}
    layers |= {"transformer.ln_f": model.final_norm, "lm_head": model.head}
    for i, block in enumerate(model.blocks):
        name, attention = f"transformer.h.{i}.", block.attention
        packed = nn.Linear(1, 1, bias=config.bias)  # the packed projection as a layer of its own
        packed.weight, packed.bias = attention.in_proj_weight, attention.in_proj_bias
        layers |= {name + "ln_1": block.attention_norm, name + "ln_2": block.mlp_norm}
        layers |= {name + "attn.c_attn": packed, name + "attn.c_proj": attention.out_proj}
        layers |= {name + "mlp.c_fc": block.mlp[0], name + "mlp.c_proj": block.mlp[2]}
    weights = {}
    for name, layer in layers.items():
        weights[f"{name}.weight"] = layer.weight.T if ".c_" in name else layer.weight  # theirs are transposed
        if not isinstance(layer, nn.Embedding) and layer is not model.head:
            weights[f"{name}.bias"] = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
    twin.load_state_dict({name: tensor.detach() for name, tensor in weights.items()})
    return twin


def save_for_ctranslate2(model: TinyGPT, folder: Path) -> None:
    """Write a model with biases and the exact GELU as a CTranslate2 decoder; the token with id i is called `ti`."""
    from ctranslate2.specs import TransformerDecoderModelSpec, common_spec

    def fill(theirs, ours: nn.Module, names: tuple[str, str]) -> None:
        for name, tensor in zip(names, (ours.weight, ours.bias), strict=True):
            if tensor is not None:
                setattr(theirs, name, tensor.detach().numpy())

    norm, linear = ("gamma", "beta"), ("weight", "bias")
    config = model.config
    spec = TransformerDecoderModelSpec.from_config(
        config.num_layers, config.num_heads, pre_norm=True, activation=common_spec.Activation.GELU
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = model.token_embedding.weight.detach().numpy()
    decoder.position_encodings.encodings = model.position_embedding.weight.detach().numpy()
    for theirs, ours in zip(decoder.layer, model.blocks, strict=True):
        attention = ours.attention
        packed = nn.Linear(config.embed_dim, 3 * config.embed_dim, device="meta")
        packed.weight, packed.bias = nn.Parameter(attention.in_proj_weight), nn.Parameter(attention.in_proj_bias)
        fill(theirs.self_attention.layer_norm, ours.attention_norm, norm)
        fill(theirs.self_attention.linear[0], packed, linear)
        fill(theirs.self_attention.linear[1], attention.out_proj, linear)
        fill(theirs.ffn.layer_norm, ours.mlp_norm, norm)
        fill(theirs.ffn.linear_0, ours.mlp[0], linear)
        fill(theirs.ffn.linear_1, ours.mlp[2], linear)
    fill(decoder.layer_norm, model.final_norm, norm)
    decoder.projection.weight = model.head.weight.detach().numpy()
    names = [f"t{i}" for i in range(config.vocab_size)]
    spec.register_vocabulary(names)
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = names[0]
    spec.validate()
    spec.save(str(folder))
