"""A patch embedding of one's own: any module that turns patches and a layout into visual tokens.

The model gathers, merges and answers by the layout alone, so that it does not matter how pixels
become tokens. Here a small MLP embeds patches, and <FRAME> and <LINE> are learned vectors; a few
steps on one example show that it learns.

    python examples/custom_patch_embed.py --steps 20
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from elva_jax import testing
from elva_jax.config.serialize import freeze
from elva_jax.models.elva import Elva
from elva_jax.models.qwen2 import Qwen2

FRAME, PATCH, LINE = 2, 3, 4  # of TokenLayout.kind


class MlpPatchEmbed(nn.Module):
    """Patches uint8 [B, N, K] and a layout [B, S] to visual tokens [B, S, D], zeros elsewhere."""

    features: int

    @nn.compact
    def __call__(self, patches, layout):
        pixels = patches / 127.5 - 1.0
        embedded = nn.Dense(self.features)(nn.gelu(nn.Dense(4 * self.features)(pixels)))
        special = self.param("special", nn.initializers.normal(0.02), (2, self.features))
        index = jnp.maximum(layout.patch_index, 0)[..., None]
        tokens = jnp.take_along_axis(embedded, index, axis=1)
        kind = layout.kind[..., None]
        tokens = jnp.where(kind == PATCH, tokens, 0.0)
        tokens = jnp.where(kind == FRAME, special[0], tokens)
        return jnp.where(kind == LINE, special[1], tokens)


class MyElva(Elva):
    """The model with this patch embedding in place of its own."""

    def setup(self):
        self.patch_embed = MlpPatchEmbed(self.config.hidden_size)
        self.decoder = Qwen2(self.config, self.lora)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=20)
args = parser.parse_args()

layout = jax.tree.map(lambda field: field[None], testing.tiny_layout(frames=2, rows=2, columns=3))
patches = np.random.default_rng(0).integers(0, 256, (1, 12, 8 * 8 * 3), np.uint8)
model = MyElva(freeze(testing.tiny_config()).model)
params = nn.unbox(model.init(jax.random.key(0), patches, layout))["params"]
optimizer = optax.adam(3e-3)


def loss_of(params):
    """Cross-entropy of the answer's tokens."""
    out = model.apply({"params": params}, patches, layout, merging=True)
    logits = model.apply({"params": params}, out.hidden, method="head")
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, out.layout.target)
    return (loss * out.layout.loss_weight).sum() / out.layout.loss_weight.sum()


@jax.jit
def step(params, state):
    loss, gradient = jax.value_and_grad(loss_of)(params)
    updates, state = optimizer.update(gradient, state)
    return loss, optax.apply_updates(params, updates), state


state = optimizer.init(params)
for number in range(1, args.steps + 1):
    loss, params, state = step(params, state)
    if number == 1 or number % 5 == 0:
        print(f"step {number}: loss {loss:.3f}")
