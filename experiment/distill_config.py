"""What the command line says of a teacher that is made for efficientad."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiment.detector_config import BackboneOptions
from methods.pdn import Size
from options import option


@dataclass(frozen=True)
class DistillConfig:
    """Make a teacher for efficientad, once for all classes: a small network that describes patches as a backbone does.

    \b
      python main.py distill -b wideresnet101 -le layer2 -le layer3 --images IMAGENET --out teacher.pth
    The paper's are these layers, 60,000 steps of 16 images of ImageNet. The same command goes on with what was
    interrupted.
    """

    backbone: BackboneOptions
    images: tuple[Path, ...] = option((), "Of any photographs, also in folders below it; repeatable.", metavar="FOLDER")
    out: Path | None = option(
        None, "The teacher, .pth or .safetensors, which must not be there yet.", metavar="FILE", is_file=True
    )
    steps: int = option(60_000, "How many.", at_least=1)
    lr: float = option(1e-4, "Learning rate of Adam: for fewer steps a higher one.", above=0)
    batch_size: int = option(16, "Images of a step.", at_least=1, at_most=100_000)
    size: Size = option("s", "Of the teacher: the paper's small or medium one.")
    width: float = option(1.0, "Its channels, as a share of the paper's: 0.25 is far faster.", above=0, at_most=4)
    crops: bool = option(False, "Random squares of the images, not the whole: for few and large photographs.")
    seed: int = option(0, "Of the first weights and the order of the images.", at_least=0, at_most=2**32 - 1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "auto: bf16 where the device computes it natively, else fp32."
    )
    gpu: int = option(0, "CUDA device; the CPU is used where there is none.", at_least=0)
    num_workers: int | None = option(
        None, "Threads that read images.", at_least=1, at_most=1000, shown="one per core, 16 at most"
    )
