"""Make the hand-written models with known circuits: induction, majority, xor, redundant.

Every model is causal and has no norm. Each feature has coordinates of its own in the residual
stream, so a sender and a receiver that share no feature are not connected: every method scores
their edge exactly 0, not approximately. Besides its circuit, each model has heads and MLPs whose
output no node reads, and others whose input never changes. All numbers are chosen so that a sum has
one or two terms, or terms that are exact binary fractions. Sums that should be equal are therefore
equal to the last bit, in any order of addition.

Writes <name>/model.safetensors and <name>/circuit.json in this folder; `make_compiled.py` makes the
models that Tracr compiles.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

FOLDER = Path(__file__).resolve().parent


class Builder:
    """Weights, initially zero, that are set by names of features."""

    def __init__(self, features, *, d_vocab, n_ctx, n_layers, n_heads, d_head, d_mlp, scale=1.0):
        self.place, d_model = {}, 0
        for name, width in features.items():
            self.place[name] = np.arange(d_model, d_model + width)
            d_model += width
        self.shape = {"n_layers": n_layers, "n_heads": n_heads, "scale": scale}
        self.W = {"W_E": np.zeros((d_vocab, d_model)), "W_pos": np.zeros((n_ctx, d_model))}
        self.W["W_U"] = np.zeros((d_vocab, d_model))
        for layer in range(n_layers):
            for name, shape in {
                "W_Q": (n_heads, d_model, d_head),
                "W_K": (n_heads, d_model, d_head),
                "W_V": (n_heads, d_model, d_head),
                "W_O": (n_heads, d_head, d_model),
                "b_Q": (n_heads, d_head),
                "b_K": (n_heads, d_head),
                "b_V": (n_heads, d_head),
                "b_O": (d_model,),
                "W_in": (d_mlp, d_model),
                "b_in": (d_mlp,),
                "W_out": (d_model, d_mlp),
                "b_out": (d_model,),
            }.items():
                self.W[f"blocks.{layer}.{name}"] = np.zeros(shape)

    def embed(self, feature, table):
        """Set what each token writes into the feature: row t of `table` for token t."""
        self.W["W_E"][:, self.place[feature]] = table

    def position(self, feature, table):
        """Set what each position writes into the feature: row p of `table` for position p."""
        self.W["W_pos"][:, self.place[feature]] = table

    def head(self, layer, head, *, q=None, k=None, v, out):
        """`q`, `k`, `v`: (feature, matrix [width, d_head]); `out`: (feature, [d_head, width])."""
        for kind, given in zip("QKV", (q, k, v), strict=True):
            if given is not None:
                feature, matrix = given
                width = np.shape(matrix)[1]
                self.W[f"blocks.{layer}.W_{kind}"][head][self.place[feature], :width] += matrix
        feature, matrix = out
        self.W[f"blocks.{layer}.W_O"][head][: np.shape(matrix)[0], self.place[feature]] += matrix

    def mlp(self, layer, first, *, reads, writes, bias=0.0):
        """Set hidden units from `first` on: relu(`reads` + bias), written by `writes`."""
        feature, matrix = reads  # [n_hidden, width]
        hidden = slice(first, first + np.shape(matrix)[0])
        self.W[f"blocks.{layer}.W_in"][hidden, self.place[feature]] = matrix
        self.W[f"blocks.{layer}.b_in"][hidden] = bias
        feature, matrix = writes  # [width, n_hidden]
        self.W[f"blocks.{layer}.W_out"][self.place[feature], hidden] = matrix

    def unembed(self, feature, table):
        """Set what each token's logit reads from the feature: row t of `table` for token t."""
        self.W["W_U"][:, self.place[feature]] += table


def save(name, weights, document):
    folder = FOLDER / name
    folder.mkdir(exist_ok=True)
    save_file(
        {key: np.ascontiguousarray(own, dtype=np.float32) for key, own in weights.items()},
        folder / "model.safetensors",
    )
    lines = [
        f"  {json.dumps(key)}: "
        + (
            "[\n" + ",\n".join(f"    {json.dumps(row)}" for row in own) + "\n  ]"
            if isinstance(own, list) and own and isinstance(own[0], dict)
            else json.dumps(own)
        )
        for key, own in document.items()
    ]
    (folder / "circuit.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf8")
    print(f"{name}: {len(document['edges'])} true edges, {len(document['examples'])} examples")


def pair(clean, corrupted, correct, incorrect):
    """One example, of token ids."""
    return {
        "clean": [int(token) for token in clean],
        "corrupted": [int(token) for token in corrupted],
        "correct": [int(correct)],
        "incorrect": [int(incorrect)],
    }


# ---- by hand -------------------------------------------------------------------------------------


def induction():
    """A previous-token head feeds an induction head: `A B C D A` is followed by B."""
    letters = 8
    vocabulary = ["<bos>", *"ABCDEFGH"]
    n, positions = len(vocabulary), 6
    model = Builder(
        {"pos": positions, "tok": n, "prev": n, "out": n, "junk": n, "still": n},
        d_vocab=n,
        n_ctx=positions,
        n_layers=2,
        n_heads=3,
        d_head=n,
        d_mlp=2 * n,
    )
    one = np.eye(n)
    before = np.eye(positions, k=-1)  # position p asks for p - 1
    model.embed("tok", one)
    model.position("pos", np.eye(positions))
    model.position("still", np.eye(positions, n))
    # The circuit.
    model.head(
        0, 0, q=("pos", 4 * before), k=("pos", np.eye(positions)), v=("tok", one), out=("prev", one)
    )
    model.head(1, 0, q=("tok", 4 * one), k=("prev", one), v=("tok", one), out=("out", one))
    model.unembed("out", 4 * one)
    # What nobody reads: an average of tokens, a head that attends to equal tokens, MLPs.
    model.head(0, 1, v=("tok", one), out=("junk", one))
    model.head(0, 2, q=("tok", one), k=("tok", one), v=("tok", 2 * one), out=("junk", one))
    model.mlp(0, 0, reads=("tok", one), writes=("junk", one))
    model.head(1, 2, q=("junk", one), k=("prev", one), v=("tok", one), out=("junk", one))
    model.mlp(1, 0, reads=("junk", one), writes=("junk", one))
    # What reads only what never changes.
    all_alike = np.outer(np.eye(n)[0], np.ones(n))  # the first feature adds to every letter
    model.head(1, 1, q=("still", one), k=("still", one), v=("still", one), out=("out", all_alike))
    model.mlp(1, n, reads=("still", one), writes=("out", all_alike.T))
    random = np.random.default_rng(0)
    examples = []
    for _ in range(32):
        # Other letters in the corrupted prompt; its answer is the incorrect one.
        clean, corrupted = random.permutation(np.arange(1, letters + 1)).reshape(2, 4)
        at = random.integers(3)
        prompts = [[0, *own, own[at]] for own in (clean, corrupted)]
        examples.append(pair(*prompts, clean[at + 1], corrupted[at + 1]))
    save(
        "induction",
        model.W,
        {
            "description": "a previous-token head feeds the keys of an induction head",
            "made_by": "hand",
            **model.shape,
            "vocabulary": vocabulary,
            "edges": [
                "input->a0.h0<v>",
                "a0.h0->a1.h0<k>",
                "input->a1.h0<q>",
                "input->a1.h0<v>",
                "a1.h0->logits",
            ],
            "examples": examples,
        },
    )


def majority():
    """A head counts and an MLP decides by majority; another head weakly copies the last letter."""
    vocabulary = ["a", "b", "="]
    n, positions = 3, 8
    model = Builder(
        {"pos": positions, "tok": n, "count": 1, "major": 2, "copy": n, "junk": n, "still": n},
        d_vocab=n,
        n_ctx=positions,
        n_layers=2,
        n_heads=2,
        d_head=positions,
        d_mlp=8,
    )
    one = np.eye(n)
    model.embed("tok", one)
    model.position("pos", np.eye(positions))
    model.position("still", np.eye(positions, n))
    # Attention is even: an eighth to each position. The count is what a has ahead of b: odd.
    model.head(0, 0, v=("tok", [[1], [-1], [0]]), out=("count", [[8]]))
    # relu(c + 2) - relu(c - 2): from 0 (b is ahead) to 4 (a is), linear between -2 and 2.
    model.mlp(
        0,
        0,
        reads=("count", [[1], [1], [-1], [-1]]),
        bias=[2, -2, 2, -2],
        writes=("major", [[1, -1, 0, 0], [0, 0, 1, -1]]),
    )
    model.unembed("major", [[1, 0], [0, 1], [0, 0]])
    # Copies the letter before '='. So sure that it is one-hot to the last bit.
    before = np.eye(positions, k=-1)
    model.head(
        1,
        0,
        q=("pos", 2048 * before),
        k=("pos", np.eye(positions)),
        v=("tok", one),
        out=("copy", one),
    )
    model.unembed("copy", 0.5 * one)
    # What nobody reads, and what reads only what never changes.
    model.head(0, 1, q=("tok", one), k=("tok", one), v=("tok", one), out=("junk", one))
    model.mlp(0, 4, reads=("tok", one), writes=("junk", one))
    model.head(1, 1, v=("still", one), out=("copy", np.ones((n, n))))
    model.mlp(1, 0, reads=("junk", one), writes=("junk", one))
    model.mlp(1, 4, reads=("still", one), writes=("major", np.ones((2, n))))
    random = np.random.default_rng(1)
    examples = []
    while len(examples) < 32:
        clean, corrupted = random.integers(0, 2, size=(2, 7))
        winners = [int(own.sum() > 3) for own in (clean, corrupted)]
        # The last letter is one of the majority, so that copying it helps.
        if winners[0] != winners[1] and [clean[6], corrupted[6]] == winners:
            examples.append(pair([*clean, 2], [*corrupted, 2], *winners))
    save(
        "majority",
        model.W,
        {
            "description": "a head counts letters and an MLP decides by majority; another head "
            "copies the last letter",
            "made_by": "hand",
            **model.shape,
            "vocabulary": vocabulary,
            "edges": [
                "input->a0.h0<v>",
                "a0.h0->m0",
                "m0->logits",
                "input->a1.h0<v>",
                "a1.h0->logits",
            ],
            "examples": examples,
        },
    )


def xor():
    """Two heads fetch one bit each, an MLP computes the exclusive or, another MLP repeats it."""
    vocabulary = ["0", "1", "="]
    n, positions = 3, 5
    model = Builder(
        {"pos": positions, "bit": 1, "x": 1, "y": 1, "xor": 1, "out": 1, "junk": 2, "still": 2},
        d_vocab=n,
        n_ctx=positions,
        n_layers=2,
        n_heads=3,
        d_head=positions,
        d_mlp=6,
    )
    model.embed("bit", [[0], [1], [0]])
    model.position("pos", np.eye(positions))
    model.position("still", [[1, 0], [0, 1], [0, 0], [0, 0], [1, 1]])

    def looks_at(position):
        """The last position's query asks for `position`, to the last bit."""
        ask = np.zeros((positions, positions))
        ask[-1, position] = 2048
        return {"q": ("pos", ask), "k": ("pos", np.eye(positions))}

    model.head(0, 0, **looks_at(0), v=("bit", [[1]]), out=("x", [[1]]))
    model.head(0, 1, **looks_at(2), v=("bit", [[1]]), out=("y", [[1]]))
    # relu(x - y) + relu(y - x)
    model.mlp(0, 0, reads=("x", [[1], [-1]]), writes=("xor", [[1, 1]]))
    model.W["blocks.0.W_in"][:2, model.place["y"]] = [[-1], [1]]
    model.mlp(1, 0, reads=("xor", [[1]]), writes=("out", [[1]]))
    for feature, size in (("xor", 1), ("out", 2)):
        model.unembed(feature, [[-size], [size], [0]])
    # What nobody reads, and what reads only what never changes.
    model.head(0, 2, **looks_at(1), v=("bit", [[1]]), out=("junk", [[1, 0]]))
    model.mlp(0, 2, reads=("bit", [[1], [-1]]), writes=("junk", np.eye(2)))
    model.head(1, 0, v=("x", [[1]]), out=("junk", [[1, 1]]))
    model.head(1, 1, v=("junk", np.eye(2)), out=("junk", np.eye(2)))
    model.head(1, 2, v=("still", np.eye(2)), out=("out", [[1], [-1]]))
    # .. which is the threshold: the logits differ by 6 xor - 3.
    model.mlp(1, 2, reads=("still", np.eye(2)), writes=("out", [[-0.375, -0.375]]))
    random = np.random.default_rng(2)
    examples = []
    for number in range(32):
        clean = random.integers(0, 2, size=4)
        corrupted = random.integers(0, 2, size=4)
        # One of the two bits is flipped, in turn; the letters between them are noise.
        flipped = number % 2
        corrupted[0], corrupted[2] = clean[0] ^ (flipped == 0), clean[2] ^ (flipped == 1)
        answer = clean[0] ^ clean[2]
        examples.append(pair([*clean, 2], [*corrupted, 2], answer, 1 - answer))
    save(
        "xor",
        model.W,
        {
            "description": "two heads fetch a bit each, an MLP takes their exclusive or and "
            "another repeats it",
            "made_by": "hand",
            **model.shape,
            "vocabulary": vocabulary,
            "edges": [
                "input->a0.h0<v>",
                "input->a0.h1<v>",
                "a0.h0->m0",
                "a0.h1->m0",
                "m0->m1",
                "m0->logits",
                "m1->logits",
            ],
            "examples": examples,
        },
    )


def redundant():
    """Two heads fetch the same sign, and an MLP needs only one, so each head gives a circuit."""
    vocabulary = ["?", "+", "-", "="]
    n, positions = 4, 4
    model = Builder(
        {"sign": 1, "either": 1, "out": 2, "junk": 2, "still": 2},
        d_vocab=n,
        n_ctx=positions,
        n_layers=1,
        n_heads=3,
        d_head=2,
        d_mlp=6,
    )
    model.embed("sign", [[0], [1], [-1], [0]])
    model.position("still", np.eye(positions, 2))
    # Attention is even: a quarter to each position, and one of them has a sign.
    model.head(0, 0, v=("sign", [[4, 0]]), out=("either", [[1], [0]]))
    model.head(0, 1, v=("sign", [[4, 0]]), out=("either", [[1], [0]]))
    # relu(s + 1) - relu(s - 1): 1 more than the sign, whether one head says it or both.
    model.mlp(
        0,
        0,
        reads=("either", [[1], [1], [-1], [-1]]),
        bias=[1, -1, 1, -1],
        writes=("out", [[1, -1, 0, 0], [0, 0, 1, -1]]),
    )
    model.unembed("out", [[0, 0], [1, 0], [0, 1], [0, 0]])
    # What nobody reads.
    model.head(0, 2, v=("sign", [[1, 1]]), out=("junk", np.eye(2)))
    model.mlp(0, 4, reads=("sign", [[1], [-1]]), writes=("junk", np.eye(2)))
    random = np.random.default_rng(3)
    examples = []
    for number in range(32):
        # The corrupted prompt has no sign at all.
        sign, place = 1 + number % 2, random.integers(3)
        clean = np.zeros(3, dtype=int)
        clean[place] = sign
        examples.append(pair([*clean, 3], [0, 0, 0, 3], sign, 3 - sign))
    alternatives = [[f"input->a0.h{head}<v>", f"a0.h{head}->m0", "m0->logits"] for head in (0, 1)]
    save(
        "redundant",
        model.W,
        {
            "description": "two heads fetch the same sign, and an MLP needs either of them",
            "made_by": "hand",
            **model.shape,
            "vocabulary": vocabulary,
            "edges": list(dict.fromkeys(alternatives[0] + alternatives[1])),
            "alternatives": alternatives,
            "examples": examples,
        },
    )


if __name__ == "__main__":
    induction()
    majority()
    xor()
    redundant()
