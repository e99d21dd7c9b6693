"""Trained nets in the form that is exported: probabilities at the street's class priors, and nothing that a
sensor need not compute."""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgetag.contract.taxonomy import Taxonomy
from edgetag_train.models.cnn import TaggingNet

PRIOR_RECORDINGS = 10


class Deployed(nn.Module):
    """A net with its sigmoid; the prior shift is in its last bias, and a bilinear fusion is two products.

    Args:
        net: a trained net; it stays as it is.
        shift: what is added to each logit. Shape: [n_classes]

    Shape: logmel [1, 1, 128, 862], embedding [1, 10, 128] -> [1, n_classes]
    """

    def __init__(self, net: TaggingNet, shift: NDArray[np.float32]) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        last = self.net.classifier[-1]
        assert isinstance(last, nn.Linear)
        last.bias += torch.from_numpy(shift)
        first = self.net.classifier[0]
        if isinstance(self.net.fuse, nn.Bilinear):
            assert isinstance(first, nn.BatchNorm1d)
            self.net.fuse = Products(self.net.fuse, first)
            self.net.classifier[0] = nn.Identity()

    def forward(self, logmel: Tensor, embedding: Tensor | None = None) -> Tensor:
        return torch.sigmoid(self.net(logmel, embedding))


class Products(nn.Module):
    """A bilinear layer and the batch norm after it, for one window: the embedding times one large matrix,
    and what comes of it times the features.

    As torch exports a bilinear layer, its weights reach no product directly, and stay in float; and the
    exporter folds a batch norm into other layers only. The embedding goes first since it is the longer
    vector: what lies between the products is 512·256 values, not 512·1280.

    Shape: features [1, n], embedding [1, m] -> [1, k], of weights [k, n, m]
    """

    def __init__(self, bilinear: nn.Bilinear, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        weight = (bilinear.weight * gain[:, None, None]).permute(2, 1, 0)  # [m, n, k]
        self.shape = weight.shape[1:]
        self.weight = nn.Buffer(weight.flatten(1).contiguous())
        self.bias = nn.Buffer((bilinear.bias - norm.running_mean) * gain + norm.bias)

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        return features @ (embedding @ self.weight).reshape(self.shape) + self.bias


def prior_shift(
    scenes: NDArray[np.float32], street: NDArray[np.float32], ids: tuple[str, ...], taxonomy: Taxonomy
) -> NDArray[np.float32]:
    """What to add to each logit so that it speaks for the street's class priors, not for the scenes'.

    Bayes' rule for a change of prior: logit(street) − logit(scenes), per category, the same for its fine
    tags (Saerens, Latinne & Decaestecker 2002, equation 2.4). The street's share of a category is counted
    as if ten more recordings had been heard there with the scenes' share.

    Shape: scenes [n, tags], street [m, tags] labels -> [len(ids)]
    """
    heard, known = np.nansum(scenes, axis=0), np.sum(~np.isnan(scenes), axis=0)
    share = np.clip(heard / np.maximum(known, 1), 1e-3, 1 - 1e-3)
    heard, known = np.nansum(street, axis=0), np.sum(~np.isnan(street), axis=0)
    prior = (heard + PRIOR_RECORDINGS * share) / (known + PRIOR_RECORDINGS)
    shift = np.log(prior / (1 - prior)) - np.log(share / (1 - share))
    return np.array([shift[taxonomy.index[id.split("-")[0]]] for id in ids], np.float32)
