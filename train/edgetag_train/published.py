"""What `edgetag fetch` fetches: the public files' names, addresses and checksums.

A checksum is the publisher's own: Zenodo's MD5, or the first digits of the SHA-256 where a file's name holds
them (PyTorch hub's convention). Where none is published there is none here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedFile:
    """A file by name, with `md5:…` or `sha256:…` (all digits of it or the first ones) where that is known."""

    name: str
    checksum: str | None = None


@dataclass(frozen=True)
class Collection:
    """Files that lie side by side: each at `base_url` + name + `query`."""

    title: str
    base_url: str
    files: tuple[PublishedFile, ...]
    query: str = ""


_TAXONOMY = PublishedFile("dcase-ust-taxonomy.yaml", "md5:6c1cca1c4c383a6ebb0cb71cb74fe3a9")
_V2_AUDIO_MD5 = (
    "bbb4dbae7d2e58e18d24878b9ee1eb51",
    "7c369ff37ac6a1fdd8493fdffe62e0a1",
    "412241c063d7f196953d3dd1c44aeb5e",
    "d2a872392d95993a2c238d305b940812",
    "b15b0e0cb3f8584259ef0d24293a9be3",
    "de745f887067433757a2f2c8f99f99bb",
    "b0286c67468369d66336f6f5ddede31f",
    "ff300183ab7a9d3f2f74c3b730ffeb52",
    "7be76b821fa6dbe20f6b50ca440e1024",
    "959f7edfbb26eadad9865069f38aa9dd",
    "84e94de273666c537a3e6b709ee88d9b",
    "44fe1f43121a7d1178aa0cdf7477793b",
    "a7eb21011f460b5ac289f8e285e875ab",
    "27945a8b1008eec787f97213164951e6",
    "fb8c7d81c3bde3a0c86c1e55e6a85a24",
    "f6af9b65d876ef96d199b9e5f0473cb9",
    "e8337c61a90c30989d500f950fbe443a",
    "3e47e85eb4564a30fe7f442ee97ec7b9",
    "c6b2ef4d0d5b7269d465c469cdbbdc4b",
)

SONYC_UST = {
    "v2": Collection(
        "SONYC-UST v2.3, 18,510 recordings, CC BY 4.0",
        "https://zenodo.org/record/3966543/files/",
        (
            PublishedFile("annotations.csv", "md5:70b507b15bb4cfcce4870925302f276b"),
            _TAXONOMY,
            *(PublishedFile(f"audio-{k}.tar.gz", f"md5:{md5}") for k, md5 in enumerate(_V2_AUDIO_MD5)),
        ),
        "?download=1",
    ),
    "v1": Collection(
        "SONYC-UST v1, the data of DCASE 2019 task 5, CC BY 4.0",
        "https://zenodo.org/record/2590742/files/",
        (
            # The MD5 of the copy in the paper's own repository.
            PublishedFile("annotations.csv", "md5:c8362f30832bf637f189eefe8b4b56a4"),
            _TAXONOMY,
            PublishedFile("README.md"),
            PublishedFile("audio.tar.gz"),
        ),
        "?download=1",
    ),
}

VGGISH = {
    "pytorch": Collection(
        "VGGish, the PyTorch port",
        "https://github.com/harritaylor/torchvggish/releases/download/v0.1/",
        (
            PublishedFile("vggish-10086976.pth", "sha256:10086976"),
            PublishedFile("vggish_pca_params-970ea276.pth", "sha256:970ea276"),
        ),
    ),
    "tensorflow": Collection(
        "VGGish, Google's TensorFlow checkpoint",
        "https://storage.googleapis.com/audioset/",
        (PublishedFile("vggish_model.ckpt"), PublishedFile("vggish_pca_params.npz")),
    ),
}
