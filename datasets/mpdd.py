"""MPDD: painted metal parts (Jezek et al., ICUMT 2021), in the layout of MVTec AD."""

from datasets.class_folders import ClassFolders
from datasets.sample import DatasetReader

FOLDERS = ClassFolders()
MPDD = DatasetReader("mpdd", "MPDD, painted metal parts", FOLDERS.layout, FOLDERS.find_classes, FOLDERS.read_class)
