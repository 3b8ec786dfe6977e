"""The built-in model in plain PyTorch: what training and checking its adapter need, no more.

``Llama`` names its parameters as Hugging Face does, so ``model.safetensors`` loads as it is, and
every linear layer carries a low-rank update (LoRA, arXiv 2106.09685) in PEFT's notation. Attention
is ``scaled_dot_product_attention``: FlashAttention on a GPU, where memory stays linear in length.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from kvevict import files
from kvevict.errors import InputError

PEFT_PREFIX = "base_model.model."
OVERRIDES = "base_config_overrides"


class Linear(nn.Module):
    """``x @ (W + scale · B A)ᵀ``: W [out, in] frozen, A [rank, in] and B [out, rank] trained."""

    def __init__(self, n_in: int, n_out: int, rank: int, scale: float):
        super().__init__()
        self.scale, self.merged = scale, False
        self.weight = nn.Parameter(torch.empty(n_out, n_in), requires_grad=False)
        self.lora_A = nn.Parameter(torch.empty(rank, n_in))
        self.lora_B = nn.Parameter(torch.zeros(n_out, rank))

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return F.linear(x, self.weight)
        # Adding the update to W costs one small product a step; adding it to the output would
        # cost three more passes over every activation.
        return F.linear(x, self.weight + self.scale * (self.lora_B @ self.lora_A))

    @torch.no_grad()
    def merge_(self) -> None:
        self.weight += self.scale * (self.lora_B @ self.lora_A)
        self.merged = True


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [batch, heads, tokens, head_dim], halves paired as in Hugging Face."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, cfg: dict, rank: int, scale: float):
        super().__init__()
        hidden, heads, kv = (
            cfg[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads")
        )
        self.head_dim = cfg.get("head_dim") or hidden // heads
        self.q_proj = Linear(hidden, heads * self.head_dim, rank, scale)
        self.k_proj = Linear(hidden, kv * self.head_dim, rank, scale)
        self.v_proj = Linear(hidden, kv * self.head_dim, rank, scale)
        self.o_proj = Linear(heads * self.head_dim, hidden, rank, scale)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache=None, at=None) -> Tensor:
        """``cache`` (K, V) [batch, kv_heads, capacity, head_dim] is filled by a prefill, and read
        and extended at the rows' own positions ``at`` [batch] when decoding one token."""
        batch, tokens, _ = x.shape
        q, k, v = (
            proj(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if at is None:
            if cache is not None:
                for held, new in zip(cache, (k, v)):
                    held[:, :, :tokens] = new
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            rows = torch.arange(batch, device=x.device)
            for held, new in zip(cache, (k, v)):
                held[rows, :, at] = new[:, :, 0].to(held.dtype)
            keys, values = cache
            seen = torch.arange(keys.shape[2], device=x.device) <= at[:, None]
            # One query a head: the group's heads stand where query positions would.
            grouped = q.reshape(batch, keys.shape[1], -1, self.head_dim).to(keys.dtype)
            out = F.scaled_dot_product_attention(grouped, keys, values, seen[:, None, None])
            out = out.reshape(batch, -1, 1, self.head_dim)
        return self.o_proj(out.transpose(1, 2).reshape(batch, tokens, -1))


class MLP(nn.Module):
    def __init__(self, cfg: dict, rank: int, scale: float):
        super().__init__()
        hidden, inner = cfg["hidden_size"], cfg["intermediate_size"]
        self.gate_proj = Linear(hidden, inner, rank, scale)
        self.up_proj = Linear(hidden, inner, rank, scale)
        self.down_proj = Linear(inner, hidden, rank, scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, cfg: dict, rank: int, scale: float):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(cfg["hidden_size"], eps=cfg["rms_norm_eps"])
        self.self_attn = Attention(cfg, rank, scale)
        self.post_attention_layernorm = nn.RMSNorm(cfg["hidden_size"], eps=cfg["rms_norm_eps"])
        self.mlp = MLP(cfg, rank, scale)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache=None, at=None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, at)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Tied embeddings, no biases, plain rotary embedding of base ``rope_theta``."""

    def __init__(self, cfg: dict, rank: int = 1, alpha: float = 0.0):
        super().__init__()
        self.cfg, self.rank, self.alpha = cfg, rank, alpha
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(cfg["vocab_size"], cfg["hidden_size"])
        self.model.layers = nn.ModuleList(
            Block(cfg, rank, alpha / rank) for _ in range(cfg["num_hidden_layers"])
        )
        self.model.norm = nn.RMSNorm(cfg["hidden_size"], eps=cfg["rms_norm_eps"])
        for name, p in self.named_parameters():
            p.requires_grad_(".lora_" in name)

    def forward(self, ids: Tensor, caches=None, at: Tensor | None = None) -> Tensor:
        """Hidden states [batch, tokens, hidden] of ids [batch, tokens], after the last norm."""
        head_dim = self.model.layers[0].self_attn.head_dim
        channel = torch.arange(0, head_dim, 2, device=ids.device, dtype=torch.float32)
        # In float64: position × frequency must not be rounded at 32K tokens.
        frequency = float(self.cfg["rope_theta"]) ** (-channel.double() / head_dim)
        position = (
            torch.arange(ids.shape[1], device=ids.device)[None] if at is None else at[:, None]
        )
        angle = (position[..., None] * frequency).repeat(1, 1, 2)[:, None]
        cos, sin = angle.cos().float(), angle.sin().float()
        x = self.model.embed_tokens(ids)
        for i, layer in enumerate(self.model.layers):
            x = layer(x, cos, sin, None if caches is None else caches[i], at)
        return self.model.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.model.embed_tokens.weight)

    def merge_(self) -> Llama:
        """Add the updates to the weights for good; for inference."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.merge_()
        return self

    def lora(self) -> dict[str, Tensor]:
        """The trained tensors under the names PEFT gives them."""
        return {
            f"{PEFT_PREFIX}{name}.weight": p
            for name, p in self.named_parameters()
            if p.requires_grad
        }


def check_directories(base: Path, adapter: Path | None) -> None:
    """Raise ``InputError`` that names the first file missing from a model or adapter directory."""
    needed = [base / name for name in ("config.json", "model.safetensors", "tokenizer.json")]
    if adapter is not None:
        needed += [adapter / "adapter_config.json", adapter / "adapter_model.safetensors"]
    for path in needed:
        if not path.is_file():
            raise InputError(f"{path} is missing")


def load(base: Path, adapter: Path | None = None, rank: int = 1, overrides: dict | None = None):
    """The model of a Hugging Face directory, with the adapter of a PEFT directory if given.

    Without an adapter, a fresh update of ``rank`` is set up (B = 0: the base model's function);
    ``overrides`` then replace values of config.json.
    """
    cfg = json.loads((base / "config.json").read_text())
    cfg.setdefault("rope_theta", cfg.get("rope_parameters", {}).get("rope_theta", 10000.0))
    alpha = 2.0 * rank
    if adapter is not None:
        peft = json.loads((adapter / "adapter_config.json").read_text())
        rank, alpha, overrides = peft["r"], peft["lora_alpha"], peft.get(OVERRIDES)
    model = Llama({**cfg, **(overrides or {})}, rank, alpha)
    weights = load_file(base / "model.safetensors")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if ".lora_" not in name]
    unexpected = [name for name in unexpected if name != "lm_head.weight"]
    if missing or unexpected:
        raise InputError(f"{base}: not this architecture: {(missing + unexpected)[:3]}")
    for name, p in model.named_parameters():
        if name.endswith("lora_A"):
            nn.init.kaiming_uniform_(p, a=5**0.5)
    if adapter is not None:
        trained = load_file(adapter / "adapter_model.safetensors")
        for name, p in model.lora().items():
            p.data.copy_(trained.pop(name))
        if trained:
            raise InputError(f"{adapter}: tensors without a place: {sorted(trained)[:3]}")
    return model


def save_adapter(model: Llama, overrides: dict, out: Path) -> None:
    """Write ``adapter_model.safetensors`` (bfloat16) and ``adapter_config.json`` as PEFT does."""
    files.make_directory(out)
    tensors = {n: p.detach().to("cpu", torch.bfloat16) for n, p in model.lora().items()}
    files.write(out / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    targets = sorted({name.rsplit(".", 3)[1] for name in tensors})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "r": model.rank,
        "lora_alpha": model.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": targets,
        "inference_mode": True,
        OVERRIDES: overrides,
    }
    files.write(out / "adapter_config.json", json.dumps(config, indent=2) + "\n")


@torch.inference_mode()
def generate(
    model: Llama,
    prompts: list[list[int]],
    new_tokens: int,
    stop: int = -1,
    temperature: float = 0.0,
) -> list[list[int]]:
    """Continue every prompt by up to ``new_tokens`` ids, or to ``stop``, greedily or by sampling.

    Prompts are padded on the right: no real token sees the padding, and decoding overwrites it.
    """
    device = model.model.embed_tokens.weight.device
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    width = int(lengths.max())
    ids = torch.tensor([p + [0] * (width - len(p)) for p in prompts], device=device)
    attn = model.model.layers[0].self_attn
    shape = (len(prompts), model.cfg["num_key_value_heads"], width + new_tokens, attn.head_dim)
    dtype = torch.bfloat16 if torch.is_autocast_enabled(device.type) else torch.float32
    caches = [
        tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in "kv")
        for _ in model.model.layers
    ]
    hidden = model(ids, caches)[torch.arange(len(prompts), device=device), lengths - 1]
    produced, stopped = [], torch.zeros_like(lengths, dtype=torch.bool)
    for step in range(new_tokens):
        logits = model.logits(hidden).float()
        if temperature:
            token = torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0]
        else:
            token = logits.argmax(-1)
        produced.append(token)
        stopped |= token == stop
        if stopped.all():
            break
        if step + 1 < new_tokens:
            hidden = model(token[:, None], caches, at=lengths + step)[:, 0]
    rows = torch.stack(produced, dim=1).tolist()
    return [row[: row.index(stop)] if stop in row else row for row in rows]
