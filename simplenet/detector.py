"""SimpleNet: fit on normal images, predict scores and anomaly maps (Liu et al., CVPR 2023, arXiv 2303.15140)."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import FeatureExtractor, embed_patches
from backbones.patches import patch_grid
from errors import UsageError
from simplenet.anomalous_features import GaussianNoise
from simplenet.anomaly_map import anomaly_maps
from simplenet.model import Adaptor, Discriminator, compose
from simplenet.training import StepStats, Trainer, autocast


class Prediction(NamedTuple):
    """Image scores [B] and anomaly maps [B, H, W], float32; higher is more anomalous."""

    scores: Tensor
    maps: Tensor


class EpochStats(NamedTuple):
    """One meta epoch: its number from 1, the mean loss, and the mean shares of patches beyond the margin."""

    meta_epoch: int
    loss: float
    p_true: float
    p_fake: float


class SimpleNet(nn.Module):
    """Frozen backbone, patch embedding, feature adaptor, and a discriminator trained on Gaussian-noised features.

    Args:
        backbone: where layer maps come from; shared between detectors unless it is trained, then copied.
        layers: the layers read off it; the first gives the patch grid.
        image_size: height and width of the images and maps.
        pretrain_embed_dimension, target_embed_dimension, patchsize: see backbones.embed_patches.
        pre_proj, proj_layer_type: the adaptor's layers and type; see Adaptor.
        dsc_layers, dsc_hidden: see Discriminator.
        noise_std, mix_noise, auto_noise: std, scales and relative std; see GaussianNoise.
        dsc_margin, dsc_lr: margin th of the loss and the discriminator's learning rate.
        meta_epochs, gan_epochs: fit makes meta_epochs * gan_epochs passes and reports after every gan_epochs.
        cos_lr, aed_meta_epochs: a cosine schedule of (meta_epochs - aed_meta_epochs) * gan_epochs steps.
        train_backbone: also train the backbone, by AdamW.
        precision: of embeddings, convolutions and matrix products: float32, bfloat16 or float16.
        seed: of weights and noise.

    Raises:
        UsageError: cos_lr without meta epochs left for the schedule, or a discriminator that shrinks to nothing.
    """

    def __init__(
        self,
        backbone: FeatureExtractor,
        layers: Sequence[str],
        image_size: tuple[int, int],
        *,
        pretrain_embed_dimension: int = 1024,
        target_embed_dimension: int = 1024,
        patchsize: int = 3,
        pre_proj: int = 0,
        proj_layer_type: int = 0,
        dsc_layers: int = 2,
        dsc_hidden: int | None = None,
        noise_std: float = 0.05,
        mix_noise: int = 1,
        auto_noise: float = 0.0,
        dsc_margin: float = 0.8,
        dsc_lr: float = 0.0002,
        meta_epochs: int = 1,
        gan_epochs: int = 1,
        cos_lr: bool = False,
        aed_meta_epochs: int = 1,
        train_backbone: bool = False,
        precision: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if cos_lr and meta_epochs <= aed_meta_epochs:
            raise UsageError(
                f"cos_lr needs more meta_epochs than aed_meta_epochs, not {meta_epochs} and {aed_meta_epochs}"
            )
        self.backbone = copy.deepcopy(backbone) if train_backbone else backbone
        self.layers = list(layers)
        self.image_size = image_size
        self.pretrain_embed_dimension = pretrain_embed_dimension
        self.target_embed_dimension = target_embed_dimension
        self.patchsize = patchsize
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.adaptor = Adaptor(target_embed_dimension, pre_proj, proj_layer_type)
            self.discriminator = Discriminator(target_embed_dimension, dsc_layers, dsc_hidden)
        self.noise = GaussianNoise(noise_std, mix_noise, auto_noise)
        self.dsc_margin = dsc_margin
        self.dsc_lr = dsc_lr
        self.meta_epochs = meta_epochs
        self.gan_epochs = gan_epochs
        self.cosine_epochs = (meta_epochs - aed_meta_epochs) * gan_epochs if cos_lr else 0
        self.train_backbone = train_backbone
        self.precision = precision
        self.seed = seed

    @property
    def passes(self) -> int:
        """How many times fit goes over the training images."""
        return self.meta_epochs * self.gan_epochs

    @property
    def device(self) -> torch.device:
        return next(self.discriminator.parameters()).device

    def fit(self, images: Iterable[Tensor], on_epoch: Callable[[EpochStats], None] | None = None) -> None:
        """Train on normal images.

        Args:
            images: batches [B, 3, H, W], normalised; iterated `passes` times.
            on_epoch: called after every meta epoch, with the detector in eval mode; it may call predict.
        """
        self.fit_embeddings(_Mapped(self.embed, images), on_epoch)

    def fit_embeddings(
        self, embeddings: Iterable[Tensor], on_epoch: Callable[[EpochStats], None] | None = None
    ) -> None:
        """Train as fit does, on batches of what embed gives for normal images: [B, H1, W1, D]."""
        trainer = Trainer(
            self.adaptor,
            self.discriminator,
            self.noise,
            self.dsc_margin,
            self.dsc_lr,
            self.cosine_epochs,
            self.seed,
            self.precision,
            self._backbone_parameters(),
        )
        for meta_epoch in range(1, self.meta_epochs + 1):
            self.train()
            steps: list[StepStats] = []
            for _ in range(self.gan_epochs):
                for batch in embeddings:
                    steps.append(trainer.step(batch.flatten(0, 2)))
                trainer.end_gan_epoch()
            self.eval()
            loss, p_true, p_fake = (torch.stack(values).mean().item() for values in zip(*steps, strict=True))
            if on_epoch is not None:
                on_epoch(EpochStats(meta_epoch, loss, p_true, p_fake))

    def embed(self, images: Tensor) -> Tensor:
        """Patch embeddings o (Eq. 4) of images [B, 3, H, W], of the detector's precision: [B, H1, W1, D].

        Gradients flow only where the backbone is trained.
        """
        gradients = torch.set_grad_enabled(self.train_backbone and torch.is_grad_enabled())
        with gradients, autocast(self.device, self.precision):
            return self.patch_embeddings(images.to(self.device)).to(self.precision)

    def patch_embeddings(self, images: Tensor) -> Tensor:
        """The function that embed evaluates, of images on the detector's device."""
        maps = self.backbone(images, self.layers)
        embeddings = embed_patches(maps, self.pretrain_embed_dimension, self.target_embed_dimension, self.patchsize)
        return embeddings.unflatten(1, patch_grid((maps[0].shape[-2], maps[0].shape[-1]), self.patchsize))

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Image scores and anomaly maps of normalised images [B, 3, H, W]."""
        self.eval()
        return self.score(self.embed(images))

    @torch.no_grad()
    def score(self, embeddings: Tensor) -> Prediction:
        """Scores and maps of patch embeddings [B, H1, W1, D]: s = -D(G(o)) (Eq. 9), image score max s (Eq. 11)."""
        self.eval()
        with autocast(self.device, self.precision):
            patch_scores = self.patch_scores(embeddings.to(self.precision)).float()
        return Prediction(patch_scores.flatten(1).amax(dim=1), anomaly_maps(patch_scores, self.image_size))

    def patch_scores(self, embeddings: Tensor) -> Tensor:
        """s = -D(G(o)) (Eq. 9) of patch embeddings [B, H1, W1, D]: [B, H1, W1]."""
        composed = compose(self.adaptor, self.discriminator)
        hidden = F.linear(embeddings, *composed) if composed else self.discriminator.first(self.adaptor(embeddings))
        return -self.discriminator.after_first(hidden.flatten(0, 2)).view(embeddings.shape[:3])

    def train(self, mode: bool = True) -> "SimpleNet":
        """As in nn.Module, but a frozen backbone stays in eval mode: its BatchNorm statistics must not move."""
        super().train(mode)
        if not self.train_backbone:
            self.backbone.eval()
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As in nn.Module, without the backbone unless it is trained."""
        state = super().state_dict(*args, **kwargs)
        return {k: v for k, v in state.items() if self.train_backbone or not k.startswith("backbone.")}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in nn.Module, for what state_dict returns."""
        if self.train_backbone:
            self.backbone.build(self.layers, self.image_size, self.device)
        else:
            frozen = {k: v for k, v in super().state_dict().items() if k.startswith("backbone.")}
            state_dict = {**state_dict, **frozen}
        return super().load_state_dict(state_dict, strict, assign)

    def _backbone_parameters(self) -> list[nn.Parameter]:
        if not self.train_backbone:
            return []
        network = self.backbone.build(self.layers, self.image_size, self.device)
        return list(network.requires_grad_(True).parameters())


class _Mapped:
    """A function's results over something that can be iterated more than once."""

    def __init__(self, function: Callable[[Tensor], Tensor], items: Iterable[Tensor]) -> None:
        self.function = function
        self.items = items

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.function, self.items)
