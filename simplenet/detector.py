"""SimpleNet: fit on normal images, predict scores and anomaly maps (Liu et al., CVPR 2023, arXiv 2303.15140)."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from backbones import FeatureExtractor, embed_patches
from backbones.patches import patch_grid
from errors import UsageError
from simplenet.anomalous_features import FeatureNoise
from simplenet.anomaly_map import anomaly_maps
from simplenet.model import Adaptor, Discriminator, Member, whitening
from simplenet.training import ADAPTOR_LR, EpochStats, MovingAverage, Trainer, Training, autocast


class Prediction(NamedTuple):
    """Image scores [B] and anomaly maps [B, H, W], float32; higher is more anomalous."""

    scores: Tensor
    maps: Tensor


class SimpleNet(nn.Module):
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
        precision: of embeddings, convolutions and matrix products: float32, bfloat16 or float16.
        seed: of weights and noise.

    Raises:
        UsageError: cos_lr without meta epochs left for the schedule or beside warm_up_cosine, a discriminator that
            shrinks to nothing, whiten without an adaptor, or ema of a backbone that is trained.
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
        precision: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        super().__init__()
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
        self.backbone = copy.deepcopy(backbone) if train_backbone else backbone
        self.layers = list(layers)
        self.image_size = image_size
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
        self.meta_epochs = meta_epochs
        self.gan_epochs = gan_epochs
        self.cosine_epochs = (meta_epochs - aed_meta_epochs) * gan_epochs if cos_lr else 0
        self.train_backbone = train_backbone
        self.whiten = whiten
        self.ema = ema
        self.warm_up_cosine = warm_up_cosine
        self.score_top_k = score_top_k
        self.precision = precision
        self.seed = seed

    @property
    def passes(self) -> int:
        """How many times fit goes over the training images."""
        return self.meta_epochs * self.gan_epochs + (self.whiten > 0)

    @property
    def device(self) -> torch.device:
        return next(self.members.parameters()).device

    def fit(self, images: Iterable[Tensor], on_epoch: Callable[[EpochStats], None] | None = None) -> None:
        """Train on normal images.

        Args:
            images: batches [B, 3, H, W], normalised; iterated `passes` times. It must have a length for warm_up_cosine.
            on_epoch: called after every meta epoch, with the detector in eval mode; it may call predict.

        Raises:
            DataError: the loss is not finite any more, found at the end of a pass.
        """
        self.fit_embeddings(_Mapped(self.embed, images), on_epoch)

    def fit_embeddings(
        self, embeddings: Iterable[Tensor], on_epoch: Callable[[EpochStats], None] | None = None
    ) -> None:
        """Train as fit does, on batches of what embed gives for normal images: [B, H1, W1, D]."""
        for stats in self.training_on(embeddings):
            if on_epoch is not None:
                on_epoch(stats)

    def training_on(self, embeddings: Iterable[Tensor], state: dict[str, Any] | None = None) -> Training:
        """The meta epochs that fit_embeddings makes, to iterate over.

        Args:
            embeddings: as of fit_embeddings; whitening reads them once more, before the first epoch.
            state: of an earlier Training with the same options, to go on from.
        """
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
        )
        training = Training(self, trainer, average, embeddings, self.meta_epochs, self.gan_epochs)
        if state is not None:
            training.load_state_dict(state)
        return training

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
        """Scores and maps of patch embeddings [B, H1, W1, D]."""
        self.eval()
        with autocast(self.device, self.precision):
            patch_scores = self.patch_scores(embeddings.to(self.precision)).float()
        return Prediction(self.image_scores(patch_scores), anomaly_maps(patch_scores, self.image_size))

    def patch_scores(self, embeddings: Tensor) -> Tensor:
        """s = -D(G(o)) (Eq. 9) of patch embeddings [B, H1, W1, D], the mean over the members: [B, H1, W1]."""
        features = embeddings.flatten(0, 2)
        scores = torch.stack([member(features) for member in self.members])
        return -scores.mean(dim=0).view(embeddings.shape[:3])

    def image_scores(self, patch_scores: Tensor) -> Tensor:
        """The mean of an image's score_top_k highest patch scores [B, H1, W1], of all where it has fewer: [B]."""
        flat = patch_scores.flatten(1)
        return flat.topk(min(self.score_top_k, flat.shape[1]), dim=1).values.mean(dim=1)

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
    """A function's results over something that can be iterated more than once, of its length."""

    def __init__(self, function: Callable[[Tensor], Tensor], items: Iterable[Tensor]) -> None:
        self.function = function
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.function, self.items)
