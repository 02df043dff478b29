"""MERV's front in PyTorch, a reference for tests: modules with the names of published checkpoints.

Written from a description of its mathematics, with PyTorch's own layers.
"""

import torch
from torch import nn


class Projector(nn.Module):
    """Adaptive average pooling of [n, T, G, G, C] and a linear map to [n, L, D]."""

    def __init__(self, width, decoder_width, slots, grid):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool3d((slots, grid, grid))
        self.projector = nn.Module()
        self.projector.projector = nn.Linear(width, decoder_width)

    def forward(self, features):
        pooled = self.pool(features.permute(0, 4, 1, 2, 3))
        return self.projector.projector(pooled.flatten(2).mT)


class FeatureFusion(nn.Module):
    """The attention of a learned query to the means of encoders; only its weights are used."""

    def __init__(self, query_width, decoder_width):
        super().__init__()
        self.Q = nn.Parameter(torch.zeros(1, query_width))
        self.attention = nn.MultiheadAttention(
            query_width, 1, kdim=decoder_width, vdim=decoder_width, batch_first=True
        )

    def forward(self, tokens):
        means = torch.stack([each.mean(1) for each in tokens], 1)
        query = self.Q.expand(len(means), 1, -1)
        _, weights = self.attention(query, means, means, need_weights=True)
        return torch.einsum("ne,enld->nld", weights[:, 0], torch.stack(tokens)), weights[:, 0]


class ScalarFusion(nn.Module):
    """A sum of encoders whose weights do not depend on the video."""

    def __init__(self, encoders):
        super().__init__()
        self.scalar = nn.Parameter(torch.zeros(encoders))

    def forward(self, tokens):
        return torch.einsum("e,enld->nld", self.scalar.softmax(0), torch.stack(tokens))


class ChannelFusion(nn.Module):
    """A linear map of the channels of all encoders."""

    def __init__(self, encoders, decoder_width):
        super().__init__()
        self.projector = nn.Linear(encoders * decoder_width, decoder_width)

    def forward(self, tokens):
        return self.projector(torch.cat(tokens, -1))


class NormedChannelFusion(nn.Sequential):
    """The same after a norm over the channels of all encoders."""

    def __init__(self, encoders, decoder_width):
        width = encoders * decoder_width
        super().__init__(nn.LayerNorm(width), ChannelFusion(encoders, decoder_width))

    def forward(self, tokens):
        return self[1].projector(self[0](torch.cat(tokens, -1)))


class Front(nn.Module):
    """Features of each encoder to the decoder's visual tokens, and the weights of the encoders."""

    def __init__(self, widths, query_width, decoder_width, slots, grid):
        super().__init__()
        self.projectors = nn.ModuleList(
            Projector(width, decoder_width, slots, grid) for width in widths
        )
        self.feature_fusion = FeatureFusion(query_width, decoder_width)

    def forward(self, features):
        tokens = [run(each) for run, each in zip(self.projectors, features, strict=True)]
        return self.feature_fusion(tokens)
