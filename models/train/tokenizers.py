"""The two picture tokenizers: LlamaGen's VQ model and VAR's multi-scale VQ-VAE."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from autoencoder import Decoder, Encoder, from_var_names, to_var_names


# Buffers of the training that an exported file does not hold.
TRAINING_ONLY = ("mean", "quantize.use", "quantize.seeded")


class Codebook(nn.Module):
    """What both quantisers share: the table, its use counts and the reviving of dead codes."""

    def __init__(self, size, dim):
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        self.register_buffer("use", torch.ones(size))
        self.register_buffer("seeded", torch.zeros(()))

    @torch.no_grad()
    def seed(self, points):
        """Takes the codebook from the data of the first batch."""
        pick = torch.randint(len(points), (len(self.use),))
        self.embedding.weight.copy_(points[pick] + 1e-3 * torch.randn(len(self.use), points.shape[1]))
        self.seeded.fill_(1)

    @torch.no_grad()
    def count(self, hits, decay=0.98):
        self.use.mul_(decay).add_(hits, alpha=1 - decay)

    @torch.no_grad()
    def revive(self, points, threshold=0.05):
        """Moves codes with less than 5 % of the mean use onto points of the batch."""
        dead = torch.nonzero(self.use < threshold * self.use.mean())[:, 0]
        if len(dead):
            self.embedding.weight[dead] = points[torch.randint(len(points), (len(dead),))]
            self.use[dead] = self.use.mean()
        return dead


class VqTokenizer(nn.Module):
    """LlamaGen's form: one code per place, codes and latents on the unit sphere.

    The codebook follows the exponential mean of its members instead of a
    gradient; the commitment term pulls the latents towards it.
    """

    def __init__(self, ch=32, mult=(1, 1, 2), blocks=1, z=32, codes=512, dim=8, groups=32, **_):
        super().__init__()
        self.grid_factor = 2 ** (len(mult) - 1)
        self.encoder = Encoder(ch, mult, blocks, z, groups)
        self.decoder = Decoder(ch, mult, blocks, z, groups)
        self.quantize = Codebook(codes, dim)
        self.quant_conv = nn.Conv2d(z, dim, 1)
        self.post_quant_conv = nn.Conv2d(dim, z, 1)
        self.register_buffer("mean", torch.zeros(codes, dim))
        self.quantize.embedding.weight.requires_grad_(False)

    def latent(self, x):
        return F.normalize(self.quant_conv(self.encoder(x)).float(), dim=1)

    def nearest(self, flat):
        return (flat @ F.normalize(self.quantize.embedding.weight, dim=1).T).argmax(1)

    def encode(self, x):
        """Pictures to tokens [b, places] in raster order."""
        f = self.latent(x)
        return self.nearest(f.permute(0, 2, 3, 1).reshape(-1, f.shape[1])).view(len(x), -1)

    def decode(self, tokens):
        side = int(tokens.shape[1] ** 0.5)
        e = F.normalize(self.quantize.embedding.weight, dim=1)[tokens]
        return self.decoder(self.post_quant_conv(e.transpose(1, 2).reshape(len(tokens), -1, side, side)))

    def forward(self, x, step):
        """Returns the reconstruction and the commitment loss; updates the codebook."""
        f = self.latent(x)
        b, d, h, w = f.shape
        flat = f.permute(0, 2, 3, 1).reshape(-1, d)
        book = self.quantize
        if book.seeded == 0:
            book.seed(flat.detach())
            self.mean.copy_(book.embedding.weight)
        index = self.nearest(flat.detach())
        with torch.no_grad():
            one_hot = F.one_hot(index, len(book.use)).float()
            hits = one_hot.sum(0)
            book.count(hits)
            self.mean.mul_(0.98).add_(one_hot.T @ flat, alpha=0.02)
            book.embedding.weight.copy_(F.normalize(self.mean, dim=1))
            if step % 10 == 0:
                dead = book.revive(flat)
                self.mean[dead] = book.embedding.weight[dead] * book.use.mean()
        q = book.embedding.weight[index].view(b, h, w, d).permute(0, 3, 1, 2)
        commit = 0.25 * F.mse_loss(f, q) * d
        q = f + (q - f).detach()
        return self.decoder(self.post_quant_conv(q)), commit

    def export(self):
        return {k: v for k, v in self.state_dict().items() if k not in TRAINING_ONLY}

    def load_export(self, state):
        self.load_state_dict(state, strict=False)


class Phi(nn.Conv2d):
    """The smoothing convolution after a scale: half identity, half 3x3 convolution."""

    def __init__(self, dim, ratio=0.5):
        super().__init__(dim, dim, 3, padding=1)
        self.ratio = ratio
        nn.init.dirac_(self.weight)  # begins as the identity
        nn.init.zeros_(self.bias)

    def forward(self, x):
        return x * (1 - self.ratio) + super().forward(x) * self.ratio


class PartiallyShared(nn.Module):
    def __init__(self, dim, count=4):
        super().__init__()
        self.qresi_ls = nn.ModuleList(Phi(dim) for _ in range(count))

    def at(self, scale, scales):
        """The convolution whose tick lies nearest to the scale's relative position."""
        k = len(self.qresi_ls)
        edge = 1 / 3 / k if k == 4 else 1 / 2 / k
        # A scale right between two ticks is decided by the rounding of `linspace`, so it has to be this one.
        ticks = np.linspace(edge, 1 - edge, k)
        return self.qresi_ls[int(np.argmin(np.abs(ticks - scale / (scales - 1))))]


class VarTokenizer(nn.Module):
    """VAR's form: residual codes over growing grids, one codebook for all scales."""

    def __init__(self, ch=32, mult=(1, 1, 2), blocks=1, codes=512, dim=8, groups=32,
                 patch_nums=(1, 2, 3, 5, 9, 16), **_):
        super().__init__()
        self.patch_nums = tuple(patch_nums)
        self.dim = dim
        self.encoder = Encoder(ch, mult, blocks, dim, groups)
        self.decoder = Decoder(ch, mult, blocks, dim, groups)
        self.quantize = Codebook(codes, dim)
        self.quantize.quant_resi = PartiallyShared(dim)
        self.quantize.register_buffer("ema_vocab_hit_SV", torch.zeros(len(self.patch_nums), codes))
        self.quant_conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(dim, dim, 3, padding=1)

    def latent(self, x):
        return self.quant_conv(self.encoder(x)).float()

    def rest_at(self, rest, scale):
        side = self.patch_nums[scale]
        if scale < len(self.patch_nums) - 1:
            rest = F.interpolate(rest, size=(side, side), mode="area")
        return rest.permute(0, 2, 3, 1).reshape(-1, self.dim)

    def nearest(self, flat):
        e = self.quantize.embedding.weight.detach()
        return (e.square().sum(1) - 2 * flat @ e.T).argmin(1)

    def contribution(self, tokens, scale):
        """What the tokens [b, places] of one scale add to the latent map."""
        side, full = self.patch_nums[scale], self.patch_nums[-1]
        h = self.quantize.embedding(tokens).transpose(1, 2).reshape(len(tokens), self.dim, side, side)
        if scale < len(self.patch_nums) - 1:
            h = F.interpolate(h, size=(full, full), mode="bicubic")
        return self.quantize.quant_resi.at(scale, len(self.patch_nums))(h)

    def encode(self, x):
        """Pictures to the tokens of all scales, concatenated."""
        rest = self.latent(x)
        out = []
        for scale in range(len(self.patch_nums)):
            index = self.nearest(self.rest_at(rest, scale)).view(len(x), -1)
            rest = rest - self.contribution(index, scale)
            out.append(index)
        return torch.cat(out, 1)

    def split(self, tokens):
        return tokens.split([p * p for p in self.patch_nums], 1)

    def latent_of(self, tokens):
        return sum(self.contribution(t, s) for s, t in enumerate(self.split(tokens)))

    def decode_latent(self, f):
        return self.decoder(self.post_quant_conv(f))

    def decode(self, tokens):
        return self.decode_latent(self.latent_of(tokens))

    def teacher_input(self, tokens):
        """For every scale but the first: the latent so far, seen at that scale's grid."""
        f, out = 0, []
        for scale, part in enumerate(self.split(tokens)[:-1]):
            f = f + self.contribution(part, scale)
            side = self.patch_nums[scale + 1]
            out.append(F.interpolate(f, size=(side, side), mode="area").flatten(2).transpose(1, 2))
        return torch.cat(out, 1)

    def forward(self, x, step):
        f = self.latent(x)
        target = f.detach()
        book, scales = self.quantize, len(self.patch_nums)
        if book.seeded == 0:
            book.seed(torch.cat([self.rest_at(target, s) for s in range(1, scales)]) * torch.rand(1))
        rest, f_hat, loss, hits, points = target, 0, 0, 0, []
        for scale in range(scales):
            flat = self.rest_at(rest, scale)
            index = self.nearest(flat)
            points.append(flat)
            found = torch.bincount(index, minlength=len(book.use)).float()
            hits = hits + found
            book.ema_vocab_hit_SV[scale].mul_(0.99).add_(found, alpha=0.01)
            h = self.contribution(index.view(len(x), -1), scale)
            f_hat = f_hat + h
            rest = rest - h.detach()
            # The codebook moves towards the latents, the latents towards the codebook.
            loss = loss + F.mse_loss(f_hat, target) + 0.25 * F.mse_loss(f, f_hat.detach())
        book.count(hits)
        if step % 10 == 0:
            book.revive(torch.cat(points))
        f_hat = f + (f_hat - f).detach()
        return self.decode_latent(f_hat), loss / scales

    def export(self):
        return to_var_names({k: v for k, v in self.state_dict().items() if k not in TRAINING_ONLY})

    def load_export(self, state):
        self.load_state_dict(from_var_names(state, [k for k in self.state_dict() if k not in TRAINING_ONLY]), strict=False)


def build(family, **config):
    return {"llamagen": VqTokenizer, "var": VarTokenizer}[family](**config)
