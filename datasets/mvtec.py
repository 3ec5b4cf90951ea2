"""MVTec AD (Bergmann et al., CVPR 2019): CLASS/train/good, CLASS/test/TYPE, CLASS/ground_truth/TYPE/NAME_mask.png."""

from datasets.class_folders import ClassFolders
from datasets.sample import DatasetReader

FOLDERS = ClassFolders()
MVTEC = DatasetReader(
    "mvtec",
    "MVTec AD and data in its layout: DATA_PATH/CLASS/train/good, test/TYPE, ground_truth/TYPE",
    FOLDERS.layout,
    FOLDERS.find_classes,
    FOLDERS.read_class,
)
