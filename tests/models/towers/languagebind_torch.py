"""LanguageBind's video tower in PyTorch, a reference for tests: modules with the hub's names.

Written from a description of its mathematics, with PyTorch's own layers: fused multi-head
attention, convolutions, and tensors of [clips, frames, positions, width] throughout.
"""

import torch
from torch import nn

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
ACTIVATIONS = {"gelu": nn.GELU(), "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x)}


class Attention(nn.Module):
    """Self-attention over the last axis but one."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out_proj(out.transpose(-2, -3).flatten(-2))


class Mlp(nn.Module):
    def __init__(self, width, inner, activation):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x):
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, heads = config["hidden_size"], config["num_attention_heads"]
        self.temporal_embedding = nn.Parameter(torch.zeros(1, config["num_frames"], width))
        self.temporal_layer_norm1 = nn.LayerNorm(width, 1e-5)
        self.temporal_attn = Attention(width, heads)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width, 1e-5), nn.LayerNorm(width, 1e-5)
        self.self_attn = Attention(width, heads)
        self.mlp = Mlp(width, config["intermediate_size"], config["hidden_act"])

    def forward(self, x):
        by_position = x.transpose(1, 2)
        if x.shape[1] != 1:
            by_position = by_position + self.temporal_embedding
        by_position = by_position + self.temporal_attn(self.temporal_layer_norm1(by_position))
        x = by_position.transpose(1, 2)
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, patch = config["hidden_size"], config["patch_size"]
        places = 1 + (config["image_size"] // patch) ** 2
        self.embeddings = nn.Module()
        self.embeddings.class_embedding = nn.Parameter(torch.zeros(width))
        self.embeddings.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        self.embeddings.position_embedding = nn.Embedding(places, width)
        self.pre_layrnorm = nn.LayerNorm(width, 1e-5)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            Layer(config) for _ in range(config["num_hidden_layers"])
        )
        self.post_layernorm = nn.LayerNorm(width, 1e-5)

    def forward(self, pixels):
        """Clips [n, t, H, W, 3] in [-1, 1] to the states after each layer, and the pooled vector.

        States are [n, t, 1 + patches, width]; the first is the input of the first layer, the last
        one is normalized.
        """
        n, t = pixels.shape[:2]
        images = (((pixels + 1) / 2 - MEAN) / STD).flatten(0, 1).permute(0, 3, 1, 2)
        patches = self.embeddings.patch_embedding(images).flatten(2).mT
        first = self.embeddings.class_embedding.expand(n * t, 1, -1)
        x = torch.cat([first, patches], 1) + self.embeddings.position_embedding.weight
        states = [self.pre_layrnorm(x).unflatten(0, (n, t))]
        for layer in self.encoder.layers:
            states.append(layer(states[-1]))
        states[-1] = self.post_layernorm(states[-1])
        return states, states[-1][:, :, 0].mean(1)


class LanguageBindVideo(nn.Module):
    """The tower with the projection that stands beside it in published files."""

    def __init__(self, config):
        super().__init__()
        self.vision_model = VisionModel(config)
        self.visual_projection = nn.Linear(config["hidden_size"], 16, bias=False)
