"""SimpleNet: a discriminator of normal patch features and noisy copies (Liu et al., CVPR 2023, arXiv 2303.15140).

Features of a frozen backbone are adapted to normal images, and a small network learns to tell them from copies with
Gaussian noise; a patch that it takes for such a copy is anomalous. The equations, as numbered here (the paper's in
brackets):

    o = pool([patches(F_1), resize(patches(F_2)), ...])                 patch features of D dimensions     (1) [1-4]
    q = G(o) = W o + b                                                  feature adaptor                    (2) [5]
    q- = q + epsilon, epsilon ~ N(0, sigma^2)                           anomalous features                 (3) [6]
    D(q) = w leaky(BatchNorm(W1 q + b1))                                discriminator, high where normal   (4)
    L = mean max(0, th - D(q)) + mean max(0, th + D(q-))                loss, over all patches             (5) [7-8]
    s = -D(q)                                                           patch score                        (6) [9-10]
    S = max of s, anomaly map = Gaussian(upsample(s))                   image score, and where             (7) [11]

G and the discriminator's first layer are both affine, so that one product makes the latter of the features:

    h = W1 q + b1 = (W1 W) o + (W1 b + b1),  h- = W1 q- + b1 = h + W1 epsilon                              (8)

(1) is computed by backbones.embed_patches, (2) and (4) in model.py, (3) in anomalous_features.py, (5) in training.py.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backbones import FeatureExtractor, embed_patches
from backbones.patches import patch_grid
from detection import Detector, MovingAverage, Prediction, Training
from detection.whitening import whitening
from errors import UsageError
from simplenet.anomalous_features import FeatureNoise
from simplenet.model import Adaptor, Discriminator, Member
from simplenet.training import ADAPTOR_LR, Trainer


class SimpleNet(Detector):
    """Frozen backbone, patch embedding, feature adaptor, and a discriminator trained on features with noise.

    Args:
        backbone: where layer maps come from; shared between detectors unless it is trained, then copied.
        layers: the layers read off it; the first gives the patch grid.
        image_size: height and width of the images and maps.
        pretrain_embed_dimension, target_embed_dimension, patchsize: see backbones.embed_patches.
        pre_proj, proj_layer_type: the adaptor's layers and type; see Adaptor.
        dsc_layers, dsc_hidden: see Discriminator.
        noise_std, mix_noise, auto_noise, difference_noise: std, scales, relative std and share; see FeatureNoise.
        dsc_margin, dsc_lr: margin th of the loss and the discriminator's learning rate.
        adaptor_lr: the adaptor's, for weights of the size that they have by default (RMS 1 / sqrt(D)); whitening
            weights of another size learn proportionally faster or slower, so that the scale of features is no matter.
        whiten: above 0, the adaptor's first layer starts as a whitening of this shrinkage; see whitening. It costs a
            pass over the training images.
        ensemble: how many adaptors and discriminators; a patch's score is the mean of theirs. Of several, each trains
            on random quarters of the patches of its own batches; see Trainer.
        ema: above 0, the detector's weights are a moving average of this decay over those that are trained; see
            MovingAverage.
        warm_up_cosine: learning rates rise over the first 30 steps and fall to zero at the last; see Trainer.
        score_top_k: an image's score is the mean of its k highest patch scores; 1 is the paper's maximum (Eq. 11).
        meta_epochs, gan_epochs: fit makes meta_epochs * gan_epochs passes and reports after every gan_epochs.
        cos_lr, aed_meta_epochs: a cosine schedule of (meta_epochs - aed_meta_epochs) * gan_epochs steps.
        train_backbone: also train the backbone, by AdamW.
        align_maps: draw cells where they look; see Detector.
        precision: of embeddings, convolutions and matrix products: float32, bfloat16 or float16.
        seed: of weights and noise.

    Raises:
        UsageError: cos_lr without meta epochs left for the schedule or beside warm_up_cosine, a discriminator that
            shrinks to nothing, whiten without an adaptor, or ema of a backbone that is trained.
    """

    EMBEDDING_OPTIONS: ClassVar = ("pretrain_embed_dimension", "target_embed_dimension", "patchsize", "align_maps")
    COUNTS: ClassVar = ("ensemble", "pre_proj", "dsc_layers")

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
        difference_noise: float = 0.0,
        dsc_margin: float = 0.8,
        dsc_lr: float = 0.0002,
        adaptor_lr: float = ADAPTOR_LR,
        meta_epochs: int = 1,
        gan_epochs: int = 1,
        cos_lr: bool = False,
        aed_meta_epochs: int = 1,
        train_backbone: bool = False,
        whiten: float = 0.0,
        ensemble: int = 1,
        ema: float = 0.0,
        warm_up_cosine: bool = False,
        score_top_k: int = 1,
        align_maps: bool = False,
        precision: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        super().__init__(
            backbone,
            layers,
            image_size,
            meta_epochs=meta_epochs,
            precision=precision,
            seed=seed,
            train_backbone=train_backbone,
            align_maps=align_maps,
            cell_shift=0.0 if patchsize % 2 else 0.5,
        )
        if cos_lr and meta_epochs <= aed_meta_epochs:
            raise UsageError(
                f"cos_lr needs more meta_epochs than aed_meta_epochs, not {meta_epochs} and {aed_meta_epochs}"
            )
        if cos_lr and warm_up_cosine:
            raise UsageError("cos_lr and warm_up_cosine are two schedules of the learning rate: choose one")
        if whiten > 0 and pre_proj == 0:
            raise UsageError("whiten sets the feature adaptor's weights: pre_proj must be 1 or more, not 0")
        if ema > 0 and train_backbone:
            raise UsageError("ema averages no backbone: set it to 0 where the backbone is trained")
        self.pretrain_embed_dimension = pretrain_embed_dimension
        self.target_embed_dimension = target_embed_dimension
        self.patchsize = patchsize
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.members = nn.ModuleList(
                Member(
                    Adaptor(target_embed_dimension, pre_proj, proj_layer_type),
                    Discriminator(target_embed_dimension, dsc_layers, dsc_hidden),
                )
                for _ in range(ensemble)
            )
        self.noise = FeatureNoise(noise_std, mix_noise, auto_noise, difference_noise)
        self.dsc_margin = dsc_margin
        self.dsc_lr = dsc_lr
        self.adaptor_lr = adaptor_lr
        self.gan_epochs = gan_epochs
        self.cosine_epochs = (meta_epochs - aed_meta_epochs) * gan_epochs if cos_lr else 0
        self.whiten = whiten
        self.ema = ema
        self.warm_up_cosine = warm_up_cosine
        self.score_top_k = score_top_k

    def passes_after(self, meta_epochs: int) -> int:
        """meta_epochs * gan_epochs, and one for whitening."""
        return meta_epochs * self.gan_epochs + (self.whiten > 0)

    def training_on(self, embeddings: Iterable[Tensor], state: dict[str, Any] | None = None) -> Training:
        """As in Detector; whitening reads the embeddings once more, before the first epoch."""
        adaptor_lr = self.adaptor_lr
        if self.whiten > 0 and state is None:
            weight, bias = whitening(embeddings, self.whiten)
            for member in self.members:
                member.adaptor.layers[0].load_state_dict({"weight": weight, "bias": bias})
            adaptor_lr *= (weight.square().mean() * len(weight)).sqrt().item()
        trained = copy.deepcopy(self.members).train() if self.ema > 0 else self.members
        average = MovingAverage(self.members, trained, self.ema) if self.ema > 0 else None
        trainer = Trainer(
            trained,
            self.noise,
            self.dsc_margin,
            self.dsc_lr,
            adaptor_lr,
            self.cosine_epochs,
            self.meta_epochs * self.gan_epochs * len(embeddings) if self.warm_up_cosine else 0,
            self.seed,
            self.precision,
            self._backbone_parameters(),
            average,
        )
        training = Training(self, trainer, embeddings, self.meta_epochs, self.gan_epochs)
        if state is not None:
            training.load_state_dict(state)
        return training

    def features(self, images: Tensor) -> Tensor:
        """Patch features o (1) of images [B, 3, H, W]: [B, H1, W1, D]."""
        maps = self.backbone(images, self.layers)  # one [B, C_l, H_l, W_l] per layer
        embeddings = embed_patches(  # [B, H1 W1, D]
            maps, self.pretrain_embed_dimension, self.target_embed_dimension, self.patchsize, self.alignment
        )
        return embeddings.unflatten(1, patch_grid((maps[0].shape[-2], maps[0].shape[-1]), self.patchsize))

    def forward(self, embeddings: Tensor) -> Prediction:
        """Image scores [B] and anomaly maps [B, H, W] (7)."""
        patch_scores = self.patch_scores(embeddings).float()
        return Prediction(self.image_scores(patch_scores), self.drawn(patch_scores))

    def patch_scores(self, embeddings: Tensor) -> Tensor:
        """s (6) of patch features [B, H1, W1, D], the mean over the members: [B, H1, W1]."""
        features = embeddings.flatten(0, 2)  # [N, D]
        scores = torch.stack([member(features) for member in self.members])  # [members, N, 1]
        return -scores.mean(dim=0).view(embeddings.shape[:3])

    def image_scores(self, patch_scores: Tensor) -> Tensor:
        """S (7) of patch scores [B, H1, W1]: the mean of the score_top_k highest, of all where there are fewer; [B]."""
        flat = patch_scores.flatten(1)
        return flat.topk(min(self.score_top_k, flat.shape[1]), dim=1).values.mean(dim=1)

    def half(self) -> "SimpleNet":
        """As in nn.Module, but for what scores are made by: the few digits of float16 would tie patches."""
        super().half()
        for member in self.members:
            member.discriminator.tail.float()
        return self

    def check(self) -> None:
        """Raises UsageError where the patches do not fit a layer."""
        for info in self.backbone.layer_info(self.layers, self.image_size):
            if min(patch_grid(info.grid, self.patchsize)) < 1:
                size = f"{info.grid[0]} x {info.grid[1]}"
                raise UsageError(f"--patchsize {self.patchsize} does not fit layer {info.name}, which is {size}")

    def _backbone_parameters(self) -> list[nn.Parameter]:
        if not self.train_backbone:
            return []
        network = self.backbone.build(self.layers, self.image_size, self.device)
        return list(network.requires_grad_(True).parameters())
