"""Image folders and tables: each dataset's published layout, read into samples, and samples into batches."""

from datasets.assembly import ASSEMBLY, AssemblyOptions, assembly_reader
from datasets.brightness import LUMA, brightness_of
from datasets.btad import BTAD
from datasets.cifar10 import CIFAR10
from datasets.decode import MAX_PIXELS, Header, Reading, bit_depth_of, declared_size, largest_value, read_image
from datasets.draw import drawn
from datasets.elpv import ELPV
from datasets.folder import FolderNames, folder_reader
from datasets.folders import folders as folders_in
from datasets.folders import images as images_in
from datasets.folders import require_images
from datasets.images import (
    Batch,
    BatchLoader,
    ImageDataset,
    JoinedImages,
    check_headers,
    reader_count,
    remarks_on_masks,
)
from datasets.interest import InterestMasks, digest_of, pixels_of_interest, read_interest, with_interest
from datasets.kept import Kept
from datasets.mpdd import MPDD
from datasets.mtd import MTD
from datasets.mvtec import MVTEC
from datasets.mvtec_loco import MVTEC_LOCO
from datasets.order import Shuffled
from datasets.regions import Defect, read_defects, region_labels
from datasets.root import find_root
from datasets.sample import ClassSamples, DatasetReader, Sample, Saturation, split
from datasets.sdd import SDD
from datasets.sdd2 import SDD2
from datasets.seen import Seen
from datasets.single_tiles import TileDataset
from datasets.sizes import ImageSizes
from datasets.table import TABLE, TableOptions, TableTransform, read_table, read_whole_table, table_reader
from datasets.tiles import Stitch, Tiling, spread
from datasets.transforms import AUGMENT, RANDOM, ImageTransform, RandomTransform, normalised, pixels_of, unpacked
from datasets.video import refuse_video, videos_in
from datasets.visa import VISA

FOLDER = folder_reader(FolderNames())
READERS = (MVTEC, MVTEC_LOCO, MPDD, BTAD, VISA, SDD, SDD2, MTD, CIFAR10, ELPV, ASSEMBLY, FOLDER, TABLE)
DATASETS: dict[str, DatasetReader] = {**{reader.name: reader for reader in READERS}, "mvtecloco": MVTEC_LOCO}

__all__ = [
    "AUGMENT",
    "DATASETS",
    "LUMA",
    "MAX_PIXELS",
    "RANDOM",
    "AssemblyOptions",
    "Batch",
    "BatchLoader",
    "ClassSamples",
    "DatasetReader",
    "Defect",
    "FolderNames",
    "Header",
    "ImageDataset",
    "ImageSizes",
    "ImageTransform",
    "InterestMasks",
    "JoinedImages",
    "Kept",
    "RandomTransform",
    "Reading",
    "Sample",
    "Saturation",
    "Seen",
    "Shuffled",
    "Stitch",
    "TableOptions",
    "TableTransform",
    "TileDataset",
    "Tiling",
    "assembly_reader",
    "bit_depth_of",
    "brightness_of",
    "check_headers",
    "declared_size",
    "digest_of",
    "drawn",
    "find_root",
    "folder_reader",
    "folders_in",
    "images_in",
    "largest_value",
    "normalised",
    "pixels_of",
    "pixels_of_interest",
    "read_defects",
    "read_image",
    "read_interest",
    "read_table",
    "read_whole_table",
    "reader_count",
    "refuse_video",
    "region_labels",
    "remarks_on_masks",
    "require_images",
    "split",
    "spread",
    "table_reader",
    "unpacked",
    "videos_in",
    "with_interest",
]
