"""The paper's networks (Tables 1–3): six convolution blocks, optional fusion with an embedding, a classifier.

Shapes below are (channel, mel band, frame). Both tables end in 256·1·1.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from edgetag.contract.frontend import N_FRAMES, N_MELS, VGGISH_EMBEDDING_SIZE, VGGISH_N_PATCHES

Fusion = Literal["none", "concat", "bilinear"]
Table = Literal[1, 2]

CNN_FEATURES = 256
EMBEDDING_MAX = 255.0
"""Embeddings come as VGGish's 8 bits, 0…255. The nets take them to ±1 first: as they are, they would outweigh
the convolutions' features a hundred times."""
EMBEDDING_FEATURES = VGGISH_N_PATCHES * VGGISH_EMBEDDING_SIZE
CONV_DROPOUT = 0.5
FC_DROPOUT = 0.2


@dataclass(frozen=True)
class Row:
    """One row of Table 1 or 2: a convolution, then max-pooling with stride = size where `pool` is given."""

    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    pool: tuple[int, int] | None = None


TABLE_1 = (
    Row(8, (1, 1), (1, 1), (0, 0)),  # 8·128·862
    Row(16, (3, 3), (1, 1), (1, 1)),  # 16·128·862
    Row(32, (16, 128), (4, 16), (8, 16), pool=(4, 4)),  # 32·33·48, pooled 32·8·12
    Row(64, (5, 5), (2, 2), (1, 1)),  # 64·3·5
    Row(128, (5, 5), (2, 2), (1, 1)),  # 128·1·2
    Row(256, (3, 3), (2, 2), (1, 1)),  # 256·1·1
)

TABLE_2 = (
    Row(8, (1, 1), (2, 2), (0, 0)),  # 8·64·431
    Row(16, (3, 3), (2, 2), (1, 1)),  # 16·32·216
    Row(32, (3, 3), (4, 4), (1, 1), pool=(4, 4)),  # 32·8·54, pooled 32·2·13
    # Printed as 5×5, stride 2, which cannot run on a 2×13 map padded to 4×15.
    # The authors' released net has 3×3, stride 3 here.
    Row(64, (3, 3), (3, 3), (1, 1)),  # 64·1·5
    Row(128, (3, 3), (3, 3), (1, 1)),  # 128·1·2
    Row(256, (3, 3), (3, 3), (1, 1)),  # 256·1·1
)

TABLES: dict[Table, tuple[Row, ...]] = {1: TABLE_1, 2: TABLE_2}


def conv_block(in_channels: int, row: Row, dropout: float) -> nn.Sequential:
    """Convolution → batch norm → ReLU → max-pool → dropout (section 3 of the paper)."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, row.channels, row.kernel, row.stride, row.padding),
        nn.BatchNorm2d(row.channels),
        nn.ReLU(inplace=True),
    ]
    if row.pool is not None:
        layers.append(nn.MaxPool2d(row.pool))
    layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


class TaggingNet(nn.Module):
    """Log-mel window (and embedding) to one logit per tag.

    Args:
        table: which table's convolutions.
        n_classes: number of tags.
        fusion: `none` 256 → 512; `concat` 256 + 1,280 → 512 (the text); `bilinear` (256, 1,280) → 512
            (Table 3 and the released net: 167.8 M weights).

    Shape: logmel [N, 1, 128, 862], embedding [N, 10, 128] -> [N, n_classes]
    """

    def __init__(
        self,
        table: Table,
        n_classes: int,
        *,
        fusion: Fusion = "none",
        conv_dropout: float = CONV_DROPOUT,
        fc_dropout: float = FC_DROPOUT,
    ) -> None:
        super().__init__()
        rows = TABLES[table]
        channels = [1, *(row.channels for row in rows)]
        self.convolutions = nn.Sequential(
            *(
                conv_block(n_in, row, conv_dropout)
                for (n_in, _), row in zip(pairwise(channels), rows, strict=True)
            )
        )
        self.fusion: Fusion = fusion
        self.fuse = _fusion_layer(fusion)
        self.classifier = nn.Sequential(
            nn.BatchNorm1d(512),
            nn.ReLU(),
            nn.Dropout(fc_dropout),
            nn.Linear(512, 256),
            nn.BatchNorm1d(256),
            nn.ReLU(),
            nn.Dropout(fc_dropout),
            nn.Linear(256, n_classes),
        )

    def forward(self, logmel: Tensor, embedding: Tensor | None = None) -> Tensor:
        features = self.convolutions(logmel).flatten(1)
        if self.fusion == "none":
            return self.classifier(self.fuse(features))
        if embedding is None:
            raise ValueError(f"a net with fusion {self.fusion!r} needs an embedding")
        embedding = embedding.flatten(1) * (2 / EMBEDDING_MAX) - 1
        if self.fusion == "concat":
            return self.classifier(self.fuse(torch.cat([features, embedding], dim=1)))
        return self.classifier(self.fuse(features, embedding))


def _fusion_layer(fusion: Fusion) -> nn.Module:
    match fusion:
        case "none":
            return nn.Linear(CNN_FEATURES, 512)
        case "concat":
            return nn.Linear(CNN_FEATURES + EMBEDDING_FEATURES, 512)
        case "bilinear":
            return nn.Bilinear(CNN_FEATURES, EMBEDDING_FEATURES, 512)


def shape_trace(table: Table) -> list[tuple[int, int, int]]:
    """Output of each convolution and of each pool, in order, as (channel, mel band, frame)."""
    shapes: list[tuple[int, int, int]] = []
    x = torch.zeros(1, 1, N_MELS, N_FRAMES)
    for block in TaggingNet(table, 1).eval().convolutions:
        assert isinstance(block, nn.Sequential)
        for layer in block:
            x = layer(x)
            if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
                shapes.append((x.shape[1], x.shape[2], x.shape[3]))
    return shapes
