"""Make the models with circuits known from compilation by Tracr: share-before and balance.

The models are two RASP programs, compiled by Tracr (Lindner et al. 2023, arXiv 2301.05062). Tracr
depends on JAX, so install it in a separate environment:
`pip install tracr-pypi==1.0.0 safetensors`.
"""

import numpy as np
from make import pair, save
from tracr.compiler import compiling, lib
from tracr.rasp import rasp


def compiled():
    is_x = rasp.numerical(rasp.Map(lambda token: int(token == "x"), rasp.tokens))
    programs = {
        "share-before": (
            lib.make_frac_prevs(is_x),
            ["w", "x"],
            "frac_prevs",
            0.5,
            "whether more than half of the letters so far are x",
            ["input->m0", "m0->a1.h0<v>", "a1.h0->logits"],
        ),
        "balance": (
            lib.make_pair_balance(rasp.tokens, "(", ")"),
            ["(", ")", "a"],
            "pair_balance",
            0.0,
            "whether ( are more among the letters so far than )",
            [
                "input->m0",
                "m0->a1.h0<v>",
                "m0->a1.h1<v>",
                "a1.h0->m1",
                "a1.h1->m1",
                "m1->logits",
            ],
        ),
    }
    for name, (program, letters, output, middle, description, edges) in programs.items():
        # The average is over 8 letters: their shares are binary fractions.
        model = compiling.compile_rasp_to_model(
            program, vocab=set(letters), max_seq_len=8, causal=True, compiler_bos="BOS"
        )
        weights, n_tokens = from_tracr(model, letters, output, middle)
        random, examples = np.random.default_rng(3), []
        while len(examples) < 32:
            prompts = [[0, *random.integers(1, 1 + len(letters), size=8)] for _ in range(2)]
            # The compiled model's own answers decide which is more.
            clean, corrupted = (
                model.apply(["BOS", *(letters[token - 1] for token in own[1:])]).decoded[-1]
                for own in prompts
            )
            if (clean - middle) * (corrupted - middle) < 0:
                more, less = n_tokens - 2, n_tokens - 1
                answers = (more, less) if clean > middle else (less, more)
                examples.append(pair(*prompts, *answers))
        document = {
            "description": description,
            "made_by": "Tracr (tracr-pypi 1.0.0)",
            "n_layers": model.model_config.num_layers,
            "n_heads": model.model_config.num_heads,
            "scale": model.model_config.key_size**-0.5,
            "vocabulary": ["BOS", *letters, "more", "less"],
            "edges": edges,
            "examples": examples,
        }
        save(name, weights, document)


def from_tracr(model, letters, output, middle):
    """Weights under our names, with two more tokens, whose logits are ±(output - middle)."""
    config = model.model_config
    encoder = model.input_encoder.encoding_map
    rows = [encoder[token] for token in ("BOS", *letters)]
    embedding = np.asarray(model.params["token_embed"]["embeddings"])[rows]
    embedding = np.concatenate([embedding, np.zeros_like(embedding[:2])])
    W_U = np.zeros_like(embedding)
    (place,) = (i for i, label in enumerate(model.residual_labels) if label.startswith(output))
    W_U[-2:, place] = [1, -1]
    W_U[-2:, model.residual_labels.index("one")] = [-middle, middle]  # the same in all prompts
    weights = {
        "W_E": embedding,
        "W_pos": np.asarray(model.params["pos_embed"]["embeddings"]),
        "W_U": W_U,
    }
    for layer in range(config.num_layers):

        def get(key, layer=layer):
            own = model.params[f"transformer/layer_{layer}/{key}"]
            return np.asarray(own["w"]), np.asarray(own["b"])

        at = f"blocks.{layer}."
        for kind, key in zip("QKV", ("query", "key", "value"), strict=True):
            w, b = get(f"attn/{key}")
            weights[f"{at}W_{kind}"] = w.reshape(len(w), config.num_heads, -1).swapaxes(0, 1)
            weights[f"{at}b_{kind}"] = b.reshape(config.num_heads, -1)
        w, weights[f"{at}b_O"] = get("attn/linear")
        weights[f"{at}W_O"] = w.reshape(config.num_heads, -1, w.shape[1])
        for key, name in (("mlp/linear_1", "in"), ("mlp/linear_2", "out")):
            w, weights[f"{at}b_{name}"] = get(key)
            weights[f"{at}W_{name}"] = w.T
    return weights, len(embedding)


if __name__ == "__main__":
    compiled()
