"""The paper's networks have the shapes of its tables."""

import pytest
import torch

from edgetag_train.models.cnn import TaggingNet, shape_trace

EMBEDDING = torch.zeros(2, 10, 128)
LOGMEL = torch.zeros(2, 1, 128, 862)


def test_table_1() -> None:
    """1·128·862 becomes what the paper prints, pools included."""
    assert shape_trace(1) == [
        (8, 128, 862),
        (16, 128, 862),
        (32, 33, 48),
        (32, 8, 12),
        (64, 3, 5),
        (128, 1, 2),
        (256, 1, 1),
    ]


def test_table_2() -> None:
    """With the released net's fourth row (3×3, stride 3); as printed it could not run."""
    assert shape_trace(2) == [
        (8, 64, 431),
        (16, 32, 216),
        (32, 8, 54),
        (32, 2, 13),
        (64, 1, 5),
        (128, 1, 2),
        (256, 1, 1),
    ]


def test_table_2_as_printed_cannot_run() -> None:
    """The printed row 4 (5×5, stride 2, padding 1) does not fit the 2×13 map it gets."""
    with pytest.raises(RuntimeError, match=r"[Kk]ernel size"):
        torch.nn.Conv2d(32, 64, 5, 2, 1)(torch.zeros(1, 32, 2, 13))


@pytest.mark.parametrize("fusion", ["none", "concat"])
@pytest.mark.parametrize("n_classes", [8, 37])
def test_a_net_gives_a_logit_per_tag(fusion: str, n_classes: int) -> None:
    """Two windows in, two rows out, with and without an embedding."""
    net = TaggingNet(2, n_classes, fusion=fusion).eval()  # type: ignore[arg-type]
    assert net(LOGMEL, None if fusion == "none" else EMBEDDING).shape == (2, n_classes)


def test_bilinear_fusion_has_the_released_nets_weights() -> None:
    """(256, 1,280) → 512: 167.8 million weights, the reason why it is not the default."""
    with torch.device("meta"):
        net = TaggingNet(1, 37, fusion="bilinear")
        assert net(LOGMEL.to("meta"), EMBEDDING.to("meta")).shape == (2, 37)
    assert net.fuse.weight.numel() == 512 * 256 * 1280 == 167_772_160


@pytest.mark.parametrize("fusion", ["concat", "bilinear"])
def test_a_fused_net_without_embedding_is_refused(fusion: str) -> None:
    """Nothing stands in for a missing embedding."""
    with torch.device("meta"):
        net = TaggingNet(2, 4, fusion=fusion)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="needs an embedding"):
            net(LOGMEL.to("meta"))


def test_concat_listens_to_the_embedding() -> None:
    """Another embedding gives other logits."""
    torch.manual_seed(0)
    net = TaggingNet(2, 4, fusion="concat").eval()
    assert not torch.equal(net(LOGMEL, EMBEDDING), net(LOGMEL, EMBEDDING + 1))
