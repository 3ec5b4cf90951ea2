"""The face of a detector: it learns what a backbone sees in normal images, and predicts scores and maps of others."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backbones import INPUT, PIXELS, Alignment, FeatureExtractor, Features, Masked
from backbones.devices import to_device
from backbones.features import in_type
from datasets import unpacked
from detection.anomaly_map import anomaly_maps
from detection.interest import blanked, of_interest, unmasked
from detection.light import Light
from detection.precision import autocast
from detection.prediction import Prediction
from detection.state import Sizes, backbone_alone, require_batch, resize, without_backbone
from detection.training import EpochStats, Mapped, Normal, Passes, Trainer, Training
from errors import UsageError
from options import check

LARGEST_EXPORT = 2**31 - 2**27  # bytes: of a Protobuf message, without room for the networks


class Detector(nn.Module):
    """A backbone, and what is learned of its features of normal images.

    Training and prediction come in two halves, so that a feature bank can stand between: embed, and what follows it.
    A subclass says what it reads off the backbone (features), how it predicts from that (forward), and how it learns:
    of all embeddings at once before the first step (begin), by steps (trainer), of all embeddings at once before it
    predicts (settle), or by some of these; and how often that goes over the samples (passes_of).

    Args:
        backbone: where layer maps come from; shared between detectors unless it is trained, then copied.
        layers: the layers read off it; the first gives the patch grid.
        image_size: height and width of the images and maps.
        precision: of embeddings, convolutions and matrix products: float32, bfloat16 or float16.
        seed: of weights and all that is random in training.
        classes: how many it is trained on; of a JOINT one its options say it.
        options: fields of Options, by name; the others have their defaults.

    Attributes:
        options: an instance of Options.
        light: what matches the light of images; None where nothing does. It is learned before anything is embedded.

    Raises:
        UsageError: an option out of its range, or options that do not go together or with the backbone.
    """

    Options: ClassVar[type]  # the frozen dataclass of its options; what they are is said there alone
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})  # other defaults, dataset's too, by name
    DATASET_DEFAULTS: ClassVar[Mapping[str, Any]] = MappingProxyType({})  # of dataset's options behind this detector
    BEFORE: ClassVar[Mapping[str, Any]] = MappingProxyType({})  # of models older than an option, where not its default
    JOINT: ClassVar[bool] = False  # it tells the classes and data sets apart that one model learns, tables among them
    NEEDS_BACKBONE: ClassVar[bool] = True  # if not, it reads pixels
    NEEDS_GRADIENTS: ClassVar[bool] = False  # also when it predicts
    READS_SEVERAL: ClassVar[bool] = False  # one model reads all backbones that are named; if not, there is one of each
    part = 0  # of the classes it is trained on, which it embeds and predicts

    def __init__(
        self,
        backbone: FeatureExtractor,
        layers: Sequence[str],
        image_size: tuple[int, int],
        *,
        precision: torch.dtype = torch.float32,
        seed: int = 0,
        classes: int = 1,
        **options: Any,
    ) -> None:
        super().__init__()
        self.options = self.Options(**options)
        check(self.options)
        self.backbone = copy.deepcopy(backbone) if self.train_backbone else backbone
        self.layers = list(layers)
        self.image_size = image_size
        self.precision = precision
        self.seed = seed
        self.register_buffer("_place", torch.empty(0), persistent=False)  # goes along to devices
        self.light = Light.of(self.options, len(self.options.columns) if self.JOINT else classes)
        infos = backbone.layer_info(layers, image_size) if self.draws_aligned else []
        self._alignment = Alignment(infos, self.cell_shift) if infos else None

    @classmethod
    def backbones_of(
        cls, options: Mapping[str, Any], names: tuple[str, ...], layers: tuple[str, ...]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The backbones and layers that are read where the command line says these; pixels where none is needed.

        Raises:
            UsageError: they contradict the options, or none is needed.
        """
        of_pixels = (PIXELS,), (INPUT,)
        if cls.NEEDS_BACKBONE or (names, layers) == of_pixels:
            return names, layers
        if names or layers:
            raise UsageError("this detector reads pixels, and no backbone: leave out -b and -le")
        return of_pixels

    @classmethod
    def variant(cls, options: Mapping[str, Any]) -> "type[Detector]":
        """The class that is built where these options are asked for; here this one."""
        return cls

    @classmethod
    def options_of_class(cls, options: Mapping[str, Any], class_name: str) -> Mapping[str, Any]:
        """What is taken, by a class's name, for options that the command line leaves open; here there are none."""
        return {}

    @property
    def meta_epochs(self) -> int:
        """How often training reports, at least once: without steps, when the detector has settled."""
        return max(1, getattr(self.options, "epochs", 0))

    @property
    def train_backbone(self) -> bool:
        """Whether the backbone learns too."""
        return False

    @property
    def draws_aligned(self) -> bool:
        """Whether the cells of each layer are drawn where they look; see Alignment."""
        return getattr(self.options, "align_maps", False)

    @property
    def sized_by_data(self) -> Mapping[str, Sizes]:
        """The buffers whose size the data decide, by name, such as {"memory": (range(1, 10_001), 64)}."""
        return {}

    @property
    def not_exported(self) -> str:
        """Why it cannot be exported, such as "it searches in host memory"; empty where it can."""
        return "it needs gradients to predict" if self.NEEDS_GRADIENTS else ""

    @property
    def not_masked(self) -> str:
        """Why it cannot leave parts of images out, such as "it reads whole spectra"; empty where it can."""
        return "" if self.light is None else "--match_light looks at the light of whole images: leave it out"

    @property
    def notes(self) -> Sequence[str]:
        """What a user should know of its options before it trains, a line each; here nothing."""
        return ()

    @property
    def cell_shift(self) -> float:
        """Of what is drawn against the layers' cells, in cells."""
        return 0.0

    @property
    def alignment(self) -> Alignment | None:
        """Where the layers' cells look, where maps are drawn by that; found out on first use."""
        if self._alignment is not None and not self._alignment.is_final:
            self._alignment.finish(self.backbone.centres(self.layers, self.image_size, self.device))
        return self._alignment

    def drawn(self, scores: Tensor) -> Tensor:
        """Scores [B, h, w] on the first layer's grid as anomaly maps [B, H, W]; see anomaly_maps."""
        return anomaly_maps(scores, self.image_size, centres=self.alignment and self.alignment.of(0))

    def features(self, images: Tensor) -> Features:
        """The function that embed evaluates, of images on the detector's device: [B, ...], or several of these.

        Patch embeddings [B, H1, W1, D], or whatever else of every image's layer maps the detector learns from.
        """
        raise NotImplementedError

    def forward(self, embeddings: Features, interest: Tensor | None = None) -> Prediction:
        """The function that score evaluates; it can be traced. Of pixels of interest, bool [B, H, W], are scores."""
        raise NotImplementedError

    def passes_of(self, has_held_out: bool) -> Passes:
        """How often training goes over a class's training samples, of which others are held out or none are.

        Here once in every epoch, if there is an option `epochs` and it is not 0.
        """
        return Passes(steps=int(getattr(self.options, "epochs", 0) > 0))

    def begin(self, *classes: Normal) -> None:
        """Learn what the first step needs of all embeddings at once, such as a whitening; here nothing."""

    def trainer(self, *classes: Normal) -> Trainer:
        """What makes the steps, of a detector that has begun; asked for where there are any."""
        raise NotImplementedError

    def batches(self, *classes: Normal) -> Iterable[Any]:
        """What the trainer makes the steps of a pass from."""
        (own,) = classes
        return own.train

    def settle(self, *classes: Normal) -> Mapping[str, float]:
        """Learn what predictions need of all embeddings at once: memory banks, Gaussians, quantiles; here nothing.

        It follows on the steps of every meta epoch that is evaluated, in eval mode and without gradients.

        Returns:
            What there is to watch, by name.
        """
        return {}

    def learned_from(self, masked: Masked) -> Features:
        """What is learned from of features of samples with parts of no interest; here whole images, blank there."""
        return masked.features

    def training_on(self, *classes: Normal, state: dict[str, Any] | None = None) -> Training:
        """The meta epochs that fit makes, to iterate over.

        Args:
            classes: the embeddings that are learned from; of one class or of several as one, unless it is JOINT.
            state: of an earlier Training with the same options, to go on from.
        """
        classes = [Normal(*(of_interest(self, part) for part in own)) for own in classes]
        if state is None:
            with torch.no_grad():
                self.begin(*classes)
        return Training(self, classes, state)

    def for_part(self, part: int) -> "Detector":
        """This detector as it embeds and predicts one of the classes it is trained on; what it learned is shared."""
        if self.light is None:  # in nothing else do classes differ, unless it is JOINT
            return self
        view = copy.copy(self)
        view.part = part
        return view

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of what is embedded, without the batch: [3, H, W]."""
        return 3, *self.image_size

    @property
    def feature_type(self) -> torch.dtype:
        """What features are kept and computed in; pixels of 8 bits, uint8, are kept as they are."""
        return self.precision

    def check(self) -> None:
        """See that the options fit the backbone's maps, of which no more is computed than their sizes.

        Raises:
            UsageError: they do not.
        """

    @property
    def passes(self) -> int:
        """How many times fit goes over the training images."""
        return self.passes_of(has_held_out=False).after(self.meta_epochs)

    @property
    def device(self) -> torch.device:
        """What it computes on."""
        return self._place.device

    def fit(self, images: Iterable[Tensor], on_epoch: Callable[[EpochStats], None] | None = None) -> None:
        """Train on normal images.

        Args:
            images: batches [B, 3, H, W], normalised; iterated `passes` times, and once more where light is matched. It
                must have a length where rates follow a schedule.
            on_epoch: called after every meta epoch, with the detector in eval mode; it may call predict.

        Raises:
            DataError: the loss is not finite any more, found at the end of a pass.
        """
        if self.light is not None:
            self.light.learn((batch.to(self.device) for batch in images), self.part)
        self.fit_embeddings(Mapped(self.embed, images), on_epoch)

    def fit_embeddings(
        self, embeddings: Iterable[Features], on_epoch: Callable[[EpochStats], None] | None = None
    ) -> None:
        """Train as fit does, on batches of what embed gives for normal images, whose light is learned already."""
        for stats in self.training_on(Normal(embeddings)):
            if on_epoch is not None:
                on_epoch(stats)

    def embed(self, images: Tensor, interest: Tensor | None = None) -> Features:
        """The features of images [B, 3, H, W], of the detector's precision.

        Gradients flow only where the backbone is trained. With a mask of interest, bool [B, H, W], they are Masked.

        Raises:
            ValueError: images of another size or type, or none: the backbone would be built anew for them.
        """
        require_batch(images, self.input_shape)
        images = to_device(images, self.device)
        if interest is not None:
            interest = to_device(interest, self.device)
            images = blanked(images, interest)
        if self.light is not None and images.ndim == 4:
            images = self.light(images, self.part)
        gradients = torch.set_grad_enabled(self.train_backbone and torch.is_grad_enabled())
        with gradients, autocast(self.device, self.feature_type):
            found = in_type(self.features(images), self.feature_type)
        return found if interest is None else Masked(found, interest)

    def embed_read(self, read: Tensor) -> Features:
        """As embed, of what readers give: pixels uint8 [B, 3 or 4, H, W], normalised here; rows as they are."""
        return self.embed(*unpacked(to_device(read, self.device)))

    @torch.no_grad()
    def predict_read(self, read: Tensor) -> Prediction:
        """As predict, of what embed_read takes."""
        self.eval()
        return self.score(self.embed_read(read))

    @torch.no_grad()
    def predict(self, images: Tensor, interest: Tensor | None = None) -> Prediction:
        """Of normalised images [B, 3, H, W], all or what bool [B, H, W] marks of them; raises as embed."""
        self.eval()
        return self.score(self.embed(images, interest))

    def score(self, embeddings: Features) -> Prediction:
        """Scores and maps of what embed gave."""
        self.eval()
        features, interest = unmasked(in_type(embeddings, self.feature_type))
        masks = () if interest is None else (interest,)  # who cannot leave parts out need not take one
        with torch.set_grad_enabled(self.NEEDS_GRADIENTS), autocast(self.device, self.feature_type):
            return self(features, *masks).within(*masks).detached()

    def train(self, mode: bool = True) -> "Detector":
        """As in nn.Module, but a frozen backbone stays in eval mode: its BatchNorm statistics must not move."""
        super().train(mode)
        if mode and not self.train_backbone:
            self.backbone.eval()
        return self

    def learned(self) -> dict[str, nn.Parameter]:
        """The parameters of all but the backbone, by name."""
        return without_backbone(dict(self.named_parameters()))

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As in nn.Module, without the backbone unless it is trained."""
        state = super().state_dict(*args, **kwargs)
        return state if self.train_backbone else without_backbone(state)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in nn.Module, for what state_dict returns; buffers whose size the data decide take the size they have.

        Raises:
            RuntimeError: as in nn.Module, also where that size is none of theirs.
        """
        resize(self, self.sized_by_data, state_dict)
        if self.train_backbone:
            self.backbone.build(self.layers, self.image_size, self.device)
        else:
            state_dict = {**state_dict, **backbone_alone(super().state_dict())}
        return super().load_state_dict(state_dict, strict, assign)
