"""The same weights in other libraries, to compare results and speed with. Development only."""

from pathlib import Path

from torch import Tensor, nn

from tiny_decoder import TinyGPT


def gpt2_twin(model: TinyGPT):
    """transformers' GPT2LMHeadModel with these weights and the exact GELU, which GPT-2 itself approximates.

    GPT-2's head has no bias: ours must be 0, or is left out.
    """
    import transformers

    config = model.config
    twin = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.max_seq,
            n_embd=config.embed_dim,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            tie_word_embeddings=False,
            activation_function="gelu",
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    weights = {
        "transformer.wte.weight": model.token_embedding.weight,
        "transformer.wpe.weight": model.position_embedding.weight,
        "lm_head.weight": model.head.weight,
        **two("transformer.ln_f", model.final_norm),
    }
    for i, block in enumerate(model.blocks):
        name = f"transformer.h.{i}."
        weights |= two(name + "ln_1", block.attention_norm) | two(name + "ln_2", block.mlp_norm)
        weights[name + "attn.c_attn.weight"] = block.attention.in_proj_weight.t()  # its linear layers are transposed
        weights[name + "attn.c_attn.bias"] = block.attention.in_proj_bias
        for theirs, ours in (
            ("attn.c_proj", block.attention.out_proj),
            ("mlp.c_fc", block.mlp[0]),
            ("mlp.c_proj", block.mlp[2]),
        ):
            weights |= two(name + theirs, ours, transpose=True)
    twin.load_state_dict({name: tensor.detach() for name, tensor in weights.items()})
    return twin


def two(name: str, layer: nn.Module, transpose: bool = False) -> dict[str, Tensor]:
    """A layer's weight and bias under GPT-2's names."""
    return {f"{name}.weight": layer.weight.t() if transpose else layer.weight, f"{name}.bias": layer.bias}


def save_for_ctranslate2(model: TinyGPT, folder: Path) -> None:
    """Write these weights as a CTranslate2 decoder; the token with id i is called `ti`."""
    from ctranslate2.specs import TransformerDecoderModelSpec, common_spec

    def fill(theirs, ours: nn.Module, names: tuple[str, str]) -> None:
        for name, tensor in zip(names, (ours.weight, ours.bias), strict=True):
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
    fill(decoder.projection, model.head, linear)
    names = [f"t{i}" for i in range(config.vocab_size)]
    spec.register_vocabulary(names)
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = names[0]
    spec.validate()
    spec.save(str(folder))
