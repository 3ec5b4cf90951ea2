"""BTAD: beanTech products (Mishra et al., ISIE 2021), classes 01 to 03; ok and ko in place of good and defect types."""

from datasets.class_folders import ClassFolders
from datasets.sample import DatasetReader

FOLDERS = ClassFolders(normal="ok", layout="CLASS/train/ok, CLASS/test/ok, CLASS/test/ko and CLASS/ground_truth/ko")
BTAD = DatasetReader(
    "btad",
    "beanTech, classes 01, 02 and 03",
    FOLDERS.layout,
    FOLDERS.find_classes,
    FOLDERS.read_class,
    resize_mode="square",
)
