"""MVTec AD (Bergmann et al., CVPR 2019): CLASS/train/good, CLASS/test/TYPE, CLASS/ground_truth/TYPE/NAME_mask.png."""

from datasets.class_folders import ClassFolders
from datasets.sample import DatasetReader

FOLDERS = ClassFolders()
MVTEC = DatasetReader("mvtec", FOLDERS.layout, FOLDERS.find_classes, FOLDERS.read_class)
